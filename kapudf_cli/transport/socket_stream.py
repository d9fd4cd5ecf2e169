"""A stream over a connected socket."""

from __future__ import annotations

import contextlib
import functools
import select
import socket
import threading
from typing import TYPE_CHECKING, Final

from kapudf_cli.transport.descriptors import unread_bytes, unsent_bytes, wait_for
from kapudf_cli.transport.input import Input
from kapudf_cli.transport.settling import settle
from kapudf_cli.transport.waker import Waker

if TYPE_CHECKING:
    from collections.abc import Callable

    from kapudf_cli.transport.commit import Commit

#: Linux queues at most about 200 KiB on a Unix socket (net.core.rmem_default). If a read takes
#: half of that, reader and writer work in parallel; see docs/performance.md.
_READ_BYTES: Final = 96 * 1024


class SocketStream:
    """A stream over a connected socket, which it owns; see `Stream`.

    Attributes:
        input: the input.
        read: see `Stream.read`. It is `input.read` itself, because under load another call
            in between would be noticeable.
    """

    read: Callable[[], bytes]

    def __init__(
        self,
        connection: socket.socket,
        wake: tuple[int, int] | None = None,
        *,
        receive: Callable[[int], bytes] | None = None,
        unread: bytes = b"",
    ) -> None:
        """Take over a connection.

        Args:
            connection: the socket; it is made non-blocking.
            wake: a pipe to wake the reader with; by default one is created.
            receive: receives input from the socket; its own recv() by default.
            unread: input that was received earlier; it is read first.
        """
        connection.settimeout(0)  # sendfile(2) has no MSG_DONTWAIT
        self._socket = connection
        self._waker = Waker(wake)
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._poll.register(self._waker, select.POLLIN)
        self.input = Input(
            self._waker,
            receive=receive or connection.recv,
            wait=self._wait_for_input,
            pending=self._pending,
            piece_bytes=_READ_BYTES,
            unread=unread,
        )
        self.read = self.input.read
        # Guards the socket against use after close, when its number may have been reused.
        self._open = True
        self._lifetime = threading.Lock()

    @property
    def waits(self) -> bool:
        """Whether the reader waits for input; see `Stream.waits`."""
        return self.input.waits

    def write(self, data: bytes, commit: Commit | None = None) -> None:
        """Write all of `data`; see `Stream.write`. The commit is ignored."""
        del commit
        rest = memoryview(data)
        while rest:
            with contextlib.suppress(BlockingIOError):
                rest = rest[self._socket.send(rest) :]
            if rest:
                self._wait_for_room()

    def has_room(self) -> bool:
        """Return whether a write would not wait; see `Stream.has_room`."""
        with self._lifetime:
            return self._open and wait_for(self._socket.fileno(), select.POLLOUT, timeout_s=0)

    def interrupt(self) -> None:
        """End the input after what has arrived; see `Stream.interrupt`."""
        self._waker.interrupt()

    def pause(self) -> None:
        """Make the reader stop waiting; see `Stream.pause`."""
        self._waker.pause()

    def abort(self) -> None:
        """Break the connection; see `Stream.abort`."""
        with self._lifetime, contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def settle(self, timeout_s: float) -> int:
        """Wait until the peer has read everything; see `Stream.settle`."""
        descriptor = self._socket.fileno()
        return settle(
            timeout_s,
            requests=descriptor,
            responses=descriptor,
            receive=self._socket.recv,
            unread=functools.partial(unsent_bytes, descriptor),
        )

    def close(self) -> int:
        """Close the socket; see `Stream.close`."""
        with self._lifetime:
            if not self._open:
                return 0
            self._open = False
            unread = self._pending() + self.input.ahead_bytes
            self._socket.close()
            self._waker.close()
        return unread

    def _pending(self) -> int:
        return unread_bytes(self._socket.fileno())

    def _wait_for_input(self) -> None:
        """Wait until there is input, or the reader is woken."""
        self._poll.poll()

    def _wait_for_room(self) -> None:
        """Wait until output can be written; if that takes long, read input ahead."""
        descriptor = self._socket.fileno()
        self.input.read_ahead_until(
            lambda timeout_s: wait_for(descriptor, select.POLLOUT, timeout_s=timeout_s)
        )
