"""Processes that this process has not started, and looks after."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
from typing import Final

#: Of prctl(2).
_PR_SET_CHILD_SUBREAPER: Final = 36
#: The exit status of a process that is no child of this one; no process exits with it.
UNKNOWN_STATUS: Final = 256


def adopt_orphans() -> None:
    """Have descendants whose parent ends become children of this process.

    Raises:
        OSError: the system refuses it (Linux before 3.4).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class AdoptedProcess:
    """A process that another process has forked: a child of this one, or not.

    It has the methods of `subprocess.Popen`, which can only start processes. The exit status of a
    process that is no child is not known: it is `UNKNOWN_STATUS`.
    """

    def __init__(self, pid: int) -> None:
        """Look after the process with this id."""
        self.pid = pid
        self._status: int | None = None
        # A later process may have the same id.
        self._descriptor = -1
        with contextlib.suppress(OSError):
            self._descriptor = os.pidfd_open(pid)

    def __del__(self) -> None:
        """Close the descriptor."""
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while it runs."""
        return self._wait(os.WNOHANG, 0)

    def wait(self) -> int:
        """Wait for its end; return the exit status, negative for a signal."""
        status = self._wait(0, None)
        return UNKNOWN_STATUS if status is None else status

    def _wait(self, options: int, timeout_ms: int | None) -> int | None:
        if self._status is None:
            try:
                pid, status = os.waitpid(self.pid, options)
            except ChildProcessError:
                # It is no child, or SIGCHLD is ignored.
                self._status = UNKNOWN_STATUS if self._has_ended(timeout_ms) else None
            else:
                self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status

    def _has_ended(self, timeout_ms: int | None) -> bool:
        if self._descriptor < 0:
            try:
                os.kill(self.pid, 0)
            except ProcessLookupError:
                return True
            return False
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(timeout_ms))

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is not None:
            return
        if self._descriptor >= 0:
            signal.pidfd_send_signal(self._descriptor, number)
        else:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, unless it has ended."""
        self.send_signal(signal.SIGKILL)
