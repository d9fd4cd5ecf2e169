"""What a replay sends: a recording's points or batches, selected, grouped, cut and paced."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from kapudf_cli.handler.batches import Batch, batch_messages
from kapudf_cli.protocol.udf_pb2 import BATCH, STREAM, EndBatch, Point
from kapudf_cli.tickscript.snippets import edge_name
from kapudf_cli.tools.errors import IncompatibleError, WindowsTooFullError
from kapudf_cli.tools.recordings.notation import Grouping
from kapudf_cli.tools.recordings.recording import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kapudf_cli.protocol.codec import DataMessage
    from kapudf_cli.protocol.udf_pb2 import EdgeType

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


@dataclass(frozen=True)
class Selection:
    """Which records of a recording are sent. None stands for all.

    Attributes:
        measurement: points and batches of this measurement only.
        database: points of this database only. Points without a database get it.
        retention_policy: points of this retention policy only. Points without one get it.
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
        # Line protocol names neither.
        if not record.database and self.database is not None:
            record.database = self.database
        if not record.retentionPolicy and self.retention_policy is not None:
            record.retentionPolicy = self.retention_policy
        return (self.database is None or record.database == self.database) and (
            self.retention_policy is None or record.retentionPolicy == self.retention_policy
        )


@dataclass
class Feed:
    """How the records of a recording become the messages of a task. It is used once.

    Attributes:
        selection: which records.
        grouping: the groups of a stream; the batches of a recording have theirs.
        windows: cuts a stream into batches, None to leave it one.
        limit: the most records to send, None for all.
        speed: how many seconds of the recording pass in one, None for as fast as it goes.
        left_out: how many records were read that the selection does not take.
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
                yield from _as_kapacitor_sends(record)
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


def _as_kapacitor_sends(batch: Batch) -> Iterator[DataMessage]:
    for message in batch_messages(batch):
        if isinstance(message, EndBatch):
            # Kapacitor leaves it out (`writeEndBatch` in its udf/server.go).
            message.ClearField("byName")
        yield message


def _paced(records: Iterable[Point | Batch], speed: float) -> Iterator[Point | Batch]:
    """Yield each record when it is due, the first at once; one out of order is due at once.

    A batch's time is that of its last point (`replayBatchFromChan` in Kapacitor's replay.go).
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
    """Check that a UDF which wants this edge can be sent a recording of this kind.

    Raises:
        IncompatibleError: it cannot; the message says what to change.
    """
    if wants not in {STREAM, BATCH}:
        raise IncompatibleError(f"the UDF wants an {edge_name(wants)}; it must be STREAM or BATCH")
    if kind is Kind.BATCH:
        grouping = feed.grouping
        if feed.windows is not None or grouping.tags != () or grouping.by_name:
            raise IncompatibleError(
                f"this is {kind.value}, which has its groups and is cut already"
            )
        if feed.selection.database is not None or feed.selection.retention_policy is not None:
            raise IncompatibleError(f"this is {kind.value}, which does not name databases")
        if wants == STREAM:
            raise IncompatibleError(f"the UDF wants a stream, and this is {kind.value}")
    elif wants == BATCH and feed.windows is None:
        raise IncompatibleError(
            f"the UDF wants batches, and this is {kind.value}; cut it with --window 10s"
        )
    elif wants == STREAM and feed.windows is not None:
        raise IncompatibleError("the UDF wants a stream; leave --window out")
