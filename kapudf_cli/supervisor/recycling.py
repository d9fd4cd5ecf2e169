"""Which worker has had its time, by what it has done or grown to; sans-I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kapudf_cli.config import FunctionSettings

#: No worker is recycled sooner: one whose handler needs more memory than it may have would
#: be for ever.
_SHORTEST_LIFE_S: Final = 2.0
#: How long none is recycled after one could not be: new code that cannot be loaded is told
#: of twice a minute, and not at every look.
_PAUSE_S: Final = 30.0

W = TypeVar("W")


@dataclass(frozen=True)
class WorkerUsage(Generic[W]):
    """What a worker has done, and grown to.

    Attributes:
        worker: which.
        age_s: how long ago it was started, in seconds.
        points: how many points it has dealt with.
        rss_mb: the memory that it has resident, in megabytes.
    """

    worker: W
    age_s: float
    points: int
    rss_mb: float


class Recycling:
    """Chooses the workers that are to be replaced, one at a time."""

    def __init__(self) -> None:
        """Begin with no pause."""
        self._not_before_s = 0.0

    def choose(
        self, workers: Iterable[WorkerUsage[W]], settings: FunctionSettings, now_s: float
    ) -> WorkerUsage[W] | None:
        """Return the first that has had its time, if there is one.

        Args:
            workers: those that serve; not looked at where no limit is set, or in a pause.
            settings: the limits, 0 for none.
            now_s: a monotonic clock's time, in seconds.
        """
        if not settings.max_points and not settings.max_rss_mb:
            return None
        if now_s < self._not_before_s:
            return None
        for each in workers:
            if each.age_s >= _SHORTEST_LIFE_S and (
                (settings.max_points and each.points >= settings.max_points)
                or (settings.max_rss_mb and each.rss_mb >= settings.max_rss_mb)
            ):
                return each
        return None

    def pause(self, now_s: float) -> None:
        """Choose none for a while, for the last one could not be replaced."""
        self._not_before_s = now_s + _PAUSE_S
