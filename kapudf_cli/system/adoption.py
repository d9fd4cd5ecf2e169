"""Children that another process has forked, and that this process adopts."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Final

#: Of prctl(2).
_PR_SET_CHILD_SUBREAPER: Final = 36


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
    """A child process that another process has forked.

    It has the methods of `subprocess.Popen`, which can only start processes.
    """

    def __init__(self, pid: int) -> None:
        """Look after the child with this process id."""
        self.pid = pid
        self._status: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while it runs."""
        return self._wait(os.WNOHANG)

    def wait(self) -> int:
        """Wait for its end; return the exit status, negative for a signal."""
        status = self._wait(0)
        return 0 if status is None else status

    def _wait(self, options: int) -> int | None:
        if self._status is None:
            try:
                pid, status = os.waitpid(self.pid, options)
            except ChildProcessError:
                self._status = 0  # Its status is lost, as where SIGCHLD is ignored.
            else:
                self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, unless it has ended."""
        self.send_signal(signal.SIGKILL)
