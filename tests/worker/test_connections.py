"""Connections of a worker: each with an agent and a thread of its own, and its log events."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from kapudf_cli.agent.agent import ConnectionSummary, Reason
from kapudf_cli.agent.checkpoints import LastSnapshot, NoCheckpoints, ResumePlan, ResumePoint
from kapudf_cli.client.driver import KapacitorSide
from kapudf_cli.config import FunctionSettings
from kapudf_cli.handler.handler import Handler
from kapudf_cli.protocol.codec import REQUESTS
from kapudf_cli.protocol.udf_pb2 import InitResponse, Point
from kapudf_cli.system import logs
from kapudf_cli.system.peers import PeerCredentials
from kapudf_cli.transport import SocketStream
from kapudf_cli.transport.stream import ConnectionStats
from kapudf_cli.worker.connections import Connections, Function, checkpoints_for
from tests.peers import INIT
from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kapudf_cli.agent.error_policy import OnError


class Mirror(Handler):
    """Sends points back; raises for bad ones."""

    def point(self, point: Point, /) -> None:
        if point.name == "bad":
            raise ValueError(point.time)
        structlog.get_logger().info("point taken")
        self.agent.write_point(point)


class Stored(NoCheckpoints):
    """The checkpoint that another agent left."""

    def __init__(self, history: bytes, stats: ConnectionStats) -> None:
        self._history = history
        self._stats = stats

    def resume_point(self) -> ResumePoint:
        return ResumePoint(stats=self._stats)

    def history(self, until: int) -> bytes:
        del until
        return self._history


class Held:
    """Connections, with Kapacitor's side and the log events of each."""

    def __init__(self, events: list[Any]) -> None:
        self.events = events
        self.ended: dict[int, ConnectionSummary] = {}
        self.tasks: list[tuple[str, str]] = []
        self.connections = Connections(structlog.get_logger(), self.ended.__setitem__)
        self.sides: list[KapacitorSide] = []

    def connect(self, *, on_error: OnError = "fail", number: int = 1, **more: Any) -> KapacitorSide:
        ours, theirs = socket.socketpair()
        settings = FunctionSettings(handler="mirror", socket="unused", on_error=on_error)
        side = KapacitorSide(ours, timeout_s=PATIENCE_S)
        self.sides.append(side)
        self.connections.start(
            number,
            Function("mirror", Mirror, settings),
            SocketStream(theirs),
            PeerCredentials(11, 12, 13),
            **{
                "checkpoints": checkpoints_for(settings),
                "on_task": lambda task, node: self.tasks.append((task, node)),
                **more,
            },
        )
        return side

    def end(self) -> None:
        """End the input of every connection, and wait until all have ended."""
        connections = self.connections.current()
        for side in self.sides:
            with contextlib.suppress(OSError):
                side.half_close()
        for connection in connections:
            connection.thread.join(PATIENCE_S)
        assert self.connections.current() == []

    def named(self, event: str) -> list[dict[str, Any]]:
        return [each for each in self.events if each["event"] == event]


@pytest.fixture
def held() -> Iterator[Held]:
    """Give connections whose log events are recorded."""
    processors = [logs.merge_facts]
    with structlog.testing.capture_logs(processors=processors) as events:
        held = Held(events)
        yield held
        held.end()
        for side in held.sides:
            side._socket.close()


def test_a_connection_is_there_until_it_has_ended(held: Held) -> None:
    side = held.connect(number=7)
    connection = held.connections.get(7)
    assert connection is not None
    assert held.connections.current() == [connection]
    side.send(INIT)
    assert side.receive() == InitResponse(success=True)
    assert held.tasks == [("task", "node")]
    assert not held.ended
    held.end()
    assert held.connections.get(7) is None
    assert held.ended[7].reason is Reason.CLOSED


def test_the_end_of_a_connection_is_reported_before_it_is_gone(held: Held) -> None:
    told: list[bool] = []

    def tick() -> None:
        assert held.connections.current() == []
        told.append(1 in held.ended)

    looker = threading.Thread(target=tick)

    def tell(number: int, summary: ConnectionSummary) -> None:
        looker.start()
        looker.join(0.1)  # It needs less time if nothing delays it.
        held.ended[number] = summary

    held.connections._on_end = tell
    held.connect()
    held.end()
    looker.join(PATIENCE_S)
    assert told == [True]


