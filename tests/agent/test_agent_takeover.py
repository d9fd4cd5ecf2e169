"""Takeover of a connection by an agent after another has died at a commit."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, ClassVar

import pytest

from kapudf_cli.agent.agent import ConnectionSummary, Reason
from kapudf_cli.handler.batch_handler import BatchHandler
from kapudf_cli.handler.handler import Handler
from kapudf_cli.handler.patch import PointPatch
from kapudf_cli.journal.stream import JournaledStream
from kapudf_cli.protocol.codec import RESPONSES
from kapudf_cli.protocol.udf_pb2 import (
    BATCH,
    BeginBatch,
    EndBatch,
    ErrorResponse,
    InitRequest,
    InitResponse,
    KeepaliveRequest,
    KeepaliveResponse,
    Point,
    RestoreRequest,
    RestoreResponse,
    SnapshotRequest,
    SnapshotResponse,
)
from kapudf_cli.transport.stream import Commit, ConnectionStats
from tests.counters import Counting, counted
from tests.journal.connections import WorkerDiedError
from tests.peers import INIT, INITIALIZED, encoded, in_thread
from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from kapudf_cli.agent.error_policy import OnError
    from kapudf_cli.handler.batches import Batch
    from kapudf_cli.protocol.codec import RequestMessage, ResponseMessage
    from tests.journal.tasks import JournaledTask


class Counter(Counting):
    """Sends each point back with its number; raises for points with a certain name."""

    seen: ClassVar[list[int]] = []

    def point(self, point: Point, /) -> None:
        self.seen.append(point.time)
        self.count += 1
        if point.name == "raise":
            raise ValueError(point.time)
        self.agent.write_point(counted(point.time, self.count))


class Mirror(Handler):
    """Sends points back unchanged."""

    def point(self, point: Point, /) -> None:
        self.agent.write_point(point)


class RawMirror(Mirror):
    """Sends points back undecoded."""

    passes_through = True


class Returns(Counting):
    """Returns each point with its number, and every third point twice."""

    def point(self, point: Point, /) -> Iterator[Point]:
        self.count += 1
        yield counted(point.time, self.count)
        if self.count % 3 == 0:
            yield counted(point.time, -self.count)


class RawPatched(Mirror):
    """Sets a field on each point without decoding it."""

    passes_through: bool | PointPatch = PointPatch({"x": 1.5})


class Sums(Counting, BatchHandler):
    """Sends a batch back with the number of batches so far in each point."""

    def batch(self, batch: Batch, /) -> Batch:
        self.count += 1
        return batch.copy_with(counted(point.time, self.count) for point in batch.points)


class Batches(Handler):
    """Sends batches back; raises for certain names."""

    wants = BATCH
    provides = BATCH

    def point(self, point: Point, /) -> None:
        self.agent.write_point(point)

    def end_batch(self, end: EndBatch, /) -> None:
        if end.name == "raise":
            raise ValueError(end.name)
        super().end_batch(end)


# --- a death at each commit ---

#: Pieces of input, each sent in one write, so that there are many commits.
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
    "no state and patched": (RawPatched, STREAM_INPUT),
    "a count in what is yielded": (Returns, STREAM_INPUT),
    "batches passed on": (Batches, BATCH_INPUT),
    "whole batches with a count": (Sums, BATCH_INPUT),
}


def outcome(
    task: JournaledTask, pieces: list[list[RequestMessage]], survives: int | None, *, after: bool
) -> tuple[list[ResponseMessage], ConnectionSummary, int]:
    """Play input with an agent that dies at a commit, and others that do not.

    Return what Kapacitor received, the last summary, and how many agents died.
    """
    served = task.serve(survives=survives, after=after)
    deaths = 0
    receiving = in_thread(lambda: list(task.side.responses()))
    for piece in pieces:
        task.send(*piece)
        while not task.await_handled(served):
            with pytest.raises(WorkerDiedError):
                served.summary()
            served.stream.close()
            deaths += 1
            served = task.take_over()
    task.end()
    try:
        summary = served.summary()
    except WorkerDiedError:
        served.stream.close()
        deaths += 1
        summary = task.take_over().summary()
    task.hang_up()
    return receiving.result(PATIENCE_S), summary, deaths


@pytest.mark.parametrize("after", [False, True], ids=["before the mark", "after it"])
@pytest.mark.parametrize(("handler", "pieces"), CASES.values(), ids=CASES.keys())
def test_a_death_at_any_commit_is_invisible_to_kapacitor(
    tasks: Callable[..., JournaledTask],
    handler: type[Handler],
    pieces: list[list[RequestMessage]],
    *,
    after: bool,
) -> None:
    expected, undisturbed, _ = outcome(tasks(handler), pieces, None, after=after)
    survives, deaths = 0, 1
    while deaths:
        responses, summary, deaths = outcome(tasks(handler), pieces, survives, after=after)
        assert responses == expected, survives
        assert (summary.reason, summary.error) == (Reason.CLOSED, None)
        assert summary.stats.takeovers == deaths
        for name in ("points_in", "points_out", "batches_in", "batches_out", "bytes_out"):
            assert getattr(summary.stats, name) == getattr(undisturbed.stats, name), (
                survives,
                name,
            )
        survives += 1
    assert survives > len(pieces)


@pytest.mark.parametrize("snapshot_interval_s", [0.0, 3600.0], ids=["cut often", "never cut"])
@pytest.mark.parametrize(("handler", "pieces"), CASES.values(), ids=CASES.keys())
def test_a_death_after_each_piece_is_invisible_to_kapacitor(
    tasks: Callable[..., JournaledTask],
    handler: type[Handler],
    pieces: list[list[RequestMessage]],
    snapshot_interval_s: float,
) -> None:
    expected, _, _ = outcome(tasks(handler), pieces, None, after=True)
    task = tasks(handler, snapshot_interval_s=snapshot_interval_s)
    receiving = in_thread(lambda: list(task.side.responses()))
    served = task.serve(survives=2)
    for piece in pieces:
        task.send(*piece)
        while not task.await_handled(served):
            served.stream.close()
            served = task.take_over(survives=3)
    served.agent.abort()
    served.ended.exception(PATIENCE_S)
    served.stream.close()
    task.hang_up()
    assert receiving.result(PATIENCE_S) == expected


class Growing(Batches):
    """Sends batches back, with points so long that they are flushed at once."""

    def point(self, point: Point, /) -> None:
        self.agent.write_point(Point(time=point.time, name=point.name * 120_000))


class Talkative(Counter):
    """Counts, raises, and returns a snapshot so long that it is flushed at once."""

    def snapshot(self) -> SnapshotResponse:
        return SnapshotResponse(snapshot=super().snapshot().snapshot + b" " * 120_000)


#: Input of one read, for which output is sent before all of it is handled.
GROWING_INPUT: list[RequestMessage] = [
    BeginBatch(name="a"), Point(time=1), EndBatch(name="a"),
    BeginBatch(name="b"), Point(time=2), Point(time=3, name="x"), Point(time=4),
    EndBatch(name="b"),
]  # fmt: skip
FAILING_INPUT: list[RequestMessage] = [
    Point(time=1), Point(time=2, name="raise"), Point(time=3), SnapshotRequest(),
    Point(time=4, name="raise"), Point(time=5),
]  # fmt: skip


def receiving_from(task: JournaledTask) -> Future[list[ResponseMessage]]:
    return in_thread(lambda: list(task.side.responses()))


@pytest.mark.parametrize("careful", [False, True], ids=["as usual", "one at a time"])
@pytest.mark.parametrize(
    ("handler", "piece", "on_error"),
    [(Growing, GROWING_INPUT, "fail"), (Talkative, FAILING_INPUT, "restart")],
    ids=["batches that grow", "a handler that begins anew"],
)
def test_two_deaths_during_partly_sent_output_are_invisible(
    tasks: Callable[..., JournaledTask],
    handler: type[Handler],
    piece: list[RequestMessage],
    on_error: OnError,
    *,
    careful: bool,
) -> None:
    pieces: list[list[RequestMessage]] = [[INIT], piece]
    expected, _, _ = outcome(tasks(handler, on_error=on_error), pieces, None, after=True)
    for first in range(1, 4):
        for second in range(10):
            task = tasks(handler, on_error=on_error)
            receiving = receiving_from(task)
            served = task.serve(survives=first)
            task.send(INIT)
            task.send(*piece)
            survives = iter((second,))
            while not task.await_handled(served):
                served.stream.close()
                until = task.header.received if careful else 0
                served = task.take_over(survives=next(survives, None), until=until)
            served.agent.stop()
            served.ended.exception(PATIENCE_S)
            served.stream.close()
            task.hang_up()
            # The last one may be that of the stop.
            responses = receiving.result(PATIENCE_S)
            data = [each for each in responses if not isinstance(each, ErrorResponse)]
            assert data == expected, (first, second)


# --- what the next agent finds ---


def died(
    task: JournaledTask, *messages: RequestMessage, survives: int, after: bool = True
) -> list[RequestMessage]:
    """Let an agent die at a commit while it handles messages sent one by one.

    Return the messages that were not sent.
    """
    served = task.serve(survives=survives, after=after)
    rest = list(messages)
    while rest:
        task.send(rest.pop(0))
        if not task.await_handled(served):
            break
    with pytest.raises(WorkerDiedError):
        served.summary()
    served.stream.close()
    return rest


def test_output_of_the_replay_is_suppressed(tasks: Callable[..., JournaledTask]) -> None:

    class Seen(Counter):
        seen: ClassVar[list[int]] = []

    task = tasks(Seen)
    died(task, INIT, Point(time=1), Point(time=2), KeepaliveRequest(time=5), survives=3)
    Seen.seen.clear()
    served = task.take_over()
    assert served.resumed.result(PATIENCE_S) is None
    assert task.ask(Point(time=3)) == INITIALIZED
    rest = [task.side.receive() for _ in range(4)]
    assert Seen.seen == [1, 2, 3]
    assert rest == [
        counted(1, 1), counted(2, 2), KeepaliveResponse(time=5), counted(3, 3),
    ]  # fmt: skip
    task.end()
    summary = served.summary()
    assert (summary.stats.takeovers, summary.stats.points_in, summary.stats.points_out) == (1, 3, 3)
    assert (summary.task_id, summary.node_id) == ("task", "node")


def test_a_batch_without_a_sent_begin_is_skipped(
    tasks: Callable[..., JournaledTask],
) -> None:

    class Late(Batches):
        """Begins a batch only at its end, unlike the previous version."""

        def begin_batch(self, begin: BeginBatch, /) -> None:
            if begin.name != "late":
                super().begin_batch(begin)

        def point(self, point: Point, /) -> None:
            if point.name != "late":
                super().point(point)

        def end_batch(self, end: EndBatch, /) -> None:
            if end.name != "late":
                super().end_batch(end)

    task = tasks(Late)
    died(task, INIT, BeginBatch(name="late"), Point(name="late", time=1), survives=2)
    served = task.take_over(handler=Batches)
    responses = [task.side.receive()]
    task.send(Point(name="late", time=2), EndBatch(name="late"))
    whole: list[RequestMessage] = [BeginBatch(name="b"), Point(time=3), EndBatch(name="b")]
    task.send(*whole)
    responses += [task.side.receive() for _ in range(3)]
    assert responses == [INITIALIZED, *whole]
    task.end()
    assert served.summary().reason is Reason.CLOSED


def test_a_failed_takeover_leaves_the_connection_unchanged(
    tasks: Callable[..., JournaledTask],
) -> None:

    class Broken(Counter):
        def restore(self, request: RestoreRequest, /) -> RestoreResponse:
            raise ValueError("not mine", len(request.snapshot))

    class Refuses(Counter):
        def init(self, request: InitRequest, /) -> InitResponse:
            del request
            return InitResponse(error="no such option")

    task = tasks(Counter, snapshot_interval_s=0.0)
    died(task, INIT, Point(time=1), Point(time=2), survives=6)
    for handler, problem in (
        (Broken, "Broken.restore raised ValueError: ('not mine', 1)"),
        (Refuses, "init was refused: no such option"),
    ):
        failing = task.take_over(handler=handler)
        assert failing.resumed.result(PATIENCE_S) == problem
        assert failing.summary().reason is Reason.HANDED_OVER
    served = task.take_over()
    assert [task.side.receive() for _ in range(3)] == [INITIALIZED, counted(1, 1), counted(2, 2)]
    assert task.ask(Point(time=3)) == counted(3, 3)
    task.end()
    assert served.summary().reason is Reason.CLOSED


def test_a_connection_that_is_given_up_ends_with_the_reason(
    tasks: Callable[..., JournaledTask],
) -> None:
    task = tasks(Counter)
    died(task, INIT, Point(time=1), survives=1)
    served = task.take_over(give_up="six workers died of it")
    responses = [task.side.receive() for _ in range(3)]
    task.end()
    summary = served.summary()
    assert responses[:2] == [INITIALIZED, counted(1, 1)]
    assert isinstance(responses[2], ErrorResponse)
    assert "six workers died of it" in responses[2].error
    assert summary.reason is Reason.HANDLER_ERROR
    assert (summary.task_id, summary.stats.points_in, summary.stats.points_out) == ("task", 1, 1)


def test_a_peer_that_has_closed_before_a_takeover_is_no_error(
    tasks: Callable[..., JournaledTask],
) -> None:
    task = tasks(Mirror)
    died(task, INIT, Point(time=1), survives=1)
    task.hang_up()
    summary = task.take_over().summary()
    assert (summary.reason, summary.error) == (Reason.CLOSED, None)


def test_no_heartbeat_splits_output_of_the_previous_agent(
    tasks: Callable[..., JournaledTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [Point(time=number, name="n" * 300) for number in range(1, 1501)]
    task = tasks(Mirror)
    task.send(INIT)
    held = task.kept.open()
    assert held.receive(1000, 0)
    piece = b"".join(map(RESPONSES.encode, left))
    held.store(piece, Commit(0, stats=ConnectionStats(task.sent_bytes)))
    task.kept.kill(held)

    wait_for_room = JournaledStream._wait_for_room
    waits, goes_on = threading.Event(), threading.Event()

    def wait_long(stream: JournaledStream) -> None:
        waits.set()
        assert goes_on.wait(PATIENCE_S)
        wait_for_room(stream)

    monkeypatch.setattr(JournaledStream, "_wait_for_room", wait_long)
    served = task.take_over()
    assert waits.wait(PATIENCE_S)
    came = []
    while not served.stream.has_room():
        came.append(task.side.receive())
    served.agent.heartbeat()
    goes_on.set()
    came += [task.side.receive() for _ in left[len(came) :]]
    assert came == left
    task.end()
    assert served.summary().reason is Reason.CLOSED


# --- poison messages ---


def test_poison_messages_are_dropped_from_history_and_input(
    tasks: Callable[..., JournaledTask], caplog: pytest.LogCaptureFixture
) -> None:

    class Seen(Counter):
        seen: ClassVar[list[int]] = []

    task = tasks(Seen)
    offsets = []
    messages: list[RequestMessage] = [INIT, *(Point(time=time) for time in range(6))]
    for message in messages:
        offsets.append(task.sent_bytes)
        task.sent_bytes += len(encoded([message]))
    task.sent_bytes = 0
    # The first agent handles input up to the point with time 2; the rest has arrived by then.
    died(task, *messages[:4], survives=3)
    task.send(*messages[4:])
    Seen.seen.clear()
    poison = {offsets[2], offsets[5]}
    served = task.take_over(until=task.sent_bytes, poison=poison)
    responses = [task.side.receive() for _ in range(6)]
    assert Seen.seen == [0, 2, 3, 5]
    # The message that is history now was answered, and killed no worker.
    assert [each.time for each in responses if isinstance(each, Point)] == [0, 1, 2, 3, 5]
    dropped = [record for record in caplog.records if "killed the worker" in record.getMessage()]
    assert [record.__dict__["offset"] for record in dropped] == [offsets[5]]
    assert "time: 4" in dropped[0].__dict__["frame"]
    task.end()
    summary = served.summary()
    assert (summary.stats.failures, summary.stats.points_in, summary.stats.points_out) == (1, 6, 5)


def test_a_restart_does_not_replay_poison_messages(tasks: Callable[..., JournaledTask]) -> None:

    class Seen(Counter):
        seen: ClassVar[list[int]] = []

    task = tasks(Seen, on_error="restart")
    # Before the first commit. Otherwise a compaction would be due at once.
    died(task, INIT, survives=0, after=False)
    task.send(Point(time=1))
    poison = {task.sent_bytes}
    task.send(Point(time=2))
    served = task.take_over(until=task.sent_bytes, poison=poison)
    assert [task.side.receive() for _ in range(2)] == [INITIALIZED, counted(1, 1)]
    task.await_handled(served)
    assert task.ask(Point(time=3)) == counted(3, 2)
    Seen.seen.clear()
    task.send(Point(time=4, name="raise"), Point(time=5))
    assert task.side.receive() == counted(5, 3)
    assert Seen.seen == [4, 1, 3, 5]
    task.end()
    assert (served.summary().stats.failures, served.summary().stats.restarts) == (2, 1)


@pytest.mark.parametrize("which", ["begin", "point", "end"])
def test_a_poison_message_in_a_batch_affects_no_other_batch(
    tasks: Callable[..., JournaledTask], which: str
) -> None:
    batch: list[RequestMessage] = [
        BeginBatch(name="bad"), Point(time=1), Point(time=2), EndBatch(name="bad"),
    ]  # fmt: skip
    good: list[RequestMessage] = [BeginBatch(name="good"), Point(time=3), EndBatch(name="good")]
    task = tasks(Batches)
    died(task, INIT, survives=0)
    offsets = [task.sent_bytes + len(encoded(batch[:number])) for number in range(4)]
    task.send(*batch, *good)
    poison = {offsets[{"begin": 0, "point": 1, "end": 3}[which]]}
    served = task.take_over(until=task.sent_bytes, poison=poison)
    expected = {"begin": [], "point": [batch[0], *batch[2:]], "end": batch[:3]}[which]
    responses = [task.side.receive() for _ in range(1 + len(expected) + len(good))]
    assert responses == [INITIALIZED, *expected, *good]
    task.end()
    summary = served.summary()
    assert summary.reason is Reason.CLOSED
    assert (summary.stats.failures, summary.stats.batches_in) == (1, 2)


def test_a_snapshot_request_that_kills_is_answered_with_the_last_snapshot(
    tasks: Callable[..., JournaledTask],
) -> None:
    task = tasks(Counter, snapshot_interval_s=0.0)
    # Three commits each: the answer, the output of the snapshot, and the compaction.
    died(task, INIT, Point(time=1), survives=5)
    poison = {task.sent_bytes}
    task.send(SnapshotRequest(), Point(time=2))
    served = task.take_over(until=task.sent_bytes, poison=poison)
    responses = [task.side.receive() for _ in range(4)]
    assert responses == [
        INITIALIZED, counted(1, 1), SnapshotResponse(snapshot=b"1"), counted(2, 2),
    ]  # fmt: skip
    task.end()
    assert served.summary().stats.failures == 1


def test_an_init_that_kills_workers_fails_the_task_with_an_error(
    tasks: Callable[..., JournaledTask],
) -> None:
    task = tasks(Counter)
    died(task, INIT, survives=0, after=False)
    served = task.take_over(until=task.sent_bytes, poison={0})
    response = task.side.receive()
    task.end()
    summary = served.summary()
    assert isinstance(response, ErrorResponse)
    assert "InitRequest killed" in response.error
    assert summary.reason is Reason.HANDLER_ERROR


def test_frames_up_to_careful_until_are_recorded_one_by_one(
    tasks: Callable[..., JournaledTask],
) -> None:
    noted: list[tuple[int, int]] = []

    class Notes(Mirror):
        def point(self, point: Point, /) -> None:
            noted.append((task.header.current_frame, task.header.record.stats.offset))
            super().point(point)

    task = tasks(Notes)
    died(task, INIT, survives=0)
    points = [Point(time=time) for time in range(1, 5)]
    size = len(encoded(points[:1]))
    begin = task.sent_bytes
    task.send(*points)
    served = task.take_over(until=task.sent_bytes)
    assert [task.side.receive() for _ in range(5)] == [INITIALIZED, *points]
    assert noted == [(begin + number * size, begin + number * size) for number in range(4)]
    task.await_handled(served)
    noted.clear()
    task.send(*points)
    assert [task.side.receive() for _ in range(4)] == points
    assert len({offset for _, offset in noted}) == 1
    task.end()
    served.summary()


# --- exceptions, with a journal ---


@pytest.mark.parametrize("snapshot_interval_s", [0.0, 3600.0], ids=["cut often", "never cut"])
def test_a_new_handler_has_the_state_before_the_failed_point(
    tasks: Callable[..., JournaledTask], snapshot_interval_s: float
) -> None:
    task = tasks(Counter, on_error="restart", snapshot_interval_s=snapshot_interval_s)
    served = task.serve()
    assert task.ask(INIT) == INITIALIZED
    points = [Point(time=time, name="raise" if time % 5 == 2 else "") for time in range(60)]
    for place in range(0, 60, 7):
        task.send(*points[place : place + 7])
        task.await_handled(served)
    good = [point.time for point in points if not point.name]
    expected = [counted(time, number) for number, time in enumerate(good, 1)]
    assert [task.side.receive() for _ in good] == expected
    task.end()
    summary = served.summary()
    assert (summary.stats.failures, summary.stats.restarts) == (12, 12)
    assert (summary.stats.points_in, summary.stats.points_out) == (60, 48)


@pytest.mark.parametrize("on_error", ["skip", "restart"])
@pytest.mark.parametrize("handler", [Batches, Sums])
def test_an_exception_at_the_end_of_a_batch_affects_no_other_batch(
    tasks: Callable[..., JournaledTask], handler: type[Handler], on_error: OnError
) -> None:

    class Raises(handler):  # type: ignore[misc,valid-type]
        def end_batch(self, end: EndBatch, /) -> None:
            if end.name == "raise":
                raise ValueError(end.name)
            super().end_batch(end)

    task = tasks(Raises, on_error=on_error)
    served = task.serve()
    assert task.ask(INIT) == INITIALIZED
    names = ["a", "raise", "b", "raise", "raise", "c"]
    for name in names:
        task.send(BeginBatch(name=name), Point(time=1), EndBatch(name=name))
        task.await_handled(served)
    task.end()
    summary = served.summary()
    task.hang_up()
    ended = [each.name for each in task.side.responses() if isinstance(each, EndBatch)]
    assert ended == ["a", "b", "c"]
    assert (summary.stats.failures, summary.stats.batches_in, summary.stats.batches_out) == (
        3,
        6,
        3,
    )


def test_a_restart_inside_a_batch_continues_the_batch(
    tasks: Callable[..., JournaledTask],
) -> None:

    class Raises(Batches):
        def point(self, point: Point, /) -> None:
            if point.name == "raise":
                raise ValueError(point.time)
            super().point(point)

    task = tasks(Raises, on_error="restart")
    served = task.serve()
    assert task.ask(INIT) == INITIALIZED
    messages: list[RequestMessage] = [
        BeginBatch(name="b"), Point(time=1), Point(name="raise"), Point(time=2),
        Point(name="raise"), EndBatch(name="b"),
    ]  # fmt: skip
    for message in messages:
        task.send(message)
        task.await_handled(served)
    responses = [task.side.receive() for _ in range(4)]
    assert responses == [BeginBatch(name="b"), Point(time=1), Point(time=2), EndBatch(name="b")]
    task.end()
    assert served.summary().stats.batches_out == 1


def test_a_replay_drops_what_failed_before(
    tasks: Callable[..., JournaledTask],
) -> None:
    for on_error in ("skip", "restart"):
        task = tasks(Counter, on_error=on_error)
        points = [Point(time=1), Point(time=2, name="raise"), Point(time=3)]
        rest = died(task, INIT, *points, survives=3)
        served = task.take_over()
        task.send(*rest)
        count = 3 if on_error == "skip" else 2
        responses = [task.side.receive() for _ in range(3)]
        assert responses == [INITIALIZED, counted(1, 1), counted(3, count)]
        assert task.ask(Point(time=4)) == counted(4, count + 1)
        task.end()
        summary = served.summary()
        assert (summary.stats.failures, summary.reason) == (1, Reason.CLOSED)
