"""What faulthandler writes of a process's threads: as much as a log can bear, and whose fault."""

from __future__ import annotations

import re
from typing import Final

#: How many lines are logged.
_LINES: Final = 60
#: How many calls of a thread are named, innermost first.
_CALLS: Final = 5
#: How faulthandler writes a call.
_CALL: Final = re.compile(r'^  File "(.*)", line (\d+) in (.*)$')
#: How faulthandler names the thread that a fault came from.
_FAULTY_THREAD: Final = re.compile(r"^Current thread 0x([0-9a-f]+) ", re.MULTILINE)


def beginning(stacks: str) -> str:
    """Return as much as a log can bear."""
    return "\n".join(stacks.splitlines()[:_LINES])


def faulty_thread(stacks: str) -> int | None:
    """Return the identifier of the thread that a fault came from, None if it does not say."""
    found = _FAULTY_THREAD.search(stacks)
    return None if found is None else int(found[1], 16)


def where(stacks: str, thread: int) -> str:
    """Return the innermost calls of a thread in one line, "" if they are not known."""
    calls: list[str] = []
    is_ours = False
    for line in stacks.splitlines():
        found = _CALL.match(line)
        if found is None:
            is_ours = f"hread 0x{thread:016x} " in line
        elif is_ours and len(calls) < _CALLS:
            file, number, name = found.groups()
            calls.append(f"{name} ({file}:{number})")
    return " < ".join(calls)
