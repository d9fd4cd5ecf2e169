"""What faulthandler writes of a process's threads: as much as a log can bear, and whose fault."""

from __future__ import annotations

import re
from typing import Final

#: How many lines are logged.
_LINES: Final = 60
#: How faulthandler names the thread that a fault came from.
_FAULTY_THREAD: Final = re.compile(r"^Current thread 0x([0-9a-f]+) ", re.MULTILINE)


def beginning(stacks: str) -> str:
    """Return as much as a log can bear."""
    return "\n".join(stacks.splitlines()[:_LINES])


def faulty_thread(stacks: str) -> int | None:
    """Return the identifier of the thread that a fault came from, None if it does not say."""
    found = _FAULTY_THREAD.search(stacks)
    return None if found is None else int(found[1], 16)
