"""Slow handlers: Kapacitor gets heartbeats, and a worker whose handler hangs is replaced."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import threading
from functools import partial
from typing import TYPE_CHECKING, Self

import pytest

from kapudf_cli.protocol.codec import REQUESTS, RESPONSES
from kapudf_cli.protocol.framing import DEFAULT_MAX_FRAME_BYTES, HEARTBEAT_TIME, FrameReader
from kapudf_cli.protocol.udf_pb2 import (
    ErrorResponse,
    InitRequest,
    InitResponse,
    KeepaliveRequest,
    KeepaliveResponse,
    Point,
    SnapshotRequest,
    SnapshotResponse,
)
from tests.conftest import plugin
from tests.peers import in_thread
from tests.serve_process import PATIENCE_S, ServeProcess
from tests.supervisor.ongoing import await_status, status_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kapudf_cli.protocol.codec import ResponseMessage

    Serve = Callable[..., ServeProcess]

#: The timeout of the peer in these tests. It requests a keepalive after half of it, and a
#: heartbeat may take another half second, so a slow machine has a second to spare.
TIMEOUT_S = 3.0


class StrictKapacitor:
    """A peer that gives up, as Kapacitor does, if it receives nothing within its timeout."""

    def __init__(self, path: str) -> None:
        """Connect, send Init, and then request keepalives at intervals."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(path)
        self._frames = FrameReader(RESPONSES.decode_in, DEFAULT_MAX_FRAME_BYTES)
        #: The responses; the iterator raises TimeoutError if none comes in time.
        self.responses = self._receive()
        self._ends = threading.Event()
        self._keepalives = threading.Thread(target=self._ask, daemon=True)
        self.asked = 0

    def _init(self) -> None:
        self.send(InitRequest(taskID="task", nodeID="node"))
        # On a slow machine, a heartbeat may come before.
        heartbeat = KeepaliveResponse(time=HEARTBEAT_TIME)
        assert next(x for x in self.responses if x != heartbeat) == InitResponse(success=True)
        self._keepalives.start()

    def send(self, message: InitRequest | Point | KeepaliveRequest | SnapshotRequest) -> None:
        """Send a request."""
        self._socket.sendall(REQUESTS.encode(message))

    def _receive(self) -> Iterator[ResponseMessage]:
        self._socket.settimeout(TIMEOUT_S)
        while data := self._socket.recv(65536):
            yield from self._frames.feed(data)

    def __enter__(self) -> Self:
        try:
            self._init()
        except BaseException:
            self._socket.close()
            raise
        return self

    def __exit__(self, *failure: object) -> None:
        self._ends.set()
        self._keepalives.join()
        self._socket.close()

    def _ask(self) -> None:
        # If the other side closes, the test notices it when it reads.
        with contextlib.suppress(OSError):
            while not self._ends.wait(TIMEOUT_S / 2):
                self.send(KeepaliveRequest(time=self.asked + 1))
                self.asked += 1


def test_kapacitor_gets_a_response_within_its_timeout(short_folder: Path) -> None:
    cases = [("python", "0"), ("python", "1"), ("holding the interpreter", "1")]
    with contextlib.ExitStack() as processes:
        tasks = []
        for number, (how, workers) in enumerate(cases):
            path = str(short_folder / f"{number}.sock")
            arguments = ["--socket", path, "--handler", plugin("laden.py:Busy")]
            process = ServeProcess(*arguments, "--workers", workers)
            processes.enter_context(process).ready()
            tasks.append(in_thread(partial(keep_busy, path, how)))
        heartbeats = [task.result(PATIENCE_S) for task in tasks]
    # Heartbeats come, and not at every turn of a loop.
    assert all(3 <= count <= 50 for count in heartbeats), heartbeats


def keep_busy(path: str, how: str) -> int:
    """Keep one of two handlers busy; return the number of heartbeats."""
    busy = Point(time=1, fieldsInt={"s": round(3 * TIMEOUT_S)}, tags={"how": how})
    short = Point(time=2, fieldsInt={"s": 0}, tags={"how": "python"})
    with StrictKapacitor(path) as beside, StrictKapacitor(path) as peer:
        peer.send(busy)
        side_by_side = in_thread(lambda: await_keepalives(beside, 5, short))
        heartbeats = 0
        for response in peer.responses:
            if response == busy:
                break
            assert response == KeepaliveResponse(time=HEARTBEAT_TIME)
            heartbeats += 1
        await_keepalives(peer, peer.asked)
        assert side_by_side.result(PATIENCE_S) >= 1
    return heartbeats


def await_keepalives(peer: StrictKapacitor, last: int, point: Point | None = None) -> int:
    """Read responses until all keepalives up to `last` are answered, in order.

    Args:
        peer: the peer that reads.
        last: the number of the last keepalive.
        point: a point to send, and to send again each time it has come back.

    Returns:
        How often the point came back.
    """
    if point is not None:
        peer.send(point)
    answered = back = 0
    for response in peer.responses:
        if point is not None and response == point:
            back += 1
            peer.send(point)
        elif isinstance(response, KeepaliveResponse) and response.time != HEARTBEAT_TIME:
            answered += 1
            assert response.time == answered
        if answered == last:
            return back
    raise AssertionError((answered, last))


