"""`kapudf exec`: a handler on stdin and stdout, as Kapacitor starts it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from kapudf_cli.client.command_target import CommandTarget
from kapudf_cli.client.driver import ask_info
from kapudf_cli.protocol.codec import REQUESTS
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
from tests.peers import responses_to
from tests.serve_process import KAPUDF, PATIENCE_S
from tests.supervisor.tasks import of_type

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kapudf_cli.client.target import Connection, Ending


class Log(io.BytesIO):
    """The stderr of a command, which can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = threading.Condition()

    def write(self, data: Any) -> int:
        with self.changed:
            self.changed.notify_all()
            return super().write(data)

    def events(self) -> list[dict[str, Any]]:
        lines = self.getvalue().splitlines()
        return [json.loads(line) for line in lines if line.startswith(b"{")]

    def await_event(self, name: str) -> dict[str, Any]:
        def found() -> list[dict[str, Any]]:
            return [event for event in self.events() if event["event"] == name]

        with self.changed:
            assert self.changed.wait_for(found, PATIENCE_S), (name, self.getvalue())
            return found()[0]


@contextlib.contextmanager
def executed(handler: str, *arguments: str, log: Log | None = None) -> Iterator[Connection]:
    command = (*KAPUDF, "exec", "--handler", handler, *arguments)
    with CommandTarget("kapudf exec", command, log).open(timeout_s=PATIENCE_S) as connection:
        yield connection


def ended(connection: Connection) -> Ending:
    ending = connection.ending(PATIENCE_S)
    assert ending is not None
    return ending


def started(connection: Connection) -> None:
    connection.side.send(InitRequest(taskID="task", nodeID="node"))
    assert connection.side.receive() == InitResponse(success=True)


def test_it_says_what_it_is_and_exits_with_0() -> None:
    with executed("mirror") as connection:
        assert set(ask_info(connection.side).options) == {"field", "tag"}
        connection.side.half_close()
        assert connection.side.receive() is None
        assert ended(connection).text == "exited with status 0"


def test_points_go_through_it() -> None:
    points = [Point(time=number, fieldsDouble={"value": number}) for number in range(20_000)]
    log = Log()
    with executed("mirror", log=log) as connection:
        started(connection)
        assert list(responses_to(connection.side, points)) == points
        assert ended(connection).clean
    (finished,) = [event for event in log.events() if event["event"] == "connection finished"]
    assert finished["task_id"] == "task"
    assert finished["function"] == "mirror"
    assert finished["points_in"] == finished["points_out"] == 20_000


def test_the_log_is_one_line_an_event_on_stderr() -> None:
    log = Log()
    with executed("mirror", log=log) as connection:
        started(connection)
        connection.side.half_close()
        ended(connection)
    assert [json.loads(line)["event"] for line in log.getvalue().splitlines()] == [
        "connection started",
        "task connected",
        "connection finished",
    ]


def test_keepalives_and_snapshots_are_answered() -> None:
    with executed("mirror") as connection:
        started(connection)
        connection.side.send(KeepaliveRequest(time=7))
        assert connection.side.receive() == KeepaliveResponse(time=7)
        connection.side.send(SnapshotRequest())
        assert isinstance(connection.side.receive(), SnapshotResponse)


def test_what_a_handler_prints_goes_to_stderr() -> None:
    log = Log()
    with executed(plugin("talkative.py:Talkative"), log=log) as connection:
        started(connection)
        answers = list(responses_to(connection.side, [Point(time=1), Point(time=2)]))
        assert ended(connection).clean
    # `sys.stdin` was empty, although requests were waiting on the process's stdin.
    assert answers == [Point(time=time, fieldsString={"stdin": ""}) for time in (1, 2)]
    # Prints of Python code become events; other output to stderr stays as it is.
    printed = [event["event"] for event in log.events() if event.get("stream") == "stdout"]
    assert printed == ["printed at import", "printed by python", "printed by python"]
    lines = log.getvalue().splitlines()
    for text in (
        b"written to the descriptor",
        b"printed by c",
        b"printed by a child",
    ):
        assert lines.count(text) == 2


