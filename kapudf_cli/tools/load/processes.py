"""What a UDF's processes cost: processor time and memory, as /proc tells."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Places in /proc/PID/stat, counted from after the command's name; see proc(5).
_PARENT = 1
_USER, _SYSTEM, _CHILDREN_USER, _CHILDREN_SYSTEM = 11, 12, 13, 14


def tree(pids: Iterable[int]) -> set[int]:
    """Return processes with all their descendants that live."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        fields = _stat(int(name)) if name.isdecimal() else None
        if fields:
            children.setdefault(int(fields[_PARENT]), []).append(int(name))
    found: set[int] = set()
    waiting = list(pids)
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting += children.get(pid, ())
    return found


def cpu_s(pids: Iterable[int]) -> float:
    """Return the processor time that processes have used, in seconds.

    Children that have ended, and were waited for, are in it.
    """
    places = (_USER, _SYSTEM, _CHILDREN_USER, _CHILDREN_SYSTEM)
    ticks = sum(int(fields[place]) for pid in pids if (fields := _stat(pid)) for place in places)
    return ticks / os.sysconf("SC_CLK_TCK")


def rss_bytes(pids: Iterable[int]) -> int:
    """Return the memory that processes have resident, in bytes."""
    pages = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            pages += int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _stat(pid: int) -> list[str] | None:
    """Return what /proc/PID/stat has after the command's name, None for a process that is gone."""
    try:
        # A command may be called anything.
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()
