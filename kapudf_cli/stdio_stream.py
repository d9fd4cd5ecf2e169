"""A stream over two descriptors: what a process UDF has as its stdin and stdout."""

from __future__ import annotations

import collections
import contextlib
import errno
import fcntl
import os
import select
import struct
import termios
import threading
import time
from typing import TYPE_CHECKING

from kapudf_cli.streams import ReadPaused

if TYPE_CHECKING:
    from kapudf_cli.account import Progress

#: As much as a pipe holds by default, see pipe(7).
_READ_BYTES = 64 * 1024
#: After so long, and twice as long each time, a write that waits for room lets a piece
#: of input be read ahead: Kapacitor's own write may be what it waits with.
_STALLED_S = 0.5
_STALLED_MAX_S = 5.0
#: The most that is read ahead, for a peer that is only slow.
_AHEAD_BYTES = 16 * 1024 * 1024
#: How long Kapacitor may take to pass on what it has read before its pipe is closed.
_SETTLE_S = 0.1
#: How often is looked whether it has read everything; nothing wakes for that.
_LOOK_S = 0.01


class StdioStream:
    """Two descriptors, of which it becomes the owner; see `streams.Stream`.

    Both are made non-blocking, and put back as they were at the end, for others may
    share what is behind them.
    """

    def __init__(self, requests: int, responses: int) -> None:
        """Take over a descriptor to read from and one to write to."""
        self._requests = requests
        self._responses = responses
        self._were_blocking = (os.get_blocking(requests), os.get_blocking(responses))
        os.set_blocking(requests, False)
        os.set_blocking(responses, False)
        self._wake, self._waker = os.pipe()
        #: Readable for ever once the connection was aborted.
        self._cut, self._cutter = os.pipe()
        self.waits = False
        self._interrupted = False
        self._paused = False
        self._aborted = False
        # Held by whoever takes input: the reader, or a writer that waits for room.
        self._reading = threading.Lock()
        self._ahead: collections.deque[bytes] = collections.deque()
        self._ahead_bytes = 0
        self._ended = False
        self._broken: OSError | None = None
        # Bytes still to be read after an interrupt, None before one.
        self._remaining: int | None = None
        # Guards the descriptors against use after close.
        self._open = True
        self._lifetime = threading.Lock()

    def read(self) -> bytes:
        """Wait for input and return it; see `Stream.read`."""
        with self._reading:
            self._unpause()
            if self._ahead:
                data = self._ahead.popleft()
                self._ahead_bytes -= len(data)
                return data
            if self._broken is not None:
                raise self._broken
            if self._ended or self._aborted:
                return b""
            while not self._interrupted:
                try:
                    return os.read(self._requests, _READ_BYTES)
                except BlockingIOError:
                    self.waits = True
                    self._wait(self._requests, select.POLLIN, self._wake, self._cut)
                    self.waits = False
                if self._is_aborted():
                    return b""
                self._unpause()
            if self._remaining is None:
                self._remaining = self._count(self._requests)
            if self._remaining == 0:
                return b""
            data = os.read(self._requests, min(self._remaining, _READ_BYTES))
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
        patience_s = _STALLED_S
        while rest:
            if self._aborted:
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
            try:
                rest = rest[os.write(self._responses, rest) :]
            except BlockingIOError:
                if not self._wait(
                    self._responses, select.POLLOUT, self._cut, patience_s=patience_s
                ):
                    patience_s = min(patience_s * 2, _STALLED_MAX_S)
                    self._read_ahead()

    def has_room(self) -> bool:
        """Ask the pipe; see `Stream.has_room`."""
        with self._lifetime:
            return self._open and self._wait(self._responses, select.POLLOUT, patience_s=0)

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
        """Let no call block any longer; see `Stream.abort`."""
        with self._lifetime:
            if self._open and not self._aborted:
                self._aborted = True
                os.write(self._cutter, b"\0")

    def settle(self, timeout_s: float) -> int:
        """Wait until Kapacitor has what was written; see `Stream.settle`."""
        thrown_away = 0
        started = time.monotonic()
        read_at: float | None = None
        ended = False
        with contextlib.suppress(OSError):
            while not self._aborted and (now := time.monotonic()) - started < timeout_s:
                if self._count(self._responses) > 0:
                    read_at = None
                elif read_at is None:
                    read_at = now
                elif now - read_at >= _SETTLE_S:
                    break
                if self._gone():
                    break
                if ended:
                    self._wait(self._cut, 0, patience_s=_LOOK_S)
                elif self._wait(self._requests, select.POLLIN, self._cut, patience_s=_LOOK_S):
                    data = os.read(self._requests, _READ_BYTES)
                    thrown_away += len(data)
                    ended = not data
        return thrown_away

    def close(self) -> int:
        """Close both descriptors; see `Stream.close`."""
        with self._lifetime:
            if not self._open:
                return 0
            self._open = False
            unread = self._count(self._requests) + self._ahead_bytes
            for descriptor, blocking in zip(
                (self._requests, self._responses), self._were_blocking, strict=True
            ):
                with contextlib.suppress(OSError):
                    os.set_blocking(descriptor, blocking)
                os.close(descriptor)
            for descriptor in (self._wake, self._waker, self._cut, self._cutter):
                os.close(descriptor)
        return unread

    def _read_ahead(self) -> None:
        """Take a piece of input, if nobody else is about to."""
        if not self._reading.acquire(blocking=False):
            return
        try:
            over = self._ended or self._broken is not None or self._remaining is not None
            if over or self._ahead_bytes >= _AHEAD_BYTES:
                return
            data = os.read(self._requests, _READ_BYTES)
            if data:
                self._ahead.append(data)
                self._ahead_bytes += len(data)
            else:
                self._ended = True
        except BlockingIOError:
            pass
        except OSError as error:
            self._broken = error  # for the reader; the write finds out by itself
        finally:
            self._reading.release()

    def _unpause(self) -> None:
        if self._paused:
            with self._lifetime:
                self._paused = False
                if self._open:
                    os.read(self._wake, 1)
            raise ReadPaused

    def _is_aborted(self) -> bool:
        """Return whether another thread has called `abort`, a wait ago perhaps."""
        return self._aborted

    def _gone(self) -> bool:
        """Return whether nobody is left to read what is written."""
        poll = select.poll()
        poll.register(self._responses, 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))

    @staticmethod
    def _wait(descriptor: int, event: int, *wakes: int, patience_s: float | None = None) -> bool:
        """Wait for one descriptor, or for one of the others to be readable."""
        poll = select.poll()
        poll.register(descriptor, event)
        for wake in wakes:
            poll.register(wake, select.POLLIN)
        return bool(poll.poll(None if patience_s is None else patience_s * 1000))

    @staticmethod
    def _count(descriptor: int) -> int:
        """Return how many bytes wait in a pipe, of which either end may be asked."""
        try:
            answer = fcntl.ioctl(descriptor, termios.FIONREAD, b"\0" * 4)
        except OSError:
            return 0
        return int(struct.unpack("i", answer)[0])
