"""The stream of a socket, over real socket pairs."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.transport import SocketStream
from tests.peers import in_thread
from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

#: Far more than two sockets hold between them, so that writing it must wait for a reader.
TOO_MUCH = b"x" * (16 << 20)


@pytest.fixture
def ends() -> Iterator[tuple[SocketStream, socket.socket]]:
    """Return a stream, and the socket at its other end."""
    ours, theirs = socket.socketpair()
    ours.settimeout(PATIENCE_S)
    stream = SocketStream(theirs)
    with ours:
        yield stream, ours
        stream.abort()
        stream.close()


def read_to_the_end(stream: SocketStream) -> bytes:
    """Read until the end of input."""
    data = b""
    while piece := stream.read():
        data += piece
    return data


def reader_that_waits(stream: SocketStream, peer: socket.socket) -> Future[bytes]:
    """Start a read in a thread, which waits because there is no input."""
    one_read = threading.Event()

    def read() -> bytes:
        assert stream.read() == b"first"
        one_read.set()
        return stream.read()

    reading = in_thread(read)
    peer.sendall(b"first")
    assert one_read.wait(PATIENCE_S)
    return reading


def test_input_from_the_peer_is_read(ends: tuple[SocketStream, socket.socket]) -> None:
    stream, peer = ends
    peer.sendall(b"one")
    assert stream.read() == b"one"
    peer.sendall(b"two")
    peer.shutdown(socket.SHUT_WR)
    assert stream.read() == b"two"
    assert stream.read() == b""
    assert stream.read() == b""


def test_all_of_a_write_is_written(ends: tuple[SocketStream, socket.socket]) -> None:
    stream, peer = ends
    writing = in_thread(lambda: stream.write(TOO_MUCH))
    received = 0
    while received < len(TOO_MUCH):
        received += len(peer.recv(1 << 20))
    writing.result(PATIENCE_S)
    assert received == len(TOO_MUCH)


def test_a_write_waits_on_a_non_blocking_socket() -> None:
    ours, theirs = socket.socketpair()
    theirs.settimeout(0.0)
    stream = SocketStream(theirs)
    writing = in_thread(lambda: stream.write(TOO_MUCH))
    with ours:
        ours.settimeout(PATIENCE_S)
        received = 0
        while received < len(TOO_MUCH):
            received += len(ours.recv(1 << 20))
        writing.result(PATIENCE_S)
        stream.close()


def test_a_peer_that_closes_with_unread_data_is_an_error_to_the_reader(
    ends: tuple[SocketStream, socket.socket],
) -> None:
    stream, peer = ends
    stream.write(b"never read")
    peer.close()
    with pytest.raises(ConnectionResetError):
        read_to_the_end(stream)


def test_a_peer_that_has_closed_is_an_error_to_the_writer(
    ends: tuple[SocketStream, socket.socket],
) -> None:
    stream, peer = ends
    peer.close()
    with pytest.raises(BrokenPipeError):
        stream.write(b"too late")


def test_an_interrupted_reader_gets_what_had_arrived_and_then_the_end(
    ends: tuple[SocketStream, socket.socket],
) -> None:
    stream, peer = ends
    peer.sendall(b"arrived")
    stream.interrupt()
    assert stream.read() == b"arrived"
    peer.sendall(b"late")
    assert stream.read() == b""
    assert stream.close() == len(b"late")


def test_an_interrupted_reader_gets_the_end_where_nothing_had_arrived(
    ends: tuple[SocketStream, socket.socket],
) -> None:
    stream, _ = ends
    stream.interrupt()
    assert stream.read() == b""
    assert stream.read() == b""


def test_an_interrupted_reader_gets_all_that_had_arrived(
    ends: tuple[SocketStream, socket.socket],
) -> None:
    stream, peer = ends
    data = bytes(range(256)) * 400  # more than one read, less than a socket holds
    peer.sendall(data)
    stream.interrupt()
    first = stream.read()
    peer.settimeout(0.0)  # a blocked send waits until most of the queue is free
    peer.sendall(b"late")
    assert first + read_to_the_end(stream) == data
    assert stream.close() == len(b"late")


def test_a_reader_that_waits_is_woken_by_an_interrupt(
    ends: tuple[SocketStream, socket.socket],
) -> None:
    stream, peer = ends
    reading = reader_that_waits(stream, peer)
    stream.interrupt()
    assert reading.result(PATIENCE_S) == b""


def test_an_interrupt_leaves_the_connection_usable_for_the_answers(
    ends: tuple[SocketStream, socket.socket],
) -> None:
    stream, peer = ends
    stream.interrupt()
    assert stream.read() == b""
    peer.sendall(b"late")
    stream.write(b"answer")
    assert peer.recv(100) == b"answer"


def test_interrupt_can_be_called_repeatedly() -> None:
    peer, theirs = socket.socketpair()
    wake = os.pipe()
    stream = SocketStream(theirs, wake)
    peer.sendall(b"arrived")

    def interrupt() -> None:
        for _ in range(1 << 17):  # more than a pipe has bytes
            stream.interrupt()

    interrupting = in_thread(interrupt)
    try:
        interrupting.result(PATIENCE_S)
        assert stream.read() == b"arrived"
        assert stream.read() == b""
    finally:
        while not interrupting.done():
            os.read(wake[0], 1 << 16)
        stream.close()
        peer.close()


def test_an_abort_ends_a_blocked_write(ends: tuple[SocketStream, socket.socket]) -> None:
    stream, peer = ends
    writing = in_thread(lambda: stream.write(TOO_MUCH))
    assert peer.recv(1) == b"x"  # the write has started and cannot complete
    stream.abort()
    with pytest.raises(BrokenPipeError):
        writing.result(PATIENCE_S)


def test_an_abort_ends_a_blocked_read(ends: tuple[SocketStream, socket.socket]) -> None:
    stream, peer = ends
    reading = reader_that_waits(stream, peer)
    stream.abort()
    assert reading.result(PATIENCE_S) == b""
    assert peer.recv(1) == b""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a waiting write read ahead soon."""
    monkeypatch.setattr("kapudf_cli.transport.input._STALLED_S", 0.01)
    monkeypatch.setattr("kapudf_cli.transport.input._STALLED_MAX_S", 0.01)


