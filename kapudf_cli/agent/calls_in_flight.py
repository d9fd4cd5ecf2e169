"""Calls in flight: the calls of a handler that awaits, in the order of the input; sans-I/O.

A call is one frame that the handler was given. Calls may finish in any order. A call retires
when it is done and all calls before it have retired: only then are its output sent and its
frame counted as handled. So output leaves in the order of the input, and at any time the
handled input is a prefix of the input.

If the order of output does not matter, a call for a point may retire before calls for points
of other groups. Then the frames after the prefix that are done are stored as a set of bits,
so that a new handler's output for them is discarded.
"""

from __future__ import annotations

import collections
import itertools
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kapudf_cli.protocol.order import Incoming
from kapudf_cli.transport.stream import DONE_BITS

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Calls that are done or run, as a multiple of `concurrency`: one slow call must not stop the
#: others, and memory must be bounded.
_LINE_LENGTHS: Final = 4
#: The most input and output of these calls, in bytes, while any of them runs.
_MAX_BYTES: Final = 8 * 1024 * 1024
#: The most output of a call that may retire out of order, because it is committed at once.
MAX_UNORDERED_BYTES: Final = 1024 * 1024


class Written(NamedTuple):
    """A message that a call wrote.

    Attributes:
        message: the message, or an empty one of its class if its content no longer matters.
        frame: the same, encoded.
    """

    message: Any
    frame: bytes


class Call:
    """A frame that the handler was given.

    Attributes:
        offset: where the frame starts in the input, in bytes.
        end: where the next frame starts.
        method: the method that was called.
        points: points that count as handled with it.
        batches: batches that count as handled with it.
        state: the state of the conversation after the frame.
        began_ns: when it began (CLOCK_MONOTONIC).
        took_ns: how long it took, once it is done.
        awaits: whether the method is async; otherwise it is done at once.
        is_done: whether the method has returned or raised.
        error: what it raised, or why its output cannot be sent.
        group: the group of its point; None if no other call may overtake this one.
        is_repeated: whether its output was sent by an earlier call for the same frame.
        is_retired: whether it has retired.
        is_open: whether what is written in its context belongs to it.
        is_canceled: whether it was canceled; the frame is handled again or never.
        written: its output.
        written_bytes: the length of its output.
        task: the task that runs it.
    """

    __slots__ = (
        "awaits",
        "batches",
        "began_ns",
        "end",
        "error",
        "group",
        "is_canceled",
        "is_done",
        "is_open",
        "is_repeated",
        "is_retired",
        "method",
        "offset",
        "points",
        "state",
        "task",
        "took_ns",
        "written",
        "written_bytes",
    )

    def __init__(
        self,
        offset: int = 0,
        end: int = 0,
        method: str = "",
        *,
        points: int = 0,
        batches: int = 0,
        state: Incoming = Incoming.READY,
        awaits: bool = False,
    ) -> None:
        self.offset = offset
        self.end = end
        self.method = method
        self.points = points
        self.batches = batches
        self.state = state
        self.began_ns = time.monotonic_ns()
        self.took_ns = 0
        self.awaits = awaits
        self.is_done = False
        self.error: BaseException | None = None
        self.group: str | None = None
        self.is_repeated = self.is_retired = False
        self.is_open = True
        self.is_canceled = False
        self.written: collections.deque[Written] = collections.deque()
        self.written_bytes = 0
        self.task: Any = None

    def write(self, message: object, frame: bytes) -> None:
        """Add a message to the output."""
        self.written.append(Written(message, frame))
        self.written_bytes += len(frame)


