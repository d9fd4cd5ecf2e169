"""Whole batches: the class `Batch`, and a handler that is called once per batch."""

from __future__ import annotations

import abc
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from kapudf_cli.handler.errors import BatchTooLongError
from kapudf_cli.handler.handler import Handler
from kapudf_cli.protocol.errors import InvalidWriteError
from kapudf_cli.protocol.udf_pb2 import BATCH, BeginBatch, EndBatch, Point

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kapudf_cli.handler.handler import Writer


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


def write_batch(agent: Writer, batch: Batch) -> None:
    """Write the messages of a batch."""
    for message in batch_messages(batch):
        match message:
            case BeginBatch():
                agent.write_begin_batch(message)
            case EndBatch():
                agent.write_end_batch(message)
            case _:
                # Also for objects that are not points: write_point raises for them.
                agent.write_point(message)


class BatchHandler(Handler):
    """A handler that is called with each batch as a whole. Implement `batch`.

    Points that it returns are written as a batch like the one received, or as points of a
    stream if `provides` is STREAM.
    """

    wants = BATCH
    provides = BATCH
    #: A batch with more points fails the task, to limit memory. A point takes about 1 KB.
    max_batch_points: ClassVar[int] = 1_000_000

    def __init__(self, agent: Writer) -> None:
        """Create a handler without a batch."""
        super().__init__(agent)
        self._begin = BeginBatch()
        self._points: list[Point] = []

    @abc.abstractmethod
    def batch(self, batch: Batch, /) -> Iterable[Point] | Iterable[Batch] | Batch | None:
        """Handle a batch and return what to send: points, a batch, several batches, or None.

        It may be a generator of points or of batches.
        """

    def begin_batch(self, begin: BeginBatch, /) -> None:
        """Start to collect points."""
        self._begin = begin
        self._points = []

    def point(self, point: Point, /) -> None:
        """Collect a point."""
        if len(self._points) >= self.max_batch_points:
            raise BatchTooLongError(
                f"a batch of more than {self.max_batch_points} points; "
                "use a shorter period, or raise max_batch_points of the handler"
            )
        self._points.append(point)

    def end_batch(self, end: EndBatch, /) -> None:
        """Call `batch` and write what it returns."""
        batch = Batch(
            name=end.name,
            points=self._points,
            tags=dict(end.tags),
            group=end.group,
            tmax_ns=end.tmax,
            # Kapacitor sets byName in BeginBatch only.
            by_name=self._begin.byName,
        )
        self._points = []
        for outgoing in _outgoing(batch, self.batch(batch)):
            if self.provides == BATCH:
                write_batch(self.agent, outgoing)
            else:
                for point in outgoing.as_stream(outgoing.points):
                    self.agent.write_point(point)


def _outgoing(
    batch: Batch, result: Iterable[Point] | Iterable[Batch] | Batch | None
) -> list[Batch]:
    """Return the result of `BatchHandler.batch` as batches; points become a copy of `batch`.

    Raises:
        InvalidWriteError: it contains other objects, or both points and batches.
    """
    if result is None:
        return []
    if isinstance(result, Batch):
        return [result]
    points: list[Point] = []
    batches: list[Batch] = []
    found: Iterable[object] = result
    for each in found:
        match each:
            case Point():
                points.append(each)
            case Batch():
                batches.append(each)
            case _:
                problem = f"a {type(each).__name__} instead of a Point or a Batch"
                raise InvalidWriteError(problem)
        if points and batches:
            raise InvalidWriteError("points beside batches; put the points into a Batch")
    return batches or [batch.copy_with(points)]
