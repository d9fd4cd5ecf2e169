"""System calls that hold the interpreter lock (GIL).

Python releases the GIL around a system call, and a handler may then hold it for a second in
C code. A sending thread would wait that long after each call, in the middle of a message,
and with the lock held that keeps the supervisor from sending a heartbeat. None of the calls
here blocks, so there is no need to release the GIL.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from typing import Final

_libc: Final = ctypes.PyDLL(None, use_errno=True)


class _Flock(ctypes.Structure):
    """`struct flock` of fcntl(2)."""

    _fields_ = (
        ("l_type", ctypes.c_short),
        ("l_whence", ctypes.c_short),
        ("l_start", ctypes.c_long),
        ("l_len", ctypes.c_long),
        ("l_pid", ctypes.c_int),
    )


# On Linux, a long is as wide as an off_t and a ssize_t.
_lseek: Final = _libc.lseek
_lseek.argtypes = (ctypes.c_int, ctypes.c_long, ctypes.c_int)
_lseek.restype = ctypes.c_long
_sendfile: Final = _libc.sendfile
_sendfile.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
_sendfile.restype = ctypes.c_long
# Each write makes two of these calls. Without `errno`, which is not needed, and with arguments
# that need no conversion, they take two thirds of the time.
_fcntl: Final = ctypes.PyDLL(None).fcntl
_LOCK: Final = ctypes.byref(_Flock(fcntl.F_WRLCK, os.SEEK_SET))
_UNLOCK: Final = ctypes.byref(_Flock(fcntl.F_UNLCK, os.SEEK_SET))
_SET_LOCK: Final = fcntl.F_SETLK


def try_lock(descriptor: int) -> bool:
    """Lock a file as `fcntl.lockf` does, without waiting; return False if it is locked."""
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
        # Do not keep the error in a variable: its traceback refers to this frame, and the cycle
        # would keep the callers' variables alive until the next full garbage collection.
        if ctypes.get_errno() != errno.EINTR:
            raise _error()


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
