"""Read coalescing: a short pause before a read, so that it returns several messages.

Kapacitor writes each message with two small system calls, and each wakes a reader that
waits. A read through the journal costs as much as ten points or more, so it pays to let
messages accumulate. Network cards do the same with interrupts (adaptive interrupt
moderation): the length of the pause follows from the rate of arrival. When messages are
rare, and for a peer that waits for each answer, a pause only costs time, so there is none.
"""

from __future__ import annotations

import math
from typing import Final

#: The default of linger_ms; see docs/performance.md for what longer and shorter pauses do.
DEFAULT_LINGER_MS = 2.0
#: Short enough not to delay the answers to Kapacitor's keepalives.
MAX_LINGER_MS = 5.0

#: No pause below this many messages a second: the longest pause would yield too few.
_LOWEST_RATE: Final = 3000.0
#: The rate is a moving average over about this time, in seconds.
_RATE_S: Final = 0.01
#: How many messages a read should return. More gain little: see docs/performance.md.
_WANTED: Final = 64
#: A read of this length has filled half of its buffer: so much waits that no pause is needed.
_PLENTY_BYTES: Final = 48 * 1024
#: A pause after which the read returns fewer messages than this is useless.
_WORTHWHILE: Final = 2
#: After so many useless pauses in a row, the peer waits for an answer to each message. One alone
#: only means that the peer was not running: on a busy machine, messages come in bursts.
_USELESS: Final = 2
#: How long to wait until a pause is tried for a peer that may wait for each answer; doubled after
#: each attempt that was useless.
_RETRY_S: Final = 0.1
_MAX_RETRY_S: Final = 5.0


class ReadCoalescing:
    """Decides after each read how long to pause before the next. Has no I/O and no clock."""

    __slots__ = (
        "_last_s",
        "_longest_s",
        "_not_before_s",
        "_paused",
        "_pipelines",
        "_rate",
        "_retry_s",
        "_useless",
    )

    def __init__(self, longest_ms: float) -> None:
        """Pause for at most `longest_ms` milliseconds; 0 disables pauses."""
        self._longest_s = longest_ms / 1000
        self._last_s = -math.inf
        self._rate = 0.0
        self._paused = False
        # Whether the peer sends messages without waiting for the answers to those before.
        self._pipelines = False
        # Until then, no pause is tried to find that out.
        self._not_before_s = -math.inf
        self._retry_s = _RETRY_S
        self._useless = 0

    def pause_s(self, now_s: float, messages: int, size: int) -> float:
        """Return how many seconds to pause after a read.

        Args:
            now_s: the monotonic clock's time after the read was handled, in seconds.
            messages: how many messages the read returned.
            size: how many bytes it returned.
        """
        decay = math.exp((self._last_s - now_s) / _RATE_S)
        self._rate = rate = self._rate * decay + messages / _RATE_S
        self._last_s = now_s
        self._learn(now_s, messages)
        if rate < _LOWEST_RATE or size >= _PLENTY_BYTES:
            return 0.0
        if not self._pipelines and now_s < self._not_before_s:
            return 0.0
        self._paused = self._longest_s > 0.0
        return min(self._longest_s, _WANTED / rate)

    def _learn(self, now_s: float, messages: int) -> None:
        """Find out from a read whether the peer waits for each answer."""
        paused, self._paused = self._paused, False
        if messages >= _WORTHWHILE:
            self._pipelines = True
            self._useless = 0
            self._retry_s = _RETRY_S
        elif paused:
            self._useless += 1
            if not self._pipelines or self._useless == _USELESS:
                self._pipelines = False
                self._useless = 0
                self._not_before_s = now_s + self._retry_s
                self._retry_s = min(self._retry_s * 2, _MAX_RETRY_S)
