"""The input of a connection: wait for it, wake its reader, read it, read ahead."""

from __future__ import annotations

import collections
import os
import threading
from typing import TYPE_CHECKING, Final, NoReturn

from kapudf_cli.transport.stream import ReadPaused

if TYPE_CHECKING:
    from collections.abc import Callable

#: A write that has waited this long reads one piece of input ahead, and another one each time
#: it has waited twice as long again. The peer may be a kapacitord that disables a task: it
#: reads nothing more, and its HTTP API hangs until its own last write is read.
_STALLED_S = 0.5
_STALLED_MAX_S = 5.0
#: The most that is read ahead; the peer may just be slow.
_AHEAD_BYTES: Final = 16 * 1024 * 1024


class Waker:
    """A pipe that wakes a reader, with the reason.

    The reader polls the pipe together with its input. To shut a socket down for reading
    would wake the reader too, but then Kapacitor's next write fails with a broken pipe, and
    Kapacitor drops the answers that it has not read.

    Attributes:
        interrupted: whether `interrupt` was called.
        paused: whether `pause` was called and the reader has not noticed yet.
    """

    def __init__(self, pipe: tuple[int, int] | None = None) -> None:
        """Take over a pipe, as os.pipe() returns it, or create one."""
        self._readable, self._writable = pipe or os.pipe()
        self.interrupted = False
        self.paused = False
        # Guards the descriptors against use after close, when their numbers may have been
        # reused.
        self._open = True
        self._lifetime = threading.Lock()

    def fileno(self) -> int:
        """Return the descriptor that is readable once the reader is to wake."""
        return self._readable

    def interrupt(self) -> None:
        """Wake the reader, now and in all later waits. From any thread."""
        with self._lifetime:
            if self._open and not self.interrupted:
                self.interrupted = True
                os.write(self._writable, b"\0")

    def pause(self) -> None:
        """Wake the reader once. From any thread."""
        with self._lifetime:
            if self._open and not self.paused:
                self.paused = True
                os.write(self._writable, b"\0")

    def end_pause(self) -> NoReturn:
        """End the pause. Called by the reader when it has noticed it.

        Raises:
            ReadPaused: always.
        """
        with self._lifetime:
            self.paused = False
            if self._open:
                os.read(self._readable, 1)
        raise ReadPaused

    def close(self) -> None:
        """Close the pipe; later calls have no effect."""
        with self._lifetime:
            if self._open:
                self._open = False
                os.close(self._readable)
                os.close(self._writable)


class Input:
    """Reads input from a descriptor, and buffers what was read ahead.

    One thread reads. Another thread, which waits because the peer does not read, may read
    ahead while the first is busy.

    Attributes:
        waits: whether the reader waits for input.
        ahead_bytes: bytes that were read ahead and not returned yet.
    """

    def __init__(
        self,
        waker: Waker,
        *,
        receive: Callable[[int], bytes],
        wait: Callable[[], object],
        pending: Callable[[], int],
        piece_bytes: int,
        unread: bytes = b"",
    ) -> None:
        """Read with the given functions.

        Args:
            waker: wakes the reader; the caller closes it.
            receive: reads up to so many bytes without waiting, b"" at the end. Raises
                BlockingIOError if there is no input.
            wait: waits until there is input, or the waker wakes the reader.
            pending: returns how many bytes have arrived and were not received.
            piece_bytes: how many bytes to receive at once.
            unread: input that was received earlier; it is read first.
        """
        self._waker = waker
        self._receive = receive
        self._wait = wait
        self._pending = pending
        self._piece_bytes = piece_bytes
        # Held while input is received: by the reader, or by a writer that reads ahead.
        self._reading = threading.Lock()
        self._ahead = collections.deque([unread] if unread else [])
        self.ahead_bytes = len(unread)
        self._ended = False
        self._broken: OSError | None = None
        # Bytes still to be read after an interrupt, None before one.
        self._remaining: int | None = None
        self.waits = False

    def read(self) -> bytes:
        """Wait for input and return it; see `Stream.read`."""
        with self._reading:
            # Receive first, wait only if there is no input: Kapacitor writes a frame's body
            # right after its length, and under load much more is there.
            while (data := self._take()) is None:
                self._wait_for_input()
            return data

    def read_now(self) -> bytes | None:
        """Return input without waiting; see `Stream.read_now`."""
        with self._reading:
            return self._take()

    def end(self) -> None:
        """End the input after what was read ahead. From any thread."""
        self._ended = True

    def read_ahead_until(self, has_room: Callable[[float], bool]) -> None:
        """Wait until the peer accepts output; if that takes long, read input ahead.

        Args:
            has_room: waits for so many seconds; returns whether output can be written.
        """
        timeout_s = _STALLED_S
        while not has_room(timeout_s):
            timeout_s = min(timeout_s * 2, _STALLED_MAX_S)
            # Not needed while the reader itself receives or waits for input.
            if self._reading.acquire(blocking=False):
                try:
                    self._read_ahead()
                finally:
                    self._reading.release()

    def _take(self) -> bytes | None:
        """Return input as `read` does, None if there is none yet."""
        if self._waker.paused:
            self._waker.end_pause()
        if self._ahead:
            data = self._ahead.popleft()
            self.ahead_bytes -= len(data)
            return data
        if self._broken is not None:
            raise self._broken
        if self._ended or self._waker.interrupted:
            return self._rest()
        try:
            return self._receive(self._piece_bytes)
        except BlockingIOError:
            return None

    def _rest(self) -> bytes:
        """Return what had arrived when the reader noticed an interrupt, one piece per call."""
        if self._ended:
            return b""
        if self._remaining is None:
            self._remaining = self._pending()
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
            self._broken = error  # for the reader; the write fails by itself
            return
        if data:
            self._ahead.append(data)
            self.ahead_bytes += len(data)
        else:
            self._ended = True