def test_events_of_a_connection_have_its_number(held: Held) -> None:
    side = held.connect(number=7)
    side.send(INIT)
    side.send(Point(time=1))
    assert [side.receive() for _ in range(2)] == [InitResponse(success=True), Point(time=1)]
    held.end()
    for event in ("connection started", "task connected", "point taken", "connection finished"):
        (found,) = held.named(event)
        assert found["connection"] == 7
        assert (found["function"], found["peer_pid"], found["peer_uid"]) == ("mirror", 11, 12)
    assert held.named("point taken")[0]["task_id"] == "task"
    (finished,) = held.named("connection finished")
    assert (finished["points_in"], finished["points_out"]) == (1, 1)
    assert finished["reason"] == "closed"
    assert "failures" not in finished


def test_a_handler_made_anew_is_not_a_task_that_connects(held: Held) -> None:
    side = held.connect(on_error="restart")
    side.send(INIT)
    for name in ("bad", "good", "bad"):
        side.send(Point(name=name))
    assert [side.receive() for _ in range(2)] == [InitResponse(success=True), Point(name="good")]
    held.end()
    assert len(held.named("task connected")) == 1
    (finished,) = held.named("connection finished")
    assert (finished["failures"], finished["restarts"]) == (2, 2)


def test_a_connection_that_was_taken_over_neither_starts_nor_connects(held: Held) -> None:
    history = REQUESTS.encode(INIT)
    problems: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    side = held.connect(
        checkpoints=Stored(history, ConnectionStats(len(history), points_in=5, points_out=5)),
        resume_plan=ResumePlan(),
        age_s=100.0,
        on_resumed=problems.put,
    )
    assert problems.get(timeout=PATIENCE_S) is None
    connection = held.connections.get(1)
    assert connection is not None
    connection.agent.go()
    side.send(Point(time=1))
    assert side.receive() == Point(time=1)
    held.end()
    assert not held.named("connection started")
    assert not held.named("task connected")
    (finished,) = held.named("connection finished")
    assert (finished["points_in"], finished["points_out"], finished["takeovers"]) == (6, 6, 1)
    assert finished["duration_s"] > 100.0


def test_a_connection_that_is_handed_over_is_not_finished(held: Held) -> None:
    held.connect()
    connection = held.connections.get(1)
    assert connection is not None
    stands = threading.Event()
    connection.agent.pause(stands.set)
    assert stands.wait(PATIENCE_S)
    connection.agent.release()
    connection.thread.join(PATIENCE_S)
    assert not held.named("connection finished")
    assert held.ended[1].reason is Reason.HANDED_OVER


def test_a_number_may_be_taken_anew_while_the_old_agent_lets_go(held: Held) -> None:
    held.connect()
    old = held.connections.get(1)
    assert old is not None
    stands = threading.Event()
    old.agent.pause(stands.set)
    assert stands.wait(PATIENCE_S)
    held.connect()
    new = held.connections.get(1)
    old.agent.release()
    old.thread.join(PATIENCE_S)
    assert held.connections.get(1) is new
    assert new is not old


def test_the_connection_is_closed_if_no_thread_can_be_started(
    held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: threading.Thread) -> None:
        problem = "can't start new thread"
        raise RuntimeError(problem)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError):
            held.connect()
    assert held.connections.current() == []
    assert held.sides[0].receive() is None


@pytest.mark.parametrize(
    ("on_error", "kind"),
    [("fail", NoCheckpoints), ("skip", NoCheckpoints), ("restart", LastSnapshot)],
)
def test_a_snapshot_is_kept_only_if_the_handler_may_be_replaced(
    on_error: OnError, kind: type
) -> None:
    settings = FunctionSettings(handler="mirror", socket="unused", on_error=on_error)
    assert type(checkpoints_for(settings)) is kind