def test_a_handler_that_hangs_while_it_holds_the_interpreter_is_replaced(
    serve: Serve, socket_path: str
) -> None:
    process = serve(plugin("laden.py:Busy"), "--busy-limit", "1", "--on-error", "skip")
    short = Point(time=2, fieldsInt={"s": 0}, tags={"how": "python"})
    with StrictKapacitor(socket_path) as peer:
        peer.send(Point(time=1, fieldsInt={"s": 600}, tags={"how": "holding the interpreter"}))
        peer.send(short)
        points = (each for each in peer.responses if isinstance(each, Point))
        assert next(points) == short
        hangs = process.event("handler hangs, its worker is replaced")
        assert (hangs["task_id"], hangs["node_id"]) == ("task", "node")
        assert "laden.py" in process.event("worker died", how="SIGKILL")["stacks"]
        process.event("dropped what killed the worker")
    assert process.event("connection finished", task_id="task")["failures"] == 1


def test_a_handler_that_hangs_while_it_takes_over_from_an_idle_one_is_replaced(
    serve: Serve, socket_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATE", str(tmp_path / "gate"))
    process = serve(plugin("laden.py:HeldUp"), "--busy-limit", "1")
    with StrictKapacitor(socket_path) as peer:
        points = (each for each in peer.responses if isinstance(each, Point))
        peer.send(Point(time=1))
        assert next(points).fieldsInt["count"] == 1
        peer.send(SnapshotRequest())
        assert next(each for each in peer.responses if isinstance(each, SnapshotResponse)).snapshot
        idle = await_status(socket_path, lambda status: status["connections"][0]["state"] == "idle")
        gate = tmp_path / "gate.restore"
        os.mkfifo(gate)
        os.kill(idle["workers"][0]["pid"], signal.SIGKILL)
        process.event("handler hangs, its worker is replaced", task_id="task")
        gate.unlink()
        peer.send(Point(time=2))
        assert next(points).fieldsInt["count"] == 2


@pytest.mark.parametrize("why", ["another handler keeps the interpreter", "the worker is stopped"])
def test_an_idle_task_gets_heartbeats_while_its_worker_does_not_read(
    serve: Serve, socket_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    monkeypatch.setenv("GATE", str(gate))
    serve(plugin("unruly.py:Grasping"))
    with StrictKapacitor(socket_path) as beside, StrictKapacitor(socket_path) as peer:
        await_keepalives(peer, 1)
        (worker,) = status_of(socket_path)["workers"]
        if why == "the worker is stopped":
            os.kill(worker["pid"], signal.SIGSTOP)
        else:
            beside.send(Point(name="grasp"))
            await_status(
                socket_path,
                lambda status: "busy" in [each["state"] for each in status["connections"]],
            )
        try:
            # Each response comes within the timeout, an answer to an earlier keepalive included.
            heartbeats = 0
            while heartbeats < 5:
                response = next(peer.responses)
                assert isinstance(response, KeepaliveResponse)
                heartbeats += response.time == HEARTBEAT_TIME
            answered = peer.asked
        finally:
            os.kill(worker["pid"], signal.SIGCONT)
            gate_end = os.open(gate, os.O_RDWR)
            os.write(gate_end, b"x")
        expected = KeepaliveResponse(time=answered)
        assert next(each for each in peer.responses if each == expected) == expected
        os.close(gate_end)


def test_a_task_that_fails_for_a_hang_gets_the_place_and_the_duration(
    serve: Serve, socket_path: str
) -> None:
    serve(plugin("laden.py:Busy"), "--busy-limit", "1")
    with StrictKapacitor(socket_path) as peer:
        peer.send(Point(time=1, fieldsInt={"s": 600}, tags={"how": "python"}))
        error = next(each for each in peer.responses if isinstance(each, ErrorResponse)).error
    assert re.fullmatch(
        r"the frame at byte \d+ ended 2 workers, the last one hung for [12] s in "
        r"point \(.*laden\.py:\d+\) < .*; on_error: skip would drop it",
        error,
    )


def test_a_worker_that_is_stopped_between_two_frames_is_replaced(
    serve: Serve, socket_path: str
) -> None:
    process = serve(plugin("laden.py:Busy"), "--busy-limit", "2", "--on-error", "skip")
    point = Point(time=2, fieldsInt={"s": 0}, tags={"how": "python"})
    with StrictKapacitor(socket_path) as peer, StrictKapacitor(socket_path) as beside:
        idle = await_status(
            socket_path, lambda status: {"idle"} == {e["state"] for e in status["connections"]}
        )
        os.kill(idle["workers"][0]["pid"], signal.SIGSTOP)
        for each in (peer, beside):
            each.send(point)
        await_status(
            socket_path,
            lambda status: "not reading" in [each["state"] for each in status["connections"]],
        )
        process.event("worker is frozen, it is replaced", pid=idle["workers"][0]["pid"])
        for each in (peer, beside):
            assert next(x for x in each.responses if isinstance(x, Point)) == point
        # A takeover is counted once the worker has reported it, which may be after an answer.
        await_status(
            socket_path,
            lambda status: [each["takeovers"] for each in status["connections"]] == [1, 1],
        )
    died = process.event("worker died")
    assert (died["how"], died["reason"]) == ("SIGKILL", "it was frozen")
    assert not list(process.matching("handler hangs, its worker is replaced"))
    assert not list(process.matching("dropped what killed the worker"))
