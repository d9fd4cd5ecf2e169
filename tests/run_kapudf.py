"""A command of kapudf, run to its end as a person would run it."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from tests.serve_process import KAPUDF, PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def run_kapudf(
    *arguments: str,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    patience_s: float = PATIENCE_S,
) -> subprocess.CompletedProcess[str]:
    """Run it with nothing on stdin; `env` is all of its environment, if not this process's."""
    return subprocess.run(
        [*KAPUDF, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=patience_s,
        env=env,
        cwd=cwd,
        check=False,
    )
