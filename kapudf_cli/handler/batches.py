"""Whole batches: the class `Batch`, and its messages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kapudf_cli.protocol.udf_pb2 import BeginBatch, EndBatch, Point

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@dataclass
class Batch:
    """A batch with all of its points.

    Attributes:
        name: the measurement.
        points: the points. Kapacitor sends points of a batch with time, tags, fields and
            group only.
        tags: the tags that the batch is grouped by.
        group: the name of the group in Kapacitor.
        tmax_ns: the end of the batch's period, in nanoseconds since the epoch; None for the
            time of the latest point.
        by_name: whether the batch is grouped by name too.
    """

    name: str = ""
    points: list[Point] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    group: str = ""
    tmax_ns: int | None = None
    by_name: bool = False

    def copy_with(self, points: Iterable[Point]) -> Batch:
        """Return a copy of this batch with other points."""
        return Batch(self.name, list(points), self.tags, self.group, self.tmax_ns, self.by_name)

    def as_stream(self, points: Iterable[Point]) -> list[Point]:
        """Return copies of points for a stream: with the batch's name, tags and dimensions.

        Points of a batch lack these, and Kapacitor could not group them.
        """
        stream = []
        for point in points:
            whole = Point()
            whole.CopyFrom(point)
            whole.name = point.name or self.name
            for tag, value in self.tags.items():
                if tag not in whole.tags:
                    whole.tags[tag] = value
            if not point.dimensions:
                del whole.dimensions[:]
                whole.dimensions.extend(sorted(self.tags))
                whole.byName = self.by_name
            stream.append(whole)
        return stream

    @property
    def end_ns(self) -> int:
        """The end of the batch: `tmax_ns`, or else the time of the latest point, or 0."""
        if self.tmax_ns is not None:
            return self.tmax_ns
        return max((point.time for point in self.points), default=0)


def batch_messages(batch: Batch) -> Iterator[BeginBatch | Point | EndBatch]:
    """Yield the messages of a batch: begin, points, end."""
    yield BeginBatch(
        name=batch.name,
        group=batch.group,
        tags=batch.tags,
        size=len(batch.points),
        byName=batch.by_name,
    )
    yield from batch.points
    yield EndBatch(
        name=batch.name,
        group=batch.group,
        tags=batch.tags,
        tmax=batch.end_ns,
        byName=batch.by_name,
    )
