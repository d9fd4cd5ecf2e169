"""Kapacitor's side of a connection to a UDF in any language: sends and receives messages.

It does not check their order. One thread does everything: queued requests are sent while the
caller waits for responses. `session.py` builds the life of a task on it.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import select
import socket
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, Self, TypeAlias

from kapudf_cli.client.errors import ProbeError
from kapudf_cli.protocol.codec import REQUESTS, RESPONSES
from kapudf_cli.protocol.errors import ProtocolError
from kapudf_cli.protocol.framing import DEFAULT_MAX_FRAME_BYTES, HEARTBEAT_TIME, FrameReader
from kapudf_cli.protocol.udf_pb2 import ErrorResponse, InfoRequest, InfoResponse, KeepaliveResponse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from kapudf_cli.protocol.codec import RequestMessage, ResponseMessage

_READ_BYTES = 64 * 1024
#: Queued requests are sent in pieces of about this size.
_PIECE_BYTES = 64 * 1024
#: How much of an unfinished frame an error message shows.
_SHOWN_BYTES = 40
#: How long to wait before another attempt to connect while the UDF's backlog is full.
_RETRY_S = 0.02


class Duplex(Protocol):
    """A byte stream in both directions: a connected stream socket, or two pipes."""

    def send(self, data: bytes | memoryview, flags: int = 0, /) -> int:
        """Send as much of `data` as there is room for, and return how much that was."""

    def recv(self, bufsize: int, /) -> bytes:
        """Return up to `bufsize` bytes; b"" at the end."""

    def fileno(self) -> int:
        """Return the descriptor that `recv` reads."""

    def shutdown(self, how: int, /) -> None:
        """End one direction."""

    def close(self) -> None:
        """Release it."""


class Source(Protocol):
    """Frames to send, which are produced while sending.

    Attributes:
        descriptor: readable while `take` has something; None if `take` never returns b"".
    """

    descriptor: int | None

    def take(self) -> bytes | None:
        """Return whole frames, b"" if there are none yet, None after the last."""


class Event(enum.Enum):
    """A result of `KapacitorSide.step` that is not a response."""

    #: All queued requests are sent.
    SENT = enum.auto()
    #: The UDF closed the connection.
    CLOSED = enum.auto()


Step: TypeAlias = "ResponseMessage | Literal[Event.SENT, Event.CLOSED]"


class KapacitorSide:
    """Kapacitor's side of one connection to a UDF.

    Every wait is limited: `timeout_s` starts with the creation of the object or the last `extend`.
    """

    def __init__(self, connection: Duplex, *, timeout_s: float) -> None:
        """Take ownership of a connected stream socket, or pipes."""
        self._socket = connection
        self._frames = FrameReader(RESPONSES.decode_in, DEFAULT_MAX_FRAME_BYTES)
        self._arrived: Iterator[ResponseMessage] = iter(())
        # The queue: the piece that is being sent, urgent requests, and all others.
        self._piece = memoryview(b"")
        self._urgent = b""
        self._sources: list[Source] = []
        # Whether `step` has reported that all is sent.
        self._sent = True
        self.extend(timeout_s)

    @classmethod
    def connect(cls, path: str, *, timeout_s: float) -> Self:
        """Connect to the UDF's socket.

        Raises:
            OSError: there is no socket, no process serves it, or permission is denied.
            TimeoutError: its backlog of connections stayed full.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.settimeout(timeout_s)
                connection.connect(path)
            except BlockingIOError:
                # With a full backlog, connecting to a Unix socket fails and does not wait.
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
        """Close the connection; a thread that waits for it returns."""
        if isinstance(self._socket, socket.socket):
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    @property
    def connection(self) -> Duplex:
        """The byte stream; it belongs to this object."""
        return self._socket

    @property
    def descriptors(self) -> tuple[int, int]:
        """The descriptors that responses are read from and requests are written to."""
        return self._socket.fileno(), _write_descriptor(self._socket)

    @property
    def unfinished(self) -> str:
        """A description of the incomplete response received so far; "" for none."""
        came = self._frames.rest
        if not came:
            return ""
        return f"{len(came)} bytes came that are not a whole frame: {came[:_SHOWN_BYTES]!r}"

    @property
    def has_unsent(self) -> bool:
        """Whether queued requests are not sent yet."""
        return bool(self._piece or self._urgent or self._sources)

    def extend(self, timeout_s: float) -> None:
        """Let all following calls together take up to `timeout_s` seconds from now."""
        self._deadline = time.monotonic() + timeout_s

    # --- sending ---

    def send(self, message: RequestMessage) -> None:
        """Send one request; raises as `send_bytes` does."""
        self.send_bytes(REQUESTS.encode(message))

    def send_bytes(self, data: bytes) -> None:
        """Send any bytes, after all queued requests.

        Raises:
            TimeoutError: the UDF did not read them in time.
            OSError: the connection broke.
        """
        while self._fill():
            self._piece = self._piece[self._write(self._piece) :]
        rest = memoryview(data)
        while rest:
            rest = rest[self._write(rest) :]

    def queue(self, requests: Iterable[RequestMessage] | Source) -> None:
        """Queue requests, which are sent while responses are awaited."""
        self._sources.append(_Requests(requests) if isinstance(requests, Iterable) else requests)
        self._sent = False

    def queue_urgent(self, request: RequestMessage) -> None:
        """Queue a request before all others, except for the piece that is being sent."""
        self._urgent += REQUESTS.encode(request)
        self._sent = False

    def drop_queue(self) -> None:
        """Drop queued requests, except for the piece that is being sent."""
        self._urgent = b""
        self._sources.clear()

    def push(self) -> None:
        """Send queued requests until there is no more room; do not wait."""
        while self._fill():
            left = len(self._piece)
            self._push()
            if len(self._piece) == left:
                return

    def half_close(self) -> None:
        """End the UDF's input, as Kapacitor does when a task ends."""
        self._socket.shutdown(socket.SHUT_WR)

    # --- receiving ---

    def receive(self) -> ResponseMessage | None:
        """Wait for the next response, except heartbeats; return None once the UDF has closed.

        Raises:
            ProtocolError: invalid bytes came, or the end inside a response.
            TimeoutError: nothing came in time.
            OSError: the connection broke.
        """
        while (step := self._step_in_time()) is Event.SENT or _is_heartbeat(step):
            pass
        return None if isinstance(step, Event) else step

    def receive_within(self, timeout_s: float) -> ResponseMessage | None:
        """Wait like `receive`, with this timeout, which any response restarts."""
        while (step := self.step(timeout_s)) is Event.SENT or _is_heartbeat(step):
            pass
        return None if isinstance(step, Event) else step

    def responses(self) -> Iterator[ResponseMessage]:
        """Yield every response until the UDF closes; raises as `receive` does."""
        while (response := self.receive()) is not None:
            yield response

    def _step_in_time(self) -> Step:
        """Call `step` before the deadline; heartbeats do not extend it."""
        left_s = self._left_s
        if left_s <= 0:
            raise TimeoutError(errno.ETIMEDOUT, "timed out")
        return self.step(left_s)

    def step(self, timeout_s: float) -> Step:
        """Send queued requests until a response comes, all are sent, or the UDF closes.

        Raises as `receive` does.
        """
        deadline = time.monotonic() + timeout_s
        while (response := next(self._arrived, None)) is None:
            sending = self._fill()
            if not self._sent and not self.has_unsent:
                self._sent = True
                return Event.SENT
            ours = theirs = self._socket.fileno()
            poll = select.poll()
            poll.register(ours, select.POLLIN)
            if sending:
                theirs = _write_descriptor(self._socket)
                both = select.POLLIN | select.POLLOUT
                poll.register(theirs, both if theirs == ours else select.POLLOUT)
            elif self._sources and self._sources[0].descriptor is not None:
                poll.register(self._sources[0].descriptor, select.POLLIN)
            ready = dict(poll.poll(max(deadline - time.monotonic(), 0.0) * 1000))
            if not ready:
                raise TimeoutError(errno.ETIMEDOUT, "timed out")
            if sending and ready.get(theirs, 0) & ~select.POLLIN:
                self._push()
            if ready.get(ours, 0) & ~select.POLLOUT:
                data = self._socket.recv(_READ_BYTES)
                if not data:
                    self._frames.finish()
                    return Event.CLOSED
                self._arrived = self._frames.feed(data)
        return response

    def _fill(self) -> bool:
        """Take the next piece from the queue; return whether there is one to send."""
        while not self._piece and (self._urgent or self._sources):
            if self._urgent:
                self._piece, self._urgent = memoryview(self._urgent), b""
                break
            piece = self._sources[0].take()
            if piece is None:
                del self._sources[0]
            elif piece:
                self._piece = memoryview(piece)
            else:
                break
        return bool(self._piece)

    def _push(self) -> None:
        """Send a part of the piece."""
        try:
            self._piece = self._piece[self._socket.send(self._piece, socket.MSG_DONTWAIT) :]
        except BlockingIOError:
            return
        except OSError:
            # The UDF no longer reads. Its last responses or its end give the reason.
            self._piece = memoryview(b"")
            self.drop_queue()

    def _write(self, data: memoryview) -> int:
        """Wait for room, send a part of `data`, and return how much."""
        poll = select.poll()
        poll.register(_write_descriptor(self._socket), select.POLLOUT)
        if not poll.poll(max(self._left_s, 0.0) * 1000):
            raise TimeoutError(errno.ETIMEDOUT, "timed out")
        with contextlib.suppress(BlockingIOError):
            return self._socket.send(data, socket.MSG_DONTWAIT)
        return 0

    @property
    def _left_s(self) -> float:
        return self._deadline - time.monotonic()


