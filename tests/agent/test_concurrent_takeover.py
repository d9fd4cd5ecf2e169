"""Async handlers with a journal: restarts, deaths, handovers and checkpoints."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest

from kapudf_cli.agent.agent import Reason
from kapudf_cli.handler.handler import Handler
from kapudf_cli.protocol.udf_pb2 import (
    BeginBatch,
    EndBatch,
    KeepaliveRequest,
    KeepaliveResponse,
    Point,
    SnapshotRequest,
    SnapshotResponse,
)
from tests.agent.gated import Gated, gated
from tests.agent.test_concurrent import Batches, Stateful, batch_of, points
from tests.counters import Counting, counted
from tests.peers import INIT, INITIALIZED, encoded
from tests.serve_process import PATIENCE_S
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.journal.tasks import JournaledTask, ServedAgent

INIT_BYTES = len(encoded([INIT]))


def begin(task: JournaledTask) -> ServedAgent:
    served = task.serve()
    assert task.ask(INIT) == INITIALIZED
    return served


def received(task: JournaledTask, count: int) -> list[Any]:
    return [task.side.receive() for _ in range(count)]


def pause(served: ServedAgent) -> threading.Event:
    """Ask an agent to pause; return what is set once it has."""
    stands = threading.Event()
    served.agent.pause(stands.set)
    return stands


# --- restart ---


def test_a_restart_gives_the_points_after_the_failed_one_to_a_new_handler(
    tasks: Callable[..., JournaledTask],
) -> None:
    handler, gate = gated(Stateful)
    task = tasks(handler, on_error="restart")
    served = begin(task)
    task.send(*points(1, 2, 3, 4))
    gate.finish(3)
    gate.finish(1)
    assert task.side.receive() == counted(1, 2)
    gate.await_started(4)
    gate.started.clear()
    gate.fail(2, ValueError())
    # The new handler gets point 1 from the journal, without its output, and then 3 and 4, which
    # the old handler had changed.
    gate.finish(1)
    gate.finish(4)
    gate.finish(3)
    assert received(task, 2) == [counted(3, 3), counted(4, 2)]
    assert gate.started == [1, 3, 4]
    task.end()
    stats = served.summary().stats
    assert (stats.restarts, stats.failures, stats.points_in, stats.points_out) == (1, 1, 4, 3)


# --- deaths ---


class Steps(Counting):
    """Counts, and writes as many points as the count says, after some steps of the event loop."""

    concurrency = 3

    async def point(self, point: Point, /) -> list[Point]:
        self.count += 1
        number = self.count
        for _ in range(number * 7 % 4):
            await asyncio.sleep(0)
        return [counted(point.time, number)] * (number % 3)


def handled(task: JournaledTask, served: ServedAgent, *, survives: int, after: bool) -> ServedAgent:
    """Wait until all input is handled, by an agent or, if two die, the third; return the last."""
    if not task.await_handled(served):
        served = task.take_over(survives=survives, after=after)
        if not task.await_handled(served):
            served = task.take_over()
    assert task.await_handled(served)
    return served


def sent_by_steps(numbers: range) -> list[Point]:
    return [counted(number, number) for number in numbers for _ in range(number % 3)]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("survives", range(8))
def test_a_death_at_any_commit_loses_and_repeats_nothing(
    tasks: Callable[..., JournaledTask], survives: int, *, after: bool
) -> None:
    task = tasks(Steps)
    served = task.serve(survives=survives, after=after)
    task.send(INIT, *points(*range(1, 7)), KeepaliveRequest(time=7), SnapshotRequest())
    task.send(*points(*range(7, 13)))
    served = handled(task, served, survives=survives, after=after)
    task.end()
    expected = [
        INITIALIZED,
        *sent_by_steps(range(1, 7)),
        KeepaliveResponse(time=7),
        SnapshotResponse(snapshot=b"6"),
        *sent_by_steps(range(7, 13)),
    ]
    assert served.summary().stats.points_in == 12
    task.hang_up()
    assert received(task, len(expected) + 1) == [*expected, None]


def test_calls_in_flight_are_made_again_after_a_death(
    tasks: Callable[..., JournaledTask],
) -> None:
    handler, gate = gated(Stateful)
    task = tasks(handler)
    # It dies at its fourth commit: the ends of a read with Init, and of points 1 and 2.
    served = task.serve(survives=2)
    assert task.ask(INIT) == INITIALIZED
    task.send(*points(1, 2, 3))
    gate.finish(1)
    gate.await_started(2, 3)
    wait_until(lambda: task.header.record.stats.points_in == 1)
    gate.finish(2)
    assert not task.await_handled(served)
    following = task.take_over()
    gate.open()
    assert received(task, 3) == [counted(1, 1), counted(2, 2), counted(3, 3)]
    task.end()
    assert following.summary().stats.points_in == 3


def test_frames_after_a_death_are_handled_one_at_a_time(
    tasks: Callable[..., JournaledTask],
) -> None:
    handler, gate = gated()
    task = tasks(handler)
    served = task.serve(survives=0, after=False)
    task.send(INIT, *points(1, 2, 3, 4))
    assert not task.await_handled(served)
    size = len(encoded(points(1)))
    following = task.take_over(until=INIT_BYTES + 3 * size, poison=[INIT_BYTES + size])
    for time in (1, 3):
        gate.await_started(time)
        assert task.header.current_frame == INIT_BYTES + (time - 1) * size
        assert 4 not in gate.started
        gate.finish(time)
    gate.finish(4)
    assert received(task, 4) == [INITIALIZED, *points(1, 3, 4)]
    assert task.header.given == task.sent_bytes
    task.end()
    stats = following.summary().stats
    assert (stats.points_in, stats.failures) == (4, 1)


# --- handovers ---


def test_a_handover_waits_for_calls_in_flight(tasks: Callable[..., JournaledTask]) -> None:
    handler, gate = gated(Stateful)
    task = tasks(handler)
    served = begin(task)
    task.send(*points(1, 2))
    gate.await_started(1, 2)
    stands = pause(served)
    gate.finish(2)
    assert not stands.is_set()
    gate.finish(1)
    assert stands.wait(PATIENCE_S)
    assert received(task, 2) == [counted(1, 2), counted(2, 1)]
    following = task.take_over(waits=True)
    assert following.resumed.result(PATIENCE_S) is None
    task.send(Point(time=3))
    served.agent.release()
    assert served.summary().reason is Reason.HANDED_OVER
    following.agent.go()
    gate.finish(3)
    assert task.side.receive() == counted(3, 3)
    # The state went over as a snapshot.
    assert gate.started == [1, 2, 3]


@pytest.mark.parametrize("goes_on", [False, True])
def test_calls_that_take_too_long_are_handed_over_undone(
    tasks: Callable[..., JournaledTask], monkeypatch: pytest.MonkeyPatch, *, goes_on: bool
) -> None:
    monkeypatch.setattr("kapudf_cli.agent.concurrent_loop.DRAIN_LIMIT_S", 0.01)
    handler, gate = gated(Stateful)
    task = tasks(handler)
    served = begin(task)
    task.send(*points(1, 2, 3))
    gate.await_started(1, 2, 3)
    assert task.header.given == task.sent_bytes
    gate.finish(1)
    gate.finish(2)
    assert received(task, 2) == [counted(1, 1), counted(2, 2)]
    assert pause(served).wait(PATIENCE_S)
    following = task.take_over(waits=True)
    # It rebuilds the state from the input, and the first agent does not cancel its call yet.
    gate.finish(1)
    gate.finish(2)
    assert following.resumed.result(PATIENCE_S) is None
    assert gate.ended == [1, 2, 1, 2]
    if goes_on:
        following.agent.release()
        following.summary()
        served.agent.go()
    else:
        served.agent.release()
        assert served.summary().reason is Reason.HANDED_OVER
        assert gate.ended == [1, 2, 1, 2, 3]
        following.agent.go()
    gate.finish(3)
    assert task.side.receive() == counted(3, 3)


def test_a_handover_in_the_middle_of_batches(tasks: Callable[..., JournaledTask]) -> None:
    handler, gate = gated(Batches)
    task = tasks(handler)
    served = begin(task)
    task.send(*batch_of(1, 10), BeginBatch(name="b", size=1), Point(time=20))
    gate.await_started(1)
    stands = pause(served)
    gate.finish(1)
    assert stands.wait(PATIENCE_S)
    assert received(task, 3) == batch_of(1, 10)
    following = task.take_over(waits=True)
    gate.open()
    assert following.resumed.result(PATIENCE_S) is None
    served.agent.release()
    following.agent.go()
    task.send(EndBatch(name="b", tmax=2))
    assert received(task, 3) == batch_of(2, 20)


# --- checkpoints ---


def test_a_checkpoint_waits_for_calls_in_flight(tasks: Callable[..., JournaledTask]) -> None:
    handler, gate = gated(Stateful)
    task = tasks(handler, snapshot_interval_s=0.0)
    begin(task)
    task.send(Point(time=1))
    gate.finish(1)
    assert task.side.receive() == counted(1, 1)
    wait_until(lambda: task.header.record.input_start == task.sent_bytes)


class Stateless(Gated):
    """Keeps no state."""


def test_input_that_a_handler_without_state_has_handled_is_forgotten(
    tasks: Callable[..., JournaledTask],
) -> None:
    handler, gate = gated(Stateless)
    task = tasks(handler)
    begin(task)
    long = Point(time=1, name="n" * 1000)
    task.send(long)
    gate.finish(1)
    assert task.side.receive() == long
    wait_until(lambda: task.header.record.input_start == task.sent_bytes)
    # One call never ends, and more input comes than may be kept.
    task.send(Point(time=2))
    gate.await_started(2)
    before = task.sent_bytes
    gate.finish(2)
    assert task.side.receive() == Point(time=2)
    wait_until(lambda: task.header.record.input_start == before)


class PlainSteps(Handler):
    """Sends points back."""

    def point(self, point: Point, /) -> Point:
        return point


def test_an_async_handler_takes_over_from_a_plain_one_and_back(
    tasks: Callable[..., JournaledTask],
) -> None:
    handler, gate = gated(Stateless)
    gate.open()
    task = tasks(PlainSteps)
    served = begin(task)
    assert task.ask(Point(time=1)) == Point(time=1)
    for number, factory in enumerate((handler, PlainSteps, handler), 2):
        assert pause(served).wait(PATIENCE_S)
        following = task.take_over(waits=True, handler=factory)
        assert following.resumed.result(PATIENCE_S) is None
        served.agent.release()
        following.agent.go()
        assert task.ask(Point(time=number)) == Point(time=number)
        served = following


# --- out of order ---


class UnorderedSteps(Counting):
    """Sends points back with a count for each group, in an order that differs from the input's."""

    ordered = False
    concurrency = 4

    async def point(self, point: Point, /) -> Point:
        self.count += 1
        number = self.count
        for _ in range(point.time * 7 % 5):
            await asyncio.sleep(0)
        return counted(point.time, number)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("survives", range(2, 10))
