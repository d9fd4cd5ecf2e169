"""Partitions without an order between groups: `ordered = False`."""

from __future__ import annotations

import collections
import functools
import json
import random
import threading
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kapudf_cli import Handler
from kapudf_cli.agent.partition_line import partition_of
from kapudf_cli.protocol.udf_pb2 import Point, SnapshotRequest, SnapshotResponse
from kapudf_cli.transport.meter import IN_FLIGHT
from tests.agent.reordered_partitions import Gate, ReorderedPartitions
from tests.agent.test_partitions import GROUPS, POINTS, Counts, journaled, numbered, received
from tests.peers import INIT, INITIALIZED, encoded
from tests.serve_process import PATIENCE_S
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from kapudf_cli.agent.error_policy import OnError
    from kapudf_cli.testing import StartTask
    from tests.journal.tasks import JournaledTask, ServedAgent


class Unordered(Counts):
    ordered = False


#: A group of partition 0 of 2, and one of partition 1.
SLOW, FAST = (
    next(group for group in GROUPS if partition_of(group.encode(), 2) == number)
    for number in range(2)
)


def by_group(answers: list[Any]) -> dict[str, list[tuple[int, int]]]:
    """Return the times and counts of the points of each group."""
    groups = collections.defaultdict(list)
    for each in answers:
        if isinstance(each, Point):
            groups[each.group].append((each.time, each.fieldsInt["count"]))
    return dict(groups)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def task(tasks: Callable[..., JournaledTask], gate: Gate) -> JournaledTask:
    """Give a task that has two partitions."""
    return tasks(Unordered, partitions=2, partition_factory=gate.partitions)


def begin(task: JournaledTask, gate: Gate) -> ServedAgent:
    """Serve a task whose partition 0 is slow."""
    served = task.serve()
    assert task.ask(INIT) == INITIALIZED
    gate.held.add(0)
    return served


def answers(task: JournaledTask, count: int) -> list[tuple[int, int]]:
    """Return the times and counts of the next points."""
    return [(each.time, each.fieldsInt["count"]) for each in received(task, count)]


def send_five(task: JournaledTask, *, name: str = "m") -> None:
    """Send points 0 and 3 to the slow partition and 1, 2 and 4 to the fast one, which answers.

    Point 0 has a name.
    """
    groups = [SLOW, FAST, FAST, SLOW, FAST]
    sent = [Point(time=time, group=group) for time, group in enumerate(groups)]
    sent[0].name = name
    task.send(*sent)
    assert answers(task, 3) == [(1, 1), (2, 2), (4, 3)]


def test_a_slow_partition_does_not_hold_back_the_others(task: JournaledTask, gate: Gate) -> None:
    served = begin(task, gate)
    send_five(task)
    stats = task.header.record.stats
    assert (stats.points_in, stats.points_out, stats.done) == (0, 3, 0b10110)
    wait_until(lambda: served.stream.meter.counts[IN_FLIGHT] == 2)
    gate.release()
    assert answers(task, 2) == [(0, 1), (3, 2)]
    task.end()
    stats = served.summary().stats
    assert (stats.points_in, stats.points_out, stats.done) == (5, 5, 0)


def test_others_are_ahead_by_a_bounded_number_of_points(task: JournaledTask, gate: Gate) -> None:
    begin(task, gate)
    sent = [Point(time=0, group=SLOW), *(Point(time=time, group=FAST) for time in range(1, 400))]
    task.send(*sent)
    back = received(task, 192)
    gate.release()
    back += received(task, 208)
    assert by_group(back) == {
        SLOW: [(0, 1)],
        FAST: [(time, time) for time in range(1, 400)],
    }


