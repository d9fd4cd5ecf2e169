"""System calls that keep the interpreter while they are made.

Python lets go of the interpreter around a system call, and whoever takes it then may be a
handler that keeps it for a second in C. A thread that sends would wait so after each of
its calls, with the lock held that keeps the supervisor from sending a heartbeat, and a
message half sent. None of these calls waits for anything, so there is no need to let go.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from typing import Final

_libc: Final = ctypes.PyDLL(None, use_errno=True)


class _Flock(ctypes.Structure):
    """A lock of fcntl(2), `struct flock`."""

    _fields_ = (
        ("l_type", ctypes.c_short),
        ("l_whence", ctypes.c_short),
        ("l_start", ctypes.c_long),
        ("l_len", ctypes.c_long),
        ("l_pid", ctypes.c_int),
    )


# A long is as wide as an off_t and as a ssize_t, on Linux.
_lseek: Final = _libc.lseek
_lseek.argtypes = (ctypes.c_int, ctypes.c_long, ctypes.c_int)
_lseek.restype = ctypes.c_long
_sendfile: Final = _libc.sendfile
_sendfile.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
_sendfile.restype = ctypes.c_long
# A failure of this one needs no reason, and each write makes two calls: without `errno`, and
# with arguments that need no conversion, they take two thirds of the time.
_fcntl: Final = ctypes.PyDLL(None).fcntl
_LOCK: Final = ctypes.byref(_Flock(fcntl.F_WRLCK, os.SEEK_SET))
_UNLOCK: Final = ctypes.byref(_Flock(fcntl.F_UNLCK, os.SEEK_SET))
_SET_LOCK: Final = fcntl.F_SETLK


def try_lock(descriptor: int) -> bool:
    """Lock a file, as `fcntl.lockf` does; return whether nobody else has it."""
    return bool(_fcntl(descriptor, _SET_LOCK, _LOCK) == 0)


def unlock(descriptor: int) -> None:
    """Unlock a file that this process has locked."""
    _fcntl(descriptor, _SET_LOCK, _UNLOCK)


def seek(descriptor: int, offset: int, whence: int) -> int:
    """Move an open file's position and return it, as `os.lseek` does.

    Raises:
        OSError: it cannot be moved there.
    """
    position: int = _lseek(descriptor, offset, whence)
    if position < 0:
        raise _error()
    return position


def send_file(connection: int, file: int, count: int) -> int:
    """Send from an open file's position, as `os.sendfile` does; the socket must not block.

    Raises:
        OSError: as the socket does; BlockingIOError if it has no room.
    """
    while True:
        sent: int = _sendfile(connection, file, None, count)
        if sent >= 0:
            return sent
        # The error is in no variable here: its traceback holds this frame, and a cycle of the
        # two would hold what all callers have in hand, until the next full collection.
        if ctypes.get_errno() != errno.EINTR:
            raise _error()


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
