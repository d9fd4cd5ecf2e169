"""What is sent: a recording's points or batches, selected, grouped, cut and paced as asked."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kapudf_cli.handler.batches import Batch, batch_messages
from kapudf_cli.protocol.udf_pb2 import EndBatch, Point
from kapudf_cli.tools.recordings.grouping import Grouping

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kapudf_cli.protocol.codec import DataMessage
    from kapudf_cli.tools.replay.windows import Windows


@dataclass(frozen=True)
class Selection:
    """What of a recording is sent. None stands for all.

    Attributes:
        measurement: points and batches of this measurement only.
        database: points of this database only; those that name none are given it.
        retention_policy: likewise.
    """

    measurement: str | None = None
    database: str | None = None
    retention_policy: str | None = None

    def takes(self, record: Point | Batch) -> bool:
        """Return whether a record is sent; give it what it does not name."""
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
    """How a recording becomes what a task sends. It is used once.

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
    """Yield each record when its time has come, the first at once; one out of order does not wait.

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
