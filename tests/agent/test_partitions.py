"""Partitions of a handler: their output, state and failures are those of one instance."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kapudf_cli import BatchHandler, Handler, PerGroup, State, set_field
from kapudf_cli.agent.agent import Agent, ConnectionSummary, Reason
from kapudf_cli.agent.partitions import LocalPartitions
from kapudf_cli.client.driver import Event, KapacitorSide
from kapudf_cli.protocol.udf_pb2 import (
    BATCH,
    BeginBatch,
    EndBatch,
    ErrorResponse,
    InfoRequest,
    InfoResponse,
    KeepaliveRequest,
    Point,
    RestoreRequest,
    RestoreResponse,
    SnapshotRequest,
    SnapshotResponse,
)
from kapudf_cli.transport import SocketStream
from tests.journal.tasks import JournaledTask, local_partitions
from tests.peers import INIT, INITIALIZED, encoded, in_thread, responses_to
from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from kapudf_cli.agent.error_policy import OnError
    from kapudf_cli.handler.batches import Batch
    from kapudf_cli.protocol.codec import RequestMessage, ResponseMessage
    from kapudf_cli.testing import StartTask
    from tests.journal.tasks import PartitionFactory


class Tally(State):
    count: int = 0


class Counts(Handler):
    """Sets on each point how many its group has had; the point's name says what else happens."""

    state = PerGroup(Tally)

    def point(self, point: Point, /) -> Iterator[Point]:
        tally = self.state.of(point)
        tally.count += 1
        if point.name == "raise":
            raise ValueError(point.time)
        set_field(point, "count", tally.count)
        for _ in range({"none": 0, "twice": 2}.get(point.name, 1)):
            yield point
        if point.name == "write and raise":
            raise ValueError(point.time)


class CountsBatches(BatchHandler):
    """Sets on each point of a batch how many batches its group has had."""

    state = PerGroup(Tally)

    def batch(self, batch: Batch, /) -> list[Point]:
        tally = self.state.at(batch.group, batch.end_ns)
        tally.count += 1
        if any("raise" in point.tags for point in batch.points):
            raise ValueError(batch.group)
        for point in batch.points:
            set_field(point, "count", tally.count)
        return [] if batch.name == "none" else batch.points


def served(
    handler: type[Handler],
    messages: Sequence[RequestMessage],
    *,
    partitions: int,
    on_error: OnError = "fail",
) -> tuple[list[ResponseMessage], ConnectionSummary]:
    """Return what a handler answers, and the summary of the connection, without a journal."""
    ours, theirs = socket.socketpair()
    agent = Agent(
        SocketStream(theirs),
        handler,
        on_error=on_error,
        partitions=local_partitions(handler, partitions, on_error),
    )
    with KapacitorSide(ours, timeout_s=PATIENCE_S) as side:
        ended = in_thread(agent.run)
        answers = list(responses_to(side, [INIT, *messages]))
        return answers, ended.result(PATIENCE_S)


def journaled(
    handler: type[Handler],
    messages: Sequence[RequestMessage],
    *,
    partitions: int,
    on_error: OnError,
    partition_factory: PartitionFactory = LocalPartitions,
) -> tuple[list[ResponseMessage], ConnectionSummary]:
    """Do what `served` does, with a journal."""
    task = JournaledTask(
        handler, on_error=on_error, partitions=partitions, partition_factory=partition_factory
    )
    try:
        first = task.serve()
        task.side.queue([INIT, *messages])
        first.ended.add_done_callback(lambda _: task.hang_up())
        answers = []
        while (step := task.side.step(PATIENCE_S)) is not Event.CLOSED:
            if step is Event.SENT:
                with contextlib.suppress(OSError):
                    task.end()
            else:
                answers.append(step)
        return answers, first.summary()
    finally:
        task.close()


def comparable(answers: list[ResponseMessage], summary: ConnectionSummary) -> Any:
    """Return what must be equal for any number of partitions."""
    shown: list[Any] = []
    for each in answers:
        if isinstance(each, SnapshotResponse):
            state = json.loads(each.snapshot)
            state["state"]["groups"].sort()
            shown.append(state)
        else:
            shown.append(each)
    stats = summary.stats
    counts = (stats.points_in, stats.points_out, stats.batches_in, stats.batches_out)
    failures = (stats.failures, stats.dropped_points, stats.restarts)
    return shown, counts, failures, summary.reason, stats.offset, str(summary.error)


GROUPS = [f"host=server-{number}" for number in range(5)]
NAMES = ["m", "m", "m", "twice", "none", "raise", "write and raise"]
REQUESTS = [KeepaliveRequest(time=5), SnapshotRequest()]
POINTS = st.lists(
    st.one_of(
        st.builds(Point, name=st.sampled_from(NAMES), group=st.sampled_from(GROUPS)),
        st.sampled_from(REQUESTS),
    ),
    max_size=40,
)


def numbered(messages: list[Any]) -> list[Any]:
    """Return the messages, with the points numbered by their time."""
    numbered_messages = []
    for number, message in enumerate(messages):
        copy = type(message)()
        copy.CopyFrom(message)
        if isinstance(copy, Point):
            copy.time = number
        numbered_messages.append(copy)
    return numbered_messages


