"""The data of a replay: the records of a recording, selected, grouped, windowed and paced."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from kapudf_cli.handler.batches import Batch
from kapudf_cli.protocol.udf_pb2 import BATCH, STREAM, Point
from kapudf_cli.tickscript.snippets import edge_name
from kapudf_cli.tools.errors import IncompatibleError, WindowsTooFullError
from kapudf_cli.tools.recordings.notation import Grouping, in_batch, messages_of
from kapudf_cli.tools.recordings.recording import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kapudf_cli.protocol.codec import DataMessage
    from kapudf_cli.protocol.udf_pb2 import EdgeType

#: The most points in all open windows. A point takes about 1 KB.
MAX_HELD_POINTS: Final = 1_000_000


@dataclass
class _Window:
    """The open window of a group: its measurement, end and points."""

    name: str
    end_ns: int
    points: list[Point] = field(default_factory=list)


class Windows:
    """Splits a stream into batches, as `|window().period(p).every(p)` does for each group.

    The first window of a group begins with its first point. The first point after the end of a
    window closes it and begins the next one (`windowByTime` in Kapacitor's window.go). The last,
    open windows never become batches.

    Attributes:
        held: the number of points in open windows.
    """

    def __init__(self, period_ns: int) -> None:
        """Use windows of this length, in nanoseconds."""
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
                message = (
                    f"more than {MAX_HELD_POINTS} points in open windows; choose a shorter --window"
                )
                raise WindowsTooFullError(message)

    def _close(self, window: _Window, point: Point) -> Batch:
        """Return the content of a window as a batch. `point` is a point of the same group."""
        batch = Batch(
            name=window.name,
            points=[in_batch(each, point.group) for each in window.points],
            tags={tag: point.tags.get(tag, "") for tag in point.dimensions},
            group=point.group,
            tmax_ns=window.end_ns,
            by_name=point.byName,
        )
        self.held -= len(window.points)
        window.points = []
        return batch


@dataclass(frozen=True)
class Selection:
    """Selects the records of a recording to send. None selects all.

    Attributes:
        measurement: send only points and batches of this measurement.
        database: send only points of this database; points without a database get it.
        retention_policy: the same for the retention policy.
    """

    measurement: str | None = None
    database: str | None = None
    retention_policy: str | None = None

    def takes(self, record: Point | Batch) -> bool:
        """Return whether a record is sent, and add the database and retention policy it lacks."""
        if self.measurement is not None and record.name != self.measurement:
            return False
        if isinstance(record, Batch):
            return True
        # Line protocol has neither database nor retention policy.
        if not record.database and self.database is not None:
            record.database = self.database
        if not record.retentionPolicy and self.retention_policy is not None:
            record.retentionPolicy = self.retention_policy
        return (self.database is None or record.database == self.database) and (
            self.retention_policy is None or record.retentionPolicy == self.retention_policy
        )


@dataclass
class Feed:
    """Converts the records of a recording to the messages of a task. It is used once.

    Attributes:
        selection: the records to send.
        grouping: the grouping of a stream; recorded batches have their own.
        windows: splits a stream into batches; None if it stays a stream.
        limit: the most records to send, None for all.
        speed: the seconds of the recording per second, None for full speed.
        left_out: the number of records that were not selected.
    """

    selection: Selection = field(default_factory=Selection)
    grouping: Grouping = field(default_factory=Grouping)
    windows: Windows | None = None
    limit: int | None = None
    speed: float | None = None
    left_out: int = 0

    def messages(self, records: Iterable[Point | Batch]) -> Iterator[DataMessage]:
        """Yield the messages of these records."""
        taken: Iterator[Point | Batch] = itertools.islice(self._selected(records), self.limit)
        if self.speed is not None:
            taken = _paced(taken, self.speed)
        if self.windows is not None:
            taken = self.windows.cut(
                self._grouped(record) for record in taken if isinstance(record, Point)
            )
        for record in taken:
            if isinstance(record, Batch):
                yield from messages_of(record)
            else:
                yield self._grouped(record)

    def _selected(self, records: Iterable[Point | Batch]) -> Iterator[Point | Batch]:
        for record in records:
            if self.selection.takes(record):
                yield record
            else:
                self.left_out += 1

    def _grouped(self, point: Point) -> Point:
        self.grouping.apply(point)
        return point


def _paced(records: Iterable[Point | Batch], speed: float) -> Iterator[Point | Batch]:
    """Yield each record when it is due. The first one, and any out of order, are due at once.

    The time of a batch is that of its last point (`replayBatchFromChan` in Kapacitor's replay.go).
    """
    began_ns: int | None = None
    began_s = time.monotonic()
    for record in records:
        if isinstance(record, Batch):
            time_ns = record.points[-1].time if record.points else record.end_ns
        else:
            time_ns = record.time
        if began_ns is None:
            began_ns = time_ns
        wait_s = began_s + (time_ns - began_ns) / 1e9 / speed - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)
        yield record


def check_compatible(wants: EdgeType, kind: Kind, feed: Feed) -> None:
    """Check that a recording of this kind can be sent to a UDF that wants this edge.

    Raises:
        IncompatibleError: it cannot; the message says what to change.
    """
    if wants not in {STREAM, BATCH}:
        raise IncompatibleError(f"the UDF wants an {edge_name(wants)}; it must be STREAM or BATCH")
    if kind.has_batches:
        grouping = feed.grouping
        if feed.windows is not None or grouping.tags != () or grouping.by_name:
            raise IncompatibleError(f"this is {kind.value}, which has its own groups and batches")
        if feed.selection.database is not None or feed.selection.retention_policy is not None:
            raise IncompatibleError(f"this is {kind.value}, which does not name databases")
        if wants == STREAM:
            raise IncompatibleError(f"the UDF wants a stream, and this is {kind.value}")
    elif wants == BATCH and feed.windows is None:
        raise IncompatibleError(
            f"the UDF wants batches, and this is {kind.value}; split it with --window 10s"
            + (", or --start and --every 10s" if kind is Kind.QUERIED_POINTS else "")
        )
    elif wants == STREAM and feed.windows is not None:
        raise IncompatibleError("the UDF wants a stream; leave --window out")
