"""Each kind of target: connections, descriptors, and how processes end."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

import pytest
from kapudf_handlers.mirror import Mirror

from kapudf_cli.client.command_target import CommandTarget
from kapudf_cli.client.driver import ask_info
from kapudf_cli.client.errors import TargetError
from kapudf_cli.client.target import HandlerTarget, SocketTarget
from kapudf_cli.handler.handler import Handler
from kapudf_cli.protocol.errors import ProtocolError
from kapudf_cli.protocol.udf_pb2 import InitRequest, InitResponse, KeepaliveRequest, Point
from tests.peers import responses_to
from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kapudf_cli.client.target import Target
    from tests.serve_process import ServeProcess

#: A process UDF that sends each frame back.
ECHO = (
    "import os\nwhile data := os.read(0, 65536):\n    while data: data = data[os.write(1, data):]\n"
)


def python(code: str, **more: object) -> CommandTarget:
    return CommandTarget("python", (sys.executable, "-c", code), **more)  # type: ignore[arg-type]


def test_a_socket_can_be_opened_several_times(
    serve: Callable[..., ServeProcess], socket_path: str
) -> None:
    process = serve("mirror")
    target = SocketTarget(socket_path)
    with contextlib.ExitStack() as connections:
        for number in range(3):
            connection = connections.enter_context(target.open(timeout_s=PATIENCE_S))
            connection.side.send(InitRequest(taskID=str(number)))
            assert connection.side.receive() == InitResponse(success=True)
            assert connection.pid == process.pid
            assert connection.ending(0) is None


def test_a_handler_in_this_process_is_a_target() -> None:
    target = HandlerTarget("mirror", Mirror)
    for _ in range(2):
        with target.open(timeout_s=PATIENCE_S) as connection:
            ask_info(connection.side)
            connection.side.half_close()
            ending = connection.ending(PATIENCE_S)
            assert ending is not None
            assert ending.clean
            assert connection.pid == os.getpid()


def test_a_handler_that_raises_tells_so_at_its_end() -> None:

    class Raises(Handler):
        def point(self, point: Point, /) -> None:
            raise ValueError(f"no field in {point.name}")

    with HandlerTarget("raises", Raises).open(timeout_s=PATIENCE_S) as connection:
        connection.side.send(InitRequest())
        connection.side.send(Point(name="cpu"))
        connection.side.half_close()
        list(connection.side.responses())
        ending = connection.ending(PATIENCE_S)
    assert ending is not None
    assert not ending.clean
    assert ending.text == "ended: Raises.point raised ValueError: no field in cpu"


def test_a_command_speaks_on_its_stdin_and_stdout() -> None:
    with python(ECHO).open(timeout_s=PATIENCE_S) as connection:
        points = [Point(time=number, tags={"tag": "x" * 1000}) for number in range(1000)]
        assert list(responses_to(connection.side, points)) == points
        ending = connection.ending(PATIENCE_S)
    assert ending is not None
    assert ending.clean
    assert ending.text == "exited with status 0"


def test_a_command_is_started_anew_for_each_connection() -> None:
    pids = set()
    target = python(ECHO)
    with contextlib.ExitStack() as connections:
        for _ in range(3):
            connection = connections.enter_context(target.open(timeout_s=PATIENCE_S))
            connection.side.send(KeepaliveRequest(time=1))
            assert connection.side.receive() is not None
            pids.add(connection.pid)
    assert len(pids) == 3


@pytest.mark.parametrize(
    "code",
    [
        # The common idiom of scripts in several languages.
        "data = open('/dev/stdin', 'rb').read(); import os; os.write(1, data)",
        # Closes stdout before the end of its input.
        "import os; os.write(1, os.read(0, 65536)); os.close(1); os.read(0, 1)",
    ],
    ids=["opens /dev/stdin", "closes stdout first"],
)
def test_a_command_has_pipes_as_kapacitor_gives_it(code: str) -> None:
    with python(code).open(timeout_s=PATIENCE_S) as connection:
        connection.side.send(Point(time=7))
        if "/dev/stdin" in code:
            connection.side.half_close()
        assert list(connection.side.responses()) == [Point(time=7)]


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("raise SystemExit(3)", "exited with status 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "was ended by SIGKILL"),
    ],
    ids=["status", "signal"],
)
def test_the_end_of_a_command_is_told(code: str, told: str) -> None:
    with python(code).open(timeout_s=PATIENCE_S) as connection:
        assert connection.side.receive() is None
        ending = connection.ending(PATIENCE_S)
    assert ending is not None
    assert not ending.clean
    assert ending.text == told


def test_what_a_command_says_on_stderr_is_passed_on_and_its_end_kept() -> None:
    heard = io.BytesIO()
    code = "import sys\nfor n in range(1000): print('line', n, file=sys.stderr)\nsys.exit(1)"
    with python(code, stderr=heard).open(timeout_s=PATIENCE_S) as connection:
        ending = connection.ending(PATIENCE_S)
    assert ending is not None
    assert ending.last_words == tuple(f"line {number}" for number in range(980, 1000))
    assert heard.getvalue().splitlines()[0] == b"line 0"
    assert len(heard.getvalue().splitlines()) == 1000


def test_a_command_that_ignores_everything_has_ended_when_the_block_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kapudf_cli.client.command_target._EXIT_S", 0.1)
    code = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "os.write(1, b'\\x00')\n"
        "while True: time.sleep(60)\n"
    )
    with python(code).open(timeout_s=PATIENCE_S) as connection:
        with pytest.raises(ProtocolError):
            connection.side.receive()
        pid = connection.pid
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_command_that_does_not_read_holds_a_sender_up_for_a_bounded_time() -> None:
    with (
        python("import time; time.sleep(60)").open(timeout_s=0.2) as connection,
        pytest.raises(TimeoutError),
    ):
        connection.side.send(Point(tags={"tag": "x" * 1_000_000}))


def test_a_closed_pipe_is_not_written_to() -> None:
    with python("import time; time.sleep(60)").open(timeout_s=PATIENCE_S) as connection:
        pass
    with pytest.raises(BrokenPipeError):
        connection.side.send(Point(time=1))
    with pytest.raises(BrokenPipeError):
        connection.side.receive()


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("", "names no program"),
        ("'' --help", "names no program"),
        ("cat 'half a quote", "cannot be split into arguments: No closing quotation"),
    ],
)
def test_a_command_that_is_none_is_refused(command: str, problem: str) -> None:
    with pytest.raises(TargetError, match=problem):
        CommandTarget.parse(command)


def test_a_program_that_is_not_there_is_named() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with (
        pytest.raises(TargetError, match="there is no program 'no-such-program' here or on the P"),
        CommandTarget.parse("no-such-program --fast").open(timeout_s=1),
    ):
        pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_is_no_program_is_named(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.touch()
    with (
        pytest.raises(TargetError, match="may not be executed"),
        CommandTarget.parse(str(file)).open(timeout_s=1),
    ):
        pass


def test_a_socket_that_is_not_there_is_named(socket_path: str) -> None:
    with (
        pytest.raises(TargetError, match=f"^{socket_path}: there is no such socket; is the UDF"),
        SocketTarget(socket_path).open(timeout_s=1),
    ):
        pass


def test_a_socket_that_nobody_serves_is_named(socket_path: str) -> None:
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(socket_path)
    with (
        pytest.raises(TargetError, match="connection refused"),
        SocketTarget(socket_path).open(timeout_s=1),
    ):
        pass


@pytest.mark.parametrize(
    "target", [HandlerTarget("mirror", Mirror), python(ECHO)], ids=["handler", "command"]
)
def test_opening_many_times_leaves_no_descriptor_behind(target: Target) -> None:
    with target.open(timeout_s=PATIENCE_S):
        pass
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with target.open(timeout_s=PATIENCE_S):
            pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_command_stays_in_a_group_of_its_own() -> None:
    with python(ECHO).open(timeout_s=PATIENCE_S) as connection:
        assert connection.pid is not None
        assert os.getpgid(connection.pid) == connection.pid != os.getpgid(0)
        os.killpg(connection.pid, signal.SIGTERM)
        ending = connection.ending(PATIENCE_S)
    assert ending is not None
    assert ending.text == "was ended by SIGTERM"