@given(POINTS, st.integers(2, 4), st.sampled_from(["fail", "skip", "restart"]))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_points_are_answered_as_by_one_instance(
    messages: list[Any], partitions: int, on_error: OnError
) -> None:
    sent = numbered(messages)
    wanted = journaled(Counts, sent, partitions=1, on_error=on_error)
    found = journaled(Counts, sent, partitions=partitions, on_error=on_error)
    assert comparable(*found) == comparable(*wanted)


BATCHES = st.lists(
    st.tuples(
        st.sampled_from(GROUPS),
        st.sampled_from(["m", "m", "none"]),
        st.lists(st.sampled_from(["", "", "raise"]), max_size=4),
        st.sampled_from([None, *REQUESTS]),
    ),
    max_size=12,
)


def batch_messages(batches: list[Any]) -> Iterator[RequestMessage]:
    for number, (group, name, tags, request) in enumerate(batches):
        yield BeginBatch(name=name, group=group, size=len(tags))
        for place, tag in enumerate(tags):
            yield Point(time=number * 10 + place, group=group, tags={tag: "1"} if tag else {})
            if request is not None and place == 1:
                yield request
        yield EndBatch(name=name, group=group, tmax=number * 10)


@given(BATCHES, st.integers(2, 4), st.sampled_from(["fail", "skip", "restart"]))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_batches_are_answered_as_by_one_instance(
    batches: list[Any], partitions: int, on_error: OnError
) -> None:
    sent = list(batch_messages(batches))
    wanted = journaled(CountsBatches, sent, partitions=1, on_error=on_error)
    found = journaled(CountsBatches, sent, partitions=partitions, on_error=on_error)
    assert comparable(*found) == comparable(*wanted)


# --- deaths ---


def points(*times: int) -> list[Any]:
    return [Point(time=time, name="m", group=GROUPS[time % 5]) for time in times]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("survives", range(6))
def test_a_death_at_any_commit_loses_and_repeats_nothing(
    tasks: Callable[..., JournaledTask], survives: int, *, after: bool
) -> None:
    """The next agent has another number of partitions, and the third one none."""
    task = tasks(Counts, partitions=2, snapshot_interval_s=0.01)
    task.send(INIT, *points(*range(15)), KeepaliveRequest(time=7), SnapshotRequest())
    task.send(*points(*range(15, 60)))
    agent = task.serve(survives=survives, after=after)
    for partitions in (3, 1):
        if not task.await_handled(agent):
            task.partitions = partitions
            agent = task.take_over(survives=survives if partitions == 3 else None, after=after)
    assert task.await_handled(agent)
    answers = received(task, 63)
    task.end()
    task.hang_up()
    assert agent.summary().stats.points_in == 60
    back = [each for each in answers if isinstance(each, Point)]
    assert [(each.time, each.fieldsInt["count"]) for each in back] == [
        (number, number // 5 + 1) for number in range(60)
    ]
    assert sum(isinstance(each, SnapshotResponse) for each in answers) == 1


class MarksBatches(BatchHandler):
    """Sets on each point the group of its batch; has no state."""

    def batch(self, batch: Batch, /) -> list[Point]:
        for point in batch.points:
            set_field(point, "group", batch.group)
        return batch.points


@pytest.mark.parametrize("survives", range(4))
def test_batches_of_a_handler_without_state_stay_whole(
    tasks: Callable[..., JournaledTask], survives: int
) -> None:
    """Handled input is forgotten at once, but not the beginning of a batch."""
    task = tasks(MarksBatches, partitions=2)
    sent = list(batch_messages([(GROUPS[each % 5], "m", [""] * 5, None) for each in range(30)]))
    task.send(INIT)
    task.send(*sent)
    agent = task.serve(survives=survives)
    if not task.await_handled(agent):
        agent = task.take_over()
    assert task.await_handled(agent)
    _, *back = received(task, 1 + len(sent))
    assert [(type(each), getattr(each, "group", "")) for each in back] == [
        (type(each), getattr(each, "group", "")) for each in sent
    ]


def test_a_poison_frame_is_dropped_in_its_partition(tasks: Callable[..., JournaledTask]) -> None:
    task = tasks(Counts, partitions=2, on_error="skip")
    sent: list[Any] = [INIT, *points(*range(10))]
    task.send(*sent)
    task.take_over(until=len(encoded(sent)), poison=[len(encoded(sent[:4]))])
    task.send(*points(10, 11))
    assert task.side.receive() == INITIALIZED
    counted = {point.time: point.fieldsInt["count"] for point in received(task, 11)}
    wanted = {number: number // 5 + 1 for number in range(12)}
    # Point 3 was dropped, and point 8 is of the same group.
    assert counted == {**{each: wanted[each] for each in wanted if each != 3}, 8: 1}


def received(task: JournaledTask, count: int) -> list[Any]:
    return [task.side.receive() for _ in range(count)]


# --- snapshots ---


@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 3), (3, 1), (1, 4)])
def test_a_snapshot_restores_into_any_number_of_partitions(before: int, after: int) -> None:
    first, _ = served(Counts, [*points(*range(20)), SnapshotRequest()], partitions=before)
    (snapshot,) = [each.snapshot for each in first if isinstance(each, SnapshotResponse)]
    back, _ = served(Counts, [RestoreRequest(snapshot=snapshot), *points(20, 21)], partitions=after)
    assert back[:2] == [INITIALIZED, RestoreResponse(success=True)]
    assert [point.fieldsInt["count"] for point in back[2:]] == [5, 5]  # type: ignore[union-attr]


