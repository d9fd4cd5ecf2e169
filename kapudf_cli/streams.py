"""Where an agent's bytes come from and go to.

A stream is blocking and belongs to one reading thread. Two calls may come from
any other thread: `interrupt`, which lets the reader finish what has arrived and
then see the end of input, and `abort`, which ends a blocked read or write now.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
import termios
import threading
import time
from typing import Protocol

#: Linux queues at most about 200 KiB on a Unix socket (net.core.rmem_default), so a
#: larger buffer would never fill, and one above 128 KiB makes malloc use mmap each time.
_READ_BYTES = 64 * 1024


class Stream(Protocol):
    """Bytes in and bytes out, as an agent needs them."""

    def read(self) -> bytes:
        """Wait for input and return it; b"" once it has ended or was interrupted.

        Raises:
            OSError: the connection broke.
        """

    def write(self, data: bytes) -> None:
        """Write all of `data`, waiting for as long as the peer does not read.

        Raises:
            OSError: the connection broke, or was aborted.
        """

    def interrupt(self) -> None:
        """Let `read` return what has arrived by now, and then b"". From any thread."""

    def abort(self) -> None:
        """Break the connection, so that no call blocks any longer. From any thread."""

    def drain(self, timeout_s: float) -> int:
        """End the output and throw input away until the peer ends it, or `timeout_s` is over.

        Returns how many bytes were thrown away.
        """

    def close(self) -> int:
        """Release everything; return how many bytes had arrived that nobody read."""


class SocketStream:
    """A connected stream socket, of which it becomes the owner."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(None)
        self._socket = connection
        # A pipe wakes the poll that precedes each read. Shutting the socket down
        # for reading would wake the reader too, but would also give the peer a
        # broken pipe at its next write; Kapacitor then drops the answers that are
        # still to come.
        self._wake, self._waker = os.pipe()
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._poll.register(self._wake, select.POLLIN)
        # Guards the descriptors above against use after close: their numbers may
        # belong to somebody else by then.
        self._open = True
        self._lifetime = threading.Lock()
        # Bytes still to be read after an interrupt, None before one.
        self._remaining: int | None = None

    def read(self) -> bytes:
        """Wait for input and return it; see `Stream.read`."""
        if self._remaining is None:
            ready = self._poll.poll()
            if any(descriptor == self._wake for descriptor, _ in ready):
                self._remaining = self._arrived()
            else:
                return self._socket.recv(_READ_BYTES)
        if self._remaining == 0:
            return b""
        data = self._socket.recv(min(self._remaining, _READ_BYTES))
        self._remaining -= len(data)
        return data

    def write(self, data: bytes) -> None:
        """Write all of `data`; see `Stream.write`."""
        self._socket.sendall(data)

    def interrupt(self) -> None:
        """Let the reader finish with what has arrived; see `Stream.interrupt`."""
        with self._lifetime:
            if self._open:
                os.write(self._waker, b"\0")

    def abort(self) -> None:
        """Break the connection; see `Stream.abort`."""
        with self._lifetime, contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def drain(self, timeout_s: float) -> int:
        """Throw away what still comes; see `Stream.drain`."""
        thrown_away = 0
        deadline = time.monotonic() + timeout_s
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            while (left_s := deadline - time.monotonic()) > 0:
                self._socket.settimeout(left_s)
                data = self._socket.recv(_READ_BYTES)
                if not data:
                    break
                thrown_away += len(data)
        return thrown_away

    def close(self) -> int:
        """Close the socket; see `Stream.close`."""
        with self._lifetime:
            if not self._open:
                return 0
            self._open = False
            unread = self._arrived()
            self._socket.close()
            os.close(self._wake)
            os.close(self._waker)
        return unread

    def _arrived(self) -> int:
        """Return how many bytes the kernel holds for us (SIOCINQ, see unix(7))."""
        try:
            answer = fcntl.ioctl(self._socket, termios.FIONREAD, b"\0" * 4)
        except OSError:
            return 0
        return int(struct.unpack("i", answer)[0])
