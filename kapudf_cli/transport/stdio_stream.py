"""A stream over stdin and stdout, for a UDF that Kapacitor starts as a process."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import select
import threading
from typing import TYPE_CHECKING, Final

from kapudf_cli.transport.descriptors import unread_bytes, wait_for
from kapudf_cli.transport.input import Input
from kapudf_cli.transport.settling import settle
from kapudf_cli.transport.waker import Waker

if TYPE_CHECKING:
    from collections.abc import Callable

    from kapudf_cli.transport.commit import Commit

#: As much as a pipe holds by default, see pipe(7).
_READ_BYTES: Final = 64 * 1024


class StdioStream:
    """A stream over two descriptors, which it owns; see `Stream`.

    Both are made non-blocking, and restored by `close`, because other processes may share
    the open files.

    Attributes:
        read: see `Stream.read`; it is the input's.
    """

    read: Callable[[], bytes]

    def __init__(self, requests: int, responses: int) -> None:
        """Take over a descriptor to read from and one to write to."""
        self._requests = requests
        self._responses = responses
        self._were_blocking = (os.get_blocking(requests), os.get_blocking(responses))
        os.set_blocking(requests, False)
        os.set_blocking(responses, False)
        self._waker = Waker()
        # The first one is readable once the connection was aborted.
        self._abort_readable, self._abort_writable = os.pipe()
        self._aborted = False
        self._input = Input(
            self._waker,
            receive=functools.partial(os.read, requests),
            wait=functools.partial(
                wait_for, requests, select.POLLIN, self._waker.fileno(), self._abort_readable
            ),
            pending=self._pending,
            piece_bytes=_READ_BYTES,
        )
        self.read = self._input.read
        # Guards the descriptors against use after close.
        self._open = True
        self._lifetime = threading.Lock()

    @property
    def waits(self) -> bool:
        """Whether the reader waits for input; see `Stream.waits`."""
        return self._input.waits

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
                self._input.read_ahead_until(self._has_room)

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
                self._input.end()
                os.write(self._abort_writable, b"\0")

    def settle(self, timeout_s: float) -> int:
        """Wait until Kapacitor has read everything; see `Stream.settle`."""
        return settle(
            timeout_s,
            requests=self._requests,
            responses=self._responses,
            receive=functools.partial(os.read, self._requests),
            # The kernel tells the size of a pipe's queue at either end.
            unread=functools.partial(unread_bytes, self._responses),
            aborted=self._abort_readable,
        )

    def close(self) -> int:
        """Close both descriptors; see `Stream.close`."""
        with self._lifetime:
            if not self._open:
                return 0
            self._open = False
            unread = self._pending() + self._input.ahead_bytes
            for descriptor, blocking in zip(
                (self._requests, self._responses), self._were_blocking, strict=True
            ):
                with contextlib.suppress(OSError):
                    os.set_blocking(descriptor, blocking)
                os.close(descriptor)
            for descriptor in (self._abort_readable, self._abort_writable):
                os.close(descriptor)
            self._waker.close()
        return unread

    def _pending(self) -> int:
        return unread_bytes(self._requests)

    def _has_room(self, timeout_s: float) -> bool:
        """Wait until output can be written, or the connection is aborted."""
        return wait_for(self._responses, select.POLLOUT, self._abort_readable, timeout_s=timeout_s)
