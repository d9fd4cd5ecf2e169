"""Read coalescing: a short pause before a read, so that it returns several messages.

Kapacitor writes each message with two small system calls, and each wakes a reader that
waits. Under load, a pause of less than a millisecond lets messages accumulate, and halves
the cost of a point. When idle, and for a peer that waits for each answer, a pause only
costs time. So pauses are tried under load, and kept up only while they pay off.
"""

from __future__ import annotations

#: The default of linger_ms. A longer pause gains little; see docs/performance.md.
DEFAULT_LINGER_MS = 0.5
#: Short enough not to delay the answers to Kapacitor's keepalives.
MAX_LINGER_MS = 1.0

#: Reads in shorter intervals than this count as fast: about 3,500 messages a second.
_FAST_S = 0.0003
#: Try a pause after so many fast reads in a row. One message may take two: length and body.
_FAST_READS = 8
#: A pause that yields fewer messages than this is not worth its latency. Two messages per
#: wake-up need a third to a half of the processor time; see docs/performance.md.
_WORTHWHILE = 2
#: A read that returns so many messages without a pause needs none.
_PLENTY = 64
#: How long to wait after a useless pause until the next attempt; doubled each time.
_RETRY_S = 0.1
_MAX_RETRY_S = 5.0


class ReadCoalescing:
    """Decides after each read how long to pause before the next. Has no I/O and no clock."""

    __slots__ = ("_fast_reads", "_last_s", "_longest_s", "_not_before_s", "_paused", "_retry_s")

    def __init__(self, longest_ms: float) -> None:
        """Pause for at most `longest_ms` milliseconds; 0 disables pauses."""
        self._longest_s = longest_ms / 1000
        self._last_s = 0.0
        self._fast_reads = 0
        self._paused = False
        self._not_before_s = 0.0
        self._retry_s = _RETRY_S

    def pause_s(self, now_s: float, messages: int) -> float:
        """Return how many seconds to pause after a read.

        Args:
            now_s: the monotonic clock's time after the read was handled, in seconds.
            messages: how many messages the read returned.
        """
        fast = now_s - self._last_s < _FAST_S
        self._last_s = now_s
        if self._paused:
            if _WORTHWHILE <= messages < _PLENTY:
                self._retry_s = _RETRY_S
                return self._longest_s
            self._paused = False
            self._fast_reads = 0
            if messages < _WORTHWHILE:
                self._not_before_s = now_s + self._retry_s
                self._retry_s = min(self._retry_s * 2, _MAX_RETRY_S)
            return 0.0
        self._fast_reads = self._fast_reads + 1 if fast and messages < _PLENTY else 0
        if self._fast_reads < _FAST_READS or now_s < self._not_before_s:
            return 0.0
        self._paused = True
        return self._longest_s
