"""`on_error`: exceptions over data fail the task, or drop the data."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from kapudf_cli.agent.agent import Reason
from kapudf_cli.agent.checkpoints import LastSnapshot
from kapudf_cli.handler.batch_handler import BatchHandler
from kapudf_cli.handler.handler import Handler
from kapudf_cli.protocol.codec import decode_point
from kapudf_cli.protocol.udf_pb2 import (
    BATCH,
    BeginBatch,
    EndBatch,
    ErrorResponse,
    InitRequest,
    InitResponse,
    Point,
    RestoreRequest,
    SnapshotRequest,
    SnapshotResponse,
)
from tests.counters import Counting
from tests.peers import INIT, INITIALIZED, agent_with, encoded

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kapudf_cli.agent.agent import ConnectionSummary
    from kapudf_cli.agent.error_policy import OnError
    from kapudf_cli.handler.batches import Batch
    from kapudf_cli.handler.output import Writer
    from kapudf_cli.protocol.codec import RequestMessage, ResponseMessage
    from kapudf_cli.protocol.raw_points import RawPoint
    from tests.peers import ServedAgent

BAD = "bad"

each_way_on = pytest.mark.parametrize("on_error", ["skip", "restart"])


def check(name: str) -> None:
    if name.startswith(BAD):
        raise ValueError(name)


class Mirror(Handler):
    """Sends points back; raises for bad ones."""

    def point(self, point: Point, /) -> None:
        check(point.name)
        self.agent.write_point(point)


class RawMirror(Mirror):
    """Handles raw points."""

    def raw_point(self, raw: RawPoint, /) -> None:
        check(decode_point(raw).name)
        self.agent.forward(raw)


class Returns(Mirror):
    """Returns points."""

    def point(self, point: Point, /) -> Point:  # type: ignore[override]  # of the test's Mirror
        check(point.name)
        return point


class Yields(Mirror):
    """Yields points, after one that is never written if it raises."""

    def point(self, point: Point, /) -> Iterator[Point]:  # type: ignore[override]  # of the test's Mirror
        check(point.name)
        yield point


class RawReturns(Mirror):
    """Returns raw points."""

    def raw_point(self, raw: RawPoint, /) -> RawPoint:
        check(decode_point(raw).name)
        return raw


class Counter(Counting):
    """Sends each point back with its number."""

    made: ClassVar[int] = 0

    def __init__(self, agent: Writer) -> None:
        super().__init__(agent)
        type(self).made += 1

    def point(self, point: Point, /) -> None:
        self.count += 1
        check(point.name)
        self.agent.write_point(Point(time=self.count))


class Batches(Handler):
    """Sends batches back; raises in the method that a name selects."""

    wants = BATCH
    provides = BATCH

    def begin_batch(self, begin: BeginBatch, /) -> None:
        check_in("before begin", begin.name)
        super().begin_batch(begin)
        check_in("after begin", begin.name)

    def point(self, point: Point, /) -> None:
        check(point.name)
        self.agent.write_point(point)

    def end_batch(self, end: EndBatch, /) -> None:
        check_in("before end", end.name)
        super().end_batch(end)
        check_in("after end", end.name)


def check_in(place: str, name: str) -> None:
    if name == place:
        raise ValueError(name)


class WholeBatches(BatchHandler):
    """Sends batches back; raises for bad ones."""

    def batch(self, batch: Batch, /) -> Batch:
        check(batch.name)
        return batch


class HalfBatches(BatchHandler):
    """Writes a batch of its own and may raise inside it."""

    def batch(self, batch: Batch, /) -> None:
        self.agent.write_begin_batch(BeginBatch(name=batch.name))
        for point in batch.points:
            self.agent.write_point(point)
        check(batch.name)
        self.agent.write_end_batch(EndBatch(name=batch.name))


def play(served: ServedAgent, messages: Iterable[RequestMessage]) -> list[ResponseMessage]:
    served.side.send_bytes(encoded(messages))
    served.side.half_close()
    return list(served.side.responses())


def batch_of(name: str, *points: Point) -> list[RequestMessage]:
    return [BeginBatch(name=name, size=len(points)), *points, EndBatch(name=name)]


def served_by(
    handler: type[Handler], on_error: OnError, messages: Iterable[RequestMessage]
) -> tuple[list[ResponseMessage], ConnectionSummary]:
    """Play a whole connection; return the responses after the one to Init, and the summary."""
    checkpoints = LastSnapshot(3600.0) if on_error == "restart" else None
    with agent_with(handler, on_error=on_error, checkpoints=checkpoints) as served:
        first, *responses = play(served, [INIT, *messages])
        summary = served.summary()
    assert first == INITIALIZED
    return responses, summary


# --- points ---

MANY = [Point(time=time, name=BAD if time % 7 == 3 else "good") for time in range(100)]
GOOD = [point for point in MANY if point.name != BAD]


@each_way_on
@pytest.mark.parametrize("handler", [Mirror, Returns, Yields, RawMirror, RawReturns])
def test_points_that_do_not_raise_come_back_in_order(
    handler: type[Handler], on_error: OnError, caplog: pytest.LogCaptureFixture
) -> None:
    responses, summary = served_by(handler, on_error, MANY)
    assert responses == GOOD
    assert (summary.reason, summary.error) == (Reason.CLOSED, None)
    assert summary.stats.failures == len(MANY) - len(GOOD)
    assert summary.stats.restarts == (summary.stats.failures if on_error == "restart" else 0)
    assert summary.stats.dropped_points == summary.stats.failures
    assert (summary.stats.points_in, summary.stats.points_out) == (len(MANY), len(GOOD))
    assert summary.stats.bytes_out == len(encoded(GOOD)) + len(b"\x04\x12\x02\x08\x01")
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) < summary.stats.failures
    method = "raw_point" if handler in {RawMirror, RawReturns} else "point"
    assert f"{handler.__name__}.{method} raised" in errors[0].getMessage()
    assert errors[0].exc_info is not None


@each_way_on
def test_a_generator_that_raises_drops_only_the_rest_of_its_points(on_error: OnError) -> None:
    class Twice(Mirror):
        def point(self, point: Point, /) -> Iterator[Point]:  # type: ignore[override]  # of the test's Mirror
            yield point
            check(point.name)
            yield point

    points = [Point(time=1), Point(time=2, name=BAD), Point(time=3)]
    responses, summary = served_by(Twice, on_error, points)
    assert [point.time for point in responses if isinstance(point, Point)] == [1, 1, 2, 3, 3]
    assert summary.stats.failures == 1


@each_way_on
def test_what_cannot_be_written_drops_its_point(on_error: OnError) -> None:
    class Sometimes(Mirror):
        def point(self, point: Point, /) -> Any:
            return "text" if point.name == BAD else point

    points = [Point(time=1), Point(time=2, name=BAD), Point(time=3)]
    responses, summary = served_by(Sometimes, on_error, points)
    assert responses == [points[0], points[2]]
    assert summary.stats.failures == 1


@each_way_on
def test_output_before_an_exception_is_sent(on_error: OnError) -> None:

    class Twice(Mirror):
        def point(self, point: Point, /) -> None:
            self.agent.write_point(point)
            super().point(point)

    responses, summary = served_by(Twice, on_error, [Point(name="a"), Point(name=BAD)])
    assert responses == [Point(name="a"), Point(name="a"), Point(name=BAD)]
    assert summary.stats.failures == 1


@each_way_on
def test_sys_exit_in_a_handler_is_an_exception(on_error: OnError) -> None:

    class Exits(Mirror):
        def point(self, point: Point, /) -> None:
            if point.name == BAD:
                raise SystemExit(3)
            super().point(point)

    responses, summary = served_by(Exits, on_error, [Point(name=BAD), Point(time=1)])
    assert responses == [Point(time=1)]
    assert summary.stats.failures == 1


def test_fail_ends_the_task_at_the_first_exception() -> None:
    with agent_with(Mirror, on_error="fail") as served:
        served.side.send_bytes(encoded([INIT, *MANY]))
        responses = [served.side.receive() for _ in range(5)]
        summary = served.summary()
    assert responses[1:4] == MANY[:3]
    assert isinstance(responses[4], ErrorResponse)
    assert summary.reason is Reason.HANDLER_ERROR
    assert (summary.stats.failures, summary.stats.restarts) == (0, 0)


@each_way_on
@pytest.mark.parametrize("fault", ["init", "restore", "info", "__init__"])
def test_an_exception_outside_of_data_always_fails_the_task(on_error: OnError, fault: str) -> None:

    class Broken(Mirror):
        pass

    def fail(*_: object) -> None:
        raise ValueError(fault)

    setattr(Broken, fault, fail)
    with agent_with(Broken, on_error=on_error, checkpoints=LastSnapshot()) as served:
        served.side.send_bytes(encoded([INIT, RestoreRequest(), Point()]))
        responses = list(served.side.responses())
        summary = served.summary()
    assert responses[-1] == ErrorResponse(error=f"Broken.{fault} raised ValueError: {fault}")
    assert summary.reason is Reason.HANDLER_ERROR


# --- restart ---


def test_skip_keeps_the_state_of_the_handler() -> None:
    Counter.made = 0
    responses, summary = served_by(Counter, "skip", [Point(), Point(name=BAD), Point()])
    assert responses == [Point(time=1), Point(time=3)]
    assert (Counter.made, summary.stats.failures) == (1, 1)


def test_a_restarted_handler_has_the_state_of_the_last_snapshot() -> None:
    Counter.made = 0
    messages: list[RequestMessage] = [Point(), Point(), Point(name=BAD), Point()]
    with agent_with(Counter, on_error="restart", checkpoints=LastSnapshot()) as served:
        opening: list[RequestMessage] = [INIT, Point(), Point(), SnapshotRequest()]
        for message in opening:
            served.side.send(message)
            assert served.side.receive() is not None
        responses = play(served, messages)
        summary = served.summary()
    # Two before the snapshot and two after it. The new handler does not know the latter.
    assert responses == [Point(time=3), Point(time=4), Point(time=3)]
    assert Counter.made == 2
    assert (summary.stats.failures, summary.stats.restarts) == (1, 1)


def test_a_handler_that_cannot_be_replaced_fails_the_task() -> None:

    class Once(Counter):
        def init(self, request: InitRequest, /) -> InitResponse:
            if self.made > 1:
                raise OSError("no device left")
            return super().init(request)

    Once.made = 0
    with agent_with(Once, on_error="restart", checkpoints=LastSnapshot()) as served:
        served.side.send_bytes(encoded([INIT, Point(), Point(name=BAD), Point()]))
        responses = list(served.side.responses())
        summary = served.summary()
    assert responses[-1] == ErrorResponse(error="Once.init raised OSError: no device left")
    assert summary.reason is Reason.HANDLER_ERROR


def test_the_old_handler_is_stopped_before_the_new_one_is_created() -> None:
    calls: list[str] = []

    class Holds(Mirror):
        def __init__(self, agent: Writer) -> None:
            super().__init__(agent)
            calls.append("made")

        def teardown(self) -> None:
            calls.append("stopped")
            self.agent.write_point(Point(name=f"stop {len(calls)}"))

    responses, summary = served_by(Holds, "restart", [Point(name=BAD), Point(name="good")])
    assert calls == ["made", "stopped", "made", "stopped"]
    assert responses == [Point(name="good"), Point(name="stop 4")]
    assert summary.stop_error is None


# --- batches ---


@each_way_on
@pytest.mark.parametrize("name", ["before begin", "after begin", "before end", "after end"])
@pytest.mark.parametrize("first", [True, False], ids=["first batch", "later batch"])
def test_a_batch_whose_begin_or_end_raises_is_dropped(
    on_error: OnError, name: str, *, first: bool
) -> None:
    good = [batch_of(f"good {number}", Point(time=1), Point(time=2)) for number in range(4)]
    batches = [batch_of(name, Point(time=8), Point(time=9)), *good]
    if not first:
        batches.insert(0, batches.pop(1))
    responses, summary = served_by(Batches, on_error, [each for one in batches for each in one])
    assert whole_batches(responses) == [
        each for each in batches if each[0] != BeginBatch(name=name, size=2) or name == "after end"
    ]
    assert summary.stats.failures == 1
    assert (summary.stats.batches_in, summary.stats.batches_out) == (
        5,
        5 if name == "after end" else 4,
    )
    assert not summary.batch_unfinished
    assert summary.stats.dropped_points == 2


@each_way_on
def test_a_bad_point_of_a_batch_is_dropped_and_the_batch_goes_on(on_error: OnError) -> None:
    good = [Point(time=1), Point(time=3)]
    batch = batch_of("b", good[0], Point(name=BAD), good[1])
    responses, summary = served_by(Batches, on_error, [*batch, *batch])
    if on_error == "skip":
        assert responses == [batch[0], *good, batch[-1]] * 2
    # Without a journal, the new handler does not know the begin, and the rest is skipped.
    assert all(len(each) == 4 for each in whole_batches(responses))
    assert summary.stats.failures == 2
    # With a restart, the last point of each batch was skipped too.
    assert summary.stats.dropped_points == (2 if on_error == "skip" else 4)


@each_way_on
@pytest.mark.parametrize("handler", [WholeBatches, HalfBatches])
def test_a_handler_of_whole_batches_drops_the_bad_ones(
    handler: type[BatchHandler], on_error: OnError
) -> None:
    batches = [
        batch_of(BAD if number % 3 == 1 else "good", Point(time=number)) for number in range(9)
    ]
    good = [batch for batch in batches if batch[-1] != EndBatch(name=BAD)]
    responses, summary = served_by(handler, on_error, [each for one in batches for each in one])
    found = whole_batches(responses)
    assert [each[1:] for each in found] == [each[1:] for each in good]
    assert (summary.stats.failures, summary.stats.batches_in, summary.stats.batches_out) == (
        3,
        9,
        6,
    )
    assert summary.stats.dropped_points == 3


@each_way_on
def test_a_batch_over_the_limit_is_dropped(on_error: OnError) -> None:

    class Short(WholeBatches):
        max_batch_points = 2

    long = batch_of("long", *(Point(time=time) for time in range(5)))
    short = batch_of("short", Point(time=1))
    responses, summary = served_by(Short, on_error, [*long, *short])
    assert whole_batches(responses)[-1][1:] == short[1:]
    assert summary.reason is Reason.CLOSED
    assert summary.stats.failures >= 1


def whole_batches(responses: Iterable[ResponseMessage]) -> list[list[ResponseMessage]]:
    """Return the batches that Kapacitor would collect; it drops an open batch at the next begin."""
    batches: list[list[ResponseMessage]] = []
    current: list[ResponseMessage] | None = None
    for response in responses:
        if isinstance(response, BeginBatch):
            current = [response]
            continue
        assert current is not None, "kapacitord would have crashed"
        current.append(response)
        if isinstance(response, EndBatch):
            batches.append(current)
            current = None
    return batches


# --- snapshots ---


def ask_each(
    served: ServedAgent, messages: Iterable[RequestMessage]
) -> list[ResponseMessage | None]:
    """Send Init and each message, and return the responses after the one to Init."""
    served.side.send(INIT)
    assert served.side.receive() == INITIALIZED
    answers = []
    for message in messages:
        served.side.send(message)
        answers.append(served.side.receive())
    return answers


class BadSnapshots(Counter):
    """Raises in `snapshot` after a bad point."""

    def point(self, point: Point, /) -> None:
        self.count += 1
        self.bad = point.name == BAD
        self.agent.write_point(Point(time=self.count))

    def snapshot(self) -> SnapshotResponse:
        if self.bad:
            raise ValueError("no state")
        return super().snapshot()


@each_way_on
def test_a_snapshot_that_raises_is_answered_with_the_last_good_one(on_error: OnError) -> None:
    with agent_with(BadSnapshots, on_error=on_error, checkpoints=LastSnapshot()) as served:
        answers = ask_each(served, [Point(), SnapshotRequest(), Point(name=BAD), SnapshotRequest()])
        play(served, [])
        summary = served.summary()
    assert answers[1] == answers[3] == SnapshotResponse(snapshot=b"1")
    assert summary.stats.failures == 1
    assert summary.reason is Reason.CLOSED


@each_way_on
def test_the_last_good_snapshot_may_be_the_one_that_was_restored(on_error: OnError) -> None:
    for before in ([], [RestoreRequest(snapshot=b"41")]):
        with agent_with(BadSnapshots, on_error=on_error, checkpoints=LastSnapshot()) as served:
            answers = ask_each(served, [*before, Point(name=BAD), SnapshotRequest()])
            play(served, [])
        assert answers[-1] == SnapshotResponse(snapshot=b"41" if before else b"")


class Growing(Counter):
    """Returns a longer snapshot each time."""

    def snapshot(self) -> SnapshotResponse:
        return SnapshotResponse(snapshot=json.dumps(self.count).encode() + 300 * self.count * b" ")


@each_way_on
def test_a_snapshot_over_the_frame_limit_is_answered_with_the_last_good_one(
    on_error: OnError, caplog: pytest.LogCaptureFixture
) -> None:
    requests: list[RequestMessage] = [
        Point(),
        SnapshotRequest(),
        Point(),
        SnapshotRequest(),
        Point(),
    ]
    with agent_with(
        Growing, on_error=on_error, checkpoints=LastSnapshot(), max_frame_bytes=500
    ) as served:
        answers = ask_each(served, requests)
        play(served, [])
        summary = served.summary()
    good = SnapshotResponse(snapshot=b"1" + 300 * b" ")
    assert answers == [Point(time=1), good, Point(time=2), good, Point(time=3)]
    assert (summary.stats.failures, summary.reason) == (1, Reason.CLOSED)
    assert "the limit max_frame_bytes is 500" in caplog.text


def test_a_state_longer_than_a_frame_is_restored_in_a_new_handler() -> None:
    requests: list[RequestMessage] = [Point() for _ in range(9)]
    with agent_with(
        Growing, on_error="restart", checkpoints=LastSnapshot(0.0), max_frame_bytes=500
    ) as served:
        ask_each(served, requests)
        served.side.send(Point(name=BAD))
        served.side.send(Point())
        assert served.side.receive() == Point(time=10)
        play(served, [])
        assert served.summary().stats.restarts == 1


def test_a_snapshot_that_is_too_long_to_store_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Narrow(LastSnapshot):
        @property
        def max_prefix_bytes(self) -> int:
            return 1000

    with agent_with(Growing, on_error="restart", checkpoints=Narrow(0.0)) as served:
        ask_each(served, [Point() for _ in range(9)])
        play(served, [])
        assert served.summary().reason is Reason.CLOSED
    said = [record for record in caplog.records if "too long to be kept" in record.getMessage()]
    assert len(said) == 1
    assert said[0].most_bytes == 1000  # type: ignore[attr-defined]


def test_a_snapshot_that_raises_fails_the_task_by_default() -> None:
    with agent_with(BadSnapshots, on_error="fail") as served:
        served.side.send_bytes(encoded([INIT, Point(name=BAD), SnapshotRequest()]))
        responses = list(served.side.responses())
        summary = served.summary()
    assert responses[-1] == ErrorResponse(error="BadSnapshots.snapshot raised ValueError: no state")
    assert summary.reason is Reason.HANDLER_ERROR


@pytest.mark.parametrize("on_error", ["fail", "skip", "restart"])
def test_a_snapshot_for_compaction_may_fail(
    on_error: OnError, caplog: pytest.LogCaptureFixture
) -> None:
    with agent_with(BadSnapshots, on_error=on_error, checkpoints=LastSnapshot(0.0)) as served:
        responses = play(served, [INIT, Point(name=BAD), Point(name=BAD)])
        summary = served.summary()
    assert responses == [INITIALIZED, Point(time=1), Point(time=2)]
    assert summary.reason is Reason.CLOSED
    assert "snapshot failed: BadSnapshots.snapshot raised ValueError: no state" in caplog.text


def test_output_of_a_snapshot_for_compaction_is_sent_at_once() -> None:

    class Writes(Counter):
        def snapshot(self) -> SnapshotResponse:
            self.agent.write_point(Point(name="snapshot"))
            return super().snapshot()

    with agent_with(Writes, checkpoints=LastSnapshot(0.0)) as served:
        served.side.send_bytes(encoded([INIT, Point()]))
        responses = [served.side.receive() for _ in range(3)]
        play(served, [])
    assert responses == [INITIALIZED, Point(time=1), Point(name="snapshot")]


@pytest.fixture(autouse=True)
def captured_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Capture all log events of the agents."""
    with caplog.at_level(logging.DEBUG):
        yield