@pytest.mark.usefixtures("impatient")
def test_a_write_that_waits_lets_the_peer_write(ends: tuple[SocketStream, socket.socket]) -> None:
    stream, peer = ends
    sent = bytes(range(256)) * (1 << 14)
    writing = in_thread(lambda: stream.write(TOO_MUCH))
    assert peer.recv(1) == b"x"
    peer.sendall(sent)
    peer.shutdown(socket.SHUT_WR)
    received = 1
    while received < len(TOO_MUCH):
        received += len(peer.recv(1 << 20))
    writing.result(PATIENCE_S)
    assert read_to_the_end(stream) == sent
    assert stream.read() == b""


@pytest.mark.usefixtures("impatient")
def test_input_read_ahead_is_read_after_an_interrupt(
    ends: tuple[SocketStream, socket.socket],
) -> None:
    stream, peer = ends
    sent = bytes(range(256)) * (1 << 14)
    writing = in_thread(lambda: stream.write(TOO_MUCH))
    assert peer.recv(1) == b"x"
    peer.sendall(sent)
    stream.interrupt()
    received = 1
    while received < len(TOO_MUCH):
        received += len(peer.recv(1 << 20))
    writing.result(PATIENCE_S)
    assert read_to_the_end(stream) == sent


@pytest.mark.usefixtures("impatient")
def test_input_read_ahead_counts_as_unread(ends: tuple[SocketStream, socket.socket]) -> None:
    stream, peer = ends
    writing = in_thread(lambda: stream.write(TOO_MUCH))
    assert peer.recv(1) == b"x"
    peer.sendall(b"y" * (4 << 20))
    stream.abort()
    with pytest.raises(BrokenPipeError):
        writing.result(PATIENCE_S)
    assert stream.close() == 4 << 20


def test_a_stream_settles_once_the_peer_has_read_everything(
    ends: tuple[SocketStream, socket.socket],
) -> None:
    stream, peer = ends
    stream.write(b"last")
    settling = in_thread(lambda: stream.settle(PATIENCE_S))
    peer.sendall(b"x" * 300_000)
    peer.shutdown(socket.SHUT_WR)
    assert peer.recv(100) == b"last"
    assert settling.result(PATIENCE_S) + stream.close() == 300_000


def test_settling_has_a_timeout(
    ends: tuple[SocketStream, socket.socket],
) -> None:
    stream, peer = ends
    peer.sendall(b"before")
    stream.write(b"last")
    assert stream.settle(0.1) == len(b"before")


@pytest.mark.parametrize("how", ["closed", "reset", "aborted"])
def test_settling_without_a_peer_returns_at_once(
    ends: tuple[SocketStream, socket.socket], how: str
) -> None:
    stream, peer = ends
    if how == "reset":
        stream.write(b"never read")
    if how == "aborted":
        stream.abort()
    else:
        peer.sendall(b"before")
        peer.close()
    unread = stream.settle(PATIENCE_S) + stream.close()
    assert unread == (0 if how == "aborted" else len(b"before"))


def test_close_returns_the_number_of_unread_bytes(ends: tuple[SocketStream, socket.socket]) -> None:
    stream, peer = ends
    peer.sendall(b"read")
    assert stream.read() == b"read"
    peer.sendall(b"unread")
    assert stream.close() == len(b"unread")
    assert stream.close() == 0


def test_close_ends_the_connection_although_another_process_has_it_open() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs.dup():  # as a process that the handler has forked
        stream = SocketStream(theirs)
        stream.write(b"the last")
        stream.close()
        ours.settimeout(PATIENCE_S)
        assert ours.recv(64) == b"the last"
        assert ours.recv(64) == b""


def test_close_ends_the_connection_and_leaves_no_descriptor_open() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        wake = os.pipe()
        stream = SocketStream(theirs, wake)
        descriptors = (theirs.fileno(), *wake)
        stream.close()
        assert ours.recv(1) == b""
        for descriptor in descriptors:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(descriptor)


def test_calls_after_close_touch_no_descriptor() -> None:
    ours, theirs = socket.socketpair()
    wake = os.pipe()
    stream = SocketStream(theirs, wake)
    numbers = (theirs.fileno(), *wake)
    with contextlib.ExitStack() as stack:
        stack.enter_context(ours)
        stranger, its_peer = map(stack.enter_context, socket.socketpair())
        its_peer.setblocking(False)  # noqa: FBT003 - a parameter without a name
        stream.close()
        for number in numbers:
            os.dup2(stranger.fileno(), number)
            stack.callback(os.close, number)

        stream.interrupt()
        stream.abort()
        stream.close()

        with pytest.raises(BlockingIOError):
            its_peer.recv(1)
        stranger.sendall(b"still open")
        assert its_peer.recv(100) == b"still open"
