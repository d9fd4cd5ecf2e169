"""What the journal needs from Linux: a count of the bytes read, and system calls that hold the GIL.

**The read count.** A worker may die after a read and before it has recorded how much it read.
The kernel still knows: the peek offset of a socket, SO_PEEK_OFF (socket(7)), decreases by each
byte that is read. Set to a high value and never used for peeking, it counts what was read. It
belongs to the connection, not to a process.

**System calls.** Python releases its interpreter lock (GIL) around a system call, and a handler
may then hold it for a second in C code. A sending thread would wait that long after each call, in
the middle of a message, and with the lock held that keeps the supervisor from sending a
heartbeat. None of the calls here blocks, so there is no need to release the GIL.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from kapudf_cli.journal.header import Header

#: The number on nearly all processors; older versions of Python have no name for it.
_SO_PEEK_OFF: Final = getattr(socket, "SO_PEEK_OFF", 42)
#: The highest offset that the kernel takes, a signed 32-bit number.
_HIGHEST: Final = 2**31 - 1
#: Reset the offset after so many bytes, long before it reaches 0.
_RESET_AFTER_BYTES: Final = 2**30
_NO_RESET: Final = -1


# --- the read count ---


def counts_reads() -> bool:
    """Return whether this kernel counts reads; Linux since 3.4 does, some emulations do not."""
    if not hasattr(os, "memfd_create"):
        return False
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            _set_peek_offset(ours, _HIGHEST)
            theirs.sendall(b"counted")
            ours.recv(3)
            return _HIGHEST - _peek_offset(ours) == 3  # noqa: PLR2004 - what was read
        except OSError:
            return False


def is_unread(connection: socket.socket) -> bool:
    """Return whether nothing was read from a connection, by any process."""
    return _peek_offset(connection) in {-1, _HIGHEST}


def begin_read_count(connection: socket.socket, header: Header) -> None:
    """Start to count; nothing may have been read yet."""
    header.peek_base = 0
    header.peek_reset = _NO_RESET
    _set_peek_offset(connection, _HIGHEST)


def read_count(connection: socket.socket, header: Header) -> int:
    """Return how many bytes were read since `begin_read_count`, by any process."""
    if header.peek_reset != _NO_RESET:
        # A worker died during a reset, and has read nothing since.
        _finish_reset(connection, header)
    return header.peek_base + _HIGHEST - _peek_offset(connection)


def keep_read_count_high(connection: socket.socket, header: Header, received: int) -> int:
    """Reset the offset if that is due; `received` is the total.

    Returns:
        The total at which the next reset is due.
    """
    if received - header.peek_base >= _RESET_AFTER_BYTES:
        header.peek_reset = received
        _finish_reset(connection, header)
    return header.peek_base + _RESET_AFTER_BYTES


def _finish_reset(connection: socket.socket, header: Header) -> None:
    _set_peek_offset(connection, _HIGHEST)
    header.peek_base = header.peek_reset
    header.peek_reset = _NO_RESET


def _peek_offset(connection: socket.socket) -> int:
    return connection.getsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF)


def _set_peek_offset(connection: socket.socket, offset: int) -> None:
    connection.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, offset)


# --- system calls that hold the GIL ---

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
