"""A connection's input on its way to the one who reads it."""

from __future__ import annotations

import collections
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from kapudf_cli.transport.waker import Waker

#: A write that has waited for so long lets a piece of input be read ahead, and another
#: one each time it has waited twice as long again. The peer may be a kapacitord that
#: disables a task: it reads no more, and hangs with all of its HTTP API until its own
#: last write is read.
_STALLED_S = 0.5
_STALLED_MAX_S = 5.0
#: The most that is read ahead, for a peer that is only slow.
_AHEAD_BYTES: Final = 16 * 1024 * 1024


class Input:
    """What comes in, from wherever, and what was read ahead of it.

    One thread reads. Another, which writes and waits for room, may read ahead while the
    first is busy.

    Attributes:
        waits: whether the reader waits.
        ahead_bytes: how much was taken in that nobody has read.
    """

    def __init__(
        self,
        waker: Waker,
        *,
        receive: Callable[[int], bytes],
        wait: Callable[[], object],
        unread: Callable[[], int],
        piece_bytes: int,
        left: bytes = b"",
    ) -> None:
        """Bring in what a descriptor has.

        Args:
            waker: what the reader is woken by; it stays its maker's to close.
            receive: takes up to so many bytes without waiting, b"" at the end; raises
                BlockingIOError where nothing is there.
            wait: waits until there is something, or the waker wakes.
            unread: says how many bytes have arrived that were not taken.
            piece_bytes: how many to take at once.
            left: what somebody else has taken already; it is read first.
        """
        self._waker = waker
        self._receive = receive
        self._wait = wait
        self._unread = unread
        self._piece_bytes = piece_bytes
        # Held by whoever takes input: the reader, or a writer that waits for room while
        # the reader is busy.
        self._reading = threading.Lock()
        self._ahead = collections.deque([left] if left else [])
        self.ahead_bytes = len(left)
        self._ended = False
        self._broken: OSError | None = None
        # Bytes still to be read after an interrupt, None before one.
        self._remaining: int | None = None
        self.waits = False

    def read(self) -> bytes:
        """Wait for input and return it; see `Stream.read`."""
        with self._reading:
            if self._waker.paused:
                self._waker.end_pause()
            if self._ahead:
                data = self._ahead.popleft()
                self.ahead_bytes -= len(data)
                return data
            if self._broken is not None:
                raise self._broken
            # Asked first and waited for only then: the body of a frame is there by
            # the time its length has been looked at, and under load so is much more.
            while not (self._ended or self._waker.interrupted):
                try:
                    return self._receive(self._piece_bytes)
                except BlockingIOError:
                    self._wait_for_input()
                if self._waker.paused:
                    self._waker.end_pause()
            return self._rest()

    def end(self) -> None:
        """Let there be no more input than what was read ahead. From any thread."""
        self._ended = True

    def read_ahead_until(self, has_room: Callable[[float], bool]) -> None:
        """Wait until there is room to write; where that takes long, read ahead.

        Args:
            has_room: waits for room, for so many seconds; returns whether there is any.
        """
        patience_s = _STALLED_S
        while not has_room(patience_s):
            patience_s = min(patience_s * 2, _STALLED_MAX_S)
            # Where the reader reads by itself, nothing needs to be done for it.
            if self._reading.acquire(blocking=False):
                try:
                    self._read_ahead()
                finally:
                    self._reading.release()

    def _rest(self) -> bytes:
        """Return what had arrived when the reader learned of an interrupt, a piece a call."""
        if self._ended:
            return b""
        if self._remaining is None:
            self._remaining = self._unread()
        if self._remaining == 0:
            return b""
        data = self._receive(min(self._remaining, self._piece_bytes))
        self._remaining -= len(data)
        return data

    def _wait_for_input(self) -> None:
        self.waits = True
        try:
            self._wait()
        finally:
            self.waits = False

    def _read_ahead(self) -> None:
        over = self._ended or self._broken is not None or self._remaining is not None
        if over or self.ahead_bytes >= _AHEAD_BYTES:
            return
        try:
            data = self._receive(self._piece_bytes)
        except BlockingIOError:
            return
        except OSError as error:
            self._broken = error  # for the reader; the write finds out by itself
            return
        if data:
            self._ahead.append(data)
            self.ahead_bytes += len(data)
        else:
            self._ended = True
