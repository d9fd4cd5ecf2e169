"""The busy watchdog: how long a handler has been busy with one frame; sans-I/O."""

from __future__ import annotations

from typing import Final

#: The interval of ticks and heartbeats. Kapacitor's shortest sensible time-out is a few seconds.
HEARTBEAT_INTERVAL_S: Final = 0.5


class BusyWatchdog:
    """Watches the handler of one connection, tick by tick.

    Attributes:
        beats: whether a heartbeat is due: the handler is busy, nothing was sent since the last
            tick, and the limit is not passed.
        busy_s: how long it has been busy with the current frame, in seconds; 0 without a frame.
        limit_s: how long heartbeats are sent for one frame, in seconds.
        has_just_passed_limit: whether this tick is the first after the limit.
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
        """Ask for heartbeats for at most `limit_s` seconds with one frame."""
        self.limit_s = limit_s
        self._current_frame: object = None
        self._sent: object = None
        self._since_s = 0.0
        self.busy_s = 0.0
        self.beats = False
        self.has_just_passed_limit = False

    def reset(self) -> None:
        """Forget the current frame, because another worker handles it from now on."""
        self._current_frame = None
        self.busy_s = 0.0

    def tick(self, now_s: float, *, current_frame: object, sent: object) -> None:
        """Update the attributes.

        Args:
            now_s: a monotonic clock's time, in seconds.
            current_frame: a value that changes with each frame, None without a frame.
            sent: a value that changes whenever something is sent.
        """
        before_s = self.busy_s
        if current_frame is None or current_frame != self._current_frame:
            self._since_s = now_s
        self.busy_s = now_s - self._since_s
        passed = self.busy_s >= self.limit_s
        self.has_just_passed_limit = passed and before_s < self.limit_s
        self.beats = current_frame is not None and not passed and sent == self._sent
        self._current_frame, self._sent = current_frame, sent
