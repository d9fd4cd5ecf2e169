"""Handlers that load slowly: connections that cannot be served are refused; no task fails."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.client.driver import KapacitorSide, ask_info
from kapudf_cli.protocol.codec import REQUESTS, RESPONSES
from kapudf_cli.protocol.framing import DEFAULT_MAX_FRAME_BYTES, HEARTBEAT_TIME, FrameReader
from kapudf_cli.protocol.udf_pb2 import (
    InfoRequest,
    InfoResponse,
    InitRequest,
    InitResponse,
    KeepaliveResponse,
    Point,
)
from tests.serve_process import PATIENCE_S, ServeProcess
from tests.supervisor.ongoing import await_status
from tests.supervisor.slow_import import SlowImport
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kapudf_cli.protocol.codec import ResponseMessage

HEARTBEAT = KeepaliveResponse(time=HEARTBEAT_TIME)
#: The timeout of the peer in these tests.
TIMEOUT_S = 3.0


@pytest.fixture
def slow(short_folder: Path, request: pytest.FixtureRequest) -> SlowImport:
    """Give a handler that does not wait yet."""
    return SlowImport(short_folder, getattr(request, "param", "import"))


def is_refused(path: str) -> bool:
    """Return whether a connection is refused, as without a server."""
    with socket.socket(socket.AF_UNIX) as trial:
        try:
            trial.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return True
    return False


def connected(path: str) -> socket.socket:
    """Connect as a Kapacitor that gives up if nothing comes within its timeout."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    connection.settimeout(TIMEOUT_S)
    return connection


def responses(connection: socket.socket) -> Iterator[ResponseMessage]:
    """Yield the responses; raise TimeoutError if none comes in time."""
    frames = FrameReader(RESPONSES.decode_in, DEFAULT_MAX_FRAME_BYTES)
    while data := connection.recv(65536):
        yield from frames.feed(data)


@pytest.mark.parametrize("comes", ["at the start", "by a reload"])
@pytest.mark.parametrize("workers", ["1", "0"])
def test_nothing_is_connected_before_it_can_be_answered(
    short_folder: Path, slow: SlowImport, comes: str, workers: str
) -> None:
    if (comes, workers) == ("by a reload", "0"):
        pytest.skip("there is no reload without workers")
    path = f"{short_folder}/slow.sock"
    function = "  {}: {{socket: {}, handler: '{}'}}\n"
    other = function.format("other", f"{short_folder}/other.sock", "mirror")
    ours = function.format("slow", path, slow.handler)
    config = short_folder / "kapudf.yaml"
    slow.hold_up()
    first = ours if comes == "at the start" else other
    config.write_text(f"functions:\n{first}")
    with ServeProcess("--config", str(config), "--workers", workers) as process:
        if comes == "by a reload":
            process.ready()
            config.write_text(f"functions:\n{other}{ours}")
            process.signal(signal.SIGHUP)
            process.event("new workers serve")
        if workers == "1":
            # The path and its lock exist, so that no other server takes the path.
            wait_until(lambda: not is_refused(f"{path}.control"))
            await_status(path, lambda status: status["workers"])
            assert os.path.exists(path)
        assert is_refused(path)
        slow.let_go()
        process.event("listening", function="slow")
        with KapacitorSide.connect(path, timeout_s=PATIENCE_S) as side:
            assert isinstance(ask_info(side), InfoResponse)


@pytest.mark.parametrize("slow", ["import", "setup_worker"], indirect=True)
def test_a_slow_import_after_a_death_fails_no_task_and_no_start_of_kapacitor(
    socket_path: str, slow: SlowImport
) -> None:
    arguments = ("--socket", socket_path, "--handler", slow.handler, "--busy-limit", "1")
    with ServeProcess(*arguments) as process:
        process.ready()
        with connected(socket_path) as task, connected(socket_path) as starting:
            answers, info = responses(task), responses(starting)
            task.sendall(REQUESTS.encode(InitRequest(taskID="task")))
            assert next(answers) == InitResponse(success=True)
            slow.hold_up()
            (worker,) = await_status(socket_path, lambda status: status)["workers"]
            os.kill(worker["pid"], signal.SIGKILL)
            process.event("worker died")
            task.sendall(REQUESTS.encode(Point(time=1)))
            starting.sendall(REQUESTS.encode(InfoRequest()))
            # About one in half a second.
            for _ in range(6):
                assert next(answers) == next(info) == HEARTBEAT
            slow.let_go()
            assert next(each for each in answers if each != HEARTBEAT) == Point(time=1)
            assert isinstance(next(each for each in info if each != HEARTBEAT), InfoResponse)
