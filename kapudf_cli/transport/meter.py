"""What one connection has cost, for metrics: times, and a histogram of handler time per point.

With a journal, the numbers are in memory that the worker shares with the supervisor, so that they
survive the worker. They are no part of the commit record: nothing that the connection does depends
on them. What is measured for each read is published at intervals, so a worker that dies may leave
the last half second out.
"""

from __future__ import annotations

import struct
import time
from threading import get_ident
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import mmap

#: The upper bounds of the histogram's buckets, in nanoseconds per point: 1 µs to 30 s. One more
#: bucket has the points that took longer.
BOUNDS_NS: Final = tuple(step * 10**power for power in range(3, 11) for step in (1, 3))
#: Where `Meter.counts` has the time of the handler, and the calls that are in flight; the buckets
#: are at its beginning.
HANDLER_NS: Final = len(BOUNDS_NS) + 1
IN_FLIGHT: Final = HANDLER_NS + 1

#: Why a connection ends: the reasons of its `connection finished` event, and `refused` if the
#: handler refused Init or Restore.
END_REASONS: Final = ("closed", "stopped", "refused", "handler_error", "protocol_error")

_COUNTS: Final = struct.Struct(f"@{IN_FLIGHT + 1}q")
_WORD: Final = struct.Struct("@q")
_PAIR: Final = struct.Struct("@2q")
# After the counts: the time of waits that are over, and since when the current one lasts; number
# and time of takeovers, and of handovers; why the connection has ended.
_WAIT, _TAKEOVERS, _HANDOVERS, _END = (_COUNTS.size + 16 * number for number in range(4))
#: How much memory a meter takes.
METER_BYTES: Final = _END + _WORD.size


class Meter:
    """The meter of one connection. Each number has one writer at a time.

    Attributes:
        counts: what the thread that serves the connection has measured; only that thread changes
            it. See `BOUNDS_NS`, `HANDLER_NS` and `IN_FLIGHT`.
        began_ns: when the handler got the current read (CLOCK_MONOTONIC), later by the time that
            the connection has waited for Kapacitor since.
    """

    __slots__ = (
        "_batch",
        "_memory",
        "_offset",
        "_owner",
        "_published_ns",
        "_shown_wait_ns",
        "began_ns",
        "counts",
    )

    def __init__(self, memory: mmap.mmap | bytearray | None = None, offset: int = 0) -> None:
        """Go on with the meter at an offset of `memory`; by default, begin one of its own."""
        self._memory = bytearray(METER_BYTES) if memory is None else memory
        self._offset = offset
        self.counts = list(self._published())
        self._published_ns = self.counts[HANDLER_NS]
        self._shown_wait_ns = 0
        self.began_ns = 0
        self._owner = 0
        # Points and time of the reads that belong to a batch which has not ended.
        self._batch = (0, 0)

    # --- the thread that serves the connection ---

    def adopt(self) -> None:
        """Make the calling thread the one whose handler is measured."""
        self._owner = get_ident()

    def add_to_batch(self, points: int, took_ns: int, *, ends: bool) -> tuple[int, int]:
        """Add a read to a batch; return the points and the time of the batch if it ends.

        The reads of a batch count as one, because its handler may do all the work at its end.
        """
        points += self._batch[0]
        took_ns += self._batch[1]
        self._batch = (0, 0) if ends else (points, took_ns)
        return (points, took_ns) if ends else (0, 0)

    def publish(self) -> None:
        """Copy the counts to the memory. From any thread."""
        handler_ns = self.counts[HANDLER_NS]
        if handler_ns != self._published_ns:
            self._published_ns = handler_ns
            _COUNTS.pack_into(self._memory, self._offset, *self.counts)

    # --- the thread that writes ---

    def begin_wait(self) -> None:
        """Begin to wait until Kapacitor reads."""
        self._put(_WAIT, self._pair(_WAIT)[0], time.monotonic_ns())

    def end_wait(self) -> None:
        """End that wait, if there is one; it is no time of the handler."""
        total_ns, since_ns = self._pair(_WAIT)
        if since_ns:
            waited_ns = time.monotonic_ns() - since_ns
            self._put(_WAIT, total_ns + waited_ns, 0)
            if get_ident() == self._owner:
                self.began_ns += waited_ns

    def note_end(self, reason: str) -> None:
        """Note why the connection ends, as one of `END_REASONS`."""
        number = END_REASONS.index(reason) + 1
        _WORD.pack_into(self._memory, self._offset + _END, number)

    # --- the supervisor ---

    def note_death(self) -> None:
        """Count that another worker takes the connection over after a death."""
        number, pause_ns = self._pair(_TAKEOVERS)
        self._put(_TAKEOVERS, number + 1, pause_ns)

    def note_taken_over(self, pause_s: float) -> None:
        """Add the time from the death until another worker went on."""
        number, pause_ns = self._pair(_TAKEOVERS)
        self._put(_TAKEOVERS, number, pause_ns + round(pause_s * 1e9))

    def note_handed_over(self, pause_s: float) -> None:
        """Count a handover, and add its pause."""
        number, pause_ns = self._pair(_HANDOVERS)
        self._put(_HANDOVERS, number + 1, pause_ns + round(pause_s * 1e9))

    # --- readings: what was published ---

    @property
    def buckets(self) -> list[int]:
        """How many points took so long: one number for each of `BOUNDS_NS`, and one beyond."""
        return list(self._published()[:HANDLER_NS])

    @property
    def handler_s(self) -> float:
        """How long the handler was busy, in seconds; calls of an async handler are added up."""
        return self._published()[HANDLER_NS] / 1e9

    @property
    def in_flight(self) -> int:
        """How many calls of an async handler are in flight."""
        return self._published()[IN_FLIGHT]

    @property
    def wait_s(self) -> float:
        """How long the connection has waited until Kapacitor read, in seconds, up to now."""
        waited_ns, since_ns = self._pair(_WAIT)
        if since_ns:
            waited_ns += max(time.monotonic_ns() - since_ns, 0)
        # The numbers are of two stores; what is shown must not decrease.
        self._shown_wait_ns = max(self._shown_wait_ns, waited_ns)
        return self._shown_wait_ns / 1e9

    @property
    def takeovers(self) -> tuple[int, float]:
        """How many takeovers after a death there were, and their time in seconds."""
        number, pause_ns = self._pair(_TAKEOVERS)
        return number, pause_ns / 1e9

    @property
    def handovers(self) -> tuple[int, float]:
        """How many handovers there were, and their time in seconds."""
        number, pause_ns = self._pair(_HANDOVERS)
        return number, pause_ns / 1e9

    @property
    def end(self) -> str | None:
        """Why the connection has ended, None while it goes on."""
        (number,) = _WORD.unpack_from(self._memory, self._offset + _END)
        return END_REASONS[number - 1] if number else None

    # --- inside ---

    def _published(self) -> tuple[int, ...]:
        return _COUNTS.unpack_from(self._memory, self._offset)

    def _pair(self, at: int) -> tuple[int, int]:
        first, second = _PAIR.unpack_from(self._memory, self._offset + at)
        return first, second

    def _put(self, at: int, first: int, second: int) -> None:
        _PAIR.pack_into(self._memory, self._offset + at, first, second)
