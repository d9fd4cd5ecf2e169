"""When workers that died are replaced: at once, or ever later if they come to nothing; sans-I/O."""

from __future__ import annotations

import math
from typing import Final

#: The pause before a worker that came to nothing is replaced, doubled each time.
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 30.0
#: A worker that has lived so long has come to something, whatever became of it.
_LONG_LIFE_S: Final = 10.0


class RestartBackoff:
    """Decides when the dead workers of one function are replaced.

    Attributes:
        vain_starts: how many failures in a row there were: deaths of workers that had done
            nothing.
    """

    def __init__(self) -> None:
        """Begin with nobody to replace."""
        self.vain_starts = 0
        self._pause_s = _FIRST_PAUSE_S
        self._due_s: float | None = None
        # When the last death of those that count was noted.
        self._failed_s = -math.inf

    @property
    def is_pending(self) -> bool:
        """Whether somebody is to be replaced, now or later."""
        return self._due_s is not None

    def note_death(self, now_s: float, *, age_s: float, has_worked: bool) -> None:
        """Have a worker replaced that has died.

        Workers that were started before the last failure and die after it do not count as
        another one: they share its cause, or were killed at the same moment.

        Args:
            now_s: a monotonic clock's time, in seconds, as everywhere here.
            age_s: how long it lived.
            has_worked: whether it got any connection a step forward.
        """
        if has_worked or age_s >= _LONG_LIFE_S:
            self.vain_starts = 0
            self._pause_s = _FIRST_PAUSE_S
            self._due_s = now_s
        elif now_s - age_s <= self._failed_s:
            self._due_s = now_s if self._due_s is None else self._due_s
        else:
            self._failed_s = now_s
            self.vain_starts += 1
            self._due_s = now_s + self._pause_s
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)

    def retry(self, now_s: float, *, pause_s: float = _FIRST_PAUSE_S) -> None:
        """Try again after a pause: not all that are missing could be started now."""
        self._due_s = now_s + pause_s

    def take_due(self, now_s: float) -> bool:
        """Return whether the dead are to be replaced now; if so, this is no longer pending."""
        if self._due_s is None or now_s < self._due_s:
            return False
        self._due_s = None
        return True

    def cancel(self) -> None:
        """Have nobody replaced."""
        self._due_s = None
