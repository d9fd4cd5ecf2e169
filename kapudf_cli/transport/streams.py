"""The two kinds of streams: over a connected socket, and over stdin and stdout."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import select
import socket
import threading
from typing import TYPE_CHECKING, Final

from kapudf_cli.transport.descriptors import settle, unread_bytes, unsent_bytes, wait_for
from kapudf_cli.transport.input import Input, Waker
from kapudf_cli.transport.meter import Meter

if TYPE_CHECKING:
    from collections.abc import Callable

    from kapudf_cli.transport.stream import Commit

#: Linux queues at most about 200 KiB on a Unix socket (net.core.rmem_default). If a read takes
#: half of that, reader and writer work in parallel; see docs/performance.md. A pipe holds 64 KiB
#: by default, see pipe(7).
_READ_BYTES: Final = 96 * 1024


class _DescriptorStream:
    """A stream over one or two non-blocking descriptors, which it owns; see `Stream`.

    Attributes:
        input: the input.
        on_full: see `Stream`.
        meter: see `Stream`.
        read: see `Stream.read`. It is `input.read` itself, because under load another call
            in between would be noticeable.
    """

    read: Callable[[], bytes]

    def __init__(
        self,
        requests: int,
        responses: int,
        *,
        wake: tuple[int, int] | None = None,
        aborted: int | None = None,
        receive: Callable[[int], bytes] | None = None,
        unread: bytes = b"",
    ) -> None:
        """Take over descriptors.

        Args:
            requests: the descriptor for input.
            responses: the descriptor for output; it may be the same.
            wake: a pipe to wake the reader with; by default one is created.
            aborted: a descriptor that is readable once the connection was aborted; not needed
                if waits on the other descriptors end then.
            receive: reads input from `requests`; os.read() by default.
            unread: input that was received earlier; it is read first.
        """
        self._requests = requests
        self._responses = responses
        self._abort_wakes = () if aborted is None else (aborted,)
        self._waker = Waker(wake)
        self._poll = select.poll()
        for descriptor in (requests, self._waker.fileno(), *self._abort_wakes):
            self._poll.register(descriptor, select.POLLIN)
        self.input = Input(
            self._waker,
            receive=receive or functools.partial(os.read, requests),
            wait=self._wait_for_input,
            pending=self._pending,
            piece_bytes=_READ_BYTES,
            unread=unread,
        )
        self.read = self.input.read
        self.on_full: Callable[[], None] | None = None
        self.meter = Meter()
        self._wait: Callable[[], object] = self._poll.poll
        self._aborted = False
        # Guards the descriptors against use after close, when their numbers may have been
        # reused.
        self._open = True
        self._lifetime = threading.Lock()

    @property
    def waits(self) -> bool:
        """Whether the reader waits for input; see `Stream.waits`."""
        return self.input.waits

    @property
    def input_descriptor(self) -> int:
        """The descriptor for input; see `Stream.input_descriptor`."""
        return self._requests

    @property
    def is_pausing(self) -> bool:
        """Whether the reader is to pause; see `Stream.is_pausing`."""
        return self._waker.paused

    @property
    def has_input_ended(self) -> bool:
        """Whether no input follows what has arrived; see `Stream.has_input_ended`."""
        poll = select.poll()
        poll.register(self._requests, select.POLLRDHUP)
        return bool(poll.poll(0))

    def read_now(self) -> bytes | None:
        """Return input without waiting; see `Stream.read_now`."""
        return self.input.read_now()

    def wait_with(self, wait: Callable[[int], object]) -> None:
        """Have `read` wait for input with `wait`; see `Stream.wait_with`."""
        self._wait = functools.partial(wait, self._requests)

    def write(self, data: bytes, commit: Commit | None = None) -> None:
        """Write all of `data`; see `Stream.write`. The commit is ignored."""
        del commit
        rest = memoryview(data)
        while rest:
            if self._aborted:
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
            try:
                rest = rest[os.write(self._responses, rest) :]
            except BlockingIOError:
                self._wait_for_room()

    def has_room(self) -> bool:
        """Return whether a write would not wait; see `Stream.has_room`."""
        with self._lifetime:
            return self._open and wait_for(self._responses, select.POLLOUT, timeout_s=0)

    def interrupt(self) -> None:
        """End the input after what has arrived; see `Stream.interrupt`."""
        self._waker.interrupt()

    def pause(self) -> None:
        """Make the reader stop waiting; see `Stream.pause`."""
        self._waker.pause()

    def abort(self) -> None:
        """End all blocked calls; see `Stream.abort`."""
        with self._lifetime:
            if self._open and not self._aborted:
                self._aborted = True
                self._abort()

    def settle(self, timeout_s: float) -> int:
        """Wait until the peer has read everything; see `Stream.settle`."""
        return settle(
            timeout_s,
            requests=self._requests,
            responses=self._responses,
            receive=functools.partial(os.read, self._requests),
            unread=self._unsent,
            aborted=next(iter(self._abort_wakes), None),
        )

    def close(self) -> int:
        """Close the descriptors; see `Stream.close`."""
        with self._lifetime:
            if not self._open:
                return 0
            self._open = False
            unread = self._pending() + self.input.ahead_bytes
            self._close()
            self._waker.close()
        return unread

    def _pending(self) -> int:
        return unread_bytes(self._requests)

    def _wait_for_input(self) -> None:
        """Wait until there is input, or the reader is woken."""
        self._wait()

    def _wait_for_room(self) -> None:
        """Wait until output can be written; if that takes long, read input ahead."""
        if self.on_full is not None:
            self.on_full()
        self.meter.begin_wait()
        try:
            self.input.read_ahead_until(
                lambda timeout_s: wait_for(
                    self._responses, select.POLLOUT, *self._abort_wakes, timeout_s=timeout_s
                )
            )
        finally:
            self.meter.end_wait()

    def _unsent(self) -> int:
        """Return how many bytes the peer has not read yet."""
        raise NotImplementedError

    def _abort(self) -> None:
        """End all blocked calls; called once."""
        raise NotImplementedError

    def _close(self) -> None:
        """Close the descriptors; called once."""
        raise NotImplementedError


class SocketStream(_DescriptorStream):
    """A stream over a connected socket, which it owns; see `Stream`."""

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
        descriptor = connection.fileno()
        super().__init__(descriptor, descriptor, wake=wake, receive=receive, unread=unread)

    def _unsent(self) -> int:
        return unsent_bytes(self._responses)

    def _abort(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _close(self) -> None:
        # A process that the handler has forked has the socket too, and would keep it open.
        self._abort()
        self._socket.close()


class StdioStream(_DescriptorStream):
    """A stream over stdin and stdout, for a UDF that Kapacitor starts as a process.

    Both descriptors are made non-blocking, and restored by `close`, because other processes may
    share the open files.
    """

    def __init__(self, requests: int, responses: int) -> None:
        """Take over a descriptor to read from and one to write to."""
        self._were_blocking = (os.get_blocking(requests), os.get_blocking(responses))
        os.set_blocking(requests, False)
        os.set_blocking(responses, False)
        self._abort_readable, self._abort_writable = os.pipe()
        super().__init__(requests, responses, aborted=self._abort_readable)

    def _unsent(self) -> int:
        # The kernel tells the size of a pipe's queue at either end.
        return unread_bytes(self._responses)

    def _abort(self) -> None:
        self.input.end()
        os.write(self._abort_writable, b"\0")

    def _close(self) -> None:
        for descriptor, blocking in zip(
            (self._requests, self._responses), self._were_blocking, strict=True
        ):
            with contextlib.suppress(OSError):
                os.set_blocking(descriptor, blocking)
            os.close(descriptor)
        os.close(self._abort_readable)
        os.close(self._abort_writable)
