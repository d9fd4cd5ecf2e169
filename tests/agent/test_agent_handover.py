"""Handover of a connection between two agents: pause, go, release, cancel."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.agent.agent import Reason
from kapudf_cli.handler.errors import ConnectionClosedError
from kapudf_cli.handler.handler import Handler
from kapudf_cli.protocol.udf_pb2 import (
    BATCH,
    BeginBatch,
    EndBatch,
    Point,
    RestoreRequest,
    RestoreResponse,
    SnapshotResponse,
)
from tests.counters import Counter, counted
from tests.peers import INIT, INITIALIZED, encoded, in_thread
from tests.serve_process import PATIENCE_S
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from kapudf_cli.handler.output import Writer
    from tests.journal.tasks import JournaledTask, ServedAgent


class Batches(Handler):
    """Sends batches back."""

    wants = BATCH
    provides = BATCH

    def point(self, point: Point, /) -> None:
        self.agent.write_point(point)


def begun(task: JournaledTask) -> ServedAgent:
    """Return an agent that has handled Init and one point with time 1."""
    served = task.serve()
    assert task.ask(INIT) == INITIALIZED
    assert task.ask(Point(time=1)) == counted(1, 1)
    return served


def paused(served: ServedAgent) -> None:
    """Pause an agent."""
    stands = threading.Event()
    served.agent.pause(stands.set)
    assert stands.wait(PATIENCE_S)


def ask_each(task: JournaledTask, numbers: range) -> None:
    for number in numbers:
        assert task.ask(Point(time=number)) == counted(number, number)


# --- handed over ---


def test_a_connection_goes_from_agent_to_agent_with_its_state(
    tasks: Callable[..., JournaledTask],
) -> None:
    task = tasks(Counter)
    served = begun(task)
    for number in range(2, 6):
        paused(served)
        following = task.take_over(waits=True)
        assert following.resumed.result(PATIENCE_S) is None
        task.send(Point(time=number))
        served.agent.release()
        assert served.summary().reason is Reason.HANDED_OVER
        assert not following.ended.done()
        following.agent.go()
        assert task.side.receive() == counted(number, number)
        served = following
    task.end()
    summary = served.summary()
    assert (summary.reason, summary.stats.takeovers) == (Reason.CLOSED, 4)
    assert (summary.stats.points_in, summary.stats.points_out) == (5, 5)
    assert summary.bytes_in == task.sent_bytes


def test_an_open_batch_is_handed_over(
    tasks: Callable[..., JournaledTask],
) -> None:
    task = tasks(Batches)
    served = task.serve()
    assert task.ask(INIT) == INITIALIZED
    begin, end = BeginBatch(name="b"), EndBatch(name="b")
    assert task.ask(begin) == begin
    assert task.ask(Point(time=1)) == Point(time=1)
    paused(served)
    following = task.take_over(waits=True)
    assert following.resumed.result(PATIENCE_S) is None
    served.agent.release()
    served.summary()
    following.agent.go()
    assert task.ask(Point(time=2)) == Point(time=2)
    assert task.ask(end) == end
    task.end()
    assert following.summary().stats.batches_out == 1


def test_an_incomplete_frame_is_handed_over(
    tasks: Callable[..., JournaledTask],
) -> None:
    task = tasks(Counter)
    served = begun(task)
    data = encoded([Point(time=2)])
    task.side.send_bytes(data[:3])
    wait_until(lambda: task.header.received == task.sent_bytes + 3)
    paused(served)
    following = task.take_over(waits=True)
    assert following.resumed.result(PATIENCE_S) is None
    served.agent.release()
    following.agent.go()
    task.side.send_bytes(data[3:])
    assert task.side.receive() == counted(2, 2)


def test_output_of_the_snapshot_for_a_handover_is_sent(tasks: Callable[..., JournaledTask]) -> None:

    class Writes(Counter):
        def snapshot(self) -> SnapshotResponse:
            self.agent.write_point(Point(name="snapshot"))
            return super().snapshot()

    task = tasks(Writes)
    served = begun(task)
    paused(served)
    assert task.side.receive() == Point(name="snapshot")
    following = task.take_over(waits=True)
    served.agent.release()
    following.agent.go()
    assert task.ask(Point(time=2)) == counted(2, 2)


def test_a_writing_thread_waits_during_a_handover_and_then_raises(
    tasks: Callable[..., JournaledTask], caplog: pytest.LogCaptureFixture
) -> None:
    writers: list[Writer] = []

    class Kept(Counter):
        def setup(self) -> None:
            writers.append(self.agent)

    task = tasks(Kept)
    served = begun(task)
    paused(served)
    writing = in_thread(lambda: writers[0].write_point(Point(name="thread")))
    following = task.take_over(waits=True)
    assert following.resumed.result(PATIENCE_S) is None
    assert not writing.done()
    served.agent.release()
    with pytest.raises(ConnectionClosedError):
        writing.result(PATIENCE_S)
    wait_until(lambda: "writes refused" in caplog.text)
    following.agent.go()
    in_thread(lambda: writers[-1].write_point(Point(name="thread"))).result(PATIENCE_S)
    assert task.side.receive() == Point(name="thread")


# --- kept ---


def test_an_agent_goes_on_if_the_takeover_fails(
    tasks: Callable[..., JournaledTask],
) -> None:

    class Broken(Counter):
        def restore(self, request: RestoreRequest, /) -> RestoreResponse:
            raise ValueError(request.snapshot)

    task = tasks(Counter)
    served = begun(task)
    for number in range(2, 5):
        paused(served)
        failing = task.take_over(waits=True, handler=Broken)
        assert "Broken.restore raised" in (failing.resumed.result(PATIENCE_S) or "")
        assert failing.summary().reason is Reason.HANDED_OVER
        served.agent.go()
        ask_each(task, range(number, number + 1))
    task.end()
    assert (served.summary().reason, served.summary().stats.takeovers) == (Reason.CLOSED, 0)


def test_a_decision_before_a_pause_does_not_end_it(tasks: Callable[..., JournaledTask]) -> None:
    task = tasks(Counter)
    served = begun(task)
    served.agent.go()
    paused(served)
    task.send(Point(time=2))
    following = task.take_over(waits=True)
    assert following.resumed.result(PATIENCE_S) is None
    assert not served.ended.done()
    assert task.header.record.stats.points_in == 1
    served.agent.release()
    assert served.summary().reason is Reason.HANDED_OVER
    following.agent.go()
    assert task.side.receive() == counted(2, 2)


@pytest.mark.parametrize("last_word", ["cancel_handover", "abort"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_agent_does_not_wait_after_the_handover_was_canceled(
    tasks: Callable[..., JournaledTask], last_word: str, when: str
) -> None:
    task = tasks(Counter)
    served = begun(task)
    stands = threading.Event()
    say = getattr(served.agent, last_word)
    if when == "before":
        say()
        served.agent.pause(stands.set)
    else:
        paused(served)
        say()
    if last_word == "abort":
        assert served.summary().reason is Reason.CLOSED
        return
    ask_each(task, range(2, 4))
    task.end()
    assert served.summary().reason is Reason.CLOSED


def test_the_old_agent_keeps_the_connection_if_the_handover_is_canceled(
    tasks: Callable[..., JournaledTask],
) -> None:
    task = tasks(Counter)
    served = begun(task)
    paused(served)
    following = task.take_over(waits=True)
    assert following.resumed.result(PATIENCE_S) is None
    following.agent.cancel_handover()
    served.agent.cancel_handover()
    assert following.summary().reason is Reason.HANDED_OVER
    ask_each(task, range(2, 4))


def test_an_agent_that_took_over_can_be_paused(
    tasks: Callable[..., JournaledTask],
) -> None:
    task = tasks(Counter)
    served = begun(task)
    paused(served)
    following = task.take_over(waits=True)
    served.agent.release()
    following.agent.go()
    ask_each(task, range(2, 4))
    following.agent.cancel_handover()
    ask_each(task, range(4, 6))
    following.agent.stop()
    assert following.summary().reason is Reason.STOPPED


def test_an_early_release_ends_the_pause(
    tasks: Callable[..., JournaledTask],
) -> None:
    task = tasks(Counter)
    served = begun(task)
    paused(served)
    served.agent.release()
    assert served.summary().reason is Reason.HANDED_OVER
    following = task.take_over()
    ask_each(task, range(2, 4))
    assert following.resumed.result(PATIENCE_S) is None


@pytest.mark.parametrize("words", [("stop", "go"), ("go", "stop")])
def test_a_stop_during_a_pause_takes_effect_after_it(
    tasks: Callable[..., JournaledTask], words: tuple[str, str]
) -> None:
    task = tasks(Counter)
    served = begun(task)
    paused(served)
    task.send(Point(time=2), Point(time=3))
    for word in words:
        getattr(served.agent, word)()
    summary = served.summary()
    assert (summary.reason, summary.stats.points_in) == (Reason.STOPPED, 3)
    assert [task.side.receive() for _ in range(2)] == [counted(2, 2), counted(3, 3)]


def test_a_pause_after_the_end_has_no_effect(tasks: Callable[..., JournaledTask]) -> None:
    task = tasks(Counter)
    served = begun(task)
    task.end()
    served.summary()
    stands = threading.Event()
    served.agent.pause(stands.set)
    for word in ("go", "release", "cancel_handover", "stop", "abort", "heartbeat"):
        getattr(served.agent, word)()
    assert not stands.is_set()


def test_a_pause_can_be_requested_twice(tasks: Callable[..., JournaledTask]) -> None:
    task = tasks(Counter)
    served = begun(task)
    stood: list[int] = []
    for number in range(3):
        served.agent.pause(lambda number=number: stood.append(number))  # type: ignore[misc]
    wait_until(lambda: stood)
    task.send(Point(time=2))
    said = 0

    def has_gone_on() -> bool:
        """Call `go` once for each call of `on_paused`."""
        nonlocal said
        while said < len(stood):
            said += 1
            served.agent.go()
        return task.header.record.stats.points_in == 2

    wait_until(has_gone_on)
    assert task.side.receive() == counted(2, 2)


def test_a_pause_waits_until_the_frame_is_handled(tasks: Callable[..., JournaledTask]) -> None:
    entered, go_on = threading.Event(), threading.Event()

    class Slow(Counter):
        def point(self, point: Point, /) -> None:
            if point.time == 2:
                entered.set()
                assert go_on.wait(PATIENCE_S)
            super().point(point)

    task = tasks(Slow)
    served = begun(task)
    task.send(Point(time=2))
    assert entered.wait(PATIENCE_S)
    stands = threading.Event()
    served.agent.pause(stands.set)
    assert not stands.is_set()
    go_on.set()
    assert stands.wait(PATIENCE_S)
    assert task.header.record.stats.points_in == 2
    assert task.side.receive() == counted(2, 2)