def test_what_was_answered_ahead_is_not_answered_again_after_a_restart(
    tasks: Callable[..., JournaledTask], gate: Gate
) -> None:
    task = tasks(Unordered, partitions=2, partition_factory=gate.partitions, on_error="restart")
    served = begin(task, gate)
    send_five(task, name="raise")
    gate.release()
    assert answers(task, 1) == [(3, 1)]
    task.send(SnapshotRequest())
    snapshot = json.loads(task.side.receive().snapshot)  # type: ignore[union-attr]
    assert sorted(snapshot["state"]["groups"]) == [[SLOW, 3, {"count": 1}], [FAST, 4, {"count": 3}]]
    task.end()
    stats = served.summary().stats
    assert (stats.points_in, stats.points_out, stats.failures) == (5, 4, 1)


def reordered(seed: int) -> Callable[..., ReorderedPartitions]:
    """Return a factory of partitions whose results come in any order."""
    # The choices are the same in every run.
    chance = random.Random(seed)  # noqa: S311
    return functools.partial(ReorderedPartitions, choose=chance.choice)


@given(POINTS, st.integers(2, 4), st.sampled_from(["skip", "restart"]), st.integers(0, 99))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_each_group_is_answered_as_by_one_instance(
    messages: list[Any], partitions: int, on_error: OnError, seed: int
) -> None:
    """In whichever order the partitions return."""
    sent = numbered(messages)
    factory = reordered(seed)
    wanted = journaled(Counts, sent, partitions=1, on_error=on_error)
    found = journaled(
        Unordered, sent, partitions=partitions, on_error=on_error, partition_factory=factory
    )
    assert comparable(*found) == comparable(*wanted)


def comparable(answers: list[Any], summary: Any) -> Any:
    """Return what must be equal without an order between groups."""
    # Points may not overtake answers to other requests.
    stretches: list[list[Any]] = [[]]
    others = []
    for each in answers:
        if isinstance(each, Point):
            stretches[-1].append(each)
            continue
        stretches.append([])
        others.append(each)
        if isinstance(each, SnapshotResponse):
            others[-1] = json.loads(each.snapshot)["state"]
            others[-1]["groups"].sort()
    stats = summary.stats
    counts = (stats.points_in, stats.points_out, stats.failures, stats.dropped_points)
    return list(map(by_group, stretches)), others, counts, summary.reason, stats.offset, stats.done


@pytest.mark.parametrize("limits", [{}, {"flush": 1}, {"flush": 1, "overtaking": 150}])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("survives", [1, 2, 4, 7, 11])
def test_a_death_at_any_commit_loses_and_repeats_nothing(
    tasks: Callable[..., JournaledTask],
    monkeypatch: pytest.MonkeyPatch,
    survives: int,
    limits: dict[str, int],
    *,
    after: bool,
) -> None:
    """The next agent has another number of partitions, and the last one none.

    Output that is long is committed in pieces, and may not overtake.
    """
    if "flush" in limits:
        monkeypatch.setattr("kapudf_cli.agent.partitioned_loop.FLUSH_BYTES", limits["flush"])
    if "overtaking" in limits:
        monkeypatch.setattr(
            "kapudf_cli.agent.partition_messages.MAX_UNORDERED_BYTES", limits["overtaking"]
        )
    task = tasks(
        Unordered, partitions=2, partition_factory=reordered(survives), snapshot_interval_s=0.01
    )
    names = ["m", "twice", "none"]
    sent = [Point(time=time, name=names[time % 3], group=GROUPS[time % 5]) for time in range(60)]
    task.send(INIT, *sent[:20], SnapshotRequest(), *sent[20:])
    agent = task.serve(survives=survives, after=after)
    for partitions in (3, 2, 1):
        if not task.await_handled(agent):
            task.partitions = partitions
            agent = task.take_over(survives=None if partitions == 1 else survives, after=after)
    assert task.await_handled(agent)
    back = received(task, 62)
    task.end()
    task.hang_up()
    stats = agent.summary().stats
    assert (stats.points_in, stats.points_out, stats.done) == (60, 60, 0)
    assert by_group(back) == {
        group: [
            (time, count)
            for count, time in enumerate(range(number, 60, 5), 1)
            for _ in range([1, 2, 0][time % 3])
        ]
        for number, group in enumerate(GROUPS)
    }


