"""Heartbeats from within the process that runs the handlers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from typing import TYPE_CHECKING

import pytest
import structlog

from kapudf_cli.agent.agent import ConnectionSummary, Reason
from kapudf_cli.agent.checkpoints import NoCheckpoints
from kapudf_cli.client.driver import KapacitorSide
from kapudf_cli.config import FunctionSettings
from kapudf_cli.handler.handler import Handler
from kapudf_cli.protocol.framing import HEARTBEAT
from kapudf_cli.protocol.udf_pb2 import InitResponse, Point
from kapudf_cli.transport import SocketStream
from kapudf_cli.worker import connections as source
from kapudf_cli.worker.connections import Connections, Function, Heartbeats
from tests.peers import INIT
from tests.serve_process import PATIENCE_S
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


class Slow(Handler):
    """Handles a slow point until `go_on` is set."""

    go_on = threading.Event()

    def point(self, point: Point, /) -> None:
        if point.name == "slow":
            assert self.go_on.wait(PATIENCE_S)
        self.agent.write_point(point)


class Seen(NoCheckpoints):
    """Records the frames that heartbeats see at the handler."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def record_seen_frame(self, offset: int | None) -> None:
        if offset is not None:
            self.seen.append(offset)


class Beating:
    """Connections with heartbeats, and Kapacitor's end of each."""

    def __init__(self) -> None:
        self.limit_s = PATIENCE_S
        self.handler: type[Handler] = Slow
        self.ended: dict[int, ConnectionSummary] = {}
        self.connections = Connections(structlog.get_logger(), self.ended.__setitem__)
        self.heartbeats = Heartbeats(self.connections, lambda _: self.limit_s)
        self.peers: list[socket.socket] = []
        self.seen: list[Seen] = []

    def connect(self) -> socket.socket:
        """Serve a task, and return Kapacitor's end."""
        ours, theirs = socket.socketpair()
        ours.settimeout(PATIENCE_S)
        settings = FunctionSettings(handler="slow", socket="unused")
        self.peers.append(ours)
        self.seen.append(Seen())
        number = len(self.peers)
        self.connections.start(
            number,
            Function("slow", self.handler, settings),
            SocketStream(theirs),
            None,
            checkpoints=self.seen[-1],
        )
        side = KapacitorSide(ours, timeout_s=PATIENCE_S)
        side.send(INIT)
        assert side.receive() == InitResponse(success=True)
        return ours

    def close(self) -> None:
        self.heartbeats.stop()
        Slow.go_on.set()
        for connection in self.connections.current():
            connection.agent.abort()
            connection.thread.join(PATIENCE_S)
        for peer in self.peers:
            peer.close()


@pytest.fixture
def beating(monkeypatch: pytest.MonkeyPatch) -> Iterator[Beating]:
    """Give connections with frequent heartbeats."""
    monkeypatch.setattr(source, "HEARTBEAT_INTERVAL_S", 0.005)
    Slow.go_on.clear()
    beating = Beating()
    yield beating
    beating.close()


def send(peer: socket.socket, *points: Point) -> None:
    side = KapacitorSide(peer, timeout_s=PATIENCE_S)
    for point in points:
        side.send(point)


def read_exactly(peer: socket.socket, count: int) -> bytes:
    read = b""
    while len(read) < count:
        data = peer.recv(count - len(read))
        assert data
        read += data
    return read


def test_a_busy_handlers_connection_gets_heartbeats_until_it_is_done(beating: Beating) -> None:
    peer = beating.connect()
    beating.heartbeats.start()
    send(peer, Point(name="slow"))
    assert read_exactly(peer, 5 * len(HEARTBEAT)) == 5 * HEARTBEAT
    Slow.go_on.set()
    side = KapacitorSide(peer, timeout_s=PATIENCE_S)
    assert side.receive() == Point(name="slow")
    assert len(set(beating.seen[0].seen)) == 1


def test_an_idle_connection_gets_none(beating: Beating) -> None:
    idle, busy = beating.connect(), beating.connect()
    beating.heartbeats.start()
    send(busy, Point(name="slow"))
    read_exactly(busy, 5 * len(HEARTBEAT))
    idle.settimeout(0)
    with pytest.raises(BlockingIOError):
        idle.recv(1)
    assert beating.seen[0].seen == []


def test_a_peer_that_does_not_read_delays_no_other_heartbeats(beating: Beating) -> None:
    deaf, gone, busy = beating.connect(), beating.connect(), beating.connect()
    deaf_stream = beating.connections.get(1)
    assert deaf_stream is not None
    # As full as possible, before the handler is busy.
    descriptor = deaf_stream.agent._stream._socket  # type: ignore[attr-defined]
    with contextlib.suppress(BlockingIOError):
        while True:
            descriptor.send(HEARTBEAT, socket.MSG_DONTWAIT)
    for peer in (deaf, gone, busy):
        send(peer, Point(name="slow"))
    gone.close()
    beating.heartbeats.start()
    assert read_exactly(busy, 10 * len(HEARTBEAT)) == 10 * HEARTBEAT


