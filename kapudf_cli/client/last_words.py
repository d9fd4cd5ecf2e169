"""The line in a dead process's stderr that says why it died."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

#: How the Go runtime and CPython begin the line that says why they end the process. Stacks
#: of any length follow it.
_FATAL: Final = re.compile(r"\s*(panic: |fatal error: |Fatal Python error: )")
_TRACEBACK: Final = "Traceback (most recent call last):"


def is_fatal(line: str) -> bool:
    """Return whether a line says why a runtime ends the process, with stacks to follow."""
    return _FATAL.match(line) is not None


def cause_line(lines: Sequence[str]) -> str:
    """Return the line that says why a process died; empty where there are none.

    That is the `panic:` line of Go, the line with the exception of a Python traceback
    (whichever comes last), or else the last line.
    """
    for number, line in reversed(tuple(enumerate(lines))):
        if is_fatal(line):
            return line.strip()
        if line.startswith(_TRACEBACK):
            # Frames are indented; the exception is the first line that is not.
            below = (each for each in lines[number + 1 :] if not each[:1].isspace())
            if exception := next(below, ""):
                return exception
    return lines[-1].strip() if lines else ""
