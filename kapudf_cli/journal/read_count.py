"""The kernel's own count of the bytes that were read from a socket.

A worker that dies between a read and the note that it has read leaves nobody who knows
how much is gone from the socket. But the kernel knows: a socket's offset for peeking,
SO_PEEK_OFF (socket(7)), goes down by each byte that is read. Set high and never used for
peeking, it counts what was read, and it belongs to the connection, not to a process.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from kapudf_cli.journal.header import Header

#: Linux's number on all but a few rare processors; Python has no name for it.
_SO_PEEK_OFF: Final = getattr(socket, "SO_PEEK_OFF", 42)
#: The highest offset that the kernel takes, a signed 32-bit number.
_HIGHEST: Final = 2**31 - 1
#: Set high again after so much, long before the offset would stop at 0.
_RESET_AFTER_BYTES: Final = 2**30
_NO_RESET: Final = -1


def is_supported() -> bool:
    """Return whether this kernel counts so; Linux since 3.4 does, some stand-ins for it do not."""
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
    """Count from here on; nothing may have been read yet."""
    header.peek_base = 0
    header.peek_reset = _NO_RESET
    _set(connection, _HIGHEST)


def total(connection: socket.socket, header: Header) -> int:
    """Return how many bytes were read since `begin`, by whatever process."""
    if header.peek_reset != _NO_RESET:
        # Whoever was about to set the offset high died over it, and read nothing since.
        _finish_reset(connection, header)
    return header.peek_base + _HIGHEST - _get(connection)


def keep_high(connection: socket.socket, header: Header, received: int) -> int:
    """Set the offset high again in good time, `received` being the total.

    Returns:
        At what total that is next to be done.
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