def test_without_order_a_death_loses_and_repeats_nothing(
    tasks: Callable[..., JournaledTask], survives: int, *, after: bool
) -> None:
    task = tasks(UnorderedSteps)
    served = task.serve(survives=survives, after=after)
    sent = [Point(time=time, group=f"g{time % 3}") for time in range(1, 19)]
    task.send(INIT, *sent, SnapshotRequest())
    served = handled(task, served, survives=survives, after=after)
    task.end()
    assert served.summary().stats.points_in == len(sent)
    task.hang_up()
    back = received(task, len(sent) + 3)
    assert back[:1] + back[-2:] == [INITIALIZED, SnapshotResponse(snapshot=b"18"), None]
    assert sorted(each.time for each in back[1:-2]) == [each.time for each in sent]
    for remainder in range(3):
        of_group = [each for each in back[1:-2] if each.time % 3 == remainder]
        assert of_group == [counted(each.time, each.time) for each in of_group]
        assert [each.time for each in of_group] == sorted(each.time for each in of_group)


class PlainCount(Counting):
    """Counts like `Stateful`, one point at a time."""

    def point(self, point: Point, /) -> Point:
        self.count += 1
        return counted(point.time, self.count)


@pytest.mark.parametrize("following_kind", ["ordered", "unordered", "plain"])
def test_points_that_were_answered_out_of_order_are_not_answered_again(
    tasks: Callable[..., JournaledTask], monkeypatch: pytest.MonkeyPatch, following_kind: str
) -> None:
    monkeypatch.setattr("kapudf_cli.agent.concurrent_loop.DRAIN_LIMIT_S", 0.01)
    handler, gate = gated(Stateful, ordered=False)
    task = tasks(handler)
    served = begin(task)
    task.send(*(Point(time=time, group=str(time)) for time in range(1, 6)))
    gate.finish(2)
    gate.finish(4)
    assert received(task, 2) == [counted(2, 1), counted(4, 2)]
    assert task.header.record.stats.done == 0b01010
    assert pause(served).wait(PATIENCE_S)
    successor, next_gate = gated(Stateful, ordered=following_kind == "ordered")
    next_gate.open()
    kind = PlainCount if following_kind == "plain" else successor
    following = task.take_over(waits=True, handler=kind)
    assert following.resumed.result(PATIENCE_S) is None
    served.agent.release()
    following.agent.go()
    # Points 2 and 4 count again, in the place of the input that they have.
    assert received(task, 3) == [counted(1, 1), counted(3, 3), counted(5, 5)]
    task.send(SnapshotRequest())
    assert task.side.receive() == SnapshotResponse(snapshot=b"5")
    assert task.header.record.stats.done == 0
    task.end()
    stats = following.summary().stats
    assert (stats.points_in, stats.points_out) == (5, 5)


def test_points_after_the_failed_one_are_not_answered_again(
    tasks: Callable[..., JournaledTask],
) -> None:
    handler, gate = gated(Stateful, ordered=False)
    task = tasks(handler, on_error="restart")
    served = begin(task)
    task.send(*(Point(time=time, group=str(time)) for time in range(1, 5)))
    gate.finish(3)
    assert task.side.receive() == counted(3, 1)
    gate.await_started(4)
    gate.fail(1, ValueError())
    gate.finish(3)
    gate.finish(2)
    assert task.side.receive() == counted(2, 2)
    gate.finish(4)
    assert task.side.receive() == counted(4, 3)
    task.end()
    stats = served.summary().stats
    assert (stats.points_in, stats.points_out, stats.failures) == (4, 3, 1)
