"""Kapacitor's side of a connection, with small UDFs on Unix sockets."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.client.driver import KapacitorSide, probe
from kapudf_cli.client.errors import ProbeError
from kapudf_cli.protocol.codec import REQUESTS, RESPONSES
from kapudf_cli.protocol.errors import (
    FrameTooLongError,
    TruncatedFrameError,
    UndecodableMessageError,
)
from kapudf_cli.protocol.udf_pb2 import (
    BATCH,
    BOOL,
    STREAM,
    STRING,
    BeginBatch,
    ErrorResponse,
    InfoRequest,
    InfoResponse,
    InitRequest,
    KeepaliveResponse,
    OptionInfo,
    Point,
)
from tests.peers import in_thread
from tests.plugins.unprivileged import run_unprivileged
from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future
    from pathlib import Path

    from kapudf_cli.protocol.codec import ResponseMessage

INFO = InfoResponse(
    wants=STREAM, provides=BATCH, options={"o": OptionInfo(valueTypes=[BOOL, STRING])}
)


@contextlib.contextmanager
def udf(path: str, serve: Callable[[socket.socket], None]) -> Iterator[Future[None]]:
    """Listen at `path`, serve the first connection in a thread, and wait for its end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        listener.settimeout(PATIENCE_S)

        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(PATIENCE_S)
                serve(connection)

        served = in_thread(run)
        yield served
        served.result(PATIENCE_S)


def read_to_the_end(connection: socket.socket) -> bytes:
    data = b""
    while piece := connection.recv(4096):
        data += piece
    return data


def answering(data: bytes) -> Callable[[socket.socket], None]:
    """Return a UDF that reads Info, sends `data`, and closes."""

    def serve(connection: socket.socket) -> None:
        assert connection.recv(4096)
        connection.sendall(data)

    return serve


# --- probe ---


def test_a_udf_that_answers_is_described(socket_path: str) -> None:
    with udf(socket_path, answering(RESPONSES.encode(INFO))):
        answer = probe(socket_path, timeout_s=PATIENCE_S)
    assert answer.info == INFO
    assert answer.round_trip_s > 0


def test_a_probe_sends_info_and_closes_after_the_answer(socket_path: str) -> None:
    received: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        received.append(connection.recv(4096))
        connection.settimeout(0.05)
        with pytest.raises(TimeoutError):
            connection.recv(4096)
        connection.settimeout(PATIENCE_S)
        connection.sendall(RESPONSES.encode(INFO))
        received.append(read_to_the_end(connection))

    with udf(socket_path, serve):
        probe(socket_path, timeout_s=PATIENCE_S)
    assert received == [b"\x02\x0a\x00", b""]


def test_an_answer_in_pieces_is_an_answer(socket_path: str) -> None:

    def serve(connection: socket.socket) -> None:
        for byte in RESPONSES.encode(INFO):
            connection.sendall(bytes([byte]))
        read_to_the_end(connection)

    with udf(socket_path, serve):
        assert probe(socket_path, timeout_s=PATIENCE_S).info == INFO


CLOSED = "the UDF closed the connection without an answer; its log may say why"

BAD_ANSWERS = {
    "nothing": (b"", CLOSED),
    "an error": (
        RESPONSES.encode(ErrorResponse(error="it\n  broke")),
        "the UDF answered with an error: it broke",
    ),
    "another message": (
        RESPONSES.encode(KeepaliveResponse()),
        "the UDF answered Info with a KeepaliveResponse",
    ),
    "half an answer": (
        RESPONSES.encode(INFO)[:-1],
        "the answer is not a UDF's: the input ended inside a frame",
    ),
    "no message": (b"\x00", "the answer is not a UDF's: a Response in which no message is set"),
    "another protocol": (b"HTTP/1.1 400 Bad Request\r\n\r\n", "the answer is not a UDF's: "),
    "a length without end": (
        b"\xff" * 10,
        "the answer is not a UDF's: a frame's length takes more",
    ),
    "a length of gigabytes": (
        b"\xff\xff\xff\xff\x0f",
        "the answer is not a UDF's: a frame of 4294967295 bytes is announced",
    ),
}


