"""When to wait a moment before the next read, so that it brings several messages.

Kapacitor writes each message with two small system calls, and a reader that is
always waiting is woken by each. Under load a pause of less than a millisecond
lets messages gather, and halves what a point costs. At rest, and for a peer that
waits for each answer, a pause would only cost time; so none is made until it
has shown that it brings something.
"""

from __future__ import annotations

#: The default of linger_ms. Longer brings little more; see docs/performance.md.
DEFAULT_LINGER_MS = 0.5
#: Kapacitor's keepalives and the answers to them can bear this much.
MAX_LINGER_MS = 1.0

#: Reads that follow each other faster than this are worth a try: some 3,500 messages a second.
_FAST_S = 0.0003
#: How many of them in a row: a length and a body are two, of one message.
_FAST_READS = 8
#: A pause that brings fewer messages than this is not worth its latency. Two for one wake-up
#: take a third to a half of the processor time; see docs/performance.md.
_WORTHWHILE = 2
#: A read that brings as many anyway needs no pause.
_PLENTY = 64
#: How long until the next try after one that was in vain, doubled each time.
_RETRY_S = 0.1
_MAX_RETRY_S = 5.0


class ReadCoalescing:
    """Decides, read by read, how long to wait before the next; sans-I/O and without a clock."""

    __slots__ = ("_fast_reads", "_last_s", "_longest_s", "_not_before_s", "_paused", "_retry_s")

    def __init__(self, longest_ms: float) -> None:
        """Wait for at most `longest_ms` milliseconds; 0 never waits."""
        self._longest_s = longest_ms / 1000
        self._last_s = 0.0
        self._fast_reads = 0
        self._paused = False
        self._not_before_s = 0.0
        self._retry_s = _RETRY_S

    def pause_s(self, now_s: float, messages: int) -> float:
        """Return how many seconds to wait, now that a read has been dealt with.

        Args:
            now_s: a monotonic clock's time, in seconds.
            messages: how many messages the read brought.
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
