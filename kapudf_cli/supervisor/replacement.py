"""When workers are replaced, after deaths and at their limits; sans-I/O."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kapudf_cli.config import FunctionSettings

W = TypeVar("W")

#: The interval of checks of connections. With thousands of connections it grows, so that checks
#: take a tenth of the time at most, up to what heartbeats in time for Kapacitor allow.
_CHECK_INTERVAL_S: Final = 0.2
_CHECK_SHARE: Final = 0.1
_MAX_CHECK_INTERVAL_S: Final = 1.0
#: The pause before a worker is replaced that died without having done anything, doubled each
#: time.
_FIRST_PAUSE_S: Final = 0.1
_MAX_PAUSE_S: Final = 30.0
#: A worker that has lived this long has done something.
_LONG_LIFE_S: Final = 10.0
#: No worker is recycled sooner: one whose handler needs more memory than `max_rss_mb` would be
#: recycled all the time.
_MIN_LIFE_S: Final = 2.0
#: The pause after a worker could not be recycled, so that code that cannot be loaded is logged
#: twice a minute and not at every tick.
_RECYCLING_PAUSE_S: Final = 30.0


@dataclass(frozen=True)
class Reloaded:
    """The result of a reload.

    Attributes:
        connections: how many connections the new code serves.
        stay: how many connections stay with the old code, because the new one could not take
            them over.
        problem: why there are no new workers, None if there are.
        code: the handler and the file of the new code.
    """

    connections: int = 0
    stay: int = 0
    problem: str | None = None
    code: str = ""


class ReloadResults:
    """The results of reloads, in their order.

    Attributes:
        is_pending: whether a reload has no result yet.
    """

    def __init__(self) -> None:
        """Begin without reloads."""
        self.is_pending = False
        self._results: list[Reloaded] = []

    def begin(self) -> None:
        """Note that a reload began."""
        self.is_pending = True

    def add(self, result: Reloaded) -> None:
        """Note the result of the reload under way, if there is one."""
        if self.is_pending:
            self.is_pending = False
            self._results.append(result)

    def take(self) -> list[Reloaded]:
        """Return the results that are known now, each of them once."""
        results, self._results = self._results, []
        return results


class CheckInterval:
    """The interval of checks, longer if they take long."""

    def __init__(self) -> None:
        """Begin with a check that is due."""
        self._checked_s = -math.inf
        self._interval_s = _CHECK_INTERVAL_S

    def is_over(self, now_s: float) -> bool:
        """Return whether the next check is due, at the time of a monotonic clock."""
        return not 0.0 <= now_s - self._checked_s < self._interval_s

    def note(self, now_s: float, *, took_s: float) -> None:
        """Note a check that took some time, in seconds."""
        self._checked_s = now_s
        longer_s = took_s / _CHECK_SHARE
        self._interval_s = min(max(_CHECK_INTERVAL_S, longer_s), _MAX_CHECK_INTERVAL_S)


@dataclass(frozen=True)
class Missing:
    """How many workers are missing.

    Attributes:
        workers: of those that serve.
        spares: of those that wait until another one dies.
    """

    workers: int
    spares: int

    def within(self, room: int) -> Missing:
        """Return as many of them as there is room for, and no spare before the last worker."""
        workers = min(max(self.workers, 0), room)
        return Missing(workers, min(max(self.spares, 0), room - workers))


class RestartBackoff:
    """Decides when the dead workers of one function are replaced.

    Attributes:
        vain_starts: how many workers in a row died without having done anything.
    """

    def __init__(self) -> None:
        """Begin with nothing to replace."""
        self.vain_starts = 0
        self._pause_s = _FIRST_PAUSE_S
        self._due_s: float | None = None
        # When the last worker died that counts as a vain start.
        self._failed_s = -math.inf

    @property
    def is_pending(self) -> bool:
        """Whether workers are to be replaced, now or later."""
        return self._due_s is not None

    def note_death(self, now_s: float, *, age_s: float, has_worked: bool) -> None:
        """Have a worker replaced that has died.

        Workers that were started before the last vain start died, and die after it, are not
        counted again: they have the same cause, or were killed at the same moment.

        Args:
            now_s: a monotonic clock's time, in seconds, as everywhere here.
            age_s: how long it lived.
            has_worked: whether it has handled any point.
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
            self._pause_s = min(2 * self._pause_s, _MAX_PAUSE_S)

    def retry(self, now_s: float, *, pause_s: float = _FIRST_PAUSE_S) -> None:
        """Try again after a pause, because not all missing workers could be started."""
        self._due_s = now_s + pause_s

    def take_due(self, now_s: float) -> bool:
        """Return whether dead workers are to be replaced now; if so, this is done once."""
        if self._due_s is None or now_s < self._due_s:
            return False
        self._due_s = None
        return True

    def cancel(self) -> None:
        """Replace nothing."""
        self._due_s = None


@dataclass(frozen=True)
class WorkerUsage(Generic[W]):
    """What a worker has done and uses.

    Attributes:
        worker: which.
        age_s: its age in seconds.
        points: how many points it has handled.
        rss_mb: its resident memory, in megabytes.
        is_outdated: whether another worker could do better.
    """

    worker: W
    age_s: float
    points: int
    rss_mb: float
    is_outdated: bool = False


class Recycling:
    """Chooses the workers that have reached a limit or are outdated, one at a time."""

    def __init__(self) -> None:
        """Begin without a pause."""
        self._not_before_s = 0.0

    def choose(
        self, workers: Iterable[WorkerUsage[W]], settings: FunctionSettings, now_s: float
    ) -> WorkerUsage[W] | None:
        """Return the first worker that is to be replaced, if there is one.

        Args:
            workers: those that serve; not read where nothing can make one due, or in a pause.
            settings: the limits, 0 for none.
            now_s: a monotonic clock's time, in seconds.
        """
        if not (settings.max_points or settings.max_rss_mb or settings.ray_fallback):
            return None
        if now_s < self._not_before_s:
            return None
        for each in workers:
            if each.age_s >= _MIN_LIFE_S and (
                (settings.max_points and each.points >= settings.max_points)
                or (settings.max_rss_mb and each.rss_mb >= settings.max_rss_mb)
                or each.is_outdated
            ):
                return each
        return None

    def pause(self, now_s: float) -> None:
        """Choose none for a while, because the last one could not be replaced."""
        self._not_before_s = now_s + _RECYCLING_PAUSE_S
