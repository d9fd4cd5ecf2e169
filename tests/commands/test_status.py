"""`kapudf status`: its tables, JSON and errors."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import stat
from typing import TYPE_CHECKING, Any

import pytest

from kapudf_cli.client.driver import KapacitorSide, probe
from kapudf_cli.protocol.codec import REQUESTS
from kapudf_cli.protocol.udf_pb2 import InitRequest, InitResponse, Point
from tests.conftest import plugin
from tests.peers import in_thread
from tests.plugins.unprivileged import run_unprivileged
from tests.serve_process import PATIENCE_S
from tests.supervisor.ongoing import await_status, kapudf, status_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.serve_process import ServeProcess

    Serve = Callable[..., ServeProcess]


@contextlib.contextmanager
def task(path: str) -> Iterator[KapacitorSide]:
    """Connect as a task with this name, and send Init."""
    with KapacitorSide.connect(path, timeout_s=PATIENCE_S) as side:
        side.send(InitRequest(taskID="cpu_alert", nodeID="udf2"))
        assert side.receive() == InitResponse(success=True)
        yield side


def state_is(wanted: str) -> Callable[[dict[str, Any]], bool]:
    """Return a condition: the only connection is in this state."""
    return lambda status: status["connections"][0]["state"] == wanted


def test_the_table_has_the_function_its_workers_and_its_connections(
    serve: Serve, socket_path: str
) -> None:
    process = serve("mirror", "--workers", "2")
    with task(socket_path) as side:
        for number in range(3):
            side.send(Point(time=number))
            side.receive()
        await_status(socket_path, state_is("idle"))
        head, code, supervisor, _, *workers, _, names, connection = kapudf(
            "status", "--socket", socket_path
        ).splitlines()
    assert head == f"function    udf (Mirror) at {socket_path}"
    assert re.fullmatch(
        r"code        /.+/mirror\.py, saved [\d-]{10} [\d:]{8}, sha256 [0-9a-f]{12}", code
    )
    assert re.fullmatch(
        rf"supervisor  pid {process.pid}, [\d.]+ MB, up [\d.]+ s, 0 worker deaths", supervisor
    )
    assert workers[0].split() == ["WORKER", "PID", "STATE", "CONNECTIONS", "MEMORY", "AGE"]
    for number, row in enumerate(workers[1:], 1):
        found = re.fullmatch(r"(\d) +\d+ +serving +(\d) +[\d.]+ MB +[\d.]+ s", row)
        assert found, row
        assert found.groups() == (str(number), "1" if number == 1 else "0")
    assert names.split() == [
        *["CONNECTION", "TASK", "NODE", "WORKER", "STATE", "IN", "OUT", "POINTS/S"],
        *["FAILED", "TAKEOVERS", "AGE"],
    ]
    assert re.fullmatch(r"1 +cpu_alert +udf2 +1 +idle +3 +3 +\d+ +0 +0 +[\d.]+ s", connection)


def test_json_has_the_same_for_machines(serve: Serve, socket_path: str) -> None:
    process = serve("mirror")
    with task(socket_path):
        await_status(socket_path, state_is("idle"))
        (line,) = kapudf("status", "--socket", socket_path, "--json").splitlines()
    shown = json.loads(line)
    assert (shown["function"], shown["handler"], shown["socket"]) == ("udf", "Mirror", socket_path)
    assert shown["supervisor"]["pid"] == process.pid
    assert shown["supervisor"]["rss_mb"] > 1
    assert shown["worker_deaths"] == 0
    (worker,) = shown["workers"]
    assert worker["pid"] != process.pid
    assert worker["rss_mb"] > 1
    (connection,) = shown["connections"]
    assert {
        "connection": 1, "task_id": "cpu_alert", "node_id": "udf2", "worker": 1, "state": "idle",
        "points_in": 0, "points_out": 0, "failures": 0, "restarts": 0, "takeovers": 0,
    }.items() <= connection.items()  # fmt: skip


def test_before_init_a_connection_has_no_task(serve: Serve, socket_path: str) -> None:
    serve("mirror")
    with KapacitorSide.connect(socket_path, timeout_s=PATIENCE_S):
        await_status(socket_path, lambda status: status["connections"])
        assert re.search(r"\n1 +- +- +1 +idle +0 +0 ", kapudf("status", "--socket", socket_path))


# --- what a connection is at ---


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a named pipe at which `laden.HeldUp` waits; return its path."""
    monkeypatch.setenv("GATE", str(tmp_path / "gate"))
    return tmp_path / "gate"


