"""Batches without pain: a batch as a whole, and a handler that takes one at a time."""

from __future__ import annotations

import abc
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from kapudf_cli.handler.errors import BatchTooLongError
from kapudf_cli.handler.handler import Handler, refuse_async
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
        points: the points; of a batch, they have time, tags, fields and group only.
        tags: the tags that the batch is grouped by.
        group: the group, as Kapacitor names it.
        tmax_ns: the end of the time that the batch covers, nanoseconds since the
            epoch; None stands for the time of the latest point.
        by_name: whether the batch is grouped by name as well.
    """

    name: str = ""
    points: list[Point] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    group: str = ""
    tmax_ns: int | None = None
    by_name: bool = False

    def copy_with(self, points: Iterable[Point]) -> Batch:
        """Return a batch like this one, with other points."""
        return Batch(self.name, list(points), self.tags, self.group, self.tmax_ns, self.by_name)

    def as_stream(self, points: Iterable[Point]) -> list[Point]:
        """Return points fit for a stream: with the batch's name, and grouped by its tags.

        Points of a batch lack both, and Kapacitor would not know where they belong.
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
        """The time that the batch ends with: `tmax_ns`, or the latest point's, or 0."""
        if self.tmax_ns is not None:
            return self.tmax_ns
        return max((point.time for point in self.points), default=0)


def batch_messages(batch: Batch) -> Iterator[BeginBatch | Point | EndBatch]:
    """Yield a batch as its messages: begin, the points, end."""
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
    """Write a batch with its begin and end."""
    for message in batch_messages(batch):
        match message:
            case BeginBatch():
                agent.write_begin_batch(message)
            case EndBatch():
                agent.write_end_batch(message)
            case _:
                # It refuses what is no point, and so must not be passed over here.
                agent.write_point(message)


class BatchHandler(Handler):
    """A handler that is given each batch as a whole. Write `batch`.

    What it returns is written as a batch like the one that came, with begin and
    end made for it, or, where `provides` is STREAM, as points of a stream.
    """

    wants = BATCH
    provides = BATCH
    #: A batch of more points fails the task, before memory does. A point takes about 1 KB.
    max_batch_points: ClassVar[int] = 1_000_000

    def __init__(self, agent: Writer) -> None:
        """Wait for a batch."""
        super().__init__(agent)
        self._begin = BeginBatch()
        self._points: list[Point] = []

    @classmethod
    def check_definition(cls) -> None:
        """Check `batch` as well, which may be a generator, unlike the others."""
        super().check_definition()
        refuse_async(f"{cls.__name__}.batch", cls.batch)

    @abc.abstractmethod
    def batch(self, batch: Batch, /) -> Iterable[Point] | Iterable[Batch] | Batch | None:
        """Take a batch and return what to send on: points of it, a batch or several, or None.

        It may be a generator, of points or of batches.
        """

    def begin_batch(self, begin: BeginBatch, /) -> None:
        """Begin to collect."""
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
        """Hand the batch over, and write what comes of it."""
        batch = Batch(
            name=end.name,
            points=self._points,
            tags=dict(end.tags),
            group=end.group,
            tmax_ns=end.tmax,
            # EndBatch comes without byName even where BeginBatch had it.
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
    """Return the batches that a handler's result stands for; points are of the batch given.

    Raises:
        InvalidWriteError: there is something in it that is neither, or both are.
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
