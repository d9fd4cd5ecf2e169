"""A connection that goes from agent to agent, each of which dies over one mark of the journal."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from kapudf_cli.account import Account, Reason
from kapudf_cli.batches import Batch, BatchHandler
from kapudf_cli.handler import Handler
from kapudf_cli.wire.udf_pb2 import (
    BATCH,
    BeginBatch,
    EndBatch,
    InitRequest,
    InitResponse,
    KeepaliveRequest,
    Point,
    RestoreRequest,
    RestoreResponse,
    SnapshotRequest,
    SnapshotResponse,
)
from tests.journaled_tasks import KeptTask
from tests.journals import DiedError
from tests.peers import in_thread
from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kapudf_cli.handler import Writer
    from kapudf_cli.wire.codec import RequestMessage, ResponseMessage

INIT = InitRequest(taskID="task", nodeID="node")
INITIALIZED = InitResponse(success=True)


class Counter(Handler):
    """Sends each point back with its number; raises over those named so."""

    seen: ClassVar[list[int]] = []

    def __init__(self, agent: Writer) -> None:
        super().__init__(agent)
        self.count = 0

    def point(self, point: Point, /) -> None:
        self.seen.append(point.time)
        self.count += 1
        if point.name == "raise":
            raise ValueError(point.time)
        self.agent.write_point(Point(time=point.time, fieldsInt={"count": self.count}))

    def snapshot(self) -> SnapshotResponse:
        return SnapshotResponse(snapshot=json.dumps(self.count).encode())

    def restore(self, request: RestoreRequest, /) -> RestoreResponse:
        self.count = json.loads(request.snapshot)
        return RestoreResponse(success=True)


class Mirror(Handler):
    """Sends points back as they came."""

    def point(self, point: Point, /) -> None:
        self.agent.write_point(point)


class RawMirror(Mirror):
    """The same, undecoded."""

    def setup(self) -> None:
        self.raw_point = self.agent.forward


class Sums(BatchHandler):
    """Sends a batch back with the number of batches so far in each point."""

    def __init__(self, agent: Writer) -> None:
        super().__init__(agent)
        self.count = 0

    def batch(self, batch: Batch, /) -> Batch:
        self.count += 1
        return batch.copy_with(
            Point(time=point.time, fieldsInt={"count": self.count}) for point in batch.points
        )

    def snapshot(self) -> SnapshotResponse:
        return SnapshotResponse(snapshot=json.dumps(self.count).encode())

    def restore(self, request: RestoreRequest, /) -> RestoreResponse:
        self.count = json.loads(request.snapshot)
        return RestoreResponse(success=True)


class Batches(Handler):
    """Passes batches on; raises over what is named so."""

    wants = BATCH
    provides = BATCH

    def point(self, point: Point, /) -> None:
        self.agent.write_point(point)

    def end_batch(self, end: EndBatch, /) -> None:
        if end.name == "raise":
            raise ValueError(end.name)
        super().end_batch(end)


@pytest.fixture
def tasks() -> Iterator[Callable[..., KeptTask]]:
    """Give a way to have tasks' connections, all of which are closed in the end."""
    made: list[KeptTask] = []

    def make(*arguments: Any, **more: Any) -> KeptTask:
        made.append(KeptTask(*arguments, **more))
        return made[-1]

    yield make
    for task in made:
        task.close()


# --- at every mark in turn ---