@pytest.mark.parametrize(("data", "problem"), BAD_ANSWERS.values(), ids=BAD_ANSWERS.keys())
def test_a_udf_that_does_not_answer_as_it_should_fails_the_probe(
    data: bytes, problem: str, socket_path: str
) -> None:
    with udf(socket_path, answering(data)), pytest.raises(ProbeError) as caught:
        probe(socket_path, timeout_s=PATIENCE_S)
    assert str(caught.value).startswith(f"{socket_path}: {problem}")
    assert "\n" not in str(caught.value)


def test_a_udf_that_hangs_up_without_reading_fails_the_probe(socket_path: str) -> None:
    asked = threading.Event()

    def serve(connection: socket.socket) -> None:
        assert connection.recv(1, socket.MSG_PEEK)
        asked.set()

    with udf(socket_path, serve), pytest.raises(ProbeError, match=CLOSED):
        probe(socket_path, timeout_s=PATIENCE_S)
    assert asked.is_set()


def test_a_udf_that_does_not_answer_in_time_fails_the_probe(socket_path: str) -> None:
    given_up = threading.Event()

    def serve(connection: socket.socket) -> None:
        read_to_the_end(connection)
        assert given_up.wait(PATIENCE_S)

    with udf(socket_path, serve):
        with pytest.raises(ProbeError, match=r"no answer within 0\.1 s; is the UDF stuck"):
            probe(socket_path, timeout_s=0.1)
        given_up.set()


def test_a_udf_that_does_not_accept_fails_the_probe(socket_path: str) -> None:
    with contextlib.ExitStack() as stack:
        fill_queue(stack, socket_path)
        with pytest.raises(ProbeError, match=r"no answer within 0\.1 s"):
            probe(socket_path, timeout_s=0.1)


def fill_queue(stack: contextlib.ExitStack, path: str) -> socket.socket:
    """Listen at `path`, and connect until no more connections fit; return the listener."""
    listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    listener.bind(path)
    listener.listen(0)
    listener.settimeout(PATIENCE_S)
    with contextlib.suppress(BlockingIOError):
        while True:
            client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            client.settimeout(0.0)
            client.connect(path)
    return listener


def test_there_being_no_socket_fails_the_probe(socket_path: str) -> None:
    with pytest.raises(ProbeError, match=f"^{socket_path}: there is no such socket"):
        probe(socket_path, timeout_s=PATIENCE_S)


