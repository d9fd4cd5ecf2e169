"""`kapudf serve` as a process: signals, draining, many connections, faulty peers."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import select
import signal
import socket
import stat
import threading
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.client.driver import KapacitorSide, probe
from kapudf_cli.protocol.codec import REQUESTS, RESPONSES
from kapudf_cli.protocol.framing import FrameReader, frame_body
from kapudf_cli.protocol.udf_pb2 import (
    ErrorResponse,
    InitRequest,
    InitResponse,
    KeepaliveRequest,
    KeepaliveResponse,
    Point,
)
from tests.conftest import plugin
from tests.serve_process import PATIENCE_S, ServeProcess
from tests.supervisor.tasks import of_type, started_task

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Serve = Callable[..., ServeProcess]


def numbered(count: int) -> list[Point]:
    return [Point(time=number, name="cpu", fieldsDouble={"x": 0.5}) for number in range(count)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_well(serve: Serve, socket_path: str, number: signal.Signals) -> None:
    process = serve("mirror")
    assert stat.S_ISSOCK(os.lstat(socket_path).st_mode)
    process.signal(number)
    assert process.wait() == 0
    assert os.listdir(os.path.dirname(socket_path)) == []
    assert [event["event"] for event in process.events] == ["listening", "stopping", "stopped"]


def test_sighup_without_workers_ends_nothing(serve: Serve, socket_path: str) -> None:
    process = serve("mirror", "--workers", "0")
    with started_task(socket_path) as side:
        process.signal(signal.SIGHUP)
        process.event("no reload without workers, everything goes on as it was")
        side.send(Point(name="cpu"))
        side.send(KeepaliveRequest(time=1))
        assert side.receive() == Point(name="cpu")
    assert process.stop() == 0


def test_input_that_arrived_before_sigterm_is_answered(
    serve: Serve, socket_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    monkeypatch.setenv("GATE", str(gate))
    process = serve(plugin("lifecycle.py:Gated"))
    points = numbered(500)
    with started_task(socket_path) as side:
        # In one write: many small ones would fill the socket's buffer.
        side.send_bytes(b"".join(map(REQUESTS.encode, points)))
        process.signal(signal.SIGTERM)
        process.event("stopping")
        gate.write_bytes(b"open")
        *answers, stopped = side.responses()
        assert answers == points
        assert isinstance(stopped, ErrorResponse)
        assert "kapacitor reload task" in stopped.error
    assert process.wait() == 0
    finished = process.event("connection finished")
    assert finished["reason"] == "stopped"
    assert finished["points_in"] == finished["points_out"] == len(points)
    assert "unprocessed_bytes" not in finished


def test_sigterm_under_load_loses_nothing_that_was_taken(serve: Serve, socket_path: str) -> None:
    process = serve("mirror")
    with started_task(socket_path) as side:
        flooding = threading.Event()

        def send_forever() -> None:
            with contextlib.suppress(OSError):
                for number in itertools.count():
                    side.send(Point(time=number))
                    if number == 1000:
                        flooding.set()

        sender = threading.Thread(target=send_forever)
        sender.start()
        answers: list[int] = []

        def read() -> None:
            with contextlib.suppress(ConnectionResetError):
                answers.extend(
                    answer.time for answer in side.responses() if isinstance(answer, Point)
                )

        reader = threading.Thread(target=read)
        reader.start()
        assert flooding.wait(PATIENCE_S)
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        sender.join(PATIENCE_S)
        reader.join(PATIENCE_S)
    finished = process.event("connection finished")
    assert finished["reason"] == "stopped"
    assert finished["points_in"] == finished["points_out"] == len(answers) >= 1000
    assert answers == list(range(len(answers)))


def test_handlers_are_stopped_once_and_their_last_output_arrives(
    serve: Serve, socket_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tmp_path / "record"
    monkeypatch.setenv("RECORD", str(record))
    process = serve(plugin("lifecycle.py:Recorder"))
    with started_task(socket_path) as side:
        side.send(Point(name="cpu"))
        assert side.receive() == Point(name="cpu")
        process.signal(signal.SIGTERM)
        assert of_type(side.responses(), Point) == [Point(name="flushed")]
    assert process.wait() == 0
    assert record.read_text(encoding="utf-8").split() == ["__init__", "init", "point", "teardown"]


def test_a_second_signal_ends_it_at_once(serve: Serve, socket_path: str) -> None:
    process = serve(plugin("lifecycle.py:Stuck"), "--grace-period", "600")
    with started_task(socket_path) as side:
        side.send(Point())
        side.send(KeepaliveRequest())
        process.signal(signal.SIGTERM)
        process.event("stopping")
        process.signal(signal.SIGTERM)
        assert process.wait() == 1
    assert os.listdir(os.path.dirname(socket_path)) == []


def test_a_handler_that_hangs_is_given_up_after_the_grace_period(
    serve: Serve, socket_path: str
) -> None:
    process = serve(plugin("lifecycle.py:Stuck"), "--grace-period", "0.2")
    with started_task(socket_path) as side:
        side.send(Point())
        side.half_close()
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    aborted = process.event("grace period is over, connection aborted")
    assert "point" in aborted["where"]
    assert "lifecycle.py" in aborted["where"]
    assert process.event("stopped")["abandoned_connections"] == 1


def test_a_peer_that_does_not_read_delays_the_stop_by_the_grace_period_at_most(
    serve: Serve, socket_path: str
) -> None:
    process = serve("mirror", "--grace-period", "0.2")
    with started_task(socket_path) as side:
        fill(side)
        assert process.stop() == 0
    assert process.event("connection finished")["reason"] == "stopped"


def test_a_peer_that_does_not_read_takes_no_memory(serve: Serve, socket_path: str) -> None:
    process = serve("mirror")
    before = process.rss_bytes()
    with started_task(socket_path) as side:
        sent = fill(side)
        assert process.rss_bytes() - before < 8 * 1024 * 1024
        answers = [side.receive() for _ in range(sent)]
    assert {type(answer) for answer in answers} == {Point}


def fill(side: KapacitorSide) -> int:
    """Send points without reading until the UDF takes no more; return how many.

    If the last one was sent in part, a thread sends the rest once there is room.
    """
    frame = REQUESTS.encode(Point(name="cpu", fieldsString={"text": "x" * 1000}))
    assert isinstance(side._socket, socket.socket)
    sent = 0
    # A socket that stays full for a second is not read.
    while select.select([], [side._socket], [], 1.0)[1]:
        side._socket.settimeout(0)
        taken = side._socket.send(frame)
        sent += 1
        assert sent < 100_000, "the UDF reads without a limit"
        if taken < len(frame):
            rest = frame[taken:]
            side._socket.settimeout(PATIENCE_S)
            threading.Thread(target=side._socket.sendall, args=(rest,), daemon=True).start()
            break
    return sent


def test_two_hundred_connections_are_served_side_by_side(serve: Serve, socket_path: str) -> None:
    process = serve("mirror")
    with contextlib.ExitStack() as sides:
        tasks = [
            sides.enter_context(started_task(socket_path, f"task-{number}"))
            for number in range(200)
        ]
        for number, side in enumerate(tasks):
            side.send(Point(time=number))
        for number, side in enumerate(tasks):
            assert side.receive() == Point(time=number)
        for side in tasks:
            side.half_close()
        for side in tasks:
            assert side.receive() is None
    finished = process.await_events("connection finished", 200, reason="closed", points_in=1)
    assert {event["task_id"] for event in finished} == {f"task-{n}" for n in range(200)}
    assert len({event["connection"] for event in finished}) == 200


def test_a_connection_that_fails_harms_no_other(serve: Serve, socket_path: str) -> None:
    process = serve(plugin("lifecycle.py:Fragile"))
    with started_task(socket_path, "good") as good, started_task(socket_path, "bad") as bad:
        bad.send(Point(name="fine"))
        bad.send(Point(name="bad"))
        assert list(bad.responses()) == [
            Point(name="fine"),
            ErrorResponse(error="Fragile.point raised ValueError: this point is bad"),
        ]
        good.send(Point(name="fine"))
        assert good.receive() == Point(name="fine")
        failed = process.event("connection finished", task_id="bad")
        assert failed["reason"] == "handler_error"
        assert failed["level"] == "error"
        assert failed["error"] == "Fragile.point raised ValueError: this point is bad"
        assert "raise ValueError(message)" in failed["exception"]
        assert not list(process.matching("connection finished", task_id="good"))


def test_bytes_that_are_no_frames_end_only_their_connection(serve: Serve, socket_path: str) -> None:
    process = serve("mirror")
    with started_task(socket_path) as side:
        side.send_bytes(b"\xff" * 100)
        answer = side.receive()
        assert isinstance(answer, ErrorResponse)
        assert "32 bits" in answer.error
    finished = process.event("connection finished")
    assert finished["reason"] == "protocol_error"
    assert finished["level"] == "warning"
    offset = len(REQUESTS.encode(InitRequest(taskID="task", nodeID="node")))
    assert f"byte {offset}" in finished["error"]
    probe(socket_path, timeout_s=PATIENCE_S)


def test_each_connection_is_logged_with_who_is_at_its_other_end(
    serve: Serve, socket_path: str
) -> None:
    process = serve("mirror")
    points = numbered(3)
    with started_task(socket_path, "a task") as side:
        started = process.event("connection started")
        for point in points:
            side.send(point)
        side.half_close()
        assert list(side.responses()) == points
    finished = process.event("connection finished")
    for event in (started, finished):
        assert event["connection"] == 1
        assert event["peer_pid"] == os.getpid()
        assert event["peer_uid"] == os.getuid()
        assert event["level"] == "info"
    request = REQUESTS.encode(InitRequest(taskID="a task", nodeID="node"))
    bytes_in = len(request) + sum(len(REQUESTS.encode(point)) for point in points)
    answer = RESPONSES.encode(InitResponse(success=True))
    bytes_out = len(answer) + sum(len(RESPONSES.encode(point)) for point in points)
    facts = {
        "reason": "closed", "task_id": "a task", "node_id": "node", "points_in": 3,
        "points_out": 3, "batches_in": 0, "batches_out": 0, "bytes_in": bytes_in,
        "bytes_out": bytes_out,
    }  # fmt: skip
    assert facts.items() <= finished.items()
    assert finished["duration_s"] > 0


def test_the_probes_of_kapacitors_start_are_ordinary(serve: Serve, socket_path: str) -> None:
    process = serve("mirror")
    probe(socket_path, timeout_s=PATIENCE_S)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(socket_path)
    finished = process.await_events("connection finished", 2)
    assert [(event["reason"], event["level"]) for event in finished] == [("closed", "info")] * 2


def test_a_disabled_task_is_an_ordinary_end(serve: Serve, socket_path: str) -> None:
    process = serve("mirror")
    with started_task(socket_path) as side:
        for point in numbered(2000):
            side.send(point)
    finished = process.event("connection finished")
    assert (finished["reason"], finished["level"]) == ("closed", "info")


def test_a_keepalive_comes_back_with_its_time(serve: Serve, socket_path: str) -> None:
    serve("mirror")
    with started_task(socket_path) as side:
        side.send(KeepaliveRequest(time=1234567890))
        assert side.receive() == KeepaliveResponse(time=1234567890)


def test_it_lives_on_when_it_runs_out_of_descriptors(serve: Serve, socket_path: str) -> None:
    process = serve("mirror")
    in_use = len(os.listdir(f"/proc/{process.pid}/fd"))
    _, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (in_use + 5, hard))
    with contextlib.ExitStack() as sides:
        for _ in range(8):
            sides.enter_context(KapacitorSide.connect(socket_path, timeout_s=PATIENCE_S))
        failure = process.event("cannot accept connections")
        assert "Too many open files" in failure["error"]
        assert failure["level"] == "error"
    probe(socket_path, timeout_s=PATIENCE_S)
    assert process.stop() == 0


def test_many_functions_are_served_by_one_process(socket_path: str, short_folder: Path) -> None:
    second = f"{short_folder}/second.sock"
    config = short_folder / "config.yaml"
    config.write_text(
        f"functions:\n"
        f"  first: {{handler: mirror, socket: {socket_path}}}\n"
        f"  second: {{handler: '{plugin('captured.py:BatchMirror')}', socket: {second}}}\n",
        encoding="utf-8",
    )
    with ServeProcess("--config", str(config)) as process:
        process.await_events("listening", 2)
        assert set(probe(socket_path, timeout_s=PATIENCE_S).info.options) == {"field", "tag"}
        assert len(probe(second, timeout_s=PATIENCE_S).info.options) == 8
        assert process.stop() == 0
    assert [path.name for path in short_folder.iterdir()] == ["config.yaml"]


def test_frames_leave_whole(serve: Serve, socket_path: str) -> None:
    serve("mirror")
    with started_task(socket_path) as side:
        for point in numbered(100):
            side.send(point)
        side.half_close()
        frames = FrameReader(frame_body)
        count = 0
        while data := side._socket.recv(7):
            count += len(list(frames.feed(data)))
        frames.finish()
    assert count == 100
