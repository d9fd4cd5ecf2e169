"""`kapudf` as another version: `python -m tests.peers.other_version serve ...`.

The file $FORMATS has the format that it writes, and then all that it can read, as `2 1 2`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from kapudf_cli.journal import header

if __name__ == "__main__":
    written, *readable = map(int, Path(os.environ["FORMATS"]).read_text("ascii").split())
    made_up: Any = header
    made_up.FORMAT, made_up.READABLE_FORMATS = written, frozenset(readable)

    from kapudf_cli.commands import run

    run()
