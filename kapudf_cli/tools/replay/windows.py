"""Windows over a stream: batches for a UDF that wants them, cut as Kapacitor cuts them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from kapudf_cli.handler.batches import Batch
from kapudf_cli.protocol.udf_pb2 import Point
from kapudf_cli.tools.replay.errors import WindowsTooFullError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Points that all open windows together may hold. A point takes about 1 KB.
MAX_HELD_POINTS: Final = 1_000_000


@dataclass
class _Window:
    """The open window of a group: its name, the time at which it ends, and what is in it."""

    name: str
    end_ns: int
    points: list[Point] = field(default_factory=list)


class Windows:
    """Cuts a stream into batches, as `|window().period(p).every(p)` does for each group.

    The first window of a group begins with its first point. One is emitted when a point
    comes that is no longer of it, and the next begins with that point (`windowByTime` in
    Kapacitor's window.go). What the last windows hold is never emitted.

    Attributes:
        held: how many points are in windows that are still open.
    """

    def __init__(self, period_ns: int) -> None:
        """Cut windows of this length, in nanoseconds."""
        self.held = 0
        self._period_ns = period_ns
        self._windows: dict[str, _Window] = {}

    def cut(self, points: Iterable[Point]) -> Iterator[Batch]:
        """Yield a batch for each window that closes.

        Raises:
            WindowsTooFullError: the open windows hold more than MAX_HELD_POINTS.
        """
        for point in points:
            window = self._windows.get(point.group)
            if window is None:
                window = _Window(point.name, point.time + self._period_ns)
                self._windows[point.group] = window
            elif point.time >= window.end_ns:
                yield self._close(window, point)
                window.end_ns = point.time + self._period_ns
            window.points.append(point)
            self.held += 1
            if self.held > MAX_HELD_POINTS:
                message = f"more than {MAX_HELD_POINTS} points in open windows; cut shorter ones"
                raise WindowsTooFullError(message)

    def _close(self, window: _Window, point: Point) -> Batch:
        """Return what is in a window as a batch, `point` being of the same group."""
        batch = Batch(
            name=window.name,
            points=[_in_batch(each) for each in window.points],
            tags={tag: point.tags.get(tag, "") for tag in point.dimensions},
            group=point.group,
            tmax_ns=window.end_ns,
            by_name=point.byName,
        )
        self.held -= len(window.points)
        window.points = []
        return batch


def _in_batch(point: Point) -> Point:
    """Return a point as it stands in a batch: with time, group, tags and fields only."""
    bare = Point()
    bare.CopyFrom(point)
    for name in ("name", "database", "retentionPolicy", "dimensions", "byName"):
        bare.ClearField(name)
    return bare