class CallsInFlight:
    """The calls that have not retired, in the order of the input.

    Attributes:
        concurrency: the most calls that run at once.
        running: how many calls run.
    """

    def __init__(self, concurrency: int, *, ordered: bool = True) -> None:
        """Allow `concurrency` calls to run at once.

        Args:
            concurrency: the most calls.
            ordered: whether output leaves in the order of the input.
        """
        self.concurrency = concurrency
        self._ordered = ordered
        # Which of the frames after those in the line are done, as bits.
        self._done_ahead = 0
        self._tracks_done = not ordered
        self._length = _LINE_LENGTHS * concurrency
        if not ordered:
            self._length = max(self._length, DONE_BITS)
        self.running = 0
        self._line: collections.deque[Call] = collections.deque()
        # Of all calls in the line: those that are async, and the bytes of input and output.
        self._awaiting = 0
        self._bytes = 0
        # A method that is not async has failed. What is done about that applies to the next frame.
        self._waits_for_failure = False

    def __len__(self) -> int:
        """Return the number of calls that have not retired."""
        return len(self._line)

    def __iter__(self) -> Iterator[Call]:
        """Yield the calls that have not retired."""
        return iter(self._line)

    @property
    def has_room(self) -> bool:
        """Whether another frame may be given to the handler."""
        if self._waits_for_failure or self.running >= self.concurrency:
            return False
        if not self.running:
            return True
        return self._awaiting < self._length and self._bytes < _MAX_BYTES

    def add(self, call: Call) -> None:
        """Add a call that has begun; its frame follows those of all other calls."""
        self._line.append(call)
        self._bytes += call.end - call.offset
        if call.awaits:
            self._awaiting += 1
            self.running += 1

    def finish(self, call: Call, error: BaseException | None = None) -> None:
        """Note that a call is done, with what it raised."""
        call.is_done = True
        call.is_open = False
        call.error = error
        call.took_ns = time.monotonic_ns() - call.began_ns
        if call.is_canceled:
            return
        self._bytes += call.written_bytes
        if call.awaits:
            self.running -= 1
        elif error is not None:
            self._waits_for_failure = True

    def next_done(self) -> Call | None:
        """Return the next call to retire, None if there is none."""
        if self._line and self._line[0].is_done:
            return self._line[0]
        return None if self._ordered else self._next_unordered()

    def _next_unordered(self) -> Call | None:
        """Return a call that may retire before others, None if there is none."""
        groups: set[str] = set()
        for call in itertools.islice(self._line, DONE_BITS):
            if call.group is None:
                return None
            if not call.is_retired:
                if (
                    call.is_done
                    and call.error is None
                    and call.group not in groups
                    and call.written_bytes <= MAX_UNORDERED_BYTES
                ):
                    return call
                groups.add(call.group)
        return None

    def retire(self, call: Call) -> list[Call]:
        """Retire a call; return the calls that leave the line, in the order of the input."""
        call.is_retired = True
        self._bytes -= call.written_bytes
        leaving = []
        while self._line and self._line[0].is_retired:
            first = self._line.popleft()
            self._bytes -= first.end - first.offset
            if first.awaits:
                self._awaiting -= 1
            else:
                self._waits_for_failure = self._waits_for_failure and first.error is None
            leaving.append(first)
        return leaving

    # --- frames that are done, although frames before them are not ---

    @property
    def done(self) -> int:
        """Which frames are done, as bits: bit 0 is the first frame that is not handled."""
        done = self._done_ahead << len(self._line)
        if self._tracks_done:
            for number, call in enumerate(self._line):
                if call.is_retired or call.is_repeated:
                    done |= 1 << number
        return done

    def resume(self, done: int) -> None:
        """Set which of the next frames are done; no call is in flight."""
        self._done_ahead = done
        self._tracks_done = self._tracks_done or done != 0

    def take_next(self) -> bool:
        """Return whether the next frame is done; it is about to be added, or dropped."""
        is_done = bool(self._done_ahead & 1)
        self._done_ahead >>= 1
        return is_done

    def cancel(self) -> list[Call]:
        """Remove all calls; return those that run, marked as canceled."""
        running = []
        for call in self._line:
            if not call.is_done:
                call.is_canceled = True
                call.is_open = False
                running.append(call)
        self._line.clear()
        self.running = self._awaiting = self._bytes = 0
        self._waits_for_failure = False
        return running
