"""The kernel's count of the bytes that were read from a socket.

A worker may die after a read and before it has recorded how much it read. The kernel still
knows: the peek offset of a socket, SO_PEEK_OFF (socket(7)), decreases by each byte that is
read. Set to a high value and never used for peeking, it counts what was read. It belongs to
the connection, not to a process.
"""

from __future__ import annotations

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


def is_supported() -> bool:
    """Return whether this kernel counts; Linux since 3.4 does, some emulations do not."""
    if not hasattr(os, "memfd_create"):
        return False
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            _set(ours, _HIGHEST)
            theirs.sendall(b"counted")
            ours.recv(3)
            return _HIGHEST - _get(ours) == 3  # noqa: PLR2004 - what was read
        except OSError:
            return False


def begin(connection: socket.socket, header: Header) -> None:
    """Start to count; nothing may have been read yet."""
    header.peek_base = 0
    header.peek_reset = _NO_RESET
    _set(connection, _HIGHEST)


def total(connection: socket.socket, header: Header) -> int:
    """Return how many bytes were read since `begin`, by any process."""
    if header.peek_reset != _NO_RESET:
        # A worker died during a reset, and has read nothing since.
        _finish_reset(connection, header)
    return header.peek_base + _HIGHEST - _get(connection)


def keep_high(connection: socket.socket, header: Header, received: int) -> int:
    """Reset the offset if that is due; `received` is the total.

    Returns:
        The total at which the next reset is due.
    """
    if received - header.peek_base >= _RESET_AFTER_BYTES:
        header.peek_reset = received
        _finish_reset(connection, header)
    return header.peek_base + _RESET_AFTER_BYTES


def _finish_reset(connection: socket.socket, header: Header) -> None:
    _set(connection, _HIGHEST)
    header.peek_base = header.peek_reset
    header.peek_reset = _NO_RESET


def _get(connection: socket.socket) -> int:
    return connection.getsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF)


def _set(connection: socket.socket, offset: int) -> None:
    connection.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, offset)