def test_a_socket_that_nobody_serves_fails_the_probe(socket_path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left_over:
        left_over.bind(socket_path)
    with pytest.raises(ProbeError, match=f"^{socket_path}: connection refused; no process serves"):
        probe(socket_path, timeout_s=PATIENCE_S)


def test_what_is_no_socket_fails_the_probe(short_folder: Path) -> None:
    file = short_folder / "file"
    file.touch()
    for path in (file, short_folder):
        with pytest.raises(ProbeError, match=f"^{path}: this is not a socket$"):
            probe(str(path), timeout_s=PATIENCE_S)


def test_a_socket_of_another_type_fails_the_probe(socket_path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(socket_path)
        with pytest.raises(ProbeError, match=f"^{socket_path}: this is not a stream socket$"):
            probe(socket_path, timeout_s=PATIENCE_S)


def test_a_path_through_a_file_fails_the_probe(short_folder: Path) -> None:
    (short_folder / "file").touch()
    path = str(short_folder / "file" / "udf.sock")
    with pytest.raises(ProbeError, match=f"^{path}: a part of this path is not a folder$"):
        probe(path, timeout_s=PATIENCE_S)


def test_a_path_that_no_socket_can_have_fails_the_probe(short_folder: Path) -> None:
    path = str(short_folder / ("x" * 200))
    with pytest.raises(ProbeError, match=f"^{path}: cannot connect: AF_UNIX path too long$"):
        probe(path, timeout_s=PATIENCE_S)


def test_a_socket_that_may_not_be_used_fails_the_probe(
    short_folder: Path, socket_path: str
) -> None:
    short_folder.chmod(0o755)
    imports = "import sys\nfrom kapudf_cli.client.driver import probe\n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(socket_path)
        listener.listen()
        os.chmod(socket_path, 0)
        result = run_unprivileged(imports, "probe(sys.argv[1], timeout_s=30.0)", socket_path)
    problem = "permission denied; the socket's mode or group keeps this user out"
    assert result.stderr.endswith(f"ProbeError: {socket_path}: {problem}\n")


# --- one connection ---


def test_a_connection_waits_for_room_in_the_queue(socket_path: str) -> None:
    with contextlib.ExitStack() as stack:
        listener = fill_queue(stack, socket_path)
        connecting = in_thread(lambda: KapacitorSide.connect(socket_path, timeout_s=PATIENCE_S))
        connection, _ = listener.accept()
        stack.enter_context(connection)
        stack.enter_context(connecting.result(PATIENCE_S))


@pytest.fixture
def ends() -> Iterator[tuple[KapacitorSide, socket.socket]]:
    """Return Kapacitor's side of a connection, and the socket of the UDF."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(PATIENCE_S)
    with theirs, KapacitorSide(ours, timeout_s=PATIENCE_S) as side:
        yield side, theirs


def test_requests_are_sent_as_frames(ends: tuple[KapacitorSide, socket.socket]) -> None:
    side, peer = ends
    side.send(InitRequest(taskID="t"))
    side.send_bytes(b"anything")
    side.send(Point(time=1))
    side.half_close()
    expected = REQUESTS.encode(InitRequest(taskID="t")) + b"anything"
    assert read_to_the_end(peer) == expected + REQUESTS.encode(Point(time=1))


def test_responses_are_received_one_by_one_up_to_the_end(
    ends: tuple[KapacitorSide, socket.socket],
) -> None:
    side, peer = ends
    sent: list[ResponseMessage] = [INFO, BeginBatch(size=1), Point(name="x" * 200)]
    data = b"".join(map(RESPONSES.encode, sent))
    peer.sendall(data[:-100])
    assert side.receive() == INFO
    assert side.receive() == BeginBatch(size=1)
    peer.sendall(data[-100:])
    peer.close()
    assert list(side.responses()) == [Point(name="x" * 200)]
    assert side.receive() is None
    assert side.receive() is None


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\x05\x0a", TruncatedFrameError),
        (b"\x01\xff", UndecodableMessageError),
        (b"\x81\x80\x80\x20", FrameTooLongError),
    ],
)
def test_what_is_no_response_is_refused(
    ends: tuple[KapacitorSide, socket.socket], data: bytes, kind: type[Exception]
) -> None:
    side, peer = ends
    peer.sendall(RESPONSES.encode(INFO) + data)
    peer.close()
    assert side.receive() == INFO
    with pytest.raises(kind):
        side.receive()


def test_a_broken_connection_is_an_error_to_the_receiver(
    ends: tuple[KapacitorSide, socket.socket],
) -> None:
    side, peer = ends
    side.send(InfoRequest())
    peer.close()
    with pytest.raises(ConnectionResetError):
        side.receive()


def test_every_wait_is_bounded(ends: tuple[KapacitorSide, socket.socket]) -> None:
    side, _ = ends
    side.extend(0.05)
    with pytest.raises(TimeoutError):
        side.receive()
    side.extend(0.05)
    with pytest.raises(TimeoutError):
        side.send_bytes(b"x" * (16 << 20))


def test_nothing_is_received_once_the_time_is_over(
    ends: tuple[KapacitorSide, socket.socket],
) -> None:
    side, peer = ends
    peer.sendall(RESPONSES.encode(INFO))
    side.extend(0.0)
    with pytest.raises(TimeoutError):
        side.receive()


def test_a_connection_that_timed_out_goes_on_after_more_time_was_given(
    ends: tuple[KapacitorSide, socket.socket],
) -> None:
    side, peer = ends
    data = RESPONSES.encode(INFO)
    peer.sendall(data[:2])
    side.extend(0.05)
    with pytest.raises(TimeoutError):
        side.receive()
    peer.sendall(data[2:])
    side.extend(PATIENCE_S)
    assert side.receive() == INFO
