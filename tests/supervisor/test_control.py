"""The control socket: each client is answered, and none blocks another."""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from kapudf_cli.config import CONTROL_SUFFIX
from kapudf_cli.supervisor import control
from kapudf_cli.supervisor.control import ControlClients, ask
from kapudf_cli.supervisor.errors import ControlError
from tests.peers import in_thread
from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kapudf_cli.supervisor.control import ControlClient

    Reply = Callable[[dict[str, Any]], None]

#: An answer that is longer than a socket queues.
LONG = "x" * 2_000_000


class Loop:
    """The supervisor's loop, run turn by turn, with control clients."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.clients = ControlClients(self.selector)
        #: The requests, each with the client to answer.
        self.asked: list[tuple[str, Reply]] = []

    def connect(self) -> socket.socket:
        """Connect a client, and return its end."""
        ours, theirs = socket.socketpair()
        theirs.settimeout(PATIENCE_S)
        self.clients.add(ours, lambda client, command: self.asked.append((command, client.reply)))
        return theirs

    def turn(self) -> None:
        """Handle all events that are ready."""
        for key, _ in self.selector.select(0):
            key.data()

    def close(self) -> None:
        self.clients.close()
        assert not self.selector.get_map()
        self.selector.close()


@pytest.fixture
def loop() -> Iterator[Loop]:
    """Give a loop that has no clients yet."""
    loop = Loop()
    yield loop
    loop.close()


def has_ended(client: socket.socket) -> bool:
    """Return whether the connection was closed without an answer."""
    with contextlib.suppress(ConnectionResetError):
        return client.recv(1) == b""
    return True


def request(command: object) -> bytes:
    return json.dumps({"command": command}).encode() + b"\n"


# --- clients ---


def test_a_client_asks_is_answered_and_let_go(loop: Loop) -> None:
    with loop.connect() as client:
        client.sendall(request("status"))
        loop.turn()
        ((command, reply),) = loop.asked
        assert command == "status"
        client.sendall(request("status"))
        loop.turn()
        assert len(loop.asked) == 1
        reply({"answer": 42})
        loop.turn()
        assert client.recv(100) == b'{"answer": 42}\n'
        assert has_ended(client)


def test_a_client_that_sends_byte_by_byte_is_answered(loop: Loop) -> None:
    with loop.connect() as client:
        for byte in request("reload"):
            assert not loop.asked
            client.send(bytes([byte]))
            loop.turn()
        assert loop.asked[0][0] == "reload"


@pytest.mark.parametrize(
    "line",
    [b"\n", b"status\n", b'"status"\n', b"[]\n", b"{}\n", b'{"command": 3}\n', b"\xff\xfe\n",
     b"[" * 4000 + b"\n", b'{"command": null}\n', b"1e999\n"],
    ids=repr,
)  # fmt: skip
def test_garbage_asks_for_nothing(loop: Loop, line: bytes) -> None:
    with loop.connect() as client:
        client.sendall(line)
        loop.turn()
        assert [command for command, _ in loop.asked] == [""]


@pytest.mark.parametrize("data", [b"x" * 5000, request("x" * 5000)], ids=["endless", "long"])
def test_a_client_that_sends_more_than_anybody_asks_is_let_go(loop: Loop, data: bytes) -> None:
    with loop.connect() as client:
        client.sendall(data)
        for _ in range(3):
            loop.turn()
        assert has_ended(client)
    assert not loop.asked


@pytest.mark.parametrize("said", [b"", b'{"command": "status"}'])
def test_a_client_that_ends_before_its_line_does_is_let_go(loop: Loop, said: bytes) -> None:
    client = loop.connect()
    client.sendall(said)
    client.shutdown(socket.SHUT_WR)
    loop.turn()
    loop.turn()
    assert has_ended(client)
    assert not loop.asked
    client.close()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_client_that_is_gone_when_it_is_answered_does_no_harm(loop: Loop, when: str) -> None:
    client = loop.connect()
    client.sendall(request("reload"))
    loop.turn()
    ((_, reply),) = loop.asked
    if when == "before":
        client.close()
    reply({"answer": LONG})
    client.close()
    loop.turn()
    assert not loop.selector.get_map()


def test_a_command_that_fails_lets_its_client_go(loop: Loop) -> None:
    ours, theirs = socket.socketpair()

    def fail(client: ControlClient, command: str) -> None:
        del client
        raise ValueError(command)

    loop.clients.add(ours, fail)
    theirs.sendall(request("status"))
    with pytest.raises(ValueError, match="status"):
        loop.turn()
    assert has_ended(theirs)
    theirs.close()


def test_an_answer_after_everybody_was_let_go_does_no_harm(loop: Loop) -> None:
    with loop.connect() as client:
        client.sendall(request("reload"))
        loop.turn()
        loop.clients.close()
        loop.asked[0][1]({})
        assert has_ended(client)


def test_a_client_that_reads_slowly_gets_everything_and_delays_no_other(loop: Loop) -> None:
    with loop.connect() as slow, loop.connect() as other:
        slow.sendall(request("status"))
        loop.turn()
        loop.asked.pop()[1]({"answer": LONG})
        loop.turn()
        other.sendall(request("status"))
        loop.turn()
        loop.asked.pop()[1]({"answer": 1})
        loop.turn()
        assert json.loads(other.recv(100)) == {"answer": 1}
        received = bytearray()
        while not received.endswith(b"\n"):
            received += slow.recv(50_000)
            loop.turn()
        assert json.loads(received) == {"answer": LONG}


def test_a_client_that_is_silent_or_does_not_read_is_let_go_in_the_end(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    with loop.connect() as silent, loop.connect() as deaf:
        deaf.sendall(request("status"))
        loop.turn()
        loop.asked[0][1]({"answer": LONG})
        loop.turn()
        now_s = 1500.0
        with loop.connect() as young:
            loop.clients.tick(1599.0)
            assert len(loop.clients._clients) == 3
            loop.clients.tick(1601.0)
            assert len(loop.clients._clients) == 1
            assert has_ended(silent)
            young.sendall(request("status"))
            loop.turn()
            assert len(loop.asked) == 2


def test_idle_clients_keep_no_other_client_out(loop: Loop) -> None:
    with contextlib.ExitStack() as clients:
        asks = [clients.enter_context(loop.connect()) for _ in range(3)]
        # One request was read, one was not, and one has come only in part.
        asks[0].sendall(request("reload"))
        loop.turn()
        asks[1].sendall(request("status"))
        asks[2].send(b"{")
        idle = [clients.enter_context(loop.connect()) for _ in range(2 * control._MAX_CLIENTS)]
        newest = clients.enter_context(loop.connect())
        newest.sendall(request("status"))
        loop.turn()
        assert [command for command, _ in loop.asked] == ["reload", "status", "status"]
        for _, reply in loop.asked:
            reply({"answer": 1})
        loop.turn()
        for client in (*asks[:2], newest):
            assert json.loads(client.recv(100)) == {"answer": 1}
        assert has_ended(asks[2])
        assert has_ended(idle[0])


def test_the_oldest_client_makes_room_where_none_is_idle(loop: Loop) -> None:
    with contextlib.ExitStack() as clients:
        ask = [clients.enter_context(loop.connect()) for _ in range(control._MAX_CLIENTS)]
        for client in ask:
            client.sendall(request("reload"))
        loop.turn()
        newest = clients.enter_context(loop.connect())
        newest.sendall(request("status"))
        loop.turn()
        assert has_ended(ask[0])
        for _, reply in loop.asked:
            reply({"answer": 1})
        loop.turn()
        for client in (*ask[1:], newest):
            assert json.loads(client.recv(100)) == {"answer": 1}


# --- the client ---


@contextlib.contextmanager
def answering(path: str, answer: Callable[[socket.socket], None]) -> Iterator[None]:
    """Run a server that sends one client a given answer."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path + CONTROL_SUFFIX)
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                answer(connection)

        serving = in_thread(serve)
        yield
        serving.result(PATIENCE_S)


