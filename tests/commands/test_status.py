"""`kapudf status`: its tables, JSON and errors."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from kapudf_cli.client.driver import KapacitorSide, probe
from kapudf_cli.commands import main
from kapudf_cli.protocol.codec import REQUESTS
from kapudf_cli.protocol.udf_pb2 import InitRequest, InitResponse, Point
from kapudf_cli.supervisor.metrics import METRICS
from tests.conftest import plugin
from tests.peers import in_thread
from tests.plugins.unprivileged import run_unprivileged
from tests.run_kapudf import run_kapudf
from tests.serve_process import PATIENCE_S, ServeProcess
from tests.supervisor.ongoing import Code, await_status, kapudf, status_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

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
        text = kapudf("status", "--socket", socket_path)
        # Long paths of the code make a line of their own.
        lines = re.sub(r"\n {12}(?=\S)", " ", text).splitlines()
        head, path, code, saved, supervisor, _, *workers, _, names, connection = lines
    assert head == "function    udf (Mirror)"
    assert path == f"socket      {socket_path}"
    assert re.fullmatch(r"code        /.+/mirror\.py, sha256 [0-9a-f]{12}", code)
    assert re.fullmatch(r"saved       [\d-]{10} [\d:]{8}", saved)
    assert re.fullmatch(
        rf"supervisor  pid {process.pid}, [\d.]+ MB, up [\d.]+ s, 0 worker deaths", supervisor
    )
    assert workers[0].split() == ["WORKER", "PID", "STATE", "CONNECTIONS", "MEMORY", "AGE"]
    for number, row in enumerate(workers[1:], 1):
        found = re.fullmatch(r"(\d) +\d+ +serving +(\d) +[\d.]+ MB +[\d.]+ s", row)
        assert found, row
        assert found.groups() == (str(number), "1" if number == 1 else "0")
    assert names.split() == [
        *["ID", "TASK", "NODE", "WORKER", "STATE", "IN", "OUT", "IN/S", "FAIL", "DIED", "AGE"],
    ]
    assert re.fullmatch(r"1 +cpu_alert +udf2 +1 +idle +3 +3 +\d+ +0 +0 +[\d.]+s", connection)


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
        assert re.search(r" busy [1-9][\d.]*s ", kapudf("status", "--socket", socket_path))
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
        assert re.search(r" - +no worker", kapudf("status", "--socket", socket_path))
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


# --- counters ---


def test_counters_outlive_workers_handovers_and_connections(
    serve: Serve, socket_path: str, tmp_path: Path
) -> None:
    process = serve(Code(tmp_path).handler)
    with task(socket_path) as side:

        def send_points() -> None:
            for number in range(50):
                side.send(Point(time=number))
                side.receive()

        send_points()
        status = await_status(
            socket_path, lambda status: sum(status["totals"]["handler_buckets"]) == 50
        )
        os.kill(status["workers"][0]["pid"], signal.SIGKILL)
        process.event("connection taken over")
        send_points()
        process.signal(signal.SIGHUP)
        process.event("connection handed over")
        send_points()
        (connection,) = status_of(socket_path)["connections"]
        assert 0 < connection["takeover_pause_s"] < PATIENCE_S
        assert 0 < connection["handover_pause_s"] < connection["takeover_pause_s"]
        assert connection["kept_bytes"] < connection["kept_limit_bytes"]
        lines = kapudf("status", "--socket", socket_path, "--format", "prometheus").splitlines()
    assert [line.split()[2] for line in lines if line.startswith("# TYPE ")] == [
        metric.name for metric in METRICS if "partition" not in metric.name
    ]
    status = await_status(socket_path, lambda status: not status["connections"])
    totals = status["totals"]
    assert {
        "points_in": 150, "points_out": 150, "takeovers": 1, "handovers": 1, "failures": 0,
    }.items() <= totals.items()  # fmt: skip
    assert sum(totals["handler_buckets"]) == 150
    assert totals["handler_s"] > 0
    assert totals["bytes_in"] > 0
    assert status["ended_connections"]["closed"] == 1
    assert status["worker_deaths_by_cause"]["SIGKILL"] == status["worker_deaths"] == 1
    assert status["worker_starts"] == 3


# --- several functions, and other formats ---


def test_all_functions_of_a_configuration_are_shown(
    serve: Serve, socket_path: str, tmp_path: Path
) -> None:
    serve("mirror")
    config = tmp_path / "kapudf.yaml"
    missing = f"{socket_path}.missing"
    config.write_text(
        f"functions: {{udf: {{handler: mirror, socket: {socket_path}}},"
        f" gone: {{handler: mirror, socket: {missing}}}}}",
        encoding="utf-8",
    )
    table = run_kapudf("status", "--config", str(config))
    assert table.stdout.startswith("function    udf (Mirror)\n")
    assert table.stderr.startswith(f"Error: {missing}: there is no")
    as_json = run_kapudf("status", "--config", str(config), "--json")
    assert [each["function"] for each in json.loads(as_json.stdout)] == ["udf"]
    assert [table.returncode, as_json.returncode] == [1, 1]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "give either --socket PATH or --config FILE"),
        (["--socket", "a", "--watch", "--json"], "--watch shows tables"),
        (["--socket", "a", "--watch", "--format", "influx"], "--watch shows tables"),
    ],
)
def test_a_wrong_call_is_refused(arguments: list[str], problem: str) -> None:
    assert problem in kapudf("status", *arguments, status=2)


def test_watch_shows_the_tables_again_and_again(serve: Serve, socket_path: str) -> None:
    serve("mirror")
    command = [sys.executable, "-m", "kapudf_cli", "status", "--socket", socket_path, "--watch"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        heads = (line for line in watching.stdout if line.startswith("function"))
        assert [next(heads), next(heads)] == ["function    udf (Mirror)\n"] * 2
        watching.send_signal(signal.SIGINT)
        watching.stdout.read()
    assert watching.returncode == -signal.SIGINT


#: A connection whose columns are as wide as they get.
WIDE = {
    "connection": 99_999, "task_id": "average_of_all_disks_" * 5, "node_id": "udf_node_1234",
    "worker": 999, "state": "not reading", "busy_s": 3599.0, "points_in": 10**12 - 1,
    "points_out": 999_999, "points_per_s": 123_456.7, "failures": 9999, "takeovers": 1234,
    "age_s": 86_400.0 * 999,
}  # fmt: skip


def test_tables_fit_into_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = {
        "worker": 999, "pid": 4_194_304, "state": "retiring", "connections": 9999,
        "rss_mb": 123_456.7, "age_s": 86_400.0 * 999,
        "partitions": [
                {
                    "partition": 63, "node": "255.255.255.255/123456", "pid": 4_194_304,
                    "rss_mb": 123_456.7, "cpu_s": 1e6,
                }
            ],
    }  # fmt: skip
    answer = {
        "function": "average_of_all_disks_" * 3, "handler": "average_of_all.disks:Average",
        "socket": "/s", "code": None, "templates": [worker],
        "supervisor": worker, "worker_deaths": 1234, "workers": [worker], "connections": [WIDE],
    }  # fmt: skip
    monkeypatch.setattr("kapudf_cli.supervisor.control.ask", lambda *_, **__: answer)
    lines = CliRunner().invoke(main, ["status", "--socket", "/s"]).output.splitlines()
    assert max(map(len, lines)) <= 80
    names, row = (re.split(" {2,}", line.strip()) for line in lines[-2:])
    shown = dict(zip(names, row, strict=True))
    assert shown["TASK"].endswith("…")
    assert (shown["IN"], shown["OUT"], shown["IN/S"]) == ("1T", "1M", "123k")
    assert (shown["STATE"], shown["AGE"]) == ("not reading 59m", "999d")


# --- who may ask ---

#: What a user imports who may not read the code, to ask for a status.
ASK = """
import sys
from kapudf_cli.commands import control, main, output
from kapudf_cli.supervisor import control, metrics
from kapudf_cli.system import terminal_text
from kapudf_cli.worker import channel
"""


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
    asked = run_unprivileged(ASK, "main(['status', '--socket', sys.argv[1]])", socket_path)
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


UNKNOWN = b'{"error": "unknown command; there are status, reload and upgrade"}\n'


@pytest.mark.parametrize(
    ("request_bytes", "answer"),
    [
        (
            b"\xff\xfe garbage\n",
            UNKNOWN,
        ),
        (
            b'{"command": 7}\n',
            UNKNOWN,
        ),
        (
            b'{"command": "stop"}\n',
            UNKNOWN,
        ),
        (
            b"[" * 4000 + b"\n",
            UNKNOWN,
        ),
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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the user")
def test_who_is_not_allowed_may_not_ask_until_a_reload_allows_it(
    short_folder: Path, socket_path: str
) -> None:
    short_folder.chmod(0o755)
    config = short_folder / "kapudf.yaml"
    function = {"handler": "mirror", "socket": socket_path, "socket_mode": "0666"}

    def allow(user: int) -> None:
        functions = {"udf": {**function, "allow_users": [user]}}
        config.write_text(json.dumps({"functions": functions}), encoding="utf-8")

    def ask() -> int:
        code = "main(['status', '--socket', sys.argv[1]])"
        return run_unprivileged(ASK, code, socket_path).returncode

    allow(1)
    with ServeProcess("--config", str(config)) as process:
        process.ready()
        assert ask() == 1
        assert process.event("peer refused")["peer_uid"] == 65534
        allow(65534)
        kapudf("reload", "--config", str(config))
        assert ask() == 0
        assert process.stop() == 0
