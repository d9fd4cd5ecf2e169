"""The control socket of a function: a JSON object in, a JSON object out, one line each.

It has the access rights of the function's socket: a process that may use the UDF may ask for
its status and reload it.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import time
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from kapudf_cli.config import CONTROL_SUFFIX
from kapudf_cli.supervisor.errors import ControlError

if TYPE_CHECKING:
    from collections.abc import Callable

#: The longest request; it holds one short command.
_REQUEST_BYTES: Final = 4096
#: A client that has not been answered after this time does not read, or asks nothing.
_CLIENT_TIMEOUT_S: Final = 600.0
#: Beyond this, a client that has asked nothing is dropped for a new one, or else the oldest.
_MAX_CLIENTS: Final = 32
_READ_BYTES: Final = 64 * 1024

#: Executes a command of a client, which gets the answer with `reply`, now or later.
Command: TypeAlias = "Callable[[ControlClient, str], None]"


class ControlClients:
    """The clients of control sockets; none of them keeps the loop waiting."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        """Register clients with `selector`, with a callable as data."""
        self._selector = selector
        self._clients: dict[ControlClient, float] = {}

    def add(self, connection: socket.socket, command: Command) -> None:
        """Serve a new client; if there are too many, drop another one."""
        if len(self._clients) >= _MAX_CLIENTS:
            # They are in the order in which they came.
            idle = (each for each in self._clients if each.is_idle)
            next(idle, next(iter(self._clients))).close()
        client = ControlClient(connection, command, self._selector, self._forget)
        self._clients[client] = time.monotonic()

    def tick(self, now_s: float) -> None:
        """Drop the clients that take too long."""
        for client, since_s in list(self._clients.items()):
            if now_s - since_s > _CLIENT_TIMEOUT_S:
                client.close()

    def close(self) -> None:
        """Drop all clients."""
        for client in list(self._clients):
            client.close()

    def _forget(self, client: ControlClient) -> None:
        self._clients.pop(client, None)


class ControlClient:
    """A client: it sends one line, and gets one line."""

    def __init__(
        self,
        connection: socket.socket,
        command: Command,
        selector: selectors.BaseSelector,
        on_end: Callable[[ControlClient], None],
    ) -> None:
        connection.settimeout(0)
        self._socket = connection
        self._command = command
        self._selector = selector
        self._on_end = on_end
        self._request = b""
        self._rest = b""
        self._ended = False
        self._asked = False
        selector.register(connection, selectors.EVENT_READ, self._read)

    @property
    def is_idle(self) -> bool:
        """Whether no request has come from it, not even one that is still to be read."""
        if self._asked:
            return False
        try:
            waiting = self._socket.recv(_REQUEST_BYTES, socket.MSG_PEEK)
        except OSError:
            waiting = b""
        return b"\n" not in waiting

    def close(self) -> None:
        """Close the connection, answered or not."""
        if not self._ended:
            self._ended = True
            with contextlib.suppress(KeyError):
                self._selector.unregister(self._socket)
            self._socket.close()
            self._on_end(self)

    def _read(self) -> None:
        try:
            data = self._socket.recv(_REQUEST_BYTES)
        except OSError:
            data = b""
        self._request += data
        if not data or len(self._request) > _REQUEST_BYTES:
            self.close()
        elif b"\n" in self._request:
            # A command may take long; nothing more is read meanwhile.
            self._selector.unregister(self._socket)
            self._asked = True
            try:
                self._command(self, _command_of(self._request))
            except BaseException:
                self.close()  # There will be no answer.
                raise

    def reply(self, answer: dict[str, Any]) -> None:
        """Send the answer, and close the connection after it."""
        if not self._ended:
            self._rest = json.dumps(answer).encode() + b"\n"
            self._selector.register(self._socket, selectors.EVENT_WRITE, self._write)

    def _write(self) -> None:
        try:
            self._rest = self._rest[self._socket.send(self._rest) :]
        except BlockingIOError:
            return
        except OSError:
            self._rest = b""
        if not self._rest:
            self.close()


def _command_of(request: bytes) -> str:
    """Return the command of a request, "" if it is not valid."""
    try:
        asked = json.loads(request.partition(b"\n")[0])
    except (ValueError, RecursionError):
        return ""
    command = asked.get("command") if isinstance(asked, dict) else None
    return command if isinstance(command, str) else ""


def ask(socket_path: str, command: str, *, timeout_s: float) -> dict[str, Any]:
    """Ask the supervisor of the function at `socket_path`; return its answer.

    Raises:
        ControlError: there is none, or it does not answer, or says that it cannot.
    """
    path = socket_path + CONTROL_SUFFIX
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            connection.connect(path)
            connection.sendall(json.dumps({"command": command}).encode() + b"\n")
            received = bytearray()
            while data := connection.recv(_READ_BYTES):
                received += data
    except TimeoutError as error:
        problem = f"{path}: no answer within {timeout_s:g} s"
        raise ControlError(problem) from error
    except ConnectionRefusedError as error:
        problem = f"{path}: connection refused; `kapudf serve` is gone, start it again"
        raise ControlError(problem) from error
    except FileNotFoundError as error:
        problem = (
            f"{socket_path}: there is no {path} to ask; "
            "is `kapudf serve` running here, with workers?"
        )
        raise ControlError(problem) from error
    except OSError as error:
        problem = f"{path}: cannot ask: {error.strerror or error}"
        raise ControlError(problem) from error
    try:
        answer = json.loads(received)
    except (ValueError, RecursionError) as error:
        problem = f"{path}: closed without an answer; the log of `kapudf serve` may say why"
        raise ControlError(problem) from error
    if not isinstance(answer, dict) or "error" in answer:
        said = answer.get("error") if isinstance(answer, dict) else answer
        problem = f"{socket_path}: {said}"
        raise ControlError(problem)
    return answer