def test_a_busy_handler_shows(serve: Serve, socket_path: str, gate: Path) -> None:
    os.mkfifo(f"{gate}.point")
    serve(plugin("laden.py:HeldUp"))
    with task(socket_path) as side:
        side.send(Point(name="wait"))
        status = await_status(
            socket_path,
            lambda status: state_is("busy")(status) and status["connections"][0]["busy_s"] >= 1,
        )
        assert status["connections"][0]["points_in"] == 0
        assert re.search(r" busy [1-9][\d.]* s ", kapudf("status", "--socket", socket_path))
        gate.with_suffix(".point").write_bytes(b"open")
        assert isinstance(side.receive(), Point)
        await_status(socket_path, state_is("idle"))


def test_a_handler_that_waits_for_its_turn_shows(
    serve: Serve, socket_path: str, gate: Path
) -> None:
    os.mkfifo(f"{gate}.point")
    serve(plugin("laden.py:TakesTurns"))
    with task(socket_path) as busy, task(socket_path) as waiting:
        busy.send(Point(name="wait"))
        await_status(socket_path, state_is("busy"))
        waiting.send(Point(time=2))
        await_status(
            socket_path, lambda status: status["connections"][1]["state"] == "waiting for turn"
        )
        gate.with_suffix(".point").write_bytes(b"open")
        assert isinstance(busy.receive(), Point)
        assert isinstance(waiting.receive(), Point)
        await_status(socket_path, state_is("idle"))


def test_a_kapacitor_that_does_not_read_shows(serve: Serve, socket_path: str) -> None:
    serve("mirror")
    with task(socket_path) as side:
        flood = REQUESTS.encode(Point(name="x" * 1000)) * 5000
        sending = in_thread(lambda: side.send_bytes(flood))
        await_status(socket_path, state_is("waiting on Kapacitor"))
        for _ in range(5000):
            side.receive()
        sending.result(PATIENCE_S)
        await_status(socket_path, state_is("idle"))


def test_a_connection_without_a_worker_shows(serve: Serve, socket_path: str, gate: Path) -> None:
    process = serve(plugin("laden.py:HeldUp"))
    with task(socket_path) as side:
        os.mkfifo(f"{gate}.import")
        os.kill(status_of(socket_path)["workers"][0]["pid"], signal.SIGKILL)
        status = await_status(socket_path, state_is("waiting for a worker"))
        assert status["connections"][0]["worker"] is None
        assert status["worker_deaths"] == 1
        assert re.search(r" - +waiting for a worker", kapudf("status", "--socket", socket_path))
        side.send(Point(time=7))
        gate.with_suffix(".import").write_bytes(b"open")
        answer = side.receive()
        assert isinstance(answer, Point)
        assert (answer.time, answer.fieldsInt["count"]) == (7, 1)
        process.event("connection taken over")
        assert status_of(socket_path)["connections"][0]["takeovers"] == 1


def test_a_handover_shows(serve: Serve, socket_path: str, gate: Path) -> None:
    process = serve(plugin("laden.py:HeldUp"))
    with task(socket_path) as side:
        side.send(Point(time=1))
        side.receive()
        os.mkfifo(f"{gate}.restore")
        process.signal(signal.SIGHUP)
        status = await_status(socket_path, state_is("being handed over"))
        assert sorted(worker["state"] for worker in status["workers"]) == ["retiring", "serving"]
        gate.with_suffix(".restore").write_bytes(b"open")
        await_status(socket_path, state_is("idle"))


# --- who may ask ---