def test_the_snapshot_has_the_form_of_one_instance() -> None:
    sent = [*points(*range(20)), SnapshotRequest()]
    wanted, _ = served(Counts, sent, partitions=1)
    found, _ = served(Counts, sent, partitions=3)
    assert found == wanted


class Migrates(Counts):
    """Restores the text that an older version wrote: a count for each group."""

    def migrate(self, snapshot: Any, /) -> Any:
        groups = [
            [group, 0, {"count": int(count)}]
            for group, count in (each.split(":") for each in snapshot.raw.decode().split(","))
        ]
        return {"newest_ns": 0, "groups": groups}


def test_each_partition_migrates_a_snapshot_that_cannot_be_split() -> None:
    old = ",".join(f"{group}:7" for group in GROUPS).encode()
    back, _ = served(
        Migrates,
        [RestoreRequest(snapshot=old), *points(*range(5)), SnapshotRequest()],
        partitions=3,
    )
    assert [point.fieldsInt["count"] for point in back[2:-1]] == [8] * 5  # type: ignore[union-attr]
    state = json.loads(back[-1].snapshot)["state"]  # type: ignore[union-attr]
    assert sorted(group for group, _, _ in state["groups"]) == GROUPS


class OtherKeys(Counts):
    def point(self, point: Point, /) -> Point:  # type: ignore[override]
        self.state.at(f"{point.group} usage", point.time).count += 1
        return point


def test_a_state_with_other_keys_than_groups_is_an_error() -> None:
    back, summary = served(OtherKeys, [*points(*range(5)), SnapshotRequest()], partitions=3)
    (error,) = [each.error for each in back if isinstance(each, ErrorResponse)]
    assert "use point.group as the key" in error
    assert summary.reason is Reason.HANDLER_ERROR


# --- the handler's methods ---


class Refuses(Counts):
    def setup(self) -> None:
        raise ValueError("no model")


class Talks(Counts):
    """Writes in `setup` and in `teardown`, and from a thread."""

    def setup(self) -> None:
        self.agent.write_point(Point(name="setup"))

    def drain(self) -> None:
        self.agent.write_point(Point(name="drain"))

    def teardown(self) -> Point:
        return Point(name="teardown")


def test_errors_of_methods_are_those_of_the_handler() -> None:
    back, _ = served(Refuses, [], partitions=2)
    assert back == [ErrorResponse(error="Refuses.setup raised ValueError: no model")] or back == [
        ErrorResponse(error="Refuses.init raised ValueError: no model")
    ]


def test_info_asks_one_partition() -> None:
    ours, theirs = socket.socketpair()
    agent = Agent(
        SocketStream(theirs), CountsBatches, partitions=local_partitions(CountsBatches, 2)
    )
    with KapacitorSide(ours, timeout_s=PATIENCE_S) as side:
        ended = in_thread(agent.run)
        assert list(responses_to(side, [InfoRequest()])) == [
            InfoResponse(wants=BATCH, provides=BATCH)
        ]
        assert ended.result(PATIENCE_S).reason is Reason.CLOSED


def test_each_partition_writes_at_the_beginning_and_the_end() -> None:
    back, _ = served(Talks, points(0), partitions=2)
    names = [each.name for each in back if isinstance(each, Point)]
    assert names == ["setup", "setup", "m", "drain", "drain", "teardown", "teardown"]


class Threaded(Counts):
    """Has another thread write each point."""

    def point(self, point: Point, /) -> None:  # type: ignore[override]
        threading.Thread(target=self.agent.write_point, args=[point]).start()


class UnorderedThreaded(Threaded):
    ordered = False


@pytest.mark.parametrize("handler", [Threaded, UnorderedThreaded])
def test_threads_may_write_at_any_time(handler: type[Handler]) -> None:
    ours, theirs = socket.socketpair()
    agent = Agent(SocketStream(theirs), handler, partitions=local_partitions(handler, 2))
    with KapacitorSide(ours, timeout_s=PATIENCE_S) as side:
        ended = in_thread(agent.run)
        side.queue([INIT, *points(*range(10))])
        answers = [side.receive() for _ in range(11)]
        assert sorted(each.time for each in answers[1:]) == list(range(10))  # type: ignore[union-attr]
        side.half_close()
        assert ended.result(PATIENCE_S).stats.points_out == 10


# --- where else partitions are chosen ---


def test_the_fixture_refuses_what_serve_would_refuse(udf: StartTask) -> None:
    class Total(Counts):
        state = Tally()  # type: ignore[assignment]

    with pytest.raises(TypeError, match="has one state for all groups"):
        udf(Total, partitions=2)