def test_a_hanging_handler_gets_no_more_heartbeats_and_is_reported_once(
    beating: Beating,
) -> None:
    beating.limit_s = 0.1
    peer = beating.connect()
    with structlog.testing.capture_logs() as events:
        beating.heartbeats.start()
        send(peer, Point(name="slow"))
        read_exactly(peer, len(HEARTBEAT))
        told = threading.Event()
        while not [event for event in events if event["log_level"] == "error"]:
            told.wait(0.001)
        peer.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                peer.recv(1000)
        peer.settimeout(PATIENCE_S)
        Slow.go_on.set()
        assert KapacitorSide(peer, timeout_s=PATIENCE_S).receive() == Point(name="slow")
    (event,) = [event for event in events if event["log_level"] == "error"]
    assert event["event"] == "handler hangs, no more heartbeats"
    assert event["busy_s"] >= 0.1
    assert " < point (" in event["where"]


class SlowAsync(Handler):
    """Waits without end."""

    async def point(self, point: Point, /) -> None:
        await self.wait(point)

    async def wait(self, point: Point) -> None:
        del point
        await asyncio.get_running_loop().create_future()


def test_a_slow_call_of_an_async_handler_is_logged_once_with_its_place(
    beating: Beating, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beating, "handler", SlowAsync)
    beating.heartbeats = Heartbeats(beating.connections, lambda _: PATIENCE_S, slow_s=0.02)
    peer = beating.connect()
    with structlog.testing.capture_logs() as events:
        beating.heartbeats.start()
        send(peer, Point())
        wait_until(lambda: any(event["event"] == "async call takes long" for event in events))
        read_exactly(peer, 3 * len(HEARTBEAT))
    (event,) = [event for event in events if event["log_level"] == "warning"]
    assert event["where"].startswith(f"wait ({__file__}:")


class BlocksLoop(Handler):
    """Waits without `await` until `go_on` is set."""

    async def point(self, point: Point, /) -> Point:
        assert Slow.go_on.wait(PATIENCE_S)
        return point


def test_a_call_that_blocks_the_event_loop_is_logged_with_the_place_of_its_thread(
    beating: Beating, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beating, "handler", BlocksLoop)
    beating.limit_s = 0.02
    peer = beating.connect()
    with structlog.testing.capture_logs() as events:
        send(peer, Point())
        connection = beating.connections.get(1)
        assert connection is not None
        wait_until(lambda: connection.agent.current_frame is not None)
        beating.heartbeats.start()
        wait_until(lambda: any(event["log_level"] == "error" for event in events))
        Slow.go_on.set()
        side = KapacitorSide(peer, timeout_s=PATIENCE_S)
        assert side.receive() == Point()
    (event,) = [event for event in events if event["log_level"] == "error"]
    assert f" < point ({__file__}:" in event["where"]


def test_a_connection_that_waits_for_its_turn_gets_heartbeats_without_a_limit(
    beating: Beating, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Slow, "serialize", True)
    beating.limit_s = 0.02
    busy, waiting = beating.connect(), beating.connect()
    with structlog.testing.capture_logs() as events:
        send(busy, Point(name="slow"))
        connection = beating.connections.get(1)
        assert connection is not None
        wait_until(lambda: connection.agent.current_frame is not None)
        send(waiting, Point(name="quick"))
        beating.heartbeats.start()
        wait_until(lambda: any(event["log_level"] == "error" for event in events))
        # It was at most as many until the limit.
        assert read_exactly(waiting, 20 * len(HEARTBEAT)) == 20 * HEARTBEAT
        Slow.go_on.set()
        side = KapacitorSide(waiting, timeout_s=PATIENCE_S)
        assert side.receive() == Point(name="quick")
    errors = [event["connection"] for event in events if event["log_level"] == "error"]
    assert errors == [1]


def test_a_connection_that_has_ended_is_watched_no_more(beating: Beating) -> None:
    first = beating.connect()
    beating.heartbeats.start()
    first.shutdown(socket.SHUT_WR)
    thread = beating.connections.get(1)
    if thread is not None:
        thread.thread.join(PATIENCE_S)
    assert beating.ended[1].reason is Reason.CLOSED
    busy = beating.connect()
    send(busy, Point(name="slow"))
    read_exactly(busy, 2 * len(HEARTBEAT))
    assert set(beating.heartbeats._watches) == {2}
