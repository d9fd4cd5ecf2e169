"""Kapacitor's side of the conversation, against a UDF in any language."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import stat
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

from kapudf_cli.client.errors import ProbeError
from kapudf_cli.protocol.codec import REQUESTS, RESPONSES
from kapudf_cli.protocol.errors import ProtocolError
from kapudf_cli.protocol.framing import DEFAULT_MAX_FRAME_BYTES, HEARTBEAT_TIME, FrameReader
from kapudf_cli.protocol.udf_pb2 import ErrorResponse, InfoRequest, InfoResponse, KeepaliveResponse

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

    from kapudf_cli.protocol.codec import RequestMessage, ResponseMessage

_READ_BYTES = 64 * 1024
#: How much is shown of what came in place of a frame.
_SHOWN_BYTES = 40
#: How long to wait before another try where a UDF's queue of connections is full.
_RETRY_S = 0.02
#: A UDF has answered everything when it has answered this many keepalives that were sent
#: one after the other behind the data, and then nothing comes for a while. A single answer
#: is not enough: in Kapacitor's Go agent it overtakes the points before it.
SETTLE_KEEPALIVES = 2
SETTLE_QUIET_S = 0.05


class Duplex(Protocol):
    """What bytes go over: a connected stream socket, or what has its calls."""

    def settimeout(self, timeout_s: float | None, /) -> None:
        """Let each call wait for so long, None for ever."""

    def sendall(self, data: bytes, /) -> None:
        """Send all of `data`."""

    def recv(self, bufsize: int, /) -> bytes:
        """Wait for bytes and return up to so many; b"" at the end."""

    def fileno(self) -> int:
        """Return the descriptor that `recv` reads, to wait on."""

    def shutdown(self, how: int, /) -> None:
        """End one direction."""

    def close(self) -> None:
        """Release it."""


class KapacitorSide:
    """One connection to a UDF, held as Kapacitor holds it.

    Every wait is bounded: `timeout_s` counts from the making of the object, or
    from the last `extend`.
    """

    def __init__(self, connection: Duplex, *, timeout_s: float) -> None:
        """Take over a connected stream socket, or pipes."""
        self._socket = connection
        self._frames = FrameReader(RESPONSES.decode_in, DEFAULT_MAX_FRAME_BYTES)
        self._arrived: Iterator[ResponseMessage] = iter(())
        self.extend(timeout_s)

    @classmethod
    def connect(cls, path: str, *, timeout_s: float) -> Self:
        """Connect to the UDF's socket.

        Raises:
            OSError: there is no socket, no process serves it, or permission is denied.
            TimeoutError: its queue of connections stayed full.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.settimeout(timeout_s)
                connection.connect(path)
            except BlockingIOError:
                # A Unix socket says EAGAIN at once where another would wait.
                connection.close()
                if time.monotonic() >= deadline:
                    raise TimeoutError(
                        errno.ETIMEDOUT, "its queue of connections is full"
                    ) from None
                time.sleep(_RETRY_S)
            except BaseException:
                connection.close()
                raise
            else:
                return cls(connection, timeout_s=max(deadline - time.monotonic(), 0.0))

    def __enter__(self) -> Self:
        """Return the connection itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it; a send that still waits in another thread ends."""
        if isinstance(self._socket, socket.socket):
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    @property
    def connection(self) -> Duplex:
        """What the bytes go over; it belongs to this object."""
        return self._socket

    @property
    def unfinished(self) -> str:
        """What has come of a response that is not whole, for a message; "" for nothing."""
        came = self._frames.rest
        if not came:
            return ""
        return f"{len(came)} bytes came that are not a whole frame: {came[:_SHOWN_BYTES]!r}"

    def extend(self, timeout_s: float) -> None:
        """Give whatever follows `timeout_s` seconds from now."""
        self._deadline = time.monotonic() + timeout_s

    def send(self, message: RequestMessage) -> None:
        """Send one request."""
        self.send_bytes(REQUESTS.encode(message))

    def send_bytes(self, data: bytes) -> None:
        """Send bytes as they are, be they frames or not."""
        self._limit_wait()
        self._socket.sendall(data)

    @contextlib.contextmanager
    def sending(self, requests: Iterable[RequestMessage]) -> Iterator[None]:
        """Send requests from a thread, while the caller receives.

        Sending much before reading could deadlock: the UDF may wait until its answers
        are read.
        """

        def send() -> None:
            # What goes wrong here, the receiver learns too.
            with contextlib.suppress(OSError):
                for request in requests:
                    self.send(request)

        sender = threading.Thread(target=send, name="sending", daemon=True)
        sender.start()
        yield
        sender.join(max(self._deadline - time.monotonic(), 0.0))

    def play(self, requests: Iterable[RequestMessage]) -> Iterator[ResponseMessage]:
        """Send requests and half-close, as a replay does, and yield what comes until the end."""

        def requests_and_end() -> Iterator[RequestMessage]:
            yield from requests
            self.half_close()

        with self.sending(requests_and_end()):
            yield from self.responses()

    def half_close(self) -> None:
        """Say that no more will be sent, as Kapacitor does when a task ends."""
        self._socket.shutdown(socket.SHUT_WR)

    def receive(self) -> ResponseMessage | None:
        """Wait for the next response; None once the UDF has closed.

        Raises:
            ProtocolError: what came is no response, or ended inside one.
            TimeoutError: nothing came in time.
            OSError: the connection broke.
        """
        while True:
            for response in self._arrived:
                if not _is_heartbeat(response):
                    return response
            self._limit_wait()
            data = self._socket.recv(_READ_BYTES)
            if not data:
                self._frames.finish()
                return None
            self._arrived = self._frames.feed(data)

    def receive_within(self, timeout_s: float) -> ResponseMessage | None:
        """Do what `receive` does, with a time of its own; raises as that does.

        A thread that sends meanwhile has whatever `extend` gave it: a UDF that takes its
        time to read is not one that hangs, as long as it answers.
        """
        while (response := next(self._arrived, None)) is None:
            poll = select.poll()
            poll.register(self._socket.fileno(), select.POLLIN)
            if not poll.poll(timeout_s * 1000):
                raise TimeoutError(errno.ETIMEDOUT, "timed out")
            data = self._socket.recv(_READ_BYTES)
            if not data:
                self._frames.finish()
                return None
            self._arrived = self._frames.feed(data)
        return response

    def responses(self) -> Iterator[ResponseMessage]:
        """Yield every response until the UDF closes; raises as `receive` does."""
        while (response := self.receive()) is not None:
            yield response

    def _limit_wait(self) -> None:
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(errno.ETIMEDOUT, "timed out")
        self._socket.settimeout(left_s)


