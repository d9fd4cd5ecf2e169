"""Scripts for InfluxData's agent that are run by themselves, as Kapacitor or a person runs them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from kapudf_cli.client.command_target import CommandTarget
from kapudf_cli.client.driver import KapacitorSide
from kapudf_cli.protocol.udf_pb2 import (
    ErrorResponse,
    InitRequest,
    InitResponse,
    KeepaliveRequest,
    KeepaliveResponse,
    Point,
)
from tests.influx_scripts.test_habits import ALONE, SCRIPTS, answers_to, outcome, point
from tests.peers import INIT, INITIALIZED, responses_to
from tests.serve_process import PATIENCE_S
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MANY = 10_000


@contextlib.contextmanager
def served(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run served.py; the block may end it."""
    command = [*ALONE, str(SCRIPTS / "served.py"), *arguments]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def await_served(path: str) -> None:
    """Wait until a socket accepts connections."""

    def connects() -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
            return trial.connect_ex(path) == 0

    wait_until(connects)


def mirrored(path: str) -> None:
    """Check that a socket is served."""
    with KapacitorSide.connect(path, timeout_s=PATIENCE_S) as side:
        answers = answers_to(side, [INIT, point(1, 1)])
    assert answers == [INITIALIZED, point(1, 1)]


def test_python_runs_a_script_as_before() -> None:
    points = [Point(time=time, group="g") for time in range(MANY)]
    command = (sys.executable, "-u", str(SCRIPTS / "counting.py"))
    seen = outcome(command, [INIT, *points])
    # Nothing of it is flushed, and Kapacitor half-closes behind the last point.
    counts = [each.fieldsInt["count"] for each in seen.responses if isinstance(each, Point)]
    assert counts == list(range(1, MANY + 1))
    assert seen.log.splitlines()[-1].endswith("INFO:root: Agent finished")
    assert seen.status == "exited with status 0"


def test_a_busy_handler_does_not_keep_keepalives_from_being_answered() -> None:
    command = (*ALONE, str(SCRIPTS / "busy.py"))
    busy = Point(time=1, fieldsDouble={"seconds": 1.2})
    with CommandTarget("busy", command, None).open(timeout_s=PATIENCE_S) as connection:
        side = connection.side
        side.queue([INIT, busy, KeepaliveRequest(time=7)])
        answers = list(responses_to(side, []))
    assert isinstance(answers.pop(0), InitResponse)
    heartbeats = answers.index(busy)
    assert heartbeats
    assert all(isinstance(each, KeepaliveResponse) for each in answers[:heartbeats])
    assert answers[heartbeats + 1 :] == [KeepaliveResponse(time=7)]


def test_memory_does_not_grow_with_the_points() -> None:
    command = (*ALONE, str(SCRIPTS / "counting.py"))
    point = Point(time=1, group="g", tags={"host": "a"}, fieldsDouble={"value": 1.0})
    with CommandTarget("counting", command, None).open(timeout_s=PATIENCE_S) as connection:
        side = connection.side

        def resident_bytes() -> int:
            with open(f"/proc/{connection.pid}/statm", encoding="ascii") as statm:
                return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

        def send(number: int) -> None:
            side.queue([point] * number)
            for _ in range(number):
                assert isinstance(side.receive(), Point)

        side.send(INIT)
        assert side.receive() == INITIALIZED
        send(2_000)
        before = resident_bytes()
        send(MANY)
        # A Request that is parsed into again and again grows by 1.7 kB for each point.
        assert resident_bytes() - before < 10_000_000


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_server_and_removes_its_socket(
    number: signal.Signals, socket_path: str
) -> None:
    with served(socket_path) as process:
        await_served(socket_path)
        with KapacitorSide.connect(socket_path, timeout_s=PATIENCE_S) as side:
            side.send(INIT)
            assert side.receive() == INITIALIZED
            assert stat.S_IMODE(os.stat(socket_path).st_mode) == 0o777
            side.send(point(1, 1))
            process.send_signal(number)
            answer, error = side.responses()
            assert answer == point(1, 1)
            assert isinstance(error, ErrorResponse)
            assert "stopped serving this task" in error.error
        assert process.wait(PATIENCE_S) == 0
        assert process.stderr is not None
        assert b"Server stopped" in process.stderr.read()
    assert not os.path.exists(socket_path)


def test_a_stale_socket_is_replaced_and_a_served_one_is_not(socket_path: str) -> None:
    with served(socket_path) as process:
        await_served(socket_path)
        process.kill()
        process.wait()
    assert os.path.exists(socket_path)
    with served(socket_path) as process:
        await_served(socket_path)
        mirrored(socket_path)
        with served(socket_path) as second:
            assert second.wait(PATIENCE_S) == 1
            assert second.stderr is not None
            assert f"{socket_path}: ".encode() in second.stderr.read()
        mirrored(socket_path)
        process.terminate()


def test_an_agent_takes_any_streams() -> None:
    command = [*ALONE, str(SCRIPTS / "files.py")]
    assert subprocess.run(command, capture_output=True, check=True).stdout == b"True\n"


def test_the_messages_of_influxdata_fit_into_the_same_process() -> None:
    file = descriptor_pb2.FileDescriptorProto()
    InitRequest.DESCRIPTOR.file.CopyToProto(file)
    for message in file.message_type:
        for field in (*message.field, *(each for one in message.nested_type for each in one.field)):
            if field.type_name:
                field.type_name = field.type_name.replace(".kapudf.wire.", ".agent.")
    file.name, file.package = "udf.proto", "agent"
    pool = descriptor_pool.Default()
    pool.Add(file)
    foreign = message_factory.GetMessageClass(pool.FindMessageTypeByName("agent.Point"))
    assert foreign is not Point
    assert Point.FromString(foreign(time=1).SerializeToString()) == Point(time=1)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [([], "usage: python -u -m kapacitor.udf script.py"), (["no.py"], "No such file")],
)
def test_a_wrong_call_is_told(arguments: list[str], told: str, tmp_path: Path) -> None:
    process = subprocess.run(
        [*ALONE, *arguments], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert process.returncode == 1
    assert told in process.stderr
