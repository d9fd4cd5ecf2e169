"""Peers that do not read for a while, and what happens meanwhile."""

from __future__ import annotations

import os
import signal
import threading
from functools import partial
from typing import TYPE_CHECKING, Self

import pytest

from kapudf_cli.client.driver import Event
from kapudf_cli.protocol.codec import REQUESTS
from kapudf_cli.protocol.framing import HEARTBEAT_TIME
from kapudf_cli.protocol.udf_pb2 import (
    KeepaliveResponse,
    Point,
    SnapshotRequest,
    SnapshotResponse,
)
from tests.conftest import plugin
from tests.peers import in_thread
from tests.plugins.mortal import BALLAST
from tests.serve_process import PATIENCE_S, ServeProcess
from tests.supervisor.ongoing import await_status, kapudf, status_of
from tests.supervisor.tasks import points, points_in, started_task, tallied

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from kapudf_cli.protocol.codec import RequestMessage, ResponseMessage

    Serve = Callable[..., ServeProcess]

#: So many `long_points` are more than all buffers hold, input read ahead included.
COUNT = 10_000
AT_ONCE = 1_000
#: The same for the output of a wordy handler.
WORDY_COUNT = 8_000


class StallingPeer:
    """Sends messages from a thread, and reads only when a method is called."""

    def __init__(self, path: str) -> None:
        """Connect and send Init."""
        self._path = path
        self.side = started_task(path, timeout_s=PATIENCE_S * 2)
        self._sent = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.side.__exit__(None, None, None)

    def begin_to_send(self, messages: Iterable[RequestMessage]) -> None:
        """Start to send messages, and half-close after the last one."""
        in_thread(lambda: self._send(messages))

    def _send(self, messages: Iterable[RequestMessage]) -> None:
        for message in messages:
            self.side.send_bytes(REQUESTS.encode(message))
            self._sent += 1
        self.side.half_close()

    def read(self, count: int) -> list[ResponseMessage | None]:
        """Return the next responses, without heartbeats."""
        return [self.side.receive() for _ in range(count)]

    def stall(self) -> int:
        """Wait until the worker waits for this peer and has read ahead; return its pid."""
        pause = threading.Event()
        status = await_status(self._path, _waits_for_peer)
        before = -1
        while before != self._sent:  # Until all buffers are full.
            before = self._sent
            pause.wait(0.1)
        for _ in range(round(PATIENCE_S / 0.02)):
            if self._sent > before:
                break
            pause.wait(0.02)
        assert self._sent > before
        (serving,) = status["connections"]
        (pid,) = (each["pid"] for each in status["workers"] if each["worker"] == serving["worker"])
        return int(pid)


def _waits_for_peer(status: dict[str, list[dict[str, object]]]) -> bool:
    (connection,) = status["connections"]
    return connection["state"] == "waiting on Kapacitor" and connection["worker"] is not None


def long_points(count: int) -> list[Point]:
    """Return points of some 300 bytes."""
    made = list(points(count))
    for point in made:
        point.fieldsString["ballast"] = "b" * 250
    return made


@pytest.mark.parametrize("handler", ["Wordy", "WordyCount"])
def test_input_read_ahead_for_a_stalled_peer_outlives_every_worker(
    serve: Serve, socket_path: str, handler: str
) -> None:
    process = serve(plugin(f"mortal.py:{handler}"), "--snapshot-interval", "0.1")
    sent = list(points(WORDY_COUNT))
    back: list[ResponseMessage | None] = []
    with StallingPeer(socket_path) as peer:
        peer.begin_to_send(sent)
        for deaths in range(1, 4):
            peer.stall()
            # Until the points of one read are handled, and input read ahead comes next.
            noted = points_in(status_of(socket_path))
            while points_in(status_of(socket_path)) == noted:
                back += peer.read(20)
            os.kill(peer.stall(), signal.SIGKILL)
            process.await_events("worker died", deaths, how="SIGKILL")
            back += peer.read(AT_ONCE // 2)
            process.await_events("connection taken over", deaths)
        back += peer.read(WORDY_COUNT - len(back) + 1)
    expected = tallied(sent) if handler == "WordyCount" else sent
    for point in expected:
        point.fieldsString["ballast"] = BALLAST
    assert back == [*expected, None]
    assert process.event("connection finished")["takeovers"] == 3


@pytest.mark.parametrize("dies", [False, True], ids=["reloaded", "killed as well"])
def test_a_reload_waits_for_a_peer_that_stalls(
    serve: Serve, socket_path: str, *, dies: bool
) -> None:
    process = serve(plugin("mortal.py:Count"), "--snapshot-interval", "0.1")
    sent = long_points(COUNT)
    with StallingPeer(socket_path) as peer:
        peer.begin_to_send(sent)
        worker = peer.stall()
        reload = in_thread(partial(kapudf, "reload", "--socket", socket_path))
        process.event("new workers serve")
        if dies:
            os.kill(worker, signal.SIGKILL)
            process.event("worker died", pid=worker)
        back = peer.read(COUNT)
        told = reload.result(PATIENCE_S)
        assert told.startswith("udf: reloaded, 1 connection handed over\n")
        back += peer.read(1)
    assert back == [*tallied(sent), None]
    process.event("connection taken over" if dies else "connection handed over")


def test_heartbeats_while_a_state_is_repeated_come_between_messages(
    serve: Serve, socket_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATE", str(tmp_path / "gate"))
    gate = tmp_path / "gate.restore"
    os.mkfifo(gate)
    process = serve(plugin("laden.py:HeldUp"))
    sent = long_points(COUNT)
    with StallingPeer(socket_path) as peer:
        for point in sent[:3]:
            peer.side.send(point)
            peer.side.send(SnapshotRequest())  # The journal is compacted then.
            assert isinstance(peer.side.receive(), Point)
            assert isinstance(peer.side.receive(), SnapshotResponse)
        peer.begin_to_send(sent[3:])
        os.kill(peer.stall(), signal.SIGKILL)
        process.event("worker died")
        counts = []
        heartbeats = 0
        while (response := peer.side.step(PATIENCE_S)) is not Event.CLOSED:
            if isinstance(response, Point):
                counts.append((response.time, response.fieldsInt["count"]))
                continue
            if response is Event.SENT:
                continue
            assert response == KeepaliveResponse(time=HEARTBEAT_TIME)
            heartbeats += 1
            if heartbeats == 2:
                assert len(counts) < COUNT - 3
                in_thread(partial(gate.write_bytes, b""))
    assert heartbeats >= 2
    assert counts == [(number, number + 1) for number in range(3, COUNT)]