def test_each_client_gets_its_answer(socket_path: str) -> None:
    def answer(connection: socket.socket) -> None:
        assert json.loads(connection.recv(100)) == {"command": "status"}
        connection.sendall(json.dumps({"answer": LONG}).encode() + b"\n")

    with answering(socket_path, answer):
        assert ask(socket_path, "status", timeout_s=PATIENCE_S) == {"answer": LONG}


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (b"", "closed without an answer"),
        (b'{"answer": ', "closed without an answer"),
        (b"[" * 100_000, "closed without an answer"),
        (b"\xff\n", "closed without an answer"),
        (b'{"error": "no such command"}\n', ": no such command"),
        (b"[1, 2]\n", ": [1, 2]"),
    ],
    ids=["nothing", "a part", "too deep", "no text", "an error", "no object"],
)
def test_an_invalid_answer_is_reported(socket_path: str, said: bytes, problem: str) -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(said)

    with answering(socket_path, answer), pytest.raises(ControlError) as caught:
        ask(socket_path, "status", timeout_s=PATIENCE_S)
    assert str(caught.value).startswith(socket_path)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_supervisor_that_does_not_answer_is_waited_for_no_longer_than_asked(
    socket_path: str,
) -> None:
    over = threading.Event()

    def answer(connection: socket.socket) -> None:
        del connection
        assert over.wait(PATIENCE_S)

    with answering(socket_path, answer):
        with pytest.raises(ControlError, match=r"no answer within 0\.05 s"):
            ask(socket_path, "status", timeout_s=0.05)
        over.set()


@pytest.mark.parametrize(
    ("there", "problem"), [(False, r"there is no .*\.control to ask"), (True, "connection refused")]
)
def test_a_socket_without_a_server_is_reported(
    socket_path: str, problem: str, *, there: bool
) -> None:
    if there:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(socket_path + CONTROL_SUFFIX)
    with pytest.raises(ControlError, match=problem):
        ask(socket_path, "status", timeout_s=PATIENCE_S)
