"""Processes that are not a test's own children."""

from __future__ import annotations

from tests.waiting import wait_until


def is_alive(pid: int) -> bool:
    """Return whether a process is there, and has not ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def await_end(pid: int) -> None:
    """Wait until a process has ended, reaped or not."""
    wait_until(lambda: not is_alive(pid))