#: What is sent in one write each, so that there are many marks.
STREAM_INPUT: list[list[RequestMessage]] = [
    [INIT],
    [Point(time=1), Point(time=2)],
    [KeepaliveRequest(time=7), Point(time=3)],
    [SnapshotRequest()],
    [Point(time=time) for time in range(4, 40)],
    [Point(time=40), SnapshotRequest(), Point(time=41)],
    [Point(time=42, name="x" * 100_000), Point(time=43)],
    [Point(time=44)],
]
BATCH_INPUT: list[list[RequestMessage]] = [
    [INIT, BeginBatch(name="a", size=2)],
    [Point(time=1)],
    [Point(time=2), KeepaliveRequest(time=5)],
    [EndBatch(name="a")],
    [SnapshotRequest(), BeginBatch(name="b", size=1), Point(time=3), EndBatch(name="b")],
    [BeginBatch(name="c", size=40), *(Point(time=time) for time in range(40))],
    [EndBatch(name="c"), BeginBatch(name="d", size=1)],
    [Point(time=9, name="x" * 100_000)],
    [SnapshotRequest(), EndBatch(name="d")],
]
CASES: dict[str, tuple[type[Handler], list[list[RequestMessage]]]] = {
    "a count": (Counter, STREAM_INPUT),
    "no state": (Mirror, STREAM_INPUT),
    "no state and raw": (RawMirror, STREAM_INPUT),
    "batches passed on": (Batches, BATCH_INPUT),
    "whole batches with a count": (Sums, BATCH_INPUT),
}


def outcome(
    task: KeptTask, pieces: list[list[RequestMessage]], survives: int | None, *, after: bool
) -> tuple[list[ResponseMessage], Account, int]:
    """Play input, with an agent that dies over a mark, and others that do not.

    Returns what Kapacitor got, the last account, and how many agents died.
    """
    served = task.serve(survives=survives, after=after)
    deaths = 0
    receiving = in_thread(lambda: list(task.side.responses()))
    for piece in pieces:
        task.send(*piece)
        while not task.await_dealt_with(served):
            with pytest.raises(DiedError):
                served.account()
            served.stream.close()
            deaths += 1
            served = task.take_over()
    task.end()
    try:
        account = served.account()
    except DiedError:
        served.stream.close()
        deaths += 1
        account = task.take_over().account()
    task.hang_up()
    return receiving.result(PATIENCE_S), account, deaths


@pytest.mark.parametrize("after", [False, True], ids=["before the mark", "after it"])
@pytest.mark.parametrize(("handler", "pieces"), CASES.values(), ids=CASES.keys())
def test_a_death_over_any_mark_changes_nothing_for_kapacitor(
    tasks: Callable[..., KeptTask],
    handler: type[Handler],
    pieces: list[list[RequestMessage]],
    *,
    after: bool,
) -> None:
    """Every response comes once, in its order, with the state that it would have had."""
    expected, undisturbed, _ = outcome(tasks(handler), pieces, None, after=after)
    survives, deaths = 0, 1
    while deaths:
        responses, account, deaths = outcome(tasks(handler), pieces, survives, after=after)
        assert responses == expected, survives
        assert (account.reason, account.error) == (Reason.CLOSED, None)
        assert account.takeovers == deaths
        for name in ("points_in", "points_out", "batches_in", "batches_out", "bytes_out"):
            assert getattr(account, name) == getattr(undisturbed, name), (survives, name)
        survives += 1
    assert survives > len(pieces)


@pytest.mark.parametrize("snapshot_interval_s", [0.0, 3600.0], ids=["cut often", "never cut"])
@pytest.mark.parametrize(("handler", "pieces"), CASES.values(), ids=CASES.keys())
def test_an_agent_a_piece_changes_nothing_for_kapacitor(
    tasks: Callable[..., KeptTask],
    handler: type[Handler],
    pieces: list[list[RequestMessage]],
    snapshot_interval_s: float,
) -> None:
    """Each takes over from one that died over its second mark."""
    expected, _, _ = outcome(tasks(handler), pieces, None, after=True)
    task = tasks(handler, snapshot_interval_s=snapshot_interval_s)
    receiving = in_thread(lambda: list(task.side.responses()))
    served = task.serve(survives=2)
    for piece in pieces:
        task.send(*piece)
        while not task.await_dealt_with(served):
            served.stream.close()
            served = task.take_over(survives=3)
    served.agent.abort()
    served.ended.exception(PATIENCE_S)
    served.stream.close()
    task.hang_up()
    assert receiving.result(PATIENCE_S) == expected
