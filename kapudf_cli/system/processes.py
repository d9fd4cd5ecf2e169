"""This process and others: limits, memory, processor time and descendants."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import resource
import signal
import time
from typing import TYPE_CHECKING, Final

from kapudf_cli.errors import describe

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Of prctl(2).
_PR_SET_PDEATHSIG: Final = 1
#: Indexes into the fields of /proc/PID/stat that follow the command's name; see proc(5).
_STATE, _PARENT = 0, 1
_USER, _SYSTEM, _CHILDREN_USER, _CHILDREN_SYSTEM = 11, 12, 13, 14
_STARTED = 19


def tree(pids: Iterable[int]) -> set[int]:
    """Return the processes and all their living descendants."""
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

    It includes the time of children that have exited and been waited for.
    """
    places = (_USER, _SYSTEM, _CHILDREN_USER, _CHILDREN_SYSTEM)
    ticks = sum(int(fields[place]) for pid in pids if (fields := _stat(pid)) for place in places)
    return ticks / os.sysconf("SC_CLK_TCK")


def rss_bytes(pid: int) -> int:
    """Return the resident memory of a process, shared memory included; 0 if it has exited.

    It is 0, too, if no descriptor is left to read it with.
    """
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def start_ticks(pid: int) -> int:
    """Return when a process was started, in clock ticks since the machine was; 0 if it is gone.

    With the process id, it identifies a process: the id alone may be used again.
    """
    fields = _stat(pid)
    return 0 if fields is None else int(fields[_STARTED])


def age_s(started_ticks: int) -> float:
    """Return how long ago a process was started, in seconds; see `start_ticks`."""
    now_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    return max(now_s - started_ticks / os.sysconf("SC_CLK_TCK"), 0.0)


def is_stopped(pid: int) -> bool:
    """Return whether a signal or a debugger has stopped a process."""
    fields = _stat(pid)
    return fields is not None and fields[_STATE] in {"T", "t"}


def _stat(pid: int) -> list[str] | None:
    """Return the fields after the command's name in /proc/PID/stat, None if the process is gone."""
    try:
        # The name of a command may hold any bytes.
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()
    except OSError:
        return None


def ignore_stop_signals() -> None:
    """Ignore what a terminal or systemd sends to all processes; the parent ends this one."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, whatever it does then."""
    with contextlib.suppress(OSError, AttributeError):  # Not on Linux.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


@functools.cache
def working_folder() -> str:
    """Return the path of the working folder, as it was at the first call.

    A shell keeps the path through which it entered a folder in PWD. If that path is a symbolic
    link, a deployment may later point it at another folder, and a reload must follow it.
    """
    name = os.environ.get("PWD", "")
    try:
        if os.path.isabs(name) and os.path.samefile(name, "."):
            return name
        return os.getcwd()
    except OSError:
        return "."


def raise_descriptor_limit() -> None:
    """Raise the descriptor limit of this process and its children to the hard limit.

    A connection takes five in a worker and three in the supervisor. The usual soft limit of
    1024 is for programs that use select(2); systemd's documentation of LimitNOFILE=
    advises others to raise it like this.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def explain_limit(error: Exception) -> str:
    """Return the text of an error, with the limit of this process that may have caused it."""
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, MemoryError):
        number = errno.ENOMEM
    causes = {
        errno.ENOMEM: (resource.RLIMIT_AS, "RLIMIT_AS", "bytes"),
        errno.EFBIG: (resource.RLIMIT_FSIZE, "RLIMIT_FSIZE", "bytes"),
        errno.EMFILE: (resource.RLIMIT_NOFILE, "RLIMIT_NOFILE", "descriptors"),
    }
    if number in causes:
        limit, name, unit = causes[number]
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY:
            return f"{describe(error)} ({name} is {soft} {unit})"
    return str(error) or describe(error)
