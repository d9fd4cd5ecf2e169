"""`kapudf probe`, against `kapudf serve` and against faulty UDFs."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.protocol.codec import RESPONSES
from kapudf_cli.protocol.udf_pb2 import ErrorResponse, InitResponse, KeepaliveResponse
from tests.conftest import plugin
from tests.plugins.unprivileged import run_unprivileged
from tests.run_kapudf import run_kapudf
from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.serve_process import ServeProcess


def probe(path: str, *arguments: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Run the command and return its exit status, stdout and stderr."""
    result = run_kapudf("probe", "--socket", path, *arguments, env={**os.environ, **(env or {})})
    return result.returncode, result.stdout, result.stderr


def failure(path: str, *arguments: str) -> str:
    """Return the error line of a failed probe, without the path."""
    status, output, errors = probe(path, *arguments)
    assert (status, output) == (1, "")
    start = f"Error: {path}: "
    assert errors.startswith(start)
    assert errors.count("\n") == 1
    return errors.removeprefix(start).rstrip("\n")


@contextlib.contextmanager
def listening(path: str, backlog: int = 16) -> Iterator[socket.socket]:
    """Listen at a path without accepting connections."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.settimeout(PATIENCE_S)
        listener.bind(path)
        listener.listen(backlog)
        yield listener


@contextlib.contextmanager
def answering(path: str, answer: bytes) -> Iterator[list[bytes]]:
    """Serve a UDF that answers Info with these bytes and closes; return what it read."""
    received: list[bytes] = []

    def serve_one(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            received.append(connection.recv(4096))
            connection.sendall(answer)

    with listening(path) as listener:
        thread = threading.Thread(target=serve_one, args=(listener,))
        thread.start()
        yield received
        thread.join(PATIENCE_S)


# --- an answer ---


def test_a_handler_that_is_served_answers(
    serve: Callable[..., ServeProcess], socket_path: str
) -> None:
    process = serve("mirror")
    status, output, errors = probe(socket_path)
    assert (status, errors) == (0, "")
    wants, provides, options, tickscript, round_trip = output.splitlines()
    assert wants.split() == ["wants", "stream"]
    assert provides.split() == ["provides", "stream"]
    assert options.split(maxsplit=1) == ["options", "field(STRING, DOUBLE) tag(STRING, STRING)"]
    call = "@udf().field('…', 0.0).tag('…', '…')"
    assert tickscript.split(maxsplit=1) == ["TICKscript", call]
    assert round_trip.startswith("round trip ")
    assert float(round_trip.split()[2]) > 0
    assert round_trip.endswith(" ms")
    assert process.event("connection finished")["reason"] == "closed"


def test_an_answer_for_machines_has_the_same_facts(
    serve: Callable[..., ServeProcess], socket_path: str
) -> None:
    serve(plugin("captured.py:BatchMirror"))
    status, output, errors = probe(socket_path, "--json")
    assert (status, errors) == (0, "")
    facts = json.loads(output)
    assert facts.pop("round_trip_s") > 0
    options = facts.pop("options")
    assert {each["required"] for each in options} == {None}
    calls = [f"{each['name']}({', '.join(each['types'])})" for each in options]
    assert {**facts, "options": calls} == {
        "socket": socket_path,
        "wants": "batch",
        "provides": "batch",
        "options": [
            "as(STRING)",
            "empty()",
            "enabled(BOOL)",
            "every(DURATION)",
            "field(STRING, DOUBLE)",
            "scale(DOUBLE)",
            "size(INT)",
            "tag(STRING, STRING)",
        ],
        "tickscript": (
            "@udf().as('…').empty().enabled(TRUE).every(10s).field('…', 0.0)"
            ".scale(0.0).size(0).tag('…', '…')"
        ),
    }


def test_a_udf_without_options_has_none(socket_path: str) -> None:
    with answering(socket_path, b"\x02\x0a\x00") as received:
        status, output, _ = probe(socket_path)
    assert status == 0
    assert "options     none\nTICKscript  @udf()\n" in output
    assert b"".join(received) == b"\x02\x0a\x00"


def test_numbers_that_have_no_name_are_shown(socket_path: str) -> None:
    with answering(socket_path, b"\x04\x0a\x02\x08\x07"):
        status, output, errors = probe(socket_path)
    assert (status, errors) == (0, "")
    assert output.startswith("wants       unknown edge 7\n")


def test_the_path_may_be_in_the_environment(
    serve: Callable[..., ServeProcess], socket_path: str
) -> None:
    serve("mirror")
    result = run_kapudf("probe", env={**os.environ, "KAPUDF_SOCKET": socket_path})
    assert result.returncode == 0


def test_all_functions_of_a_configuration_are_asked(
    serve: Callable[..., ServeProcess], socket_path: str, tmp_path: Path
) -> None:
    serve("mirror")
    functions = {"udf": {"handler": "mirror", "socket": socket_path}}
    config = tmp_path / "kapudf.yaml"
    config.write_text(json.dumps({"functions": functions}), encoding="utf-8")
    result = run_kapudf("probe", env={**os.environ, "KAPUDF_CONFIG": str(config)})
    assert result.stdout.splitlines()[:2] == [f"socket      {socket_path}", "wants       stream"]
    missing = f"{socket_path}.missing"
    functions["gone"] = {"handler": "mirror", "socket": missing}
    config.write_text(json.dumps({"functions": functions}), encoding="utf-8")
    result = run_kapudf("probe", "--config", str(config))
    assert result.returncode == 1
    assert result.stderr.startswith(f"Error: {missing}: ")


def test_the_call_is_one_that_can_be_pasted(short_folder: Path) -> None:
    path = str(short_folder / "my-mirror.v2.sock")
    with answering(path, b"\x02\x0a\x00"):
        _, output, _ = probe(path)
    assert "@my_mirror_v2()" in output


# --- no answer, each with a line of its own ---


def test_no_such_path(socket_path: str) -> None:
    assert failure(socket_path) == "there is no such socket; is the UDF running?"


def test_a_path_through_a_file(short_folder: Path) -> None:
    (short_folder / "file").touch()
    assert failure(f"{short_folder}/file/udf.sock") == "a part of this path is not a folder"


def test_a_path_that_is_too_long(short_folder: Path) -> None:
    assert "path too long" in failure(f"{short_folder}/{'x' * 108}")


def test_a_socket_that_nobody_serves(socket_path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(socket_path)
    assert (
        failure(socket_path)
        == "connection refused; no process serves this path, or it is still starting"
    )


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_no_socket(socket_path: str, kind: str) -> None:
    if kind == "file":
        with open(socket_path, "w", encoding="ascii"):
            pass
    else:
        os.mkdir(socket_path)
    assert "not a socket" in failure(socket_path)


def test_a_socket_of_another_type(socket_path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(socket_path)
        assert failure(socket_path) == "this is not a stream socket"


def test_a_socket_that_keeps_this_user_out(short_folder: Path) -> None:
    path = f"{short_folder}/udf.sock"
    with listening(path):
        short_folder.chmod(0o755)
        os.chmod(path, 0)
        result = run_unprivileged(
            "import sys, kapudf_cli.commands.probe, kapudf_cli.client.driver\n"
            "import kapudf_cli.tickscript.snippets, encodings.idna\n"
            "from kapudf_cli.commands import main\n",
            "main(['probe', '--socket', sys.argv[1]])",
            path,
        )
    assert (result.returncode, result.stdout) == (1, "")
    problem = "permission denied; the socket's mode or group keeps this user out"
    assert result.stderr == f"Error: {path}: {problem}\n"


def test_a_udf_that_never_answers(socket_path: str) -> None:
    with listening(socket_path):
        assert failure(socket_path, "--timeout", "0.2") == (
            "no answer within 0.2 s; is the UDF stuck, or its process stopped?"
        )


def test_a_udf_that_answers_by_halves(socket_path: str) -> None:
    with listening(socket_path) as listener, contextlib.ExitStack() as undo:

        def begin_answer() -> None:
            connection, _ = listener.accept()
            undo.enter_context(connection)
            connection.sendall(b"\x04\x0a")

        thread = threading.Thread(target=begin_answer)
        thread.start()
        assert failure(socket_path, "--timeout", "0.5").startswith(
            "no whole answer came in time; 2 "
        )
        thread.join(PATIENCE_S)


def test_a_udf_whose_queue_is_full(socket_path: str) -> None:
    with listening(socket_path, 0), contextlib.ExitStack() as waiting:
        with contextlib.suppress(BlockingIOError):
            while True:
                connection = waiting.enter_context(socket.socket(socket.AF_UNIX))
                connection.settimeout(0)
                connection.connect(socket_path)
        assert failure(socket_path, "--timeout", "0.2").startswith("no answer within 0.2 s")


def test_a_udf_that_closes_at_once(socket_path: str) -> None:
    def hang_up(listener: socket.socket) -> None:
        listener.accept()[0].close()

    with listening(socket_path) as listener:
        thread = threading.Thread(target=hang_up, args=(listener,))
        thread.start()
        assert failure(socket_path) == (
            "the UDF closed the connection without an answer; its log may say why"
        )
        thread.join(PATIENCE_S)


def test_a_udf_that_reads_and_closes(socket_path: str) -> None:
    with answering(socket_path, b""):
        assert failure(socket_path) == (
            "the UDF closed the connection without an answer; its log may say why"
        )


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n" + b"x" * 100, "72 bytes are not a Response"),
        (b"\x04\x0a\x02", "the input ended inside a frame"),
        (b"\x00", "a Response in which no message is set"),
        (b"\xff" * 11, "length"),
        (b"\x03\xff\xff\xff", "3 bytes are not a Response"),
        (b"\xff\xff\xff\xff\x0f", "a frame of 4294967295 bytes is announced"),
    ],
    ids=["HTTP", "cut off", "empty", "endless length", "no protobuf", "4 GiB"],
)
def test_a_peer_that_is_no_udf(socket_path: str, answer: bytes, problem: str) -> None:
    with answering(socket_path, answer):
        line = failure(socket_path)
    assert line.startswith("the answer is not a UDF's: ")
    assert problem in line


@pytest.mark.parametrize("response", [InitResponse(success=True), KeepaliveResponse(time=1)])
def test_a_udf_that_answers_something_else(
    socket_path: str, response: InitResponse | KeepaliveResponse
) -> None:
    with answering(socket_path, RESPONSES.encode(response)):
        assert failure(socket_path) == (f"the UDF answered Info with a {type(response).__name__}")


def test_a_udf_that_answers_with_an_error(socket_path: str) -> None:
    with answering(socket_path, RESPONSES.encode(ErrorResponse(error="no model:\n  not found"))):
        assert failure(socket_path) == ("the UDF answered with an error: no model: not found")


# --- what the command line takes ---


@pytest.mark.parametrize("timeout", ["0", "-1", "soon", "nan", "inf"])
def test_a_timeout_that_is_none(socket_path: str, timeout: str) -> None:
    status, _, errors = probe(socket_path, "--timeout", timeout)
    assert status == 2
    assert "Invalid value for '--timeout'" in errors


def test_a_probe_without_a_path() -> None:
    kept = {name: value for name, value in os.environ.items() if name != "KAPUDF_SOCKET"}
    result = run_kapudf("probe", env=kept)
    assert result.returncode == 2
    assert "give either --socket PATH or --config FILE" in result.stderr