def test_a_crash_of_the_interpreter_leaves_its_stack() -> None:
    log = Log()
    with executed(plugin("talkative.py:Aborting"), log=log) as connection:
        started(connection)
        connection.side.send(Point(time=1))
        assert connection.side.receive() is None
        assert ended(connection).text == "was ended by SIGABRT"
    text = log.getvalue().decode()
    assert "Fatal Python error: Aborted" in text
    assert re.search(r'File ".*talkative.py", line \d+ in point', text)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_it_finish(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tmp_path / "record"
    monkeypatch.setenv("RECORD", str(record))
    log = Log()
    with executed(plugin("lifecycle.py:Recorder"), log=log) as connection:
        started(connection)
        connection.side.send(Point(time=1))
        assert connection.side.receive() == Point(time=1)
        assert connection.pid is not None
        os.kill(connection.pid, number)
        assert of_type(connection.side.responses(), Point) == [Point(name="flushed")]
        assert ended(connection).text == "exited with status 0"
    assert record.read_text(encoding="utf-8").splitlines()[-1] == "teardown"
    assert log.await_event("connection finished")["reason"] == "stopped"


def test_a_handler_that_hangs_is_told_of_after_the_busy_limit() -> None:
    log = Log()
    with executed(plugin("laden.py:Busy"), "--busy-limit", "1", log=log) as connection:
        started(connection)
        connection.side.send(Point(time=1, tags={"how": "python"}, fieldsInt={"s": 3}))
        hangs = log.await_event("handler hangs, no more heartbeats")
        assert isinstance(connection.side.receive(), Point)
    assert "laden.py" in hangs["where"]


def test_a_handler_that_hangs_is_given_up_after_the_grace_period() -> None:
    log = Log()
    handler = plugin("lifecycle.py:Stuck")
    with executed(handler, "--grace-period", "0.1", log=log) as connection:
        started(connection)
        connection.side.send(Point(time=1))
        log.await_event("task connected")
        assert connection.pid is not None
        os.kill(connection.pid, signal.SIGTERM)
        assert ended(connection).text == "exited with status 1"
    assert "point (" in log.await_event("grace period is over, connection aborted")["where"]


def test_a_second_signal_ends_it_at_once() -> None:
    log = Log()
    handler = plugin("lifecycle.py:Stuck")
    with executed(handler, "--grace-period", "3600", log=log) as connection:
        started(connection)
        connection.side.send(Point(time=1))
        log.await_event("task connected")
        assert connection.pid is not None
        os.kill(connection.pid, signal.SIGTERM)
        log.await_event("stopping")
        os.kill(connection.pid, signal.SIGTERM)
        assert ended(connection).text == "exited with status 1"


def test_a_handler_that_raises_is_told_and_exits_with_1() -> None:
    log = Log()
    with executed(plugin("lifecycle.py:Fragile"), log=log) as connection:
        started(connection)
        connection.side.send(Point(name="bad"))
        assert connection.side.receive() == ErrorResponse(
            error="Fragile.point raised ValueError: this point is bad"
        )
        assert connection.side.receive() is None
        assert ended(connection).text == "exited with status 1"
    assert "Traceback" in log.await_event("connection finished")["exception"]


@pytest.mark.parametrize("on_error", ["skip", "restart"])
def test_a_handler_that_raises_may_go_on(on_error: str) -> None:
    handler = plugin("lifecycle.py:Fragile")
    with executed(handler, "--on-error", on_error) as connection:
        started(connection)
        points = [Point(name="bad"), Point(name="good")]
        assert list(responses_to(connection.side, points)) == [Point(name="good")]
        assert ended(connection).text == "exited with status 0"


def test_input_that_is_no_protocol_exits_with_1() -> None:
    log = Log()
    with executed("mirror", log=log) as connection:
        connection.side.send_bytes(b"GET / HTTP/1.1\r\n\r\n" * 10)
        connection.side.half_close()
        assert ended(connection).text == "exited with status 1"
    assert log.await_event("connection finished")["reason"] == "protocol_error"


def test_a_kapacitor_that_is_gone_ends_it() -> None:
    log = Log()
    with executed("mirror", log=log) as connection:
        started(connection)
        connection.side.send_bytes(REQUESTS.encode(Point(time=1))[:-1])
        connection.side.connection.close()
        assert ended(connection) is not None
    assert log.await_event("connection finished")["task_id"] == "task"


@pytest.mark.parametrize(
    ("arguments", "told", "status"),
    [
        ([], "Missing option '--handler'", 2),
        (["--handler", "no-such"], "no installed handler has the name 'no-such'", 2),
        (["--handler", "lacking.py:Mirror"], "there is no file lacking.py", 2),
        (["--handler", "mirror", "--linger-ms", "6"], "a number of milliseconds from 0", 2),
        (["--handler", "mirror", "--max-frame-bytes", "0"], "a number of bytes from 1024", 2),
        (["--handler", "mirror", "--grace-period", "-1"], "a number of seconds from 0", 2),
        (["--handler", "mirror", "surplus"], "unexpected extra argument", 2),
    ],
)
def test_a_wrong_call_is_told(arguments: list[str], told: str, status: int) -> None:
    process = subprocess.run(
        [*KAPUDF, "exec", *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    assert process.returncode == status
    assert told in process.stderr.decode()
    assert process.stdout == b""
    assert b"Traceback" not in process.stderr


def test_at_a_terminal_it_says_what_it_is_for() -> None:
    controller, terminal = pty.openpty()
    try:
        process = subprocess.run(
            [*KAPUDF, "exec", "--handler", "mirror"],
            stdin=terminal,
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )
    finally:
        os.close(controller)
        os.close(terminal)
    assert process.returncode == 2
    assert b"have Kapacitor start it (prog and args in kapacitor.conf)" in process.stderr


def test_a_log_that_would_get_between_the_frames_is_refused() -> None:
    process = subprocess.run(
        [*KAPUDF, "exec", "--handler", "mirror"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert process.returncode == 2
    assert b"stdout and stderr are the same file" in process.stdout


def test_a_closed_stdin_is_an_input_that_has_ended() -> None:
    command = f"exec {shlex.join([*KAPUDF, 'exec', '--handler', 'mirror'])} <&-"
    process = subprocess.run(["sh", "-c", command], capture_output=True, check=False)
    assert process.returncode == 0
    assert process.stdout == b""
    assert b'"reason": "closed"' in process.stderr


def test_settings_come_from_the_environment(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "kapudf_cli", "exec"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={**os.environ, "KAPUDF_HANDLER": "mirror", "KAPUDF_LOG_LEVEL": "warning"},
        cwd=tmp_path,
        check=False,
    )
    assert process.returncode == 0
    assert process.stderr == b""