class _Requests:
    """A `Source` that iterates over requests, which must not block."""

    descriptor: int | None = None

    def __init__(self, requests: Iterable[RequestMessage]) -> None:
        self._requests = iter(requests)

    def take(self) -> bytes | None:
        piece = bytearray()
        for request in self._requests:
            piece += REQUESTS.encode(request)
            if len(piece) >= _PIECE_BYTES:
                break
        return bytes(piece) or None


def _write_descriptor(connection: Duplex) -> int:
    return getattr(connection, "write_descriptor", connection.fileno)()


def _is_heartbeat(step: Step) -> bool:
    """Return whether this is a heartbeat of a busy UDF, which Kapacitor drops."""
    return isinstance(step, KeepaliveResponse) and step.time == HEARTBEAT_TIME


@dataclass(frozen=True)
class Answer:
    """A UDF's answer to Info, and the time from connect to answer."""

    info: InfoResponse
    round_trip_s: float


def probe(path: str, *, timeout_s: float) -> Answer:
    """Send Info to the UDF at a socket, as Kapacitor does at its start.

    Raises:
        ProbeError: the answer is missing or invalid.
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

    It waits for the answer before it ends the input, as Kapacitor does: at the end of the input,
    UDFs of the Go agent drop unsent answers, and their server may exit.

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


#: The error messages for errors of connect.
_REFUSALS = {
    errno.ENOENT: "there is no such socket; is the UDF running?",
    errno.ECONNREFUSED: "connection refused; no process serves this path, or it is still starting",
    errno.EACCES: "permission denied; the socket's mode or group keeps this user out",
    errno.EPROTOTYPE: "this is not a stream socket",
    errno.ENOTDIR: "a part of this path is not a folder",
}


def why_not_connected(path: str, error: OSError) -> str:
    """Return the error message for an error of connect."""
    with contextlib.suppress(OSError):
        if error.errno == errno.ECONNREFUSED and not stat.S_ISSOCK(os.stat(path).st_mode):
            return "this is not a socket"
    return _REFUSALS.get(error.errno or 0, f"cannot connect: {error.strerror or error}")
