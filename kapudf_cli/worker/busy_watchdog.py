"""Whether a handler is at work, and for how long with the same frame; sans-I/O."""

from __future__ import annotations

from typing import Final

#: How often is looked, and how often a heartbeat is sent. Kapacitor's shortest sensible
#: time-out is a few seconds.
HEARTBEAT_INTERVAL_S: Final = 0.5


class BusyWatchdog:
    """Watches one connection, look by look.

    Attributes:
        beats: whether a heartbeat is due: the handler is at work, nothing has been sent
            since the last look, and the limit is not passed.
        busy_s: how long the current frame has been seen, in seconds; 0 if there is none.
        limit_s: how long there is to be a beat with one frame, in seconds.
        has_just_passed_limit: whether this look is the first after the limit.
    """

    __slots__ = (
        "_current_frame",
        "_sent",
        "_since_s",
        "beats",
        "busy_s",
        "has_just_passed_limit",
        "limit_s",
    )

    def __init__(self, limit_s: float) -> None:
        """Beat for at most `limit_s` seconds with one frame."""
        self.limit_s = limit_s
        self._current_frame: object = None
        self._sent: object = None
        self._since_s = 0.0
        self.busy_s = 0.0
        self.beats = False
        self.has_just_passed_limit = False

    def begin(self) -> None:
        """Forget the current frame: another worker has it from now on."""
        self._current_frame = None
        self.busy_s = 0.0

    def tick(self, now_s: float, *, current_frame: object, sent: object) -> None:
        """Note what is to be seen now.

        Args:
            now_s: a monotonic clock's time, in seconds.
            current_frame: anything that differs from frame to frame, None while there is none.
            sent: anything that differs whenever something was sent.
        """
        before_s = self.busy_s
        if current_frame is None or current_frame != self._current_frame:
            self._since_s = now_s
        self.busy_s = now_s - self._since_s
        passed = self.busy_s >= self.limit_s
        self.has_just_passed_limit = passed and before_s < self.limit_s
        self.beats = current_frame is not None and not passed and sent == self._sent
        self._current_frame, self._sent = current_frame, sent
