"""What the journal needs from Linux: a read count, a send that holds the GIL, and barriers.

**The read count.** A worker may die after a read and before it has recorded how much it read.
The kernel still knows: the peek offset of a socket, SO_PEEK_OFF (socket(7)), decreases by each
byte that is read. Set to a high value and never used for peeking, it counts what was read. It
belongs to the connection, not to a process.

**Sending.** Python releases its interpreter lock (GIL) around a system call, and a handler may
then hold it for a second in C code. A sending thread would wait that long after each call, in the
middle of a message. The call here does not block, so there is no need to release the GIL.

**Barriers.** A processor may delay a store until after a later load. Two processes that each store
one word of shared memory and then load the other's may both load old values. membarrier(2)
prevents that, and takes time only in the process that calls it.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
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


# --- system calls without Python's own functions ---

_libc: Final = ctypes.PyDLL(None)
# With declared types and `errno`, a call would take half as long again. So all numbers must fit
# into a C int, and a call that fails is repeated with Python's own function, which raises.
_sendfile: Final = _libc.sendfile
_MOST_BYTES: Final = 2**30


def send_file(connection: int, file: int, count: int) -> int:
    """Send from an open file's position, as `os.sendfile` does; the socket must not block.

    Raises:
        OSError: as the socket does; BlockingIOError if it has no room.
    """
    sent: int = _sendfile(connection, file, None, min(count, _MOST_BYTES))
    return sent if sent >= 0 else os.sendfile(connection, file, None, count)


#: The number of membarrier(2) on 64-bit processors; Python has no function for it.
_MEMBARRIER: Final = {"x86_64": 324, "aarch64": 283, "riscv64": 283}.get(os.uname().machine)
#: Commands of membarrier(2), "global expedited".
_BARRIER: Final = 1 << 1
_REGISTER: Final = 1 << 2


def _membarrier(command: int) -> bool:
    if _MEMBARRIER is None or sys.maxsize < 2**32:
        return False
    return bool(_libc.syscall(_MEMBARRIER, command, 0, 0) == 0)


def take_part_in_barriers() -> bool:
    """Have `barrier` of other processes apply to this one; return whether the system can."""
    return _membarrier(_REGISTER)


def barrier() -> bool:
    """Order the loads and stores of all processes that take part; return whether the system can.

    This process then sees what they stored before the barrier, and they see after it what this
    process stored.
    """
    return _membarrier(_BARRIER)