def test_the_control_socket_has_the_access_rights_of_the_functions_own(
    serve: Serve, socket_path: str
) -> None:
    serve("mirror", "--socket-mode", "0640")
    own, control = os.stat(socket_path), os.stat(f"{socket_path}.control")
    assert stat.S_ISSOCK(control.st_mode)
    assert control.st_mode == own.st_mode
    assert (control.st_uid, control.st_gid) == (own.st_uid, own.st_gid)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the user")
def test_who_may_not_feed_the_function_may_not_ask(
    serve: Serve, socket_path: str, short_folder: Path
) -> None:
    short_folder.chmod(0o755)
    serve("mirror")
    asked = run_unprivileged(
        "import sys\nfrom kapudf_cli.commands import main\n"
        "from kapudf_cli.commands import control\n"
        "from kapudf_cli.commands import output\nfrom kapudf_cli.supervisor import control",
        "main(['status', '--socket', sys.argv[1]])",
        socket_path,
    )
    assert asked.returncode == 1
    assert asked.stderr == f"Error: {socket_path}.control: cannot ask: Permission denied\n"


def test_no_such_socket_is_a_line(socket_path: str) -> None:
    assert kapudf("status", "--socket", socket_path, status=1) == (
        f"Error: {socket_path}: there is no {socket_path}.control to ask; "
        "is `kapudf serve` running here, with workers?\n"
    )


def test_a_server_that_has_stopped_leaves_no_socket_to_ask(serve: Serve, socket_path: str) -> None:
    process = serve("mirror")
    assert process.stop() == 0
    assert "is `kapudf serve` running" in kapudf("status", "--socket", socket_path, status=1)
    assert not os.path.exists(f"{socket_path}.control")


def test_a_socket_that_nobody_serves_is_a_line(socket_path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left_over:
        left_over.bind(f"{socket_path}.control")
    said = kapudf("status", "--socket", socket_path, status=1)
    told = "connection refused; `kapudf serve` is gone, start it again"
    assert said == f"Error: {socket_path}.control: {told}\n"


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (b"", ".control: closed without an answer; the log of `kapudf serve` may say why"),
        (b"\xff\x00garbage", ".control: closed without an answer"),
        (b"[1, 2]\n", ": [1, 2]"),
        (b'{"error": "not today"}\n', ": not today"),
    ],
)
def test_an_answer_that_is_none_is_a_line(socket_path: str, answer: bytes, cause: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"{socket_path}.control")
        listener.listen()

        def serve_one() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        served = in_thread(serve_one)
        said = kapudf("status", "--socket", socket_path, status=1)
        served.result(PATIENCE_S)
    assert said.startswith(f"Error: {socket_path}{cause}")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("request_bytes", "answer"),
    [
        (b"\xff\xfe garbage\n", b'{"error": "unknown command; there are status and reload"}\n'),
        (b'{"command": 7}\n', b'{"error": "unknown command; there are status and reload"}\n'),
        (b'{"command": "stop"}\n', b'{"error": "unknown command; there are status and reload"}\n'),
        (b"[" * 4000 + b"\n", b'{"error": "unknown command; there are status and reload"}\n'),
        (b"x" * 100_000, b""),
    ],
)
def test_a_request_that_is_none_hurts_nobody(
    serve: Serve, socket_path: str, request_bytes: bytes, answer: bytes
) -> None:
    serve("mirror")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asker:
        asker.settimeout(PATIENCE_S)
        asker.connect(f"{socket_path}.control")
        received = b""
        with contextlib.suppress(ConnectionError):
            asker.sendall(request_bytes)
            while data := asker.recv(4096):
                received += data
    assert received == answer
    assert probe(socket_path, timeout_s=PATIENCE_S).info.options


def test_idle_control_clients_are_dropped_for_new_ones(serve: Serve, socket_path: str) -> None:
    serve("mirror")
    with contextlib.ExitStack() as clients:
        for number in range(200):
            client = clients.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            client.settimeout(PATIENCE_S)
            client.connect(f"{socket_path}.control")
            if number == 0:
                oldest = client
        assert oldest.recv(1) == b""
        await_status(socket_path, lambda status: status["workers"])
        assert probe(socket_path, timeout_s=PATIENCE_S).info.options