class Stateless(Handler):
    ordered = False

    def point(self, point: Point, /) -> Point:
        return point


@pytest.mark.parametrize("survives", [1, 2, 4, 7])
def test_a_death_without_state_loses_and_repeats_nothing(
    tasks: Callable[..., JournaledTask], survives: int
) -> None:
    """Handled input is forgotten at once, but not what was answered ahead."""
    task = tasks(Stateless, partitions=3, partition_factory=reordered(survives))
    sent = [Point(time=time, group=GROUPS[time % 5]) for time in range(60)]
    task.send(INIT, *sent)
    agent = task.serve(survives=survives)
    if not task.await_handled(agent):
        agent = task.take_over()
    assert task.await_handled(agent)
    assert task.side.receive() == INITIALIZED
    assert by_group(received(task, 60)) == by_group(sent)


def test_partitions_in_the_same_thread_keep_the_order(udf: StartTask) -> None:
    """As in `kapudf replay`."""
    sent = [Point(time=time, group=GROUPS[time % 5]) for time in range(100)]
    output = udf(Unordered, partitions=3).send(*sent)
    assert [point.time for point in output.points] == list(range(100))


# --- handovers ---


@pytest.fixture
def pause(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> Callable[[ServedAgent], None]:
    """Give a function that pauses an agent while its slow partition has frames.

    The partition returns them after that.
    """
    monkeypatch.setattr("kapudf_cli.agent.partitioned_loop.DRAIN_LIMIT_S", 0.01)

    def pause(served: ServedAgent) -> None:
        paused = threading.Event()
        served.agent.pause(paused.set)
        assert paused.wait(PATIENCE_S)
        gate.release()

    return pause


class Ordered(Counts):
    """Has the same state."""


@pytest.mark.parametrize(
    ("following", "partitions"), [(Unordered, 2), (Unordered, 3), (Ordered, 2), (Ordered, 1)]
)
def test_what_was_answered_ahead_is_not_answered_again_after_a_handover(
    task: JournaledTask,
    gate: Gate,
    pause: Callable[[ServedAgent], None],
    following: type[Counts],
    partitions: int,
) -> None:
    served = begin(task, gate)
    send_five(task)
    pause(served)
    assert task.header.record.stats.done == 0b10110
    task.partitions = partitions
    successor = task.take_over(waits=True, handler=following)
    assert successor.resumed.result(PATIENCE_S) is None
    served.agent.release()
    successor.agent.go()
    assert answers(task, 2) == [(0, 1), (3, 2)]
    task.send(Point(time=5, group=SLOW), Point(time=6, group=FAST), SnapshotRequest())
    assert sorted(answers(task, 2)) == [(5, 3), (6, 4)]
    assert isinstance(task.side.receive(), SnapshotResponse)
    task.end()
    stats = successor.summary().stats
    assert (stats.points_in, stats.points_out, stats.done) == (7, 7, 0)


def test_a_poison_frame_is_dropped_among_frames_that_were_answered(
    tasks: Callable[..., JournaledTask], gate: Gate, pause: Callable[[ServedAgent], None]
) -> None:
    task = tasks(Unordered, partitions=2, partition_factory=gate.partitions, on_error="skip")
    served = begin(task, gate)
    send_five(task)
    pause(served)
    poison = [len(encoded([INIT]))]
    successor = task.take_over(waits=True, until=task.sent_bytes, poison=poison)
    assert successor.resumed.result(PATIENCE_S) is None
    served.agent.release()
    successor.agent.go()
    assert answers(task, 1) == [(3, 1)]
    task.end()
    stats = successor.summary().stats
    assert (stats.points_in, stats.points_out, stats.dropped_points) == (5, 4, 1)


def test_results_in_flight_are_kept_if_a_handover_is_cancelled(
    task: JournaledTask, gate: Gate, pause: Callable[[ServedAgent], None]
) -> None:
    served = begin(task, gate)
    send_five(task)
    pause(served)
    served.agent.cancel_handover()
    assert answers(task, 2) == [(0, 1), (3, 2)]
