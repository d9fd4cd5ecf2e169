"""Handlers for the tests with a real kapacitord: state, refusals, early points, fatal messages."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

from kapudf_cli import BATCH, Batch, BatchHandler, Handler, Point
from kapudf_cli.protocol import (
    INT,
    BeginBatch,
    EndBatch,
    InfoResponse,
    InitRequest,
    InitResponse,
    OptionInfo,
    RestoreRequest,
    RestoreResponse,
    SnapshotResponse,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kapudf_cli.handler import Writer


def _record(text: str) -> None:
    with Path(os.environ["RECORD"]).open("a", encoding="utf-8") as record:
        record.write(f"{text}\n")


class Counter(Handler):
    """Sets the field `count` on each point, and counts on after a restore.

    Each snapshot's count is a line in the file $RECORD.
    """

    def __init__(self, agent: Writer) -> None:
        super().__init__(agent)
        self._count = 0

    def point(self, point: Point, /) -> None:
        self._count += 1
        point.fieldsInt["count"] = self._count
        self.agent.write_point(point)

    def snapshot(self) -> SnapshotResponse:
        _record(str(self._count))
        return SnapshotResponse(snapshot=str(self._count).encode())

    def restore(self, request: RestoreRequest, /) -> RestoreResponse:
        self._count = int(request.snapshot)
        return RestoreResponse(success=True)


class DeclaresNames(Handler):
    """Has an option with an int for each name in the file $RECORD."""

    def info(self) -> InfoResponse:
        info = super().info()
        for name in Path(os.environ["RECORD"]).read_text(encoding="utf-8").split():
            info.options[name].CopyFrom(OptionInfo(valueTypes=[INT]))
        return info

    def point(self, point: Point, /) -> None:
        self.agent.write_point(point)


class ByHost(BatchHandler):
    """Makes of each batch one for each host, in the order of their names."""

    def batch(self, batch: Batch, /) -> Iterator[Batch]:
        for host in sorted({point.tags["host"] for point in batch.points}):
            points = [point for point in batch.points if point.tags["host"] == host]
            yield Batch(batch.name, points, {"host": host}, f"host={host}", batch.tmax_ns)


class Refuser(Handler):
    """Refuses every task."""

    def init(self, request: InitRequest, /) -> InitResponse:
        return InitResponse(error=f"no licence for the task {request.taskID}")

    def point(self, point: Point, /) -> None:
        raise AssertionError(point)


class Forgetful(Handler):
    """Has snapshots, each a line in the file $RECORD, and refuses to take one back."""

    def point(self, point: Point, /) -> None:
        self.agent.write_point(point)

    def snapshot(self) -> SnapshotResponse:
        _record("snapshot")
        return SnapshotResponse(snapshot=b"state")

    def restore(self, request: RestoreRequest, /) -> RestoreResponse:
        del request
        return RestoreResponse(error="this snapshot is of another version")


class Eager(Handler):
    """Writes points in `init` and in `restore`, and then mirrors.

    Each snapshot is a line in the file $RECORD.
    """

    def init(self, request: InitRequest, /) -> InitResponse:
        self._say("init")
        return super().init(request)

    def snapshot(self) -> SnapshotResponse:
        _record("snapshot")
        return SnapshotResponse(snapshot=b"state")

    def restore(self, request: RestoreRequest, /) -> RestoreResponse:
        self._say("restore")
        return super().restore(request)

    def point(self, point: Point, /) -> None:
        self.agent.write_point(point)

    def _say(self, method: str) -> None:
        self.agent.write_point(
            Point(
                name="early",
                dimensions=["host"],
                tags={"host": method},
                fieldsString={"method": method},
            )
        )


class Reckless(Handler):
    """Sends each point back as a batch; one named after a method makes it do what that does.

    Each of those methods would take kapacitord down, were it not stopped.
    """

    provides = BATCH

    def point(self, point: Point, /) -> None:
        misdeed = getattr(self, point.name, None)
        if misdeed is not None:
            misdeed()
            return
        self.agent.write_begin_batch(BeginBatch(name=point.name, size=1))
        self.agent.write_point(point)
        self.agent.write_end_batch(EndBatch(name=point.name, tmax=point.time))

    def end_alone(self) -> None:
        self.agent.write_end_batch(EndBatch(name="bad"))

    def nested_begin(self) -> None:
        self.agent.write_begin_batch(BeginBatch(name="bad"))
        self.agent.write_begin_batch(BeginBatch(name="bad"))

    def negative_size(self) -> None:
        self.agent.write_begin_batch(BeginBatch(name="bad", size=-1))

    def absurd_size(self) -> None:
        self.agent.write_begin_batch(BeginBatch(name="bad", size=1 << 60))

    def long_frame(self) -> None:
        self.agent.write_begin_batch(BeginBatch(name="bad"))
        self.agent.write_point(Point(fieldsString={"text": "x" * 1_000_000}))

    def point_outside(self) -> None:
        self.agent.write_point(Point(name="bad"))

    def no_message(self) -> None:
        self.agent.write_point(cast("Point", None))
