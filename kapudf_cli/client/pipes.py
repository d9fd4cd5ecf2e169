"""The pipes to a child's stdin and from its stdout, with the calls of a socket.

Kapacitor speaks to a process UDF over pipes. A pair of sockets would do for most
programs, but not for one that opens /dev/stdin or closes its stdout before it exits.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading
import time


class PipePair:
    """Two pipes' ends on our side, of which it becomes the owner; see `kapacitor.Duplex`.

    One thread may send while another receives. Whoever closes it ends a send that
    still waits.
    """

    def __init__(self, to_child: int, from_child: int) -> None:
        """Take over a descriptor to write to and one to read from."""
        os.set_blocking(to_child, False)
        os.set_blocking(from_child, False)
        self._to_child: int | None = to_child
        self._from_child = from_child
        self._timeout_s: float | None = None
        self._sending = threading.Lock()
        self._wake, self._waker = os.pipe()
        self._open = True

    @property
    def descriptors(self) -> tuple[int, int]:
        """The ends to read from and to write to, for whoever waits for several at once.

        Raises:
            BrokenPipeError: the one to write to is closed.
        """
        if self._to_child is None:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        return self._from_child, self._to_child

    def settimeout(self, timeout_s: float | None, /) -> None:
        """Let a call wait for so long in all, None for ever."""
        self._timeout_s = timeout_s

    def sendall(self, data: bytes, /) -> None:
        """Write all of `data`.

        Raises:
            BrokenPipeError: the child has closed its stdin, or this end was closed.
            TimeoutError: it did not read in time.
        """
        deadline = None if self._timeout_s is None else time.monotonic() + self._timeout_s
        rest = memoryview(data)
        with self._sending:
            while rest:
                if self._to_child is None or not self._open:
                    raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
                try:
                    rest = rest[os.write(self._to_child, rest) :]
                except BlockingIOError:
                    self._wait(self._to_child, select.POLLOUT, deadline)

    def recv(self, bufsize: int, /) -> bytes:
        """Wait for bytes and return up to so many; b"" once the child has closed its stdout.

        Raises:
            TimeoutError: nothing came in time.
        """
        deadline = None if self._timeout_s is None else time.monotonic() + self._timeout_s
        while True:
            with contextlib.suppress(BlockingIOError):
                return os.read(self._from_child, bufsize)
            self._wait(self._from_child, select.POLLIN, deadline)

    def fileno(self) -> int:
        """Return the descriptor that is read."""
        return self._from_child

    def shutdown(self, how: int, /) -> None:
        """Close the child's stdin; there is no other direction to shut down."""
        del how
        with self._sending:
            if self._to_child is not None:
                os.close(self._to_child)
                self._to_child = None

    def close(self) -> None:
        """Close both pipes."""
        if not self._open:
            return
        self._open = False
        os.write(self._waker, b"\0")
        with self._sending:
            if self._to_child is not None:
                os.close(self._to_child)
                self._to_child = None
        os.close(self._from_child)
        os.close(self._wake)
        os.close(self._waker)

    def _wait(self, descriptor: int, event: int, deadline: float | None) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        poll.register(self._wake, select.POLLIN)
        left_ms = None if deadline is None else max(deadline - time.monotonic(), 0) * 1000
        if not poll.poll(left_ms):
            raise TimeoutError(errno.ETIMEDOUT, "timed out")
