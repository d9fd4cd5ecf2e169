"""Handlers with async methods: several calls at once, output in the order of the input."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from kapudf_cli.agent.agent import Reason
from kapudf_cli.agent.checkpoints import LastSnapshot
from kapudf_cli.handler.batch_handler import BatchHandler
from kapudf_cli.handler.errors import OptionsError
from kapudf_cli.handler.handler import Handler
from kapudf_cli.protocol.udf_pb2 import (
    BATCH,
    BeginBatch,
    EndBatch,
    ErrorResponse,
    InfoRequest,
    InitResponse,
    KeepaliveRequest,
    KeepaliveResponse,
    Point,
    RestoreRequest,
    RestoreResponse,
    SnapshotRequest,
    SnapshotResponse,
)
from tests.agent.gated import Gate, Gated, gated
from tests.counters import Counting, counted
from tests.peers import INIT, INITIALIZED, agent_with, encoded
from tests.serve_process import PATIENCE_S
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from kapudf_cli.handler.batches import Batch
    from kapudf_cli.protocol.codec import RequestMessage
    from tests.peers import ServedAgent

# A coroutine that is never awaited, or a task whose exception is lost, fails its test.
pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.usefixtures("silent"),
]


@pytest.fixture
def silent(caplog: pytest.LogCaptureFixture) -> Any:
    """Check that asyncio logs nothing."""
    yield
    gc.collect()
    assert not [record for record in caplog.records if record.name == "asyncio"]


def start(served: ServedAgent, *messages: RequestMessage) -> None:
    """Send Init and then more; check the answer to Init."""
    served.side.send_bytes(encoded([INIT, *messages]))
    assert served.side.receive() == INITIALIZED


def points(*times: int) -> list[Point]:
    return [Point(time=time) for time in times]


def received(served: ServedAgent, count: int) -> list[Any]:
    return [served.side.receive() for _ in range(count)]


# --- order, room and backpressure ---


def test_output_leaves_in_the_order_of_the_input() -> None:
    handler, gate = gated()
    with agent_with(handler) as served:
        start(served, *points(1, 2, 3))
        gate.finish(3, 2, 1)
        assert received(served, 3) == points(1, 2, 3)
        served.side.half_close()
        stats = served.summary().stats
        assert (stats.points_in, stats.points_out) == (3, 3)


def test_no_more_calls_run_at_once_than_allowed() -> None:
    handler, gate = gated(concurrency=2)
    with agent_with(handler) as served:
        start(served, *points(*range(5)))
        for number in range(4):
            gate.await_started(number, number + 1)
            assert gate.started == list(range(number + 2))
            gate.finish(number)
            assert served.side.receive() == Point(time=number)


def test_a_slow_call_stops_further_calls_only_when_many_wait_for_it() -> None:
    handler, gate = gated(concurrency=2)
    with agent_with(handler) as served:
        start(served, *points(*range(20)))
        gate.finish(*range(1, 8))
        gate.finish(0)
        assert received(served, 8) == points(*range(8))
        assert gate.started[:8] == list(range(8))


def test_an_agent_with_all_calls_in_flight_does_not_read() -> None:
    handler, gate = gated(concurrency=1)
    with agent_with(handler) as served:
        start(served, Point(time=1))
        gate.await_started(1)
        served.connection.settimeout(0)
        data = encoded([Point(name="n" * 10_000)])
        with contextlib.suppress(BlockingIOError):
            # Bounded: otherwise this would go on for as long as the agent reads.
            for _ in range(200):
                served.connection.send(data)
            pytest.fail("the agent reads on")
        served.connection.settimeout(PATIENCE_S)
        gate.open()
        assert served.side.receive() == Point(time=1)


def test_a_keepalive_is_answered_in_its_place() -> None:
    handler, gate = gated()
    with agent_with(handler) as served:
        start(served, Point(time=1), KeepaliveRequest(time=5), Point(time=2))
        gate.finish(2, 1)
        assert received(served, 3) == [Point(time=1), KeepaliveResponse(time=5), Point(time=2)]


def test_info_alone_is_answered() -> None:
    handler, _ = gated()
    with agent_with(handler) as served:
        served.side.send_bytes(encoded([InfoRequest()]))
        assert served.side.receive() == handler(None).info()
        served.side.half_close()
        assert served.summary().reason is Reason.CLOSED


def test_the_end_of_input_waits_for_calls_in_flight() -> None:
    handler, gate = gated()
    with agent_with(handler) as served:
        start(served, *points(1, 2))
        served.side.half_close()
        gate.finish(2, 1)
        assert received(served, 3) == [*points(1, 2), None]
        assert served.summary().reason is Reason.CLOSED


def test_a_stop_waits_for_calls_in_flight() -> None:
    handler, gate = gated()
    with agent_with(handler) as served:
        start(served, Point(time=1))
        gate.await_started(1)
        served.agent.stop()
        gate.finish(1)
        assert served.side.receive() == Point(time=1)
        assert served.summary().reason is Reason.STOPPED


def test_an_abort_does_not_wait_for_calls() -> None:
    handler, gate = gated()
    with agent_with(handler) as served:
        start(served, Point(time=1))
        gate.await_started(1)
        served.agent.abort()
        served.summary()
        assert gate.ended == [1]


# --- what a call writes ---


class Writing(Gated):
    """Writes around the gate, also in a task and in a thread."""

    async def point(self, point: Point, /) -> None:
        self.agent.write_point(Point(name="before", time=point.time))
        await self.gate.passage(point.time)
        await asyncio.gather(self._write("task", point.time))
        await asyncio.to_thread(self.agent.write_point, Point(name="thread", time=point.time))
        point.name = "changed after it was written"

    async def _write(self, name: str, time: int) -> None:
        point = Point(name=name, time=time)
        self.agent.write_point(point)
        point.name = "changed after it was written"


def test_what_a_call_writes_is_sent_in_its_place() -> None:
    handler, gate = gated(Writing)
    with agent_with(handler) as served:
        start(served, *points(1, 2))
        gate.finish(2, 1)
        assert received(served, 6) == [
            Point(name=name, time=time) for time in (1, 2) for name in ("before", "task", "thread")
        ]


class Yielding(Handler):
    gate: Gate

    async def point(self, point: Point, /) -> AsyncIterator[Point]:
        yield Point(name="first", time=point.time)
        await self.gate.passage(point.time)
        yield Point(name="second", time=point.time)


def test_an_async_generator_may_yield_points() -> None:
    handler, gate = gated(Yielding)
    with agent_with(handler) as served:
        start(served, *points(1, 2))
        gate.finish(2, 1)
        names = [(point.time, point.name) for point in received(served, 4)]
        assert names == [(1, "first"), (1, "second"), (2, "first"), (2, "second")]


class YieldingText(Handler):
    async def point(self, point: Point, /) -> AsyncIterator[Any]:
        yield point.name


class ReturningText(Handler):
    async def point(self, point: Point, /) -> Any:
        return point.name


class WritingBatch(Handler):
    async def point(self, point: Point, /) -> None:
        del point
        self.agent.write_begin_batch(BeginBatch())


WRITES_NO_BATCH = (
    "a BeginBatch from a handler that provides a stream; declare that it provides BATCH"
)


@pytest.mark.parametrize(
    ("handler", "error"),
    [
        (YieldingText, "yielded a str; yield only points and batches"),
        (ReturningText, "returned a str; return a Point, a Batch, an iterable of these, or None"),
        (WritingBatch, f"raised InvalidWriteError: {WRITES_NO_BATCH}"),
    ],
)
def test_what_cannot_be_written_fails_the_task(handler: type[Handler], error: str) -> None:
    with agent_with(handler) as served:
        start(served, Point(name="text"))
        text = f"{handler.__name__}.point {error}"
        assert served.side.receive() == ErrorResponse(error=text)


# --- exceptions ---


def test_a_failed_call_fails_the_task_after_the_output_before_it() -> None:
    handler, gate = gated()
    with agent_with(handler) as served:
        start(served, *points(1, 2, 3))
        gate.fail(2, ValueError("no"))
        gate.await_started(3)
        gate.finish(1)
        assert served.side.receive() == Point(time=1)
        error = served.side.receive()
        assert error == ErrorResponse(error="Gated.point raised ValueError: no")
        summary = served.summary()
        assert (summary.reason, summary.stats.points_out) == (Reason.HANDLER_ERROR, 1)
        assert gate.ended == [2, 1, 3]


@pytest.mark.parametrize(
    "error", [asyncio.CancelledError(), TimeoutError(), SystemExit(1), KeyboardInterrupt()]
)
def test_any_exception_of_the_handler_is_an_ordinary_one(error: BaseException) -> None:
    handler, gate = gated()
    with agent_with(handler, on_error="skip") as served:
        start(served, *points(1, 2, 3))
        gate.fail(1, error)
        gate.finish(3, 2)
        assert received(served, 2) == points(2, 3)
        served.side.half_close()
        stats = served.summary().stats
        assert (stats.failures, stats.points_in, stats.points_out) == (1, 3, 2)


class Slow(Handler):
    timeout_s = 0.02

    async def point(self, point: Point, /) -> Point:
        if point.name == "slow":
            await self._wait()
        return point

    async def _wait(self) -> None:
        await asyncio.get_running_loop().create_future()


def test_a_call_that_takes_too_long_is_an_error_with_the_place_where_it_waited() -> None:
    with agent_with(Slow) as served:
        start(served, Point(name="slow"), Point(time=1))
        error = served.side.receive()
        assert isinstance(error, ErrorResponse)
        assert error.error.startswith("Slow.point took longer than 0.02 s; it waited in _wait (")
        assert "test_concurrent.py:" in error.error


def test_a_timeout_is_subject_to_on_error() -> None:
    with agent_with(Slow, on_error="skip") as served:
        start(served, Point(name="slow"), Point(time=1))
        assert served.side.receive() == Point(time=1)


def test_the_timeout_of_a_class_can_be_set_for_an_agent() -> None:
    handler, gate = gated()
    with agent_with(handler, timeout_s=0.02) as served:
        start(served, Point(time=1))
        error = served.side.receive()
        assert isinstance(error, ErrorResponse)
        assert error.error.startswith("Gated.point took longer than 0.02 s")
        gate.await_ended(1)


# --- setup, teardown and tasks of the handler ---


class Session(Handler):
    """Opens something at the start and closes it at the end."""

    events: list[str]

    async def setup(self) -> None:
        await asyncio.sleep(0)
        self.events.append("opened")
        self.agent.write_point(Point(name="opened"))

    async def point(self, point: Point, /) -> Point:
        await asyncio.sleep(0)
        self.events.append("point")
        return point

    async def teardown(self) -> Point:
        await asyncio.sleep(0)
        self.events.append("closed")
        return Point(name="closed")


def test_setup_and_teardown_may_be_async() -> None:
    events: list[str] = []
    handler = type("Session", (Session,), {"events": events})
    with agent_with(handler) as served:
        start(served, Point(name="1"))
        served.side.half_close()
        names = [point.name for point in received(served, 3)]
        assert names == ["opened", "1", "closed"]
        assert served.summary().reason is Reason.CLOSED
        assert events == ["opened", "point", "closed"]


class Refusing(Handler):
    async def setup(self) -> None:
        await asyncio.sleep(0)
        raise OptionsError("no such service")

    async def point(self, point: Point, /) -> Point:
        return point


def test_async_setup_may_refuse_the_options() -> None:
    with agent_with(Refusing) as served:
        served.side.send_bytes(encoded([INIT]))
        assert served.side.receive() == InitResponse(error="no such service")


class Background(Gated):
    """Writes from a task of its own, without any input."""

    async def setup(self) -> None:
        self.task = asyncio.create_task(self._write())

    async def _write(self) -> None:
        try:
            for number in range(100, 200):
                await self.gate.passage(number)
                self.agent.write_point(Point(time=number))
        finally:
            self.gate.ended.append(-1)


def test_a_task_of_the_handler_writes_at_any_time_and_is_canceled_at_the_end() -> None:
    handler, gate = gated(Background)
    with agent_with(handler) as served:
        start(served, Point(time=1))
        gate.await_started(1)
        # A call is in flight, and then none.
        gate.finish(100)
        assert served.side.receive() == Point(time=100)
        gate.finish(1)
        assert served.side.receive() == Point(time=1)
        gate.finish(101)
        assert served.side.receive() == Point(time=101)
        gate.await_started(102)
        served.side.half_close()
        assert served.summary().reason is Reason.CLOSED
        assert gate.ended[-1] == -1


class LeavesTask(Gated):
    """Starts a task in each call that writes when the call has returned."""

    async def point(self, point: Point, /) -> Point:
        self.task = asyncio.create_task(self._write(point.time))
        return point

    async def _write(self, time: int) -> None:
        await self.gate.passage(time)
        self.agent.write_point(Point(name="late", time=time))


def test_a_task_that_outlives_its_call_writes_like_any_task_of_the_handler() -> None:
    handler, gate = gated(LeavesTask)
    with agent_with(handler) as served:
        start(served, Point(time=1))
        assert served.side.receive() == Point(time=1)
        gate.finish(1)
        assert served.side.receive() == Point(name="late", time=1)


class FailsInTask(Gated):
    async def setup(self) -> None:
        self.task: asyncio.Task[None] | None = asyncio.create_task(self._fail())

    async def point(self, point: Point, /) -> Point:
        self.task = None
        return point

    async def _fail(self) -> None:
        raise LookupError("lost")


def test_the_exception_of_a_task_is_logged_by_kapudf(caplog: pytest.LogCaptureFixture) -> None:
    with agent_with(FailsInTask) as served:
        start(served, Point(time=1))
        assert served.side.receive() == Point(time=1)
        gc.collect()
        (record,) = [each for each in caplog.records if "background task" in each.message]
        assert record.message == "background task failed: LookupError: lost"
        assert record.exc_info is not None


class ExitsInTask(Gated):
    async def point(self, point: Point, /) -> Point:
        task = asyncio.create_task(self._exit())
        await asyncio.wait([task])
        return point

    async def _exit(self) -> None:
        sys.exit(5)


def test_a_task_that_exits_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with agent_with(ExitsInTask) as served:
        start(served, Point(time=1))
        assert served.side.receive() == Point(time=1)
        for record in caplog.records:
            record.exc_info = None  # Its traceback keeps the task.
        gc.collect()
        logged = [each.message for each in caplog.records if "background task" in each.message]
    assert logged == ["background task failed: SystemExit"]


class IgnoresCancellation(Gated):
    async def point(self, point: Point, /) -> None:
        while True:
            try:
                await self.gate.passage(point.time)
            except asyncio.CancelledError:
                self.gate.ended.append(point.time)


def test_a_call_that_ignores_its_cancellation_is_abandoned_and_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kapudf_cli.agent.event_loop._CANCEL_LIMIT_S", 0.05)
    handler, gate = gated(IgnoresCancellation)
    with agent_with(handler, on_error="fail") as served:
        start(served, Point(time=1))
        gate.await_started(1)
        served.agent.abort()
        served.summary()
        (record,) = {each.message for each in caplog.records if "cancellation" in each.message}
        assert record == "tasks ignore their cancellation and are abandoned"


NUMBER: contextvars.ContextVar[int] = contextvars.ContextVar("NUMBER", default=0)


class SetsContext(Gated):
    async def point(self, point: Point, /) -> Point:
        before = NUMBER.get()
        NUMBER.set(point.time)
        await self.gate.passage(point.time)
        return counted(point.time, before * 100 + NUMBER.get())


def test_context_variables_of_calls_are_separate() -> None:
    handler, gate = gated(SetsContext)
    with agent_with(handler) as served:
        start(served, *points(1, 2))
        gate.finish(2, 1)
        assert received(served, 2) == [counted(1, 1), counted(2, 2)]


# --- snapshots ---


class Stateful(Gated, Counting):
    """Counts the points that have passed; changes its point."""

    async def point(self, point: Point, /) -> Point:
        assert not point.name
        point.name = "changed"
        await self.gate.passage(point.time)
        self.count += 1
        return counted(point.time, self.count)


def test_a_snapshot_has_the_state_after_all_input_before_the_request() -> None:
    handler, gate = gated(Stateful)
    with agent_with(handler) as served:
        start(served, *points(1, 2), SnapshotRequest(), Point(time=3))
        gate.finish(2)
        gate.finish(1)
        assert received(served, 3) == [
            counted(1, 2),
            counted(2, 1),
            SnapshotResponse(snapshot=b"2"),
        ]
        gate.finish(3)
        assert served.side.receive() == counted(3, 3)


def test_a_restored_handler_goes_on_from_the_snapshot() -> None:
    handler, gate = gated(Stateful)
    gate.open()
    with agent_with(handler) as served:
        start(served, RestoreRequest(snapshot=b"7"), Point(time=1))
        assert received(served, 2) == [RestoreResponse(success=True), counted(1, 8)]


# --- batches ---


class Batches(BatchHandler):
    """Sends each batch back when the gate lets it pass."""

    gate: Any

    async def batch(self, batch: Batch, /) -> list[Point]:
        assert batch.tmax_ns is not None
        await self.gate.passage(batch.tmax_ns)
        return batch.points


def batch_of(number: int, *times: int) -> list[RequestMessage]:
    return [BeginBatch(name="b", size=len(times)), *points(*times), EndBatch(name="b", tmax=number)]


def test_several_batches_are_in_flight_at_once() -> None:
    handler, gate = gated(Batches)
    with agent_with(handler) as served:
        start(served, *batch_of(1, 10, 11), *batch_of(2), *batch_of(3, 30))
        gate.finish(3, 2, 1)
        expected = [*batch_of(1, 10, 11), *batch_of(2), *batch_of(3, 30)]
        assert received(served, len(expected)) == expected
        served.side.half_close()
        stats = served.summary().stats
        assert (stats.batches_in, stats.batches_out, stats.points_in) == (3, 3, 3)


def test_a_failed_batch_is_skipped() -> None:
    handler, gate = gated(Batches)
    with agent_with(handler, on_error="skip") as served:
        start(served, *batch_of(1, 10), *batch_of(2, 20))
        gate.fail(1, ValueError())
        gate.finish(2)
        assert received(served, 3) == batch_of(2, 20)


def test_a_failed_batch_restarts_the_handler() -> None:
    handler, gate = gated(Batches)
    with agent_with(handler, on_error="restart", checkpoints=LastSnapshot()) as served:
        start(served, *batch_of(1, 10), *batch_of(2, 20), *batch_of(3, 30))
        gate.finish(1)
        assert received(served, 3) == batch_of(1, 10)
        gate.await_started(2, 3)
        gate.fail(2, ValueError())
        gate.await_ended(3)
        gate.finish(3)
        assert received(served, 3) == batch_of(3, 30)


class YieldsBatch(BatchHandler):
    async def batch(self, batch: Batch, /) -> AsyncIterator[Point]:
        for point in batch.points:
            await asyncio.sleep(0)
            yield point


def test_an_async_generator_may_yield_the_points_of_a_batch() -> None:
    handler, _ = gated(YieldsBatch)
    with agent_with(handler) as served:
        start(served, *batch_of(1, 10, 11))
        assert received(served, 4) == batch_of(1, 10, 11)


class LimitedBatches(Batches):
    max_batch_points = 1


def test_a_batch_that_is_too_long_is_skipped_after_the_batches_before_it() -> None:
    handler, gate = gated(LimitedBatches)
    with agent_with(handler, on_error="skip") as served:
        start(served, *batch_of(1, 10), *batch_of(2, 20, 21), *batch_of(3, 30))
        gate.finish(1, 2, 3)
        assert received(served, 3) == batch_of(1, 10)
        # As for a handler that is not async, only the point over the limit is dropped.
        assert received(served, 3)[1] == Point(time=20)
        assert received(served, 3) == batch_of(3, 30)


class PointsOfBatches(Gated):
    """Sends the points of batches back, each when the gate lets it pass."""

    wants = BATCH
    provides = BATCH


def test_no_point_overtakes_the_begin_or_end_of_its_batch() -> None:
    handler, gate = gated(PointsOfBatches)
    with agent_with(handler) as served:
        start(served, *batch_of(1, 10, 11), *batch_of(2, 20))
        assert isinstance(served.side.receive(), BeginBatch)
        gate.finish(11)
        assert gate.started == [10, 11]
        gate.finish(10, 20)
        assert received(served, 6) == [*batch_of(1, 10, 11)[1:], *batch_of(2, 20)]


# --- other threads ---


def test_heartbeats_are_sent_while_calls_are_in_flight() -> None:
    handler, gate = gated()
    with agent_with(handler) as served:
        start(served, Point(time=1))
        gate.await_started(1)
        assert served.agent.current_frame == len(encoded([INIT]))
        gate.finish(1)
        assert served.side.receive() == Point(time=1)
        wait_until(lambda: served.agent.current_frame is None)


class WritesInThread(Gated):
    """Writes from a thread that knows of no call."""

    async def point(self, point: Point, /) -> Point:
        def write() -> None:
            self.agent.write_point(Point(name="thread", time=point.time))

        thread = threading.Thread(target=write)
        thread.start()
        await asyncio.to_thread(thread.join)
        await self.gate.passage(point.time)
        return point


def test_a_thread_of_the_handler_writes_at_once() -> None:
    handler, gate = gated(WritesInThread)
    with agent_with(handler) as served:
        start(served, Point(time=1))
        assert served.side.receive() == Point(name="thread", time=1)
        gate.finish(1)
        assert served.side.receive() == Point(time=1)


# --- out of order ---


def group_point(time: int, group: str) -> Point:
    return Point(time=time, group=group)


def test_a_point_may_overtake_those_of_other_groups() -> None:
    handler, gate = gated(ordered=False)
    sent = [group_point(1, "a"), group_point(2, "b"), group_point(3, "a")]
    with agent_with(handler) as served:
        start(served, *sent)
        gate.finish(3)
        gate.finish(2)
        assert served.side.receive() == sent[1]
        gate.finish(1)
        assert received(served, 2) == [sent[0], sent[2]]
        served.side.half_close()
        stats = served.summary().stats
        assert (stats.points_in, stats.points_out) == (3, 3)


def test_no_point_overtakes_a_keepalive() -> None:
    handler, gate = gated(ordered=False)
    with agent_with(handler) as served:
        start(served, group_point(1, "a"), KeepaliveRequest(time=5), group_point(2, "b"))
        gate.finish(2)
        gate.finish(1)
        assert received(served, 3) == [
            group_point(1, "a"),
            KeepaliveResponse(time=5),
            group_point(2, "b"),
        ]


def test_without_order_nothing_of_a_failed_call_is_sent() -> None:
    handler, gate = gated(Writing, ordered=False)
    with agent_with(handler, on_error="skip") as served:
        start(served, Point(time=1), Point(time=2, group="b"))
        gate.fail(1, ValueError())
        gate.finish(2)
        assert [point.time for point in received(served, 3)] == [2, 2, 2]


class UnorderedBatch(WritingBatch):
    ordered = False


def test_without_order_a_batch_is_refused_when_it_is_written() -> None:
    with agent_with(UnorderedBatch) as served:
        start(served, Point())
        text = f"UnorderedBatch.point raised InvalidWriteError: {WRITES_NO_BATCH}"
        assert served.side.receive() == ErrorResponse(error=text)
