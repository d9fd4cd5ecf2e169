"""Heartbeats from within the process that runs the handlers."""

from __future__ import annotations

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

if TYPE_CHECKING:
    from collections.abc import Iterator


class Slow(Handler):
    """Is at work with a point until it is let go on."""

    go_on = threading.Event()

    def point(self, point: Point, /) -> None:
        if point.name == "slow":
            assert self.go_on.wait(PATIENCE_S)
        self.agent.write_point(point)


class Seen(NoCheckpoints):
    """Records the frames that were seen with the handler."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def record_seen_frame(self, offset: int | None) -> None:
        if offset is not None:
            self.seen.append(offset)


class Hearted:
    """Connections with a heart, and Kapacitor's end of each."""

    def __init__(self) -> None:
        self.limit_s = PATIENCE_S
        self.ended: dict[int, ConnectionSummary] = {}
        self.connections = Connections(structlog.get_logger(), self.ended.__setitem__)
        self.heart = Heartbeats(self.connections, lambda _: self.limit_s)
        self.peers: list[socket.socket] = []
        self.seen: list[Seen] = []

    def connect(self) -> socket.socket:
        """Have a task served, and return Kapacitor's end."""
        ours, theirs = socket.socketpair()
        ours.settimeout(PATIENCE_S)
        settings = FunctionSettings(handler="slow", socket="unused")
        self.peers.append(ours)
        self.seen.append(Seen())
        number = len(self.peers)
        self.connections.start(
            number,
            Function("slow", Slow, settings),
            SocketStream(theirs),
            None,
            checkpoints=self.seen[-1],
        )
        side = KapacitorSide(ours, timeout_s=PATIENCE_S)
        side.send(INIT)
        assert side.receive() == InitResponse(success=True)
        return ours

    def close(self) -> None:
        self.heart.stop()
        Slow.go_on.set()
        for connection in self.connections.current():
            connection.agent.abort()
            connection.thread.join(PATIENCE_S)
        for peer in self.peers:
            peer.close()


@pytest.fixture
def hearted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hearted]:
    """Give connections whose heart beats fast."""
    monkeypatch.setattr(source, "HEARTBEAT_INTERVAL_S", 0.005)
    Slow.go_on.clear()
    hearted = Hearted()
    yield hearted
    hearted.close()


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


def test_a_busy_handlers_connection_gets_heartbeats_until_it_is_done(hearted: Hearted) -> None:
    peer = hearted.connect()
    hearted.heart.start()
    send(peer, Point(name="slow"))
    assert read_exactly(peer, 5 * len(HEARTBEAT)) == 5 * HEARTBEAT
    Slow.go_on.set()
    side = KapacitorSide(peer, timeout_s=PATIENCE_S)
    assert side.receive() == Point(name="slow")
    assert len(set(hearted.seen[0].seen)) == 1


def test_an_idle_connection_gets_none(hearted: Hearted) -> None:
    idle, busy = hearted.connect(), hearted.connect()
    hearted.heart.start()
    send(busy, Point(name="slow"))
    read_exactly(busy, 5 * len(HEARTBEAT))
    idle.settimeout(0)
    with pytest.raises(BlockingIOError):
        idle.recv(1)
    assert hearted.seen[0].seen == []


def test_a_peer_that_does_not_read_holds_up_nobody_elses_heartbeats(hearted: Hearted) -> None:
    deaf, gone, busy = hearted.connect(), hearted.connect(), hearted.connect()
    deaf_stream = hearted.connections.get(1)
    assert deaf_stream is not None
    # As full as it gets, before the handler is busy.
    descriptor = deaf_stream.agent._stream._socket  # type: ignore[attr-defined]
    with contextlib.suppress(BlockingIOError):
        while True:
            descriptor.send(HEARTBEAT, socket.MSG_DONTWAIT)
    for peer in (deaf, gone, busy):
        send(peer, Point(name="slow"))
    gone.close()
    hearted.heart.start()
    assert read_exactly(busy, 10 * len(HEARTBEAT)) == 10 * HEARTBEAT


def test_a_handler_that_hangs_gets_no_more_heartbeats_and_is_told_of_once(
    hearted: Hearted,
) -> None:
    hearted.limit_s = 0.1
    peer = hearted.connect()
    with structlog.testing.capture_logs() as events:
        hearted.heart.start()
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


def test_a_connection_that_has_ended_is_watched_no_more(hearted: Hearted) -> None:
    first = hearted.connect()
    hearted.heart.start()
    first.shutdown(socket.SHUT_WR)
    thread = hearted.connections.get(1)
    if thread is not None:
        thread.thread.join(PATIENCE_S)
    assert hearted.ended[1].reason is Reason.CLOSED
    busy = hearted.connect()
    send(busy, Point(name="slow"))
    read_exactly(busy, 2 * len(HEARTBEAT))
    assert set(hearted.heart._watches) == {2}
