"""Where an agent's bytes come from and go to.

A stream is blocking and has one reading thread. Any thread may write, one at a
time. Three more calls may come from any thread at any time: `interrupt`, which
lets the reader finish what has arrived and then see the end of input, `pause`,
which makes it look up from its waiting, and `abort`, which ends a blocked read or
write now.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import os
import select
import socket
import struct
import termios
import threading
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from kapudf_cli.account import Progress

#: Linux queues at most about 200 KiB on a Unix socket (net.core.rmem_default), so a much
#: larger buffer would never fill. What comes of so much, with a field or two more on each
#: point, is still at most the 16 pages that sendfile(2) takes at once.
_READ_BYTES = 48 * 1024

#: A write that has waited for so long lets a piece of input be read ahead, and another
#: one each time it has waited twice as long again. The peer may be a kapacitord that
#: disables a task: it reads no more, and hangs with all of its HTTP API until its own
#: last write is read.
_STALLED_S = 0.5
_STALLED_MAX_S = 5.0
#: The most that is read ahead, for a peer that is only slow.
_AHEAD_BYTES = 16 * 1024 * 1024

#: How long a peer may take to pass on what it has read before its connection is
#: closed. A kapacitord that still forwards a point when it sees the connection of a
#: disabled task end can crash ("send on closed channel").
_SETTLE_S = 0.1
#: How often is looked whether the peer has read everything; nothing wakes for that.
_LOOK_S = 0.01


class ReadPaused(Exception):  # noqa: N818 - it is no error
    """`pause` was called: nothing was read, and the next `read` goes on."""


class Stream(Protocol):
    """Bytes in and bytes out, as an agent needs them.

    Attributes:
        waits: whether the reader waits for input.
    """

    waits: bool

    def read(self) -> bytes:
        """Wait for input and return it; b"" once it has ended or was interrupted.

        Raises:
            OSError: the connection broke.
            ReadPaused: `pause` was called.
        """

    def write(
        self,
        data: bytes,
        messages: int = 0,
        *,
        in_batch: bool = False,
        progress: Progress | None = None,
        forgets: bool = False,
    ) -> None:
        """Write all of `data`, waiting for as long as the peer does not read.

        Args:
            data: whole messages, or none.
            messages: how many of them the input has brought, for a stream that notes
                what has left; with `progress`, how many of what it brings next were sent
                before. Likewise what follows.
            in_batch: whether a batch is begun by them, or before, and not ended.
            progress: how much of the input has been dealt with, None in the midst of it.
            forgets: whether the handler needs none of that again, to have its state.

        Raises:
            OSError: the connection broke, or was aborted.
        """

    def has_room(self) -> bool:
        """Return whether something can be written without waiting. From any thread."""

    def interrupt(self) -> None:
        """Let `read` return what has arrived by now, and then b"". From any thread."""

    def pause(self) -> None:
        """Make the reader raise ReadPaused before it reads again. From any thread."""

    def abort(self) -> None:
        """Break the connection, so that no call blocks any longer. From any thread."""

    def settle(self, timeout_s: float) -> int:
        """Wait until the peer has read all that was written, and had a moment to pass it on.

        Input that comes meanwhile is thrown away; returns how many bytes of it.
        Ends after `timeout_s` at the latest, or when the peer has closed.
        """

    def close(self) -> int:
        """Release everything; return how many bytes had arrived that nobody read."""


class SocketStream:
    """A connected stream socket, of which it becomes the owner."""

    def __init__(self, connection: socket.socket, wake: tuple[int, int] | None = None) -> None:
        """Take over a connection, and a pipe to wake its reader by, if there is one already."""
        connection.settimeout(None)
        self._socket = connection
        # A pipe wakes the poll that waits for input. Shutting the socket down
        # for reading would wake the reader too, but would also give the peer a
        # broken pipe at its next write; Kapacitor then drops the answers that are
        # still to come.
        self._wake, self._waker = wake or os.pipe()
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._poll.register(self._wake, select.POLLIN)
        # Held by whoever takes input from the socket: the reader, or a writer that
        # waits for room while the reader is busy.
        self._reading = threading.Lock()
        self._ahead: collections.deque[bytes] = collections.deque()
        self._ahead_bytes = 0
        self._ended = False
        self._broken: OSError | None = None
        self._interrupted = False
        self._paused = False
        self.waits = False
        # Bytes still to be read after an interrupt, None before one.
        self._remaining: int | None = None
        # Guards the descriptors above against use after close: their numbers may
        # belong to somebody else by then.
        self._open = True
        self._lifetime = threading.Lock()

    def read(self) -> bytes:
        """Wait for input and return it; see `Stream.read`."""
        with self._reading:
            if self._paused:
                self._unpause()
            if self._ahead:
                data = self._ahead.popleft()
                self._ahead_bytes -= len(data)
                return data
            if self._broken is not None:
                raise self._broken
            if self._ended:
                return b""
            # Asked first and waited for only then: the body of a frame is there by
            # the time its length has been looked at, and under load so is much more.
            while not self._interrupted:
                try:
                    return self._receive(_READ_BYTES, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    self._wait_for_input()
                if self._paused:
                    self._unpause()
            if self._remaining is None:
                self._remaining = self._count(termios.FIONREAD)
            if self._remaining == 0:
                return b""
            data = self._receive(min(self._remaining, _READ_BYTES), 0)
            self._remaining -= len(data)
            return data

    def write(
        self,
        data: bytes,
        messages: int = 0,
        *,
        in_batch: bool = False,
        progress: Progress | None = None,
        forgets: bool = False,
    ) -> None:
        """Write all of `data`; see `Stream.write`. Nothing is noted."""
        del messages, in_batch, progress, forgets
        rest = memoryview(data)
        while rest:
            with contextlib.suppress(BlockingIOError):
                rest = rest[self._socket.send(rest, socket.MSG_DONTWAIT) :]
            if rest:
                self._wait_for_room()

    def has_room(self) -> bool:
        """Ask the socket; see `Stream.has_room`."""
        with self._lifetime:
            if not self._open:
                return False
            poll = select.poll()
            poll.register(self._socket, select.POLLOUT)
            return bool(poll.poll(0))

    def interrupt(self) -> None:
        """Let the reader finish with what has arrived; see `Stream.interrupt`."""
        with self._lifetime:
            if self._open and not self._interrupted:
                self._interrupted = True
                os.write(self._waker, b"\0")

    def pause(self) -> None:
        """Let the reader look up; see `Stream.pause`."""
        with self._lifetime:
            if self._open and not self._paused:
                self._paused = True
                os.write(self._waker, b"\0")

    def abort(self) -> None:
        """Break the connection; see `Stream.abort`."""
        with self._lifetime, contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def settle(self, timeout_s: float) -> int:
        """Wait until the peer has what was written; see `Stream.settle`."""
        thrown_away = 0
        started = time.monotonic()
        read_at: float | None = None
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        with contextlib.suppress(OSError):
            while (now := time.monotonic()) - started < timeout_s:
                if self._count(termios.TIOCOUTQ) > 0:
                    read_at = None
                elif read_at is None:
                    read_at = now
                elif now - read_at >= _SETTLE_S:
                    break
                for _, event in poll.poll(_LOOK_S * 1000):
                    if event & (select.POLLHUP | select.POLLERR):
                        return thrown_away
                    data = self._socket.recv(_READ_BYTES)
                    thrown_away += len(data)
                    if not data:
                        # The end of its input says nothing of whether it reads.
                        poll.modify(self._socket, 0)
        return thrown_away

    def close(self) -> int:
        """Close the socket; see `Stream.close`."""
        with self._lifetime:
            if not self._open:
                return 0
            self._open = False
            unread = self._count(termios.FIONREAD) + self._ahead_bytes
            self._socket.close()
            os.close(self._wake)
            os.close(self._waker)
        return unread

    def _receive(self, limit: int, flags: int) -> bytes:
        """Take up to `limit` bytes from the socket."""
        return self._socket.recv(limit, flags)

    def _wait_for_input(self) -> None:
        """Wait until something can be read, or somebody wakes the reader."""
        self.waits = True
        try:
            self._poll.poll()
        finally:
            self.waits = False

    def _unpause(self) -> None:
        with self._lifetime:
            self._paused = False
            if self._open:
                os.read(self._wake, 1)
        raise ReadPaused

    def _wait_for_room(self) -> None:
        """Wait until something can be written; where that takes long, read ahead."""
        poll = select.poll()
        poll.register(self._socket, select.POLLOUT)
        patience_s = _STALLED_S
        while not poll.poll(patience_s * 1000):
            patience_s = min(patience_s * 2, _STALLED_MAX_S)
            # Where the reader reads by itself, nothing needs to be done for it.
            if self._reading.acquire(blocking=False):
                try:
                    self._read_ahead()
                finally:
                    self._reading.release()

    def _read_ahead(self) -> None:
        over = self._ended or self._broken is not None or self._remaining is not None
        if over or self._ahead_bytes >= _AHEAD_BYTES:
            return
        try:
            data = self._receive(_READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            self._broken = error  # for the reader; the write finds out by itself
            return
        if data:
            self._ahead.append(data)
            self._ahead_bytes += len(data)
        else:
            self._ended = True

    def _count(self, which: int) -> int:
        """Return how many bytes wait in one direction: FIONREAD or TIOCOUTQ, see unix(7)."""
        try:
            answer = fcntl.ioctl(self._socket, which, b"\0" * 4)
        except OSError:
            return 0
        return int(struct.unpack("i", answer)[0])
