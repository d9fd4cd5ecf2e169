"""A stream over a socket: what Kapacitor connects to."""

from __future__ import annotations

import contextlib
import functools
import select
import socket
import termios
import threading
from typing import TYPE_CHECKING, Final

from kapudf_cli.transport.descriptors import wait_for, waiting_bytes
from kapudf_cli.transport.input import Input
from kapudf_cli.transport.settling import settle
from kapudf_cli.transport.waker import Waker

if TYPE_CHECKING:
    from collections.abc import Callable

    from kapudf_cli.transport.commit import Commit

#: Linux queues at most about 200 KiB on a Unix socket (net.core.rmem_default). With half of
#: that at once, reader and writer are busy side by side; see docs/performance.md.
_READ_BYTES: Final = 96 * 1024


class SocketStream:
    """A connected stream socket, of which it becomes the owner; see `streams.Stream`.

    Attributes:
        input: its input on its way.
        read: see `Stream.read`. It is the input's own, for under load a call in between
            would cost as much as all that is asked before the system is.
    """

    read: Callable[[], bytes]

    def __init__(
        self,
        connection: socket.socket,
        wake: tuple[int, int] | None = None,
        *,
        receive: Callable[[int], bytes] | None = None,
        left: bytes = b"",
    ) -> None:
        """Take over a connection, and a pipe to wake its reader by, if there is one already.

        Args:
            connection: the socket; it is made non-blocking.
            wake: the pipe.
            receive: how input is taken from the socket, where not by its own recv().
            left: input that was taken from it before, to be read first.
        """
        connection.settimeout(0)  # sendfile(2), which some send by, knows no MSG_DONTWAIT
        self._socket = connection
        self._waker = Waker(wake)
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._poll.register(self._waker, select.POLLIN)
        self.input = Input(
            self._waker,
            receive=receive or connection.recv,
            wait=self._wait_for_input,
            unread=self._unread,
            piece_bytes=_READ_BYTES,
            left=left,
        )
        self.read = self.input.read
        # Guards the socket against use after close: its number may belong to somebody
        # else by then.
        self._open = True
        self._lifetime = threading.Lock()

    @property
    def waits(self) -> bool:
        """Whether the reader waits; see `Stream.waits`."""
        return self.input.waits

    def write(self, data: bytes, commit: Commit | None = None) -> None:
        """Write all of `data`; see `Stream.write`. Nothing is stored."""
        del commit
        rest = memoryview(data)
        while rest:
            with contextlib.suppress(BlockingIOError):
                rest = rest[self._socket.send(rest) :]
            if rest:
                self._wait_for_room()

    def has_room(self) -> bool:
        """Ask the socket; see `Stream.has_room`."""
        with self._lifetime:
            return self._open and wait_for(self._socket.fileno(), select.POLLOUT, patience_s=0)

    def interrupt(self) -> None:
        """Let the reader finish with what has arrived; see `Stream.interrupt`."""
        self._waker.interrupt()

    def pause(self) -> None:
        """Let the reader look up; see `Stream.pause`."""
        self._waker.pause()

    def abort(self) -> None:
        """Break the connection; see `Stream.abort`."""
        with self._lifetime, contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def settle(self, timeout_s: float) -> int:
        """Wait until the peer has what was written; see `Stream.settle`."""
        descriptor = self._socket.fileno()
        return settle(
            timeout_s,
            requests=descriptor,
            responses=descriptor,
            receive=self._socket.recv,
            unread=functools.partial(waiting_bytes, descriptor, termios.TIOCOUTQ),
        )

    def close(self) -> int:
        """Close the socket; see `Stream.close`."""
        with self._lifetime:
            if not self._open:
                return 0
            self._open = False
            unread = self._unread() + self.input.ahead_bytes
            self._socket.close()
            self._waker.close()
        return unread

    def _unread(self) -> int:
        return waiting_bytes(self._socket.fileno(), termios.FIONREAD)

    def _wait_for_input(self) -> None:
        """Wait until something can be read, or somebody wakes the reader."""
        self._poll.poll()

    def _wait_for_room(self) -> None:
        """Wait until something can be written; where that takes long, read ahead."""
        descriptor = self._socket.fileno()
        self.input.read_ahead_until(
            lambda patience_s: wait_for(descriptor, select.POLLOUT, patience_s=patience_s)
        )