def _is_heartbeat(response: ResponseMessage) -> bool:
    """Return whether a response says only that the UDF is busy; Kapacitor drops it."""
    return isinstance(response, KeepaliveResponse) and response.time == HEARTBEAT_TIME


@dataclass(frozen=True)
class Answer:
    """What a UDF said of itself, and how long it took from connect to answer."""

    info: InfoResponse
    round_trip_s: float


def probe(path: str, *, timeout_s: float) -> Answer:
    """Ask the UDF at a socket what it is, as Kapacitor does at its start.

    Raises:
        ProbeError: it did not answer, or not as Kapacitor needs it to.
    """
    started = time.monotonic()
    try:
        with KapacitorSide.connect(path, timeout_s=timeout_s) as side:
            info = ask_info(side)
    except ProbeError as error:
        problem = f"{path}: {error}"
        raise ProbeError(problem) from error
    except TimeoutError as error:
        problem = (
            f"{path}: no answer within {timeout_s:g} s; is the UDF stuck, or its process stopped?"
        )
        raise ProbeError(problem) from error
    except OSError as error:
        raise ProbeError(f"{path}: {why_not_connected(path, error)}") from error
    return Answer(info, time.monotonic() - started)


def ask_info(side: KapacitorSide) -> InfoResponse:
    """Send Info and return the answer; the caller closes the connection.

    The answer is awaited before the input ends, as by Kapacitor: a UDF of the Go agent
    drops an answer that is not written by then, and its server may exit.

    Raises:
        ProbeError: the answer is missing, garbled, an error, or another message.
        OSError: the connection broke, or timed out.
    """
    try:
        side.send(InfoRequest())
        response = side.receive()
    except ProtocolError as error:
        problem = f"the answer is not a UDF's: {error}"
        raise ProbeError(problem) from error
    except TimeoutError as error:
        if not side.unfinished:
            raise
        problem = f"no whole answer came in time; {side.unfinished}"
        raise ProbeError(problem) from error
    except (BrokenPipeError, ConnectionResetError) as error:
        problem = "the UDF closed the connection without an answer; its log may say why"
        raise ProbeError(problem) from error
    match response:
        case InfoResponse():
            return response
        case None:
            problem = "the UDF closed the connection without an answer; its log may say why"
        case ErrorResponse():
            problem = f"the UDF answered with an error: {' '.join(response.error.split())}"
        case _:
            problem = f"the UDF answered Info with a {type(response).__name__}"
    raise ProbeError(problem)


#: What an error of connect means to the user who named the path.
_REFUSALS = {
    errno.ENOENT: "there is no such socket; is the UDF running?",
    errno.ECONNREFUSED: "connection refused; no process serves this path",
    errno.EACCES: "permission denied; the socket's mode or group keeps this user out",
    errno.EPROTOTYPE: "this is not a stream socket",
    errno.ENOTDIR: "a part of this path is not a folder",
}


def why_not_connected(path: str, error: OSError) -> str:
    """Return what an error of connect means to the user who named the path."""
    with contextlib.suppress(OSError):
        if error.errno == errno.ECONNREFUSED and not stat.S_ISSOCK(os.stat(path).st_mode):
            return "this is not a socket"
    return _REFUSALS.get(error.errno or 0, f"cannot connect: {error.strerror or error}")
