"""One connection under load: what waits to be sent, and what has come back. Never blocks."""

from __future__ import annotations

import collections
import os
import socket
import time
from typing import TYPE_CHECKING, Final

from kapudf_cli.client.pipes import PipePair
from kapudf_cli.protocol.codec import REQUESTS, RESPONSES
from kapudf_cli.protocol.errors import ProtocolError
from kapudf_cli.protocol.framing import FrameReader
from kapudf_cli.protocol.response_order import fault_of
from kapudf_cli.protocol.udf_pb2 import ErrorResponse, KeepaliveRequest
from kapudf_cli.tools.load.errors import LoadError

if TYPE_CHECKING:
    from kapudf_cli.client import Connection
    from kapudf_cli.tools.load.latencies import Latencies

#: How many answers may be outstanding, some hundred bytes each here. A socket and a UDF's
#: buffers hold a few thousand points.
_MAX_DUE: Final = 1_000_000
_READ_BYTES: Final = 256 * 1024
#: How long a UDF that has closed its end may take to exit, for its status to be told.
_LAST_WORDS_S: Final = 0.5

#: The first byte of a Response, by what it holds; see the tags in udf.proto.
POINT: Final = 0x8A
END: Final = 0x92
KEEPALIVE: Final = 0x1A
#: The second byte of the tags above that have two.
_DATA_TAG: Final = 0x01


class LoadConnection:
    """A connection that is past Init.

    Attributes:
        readable: the descriptor to wait for answers at.
        writable: the descriptor to wait for room at.
        sent: how many points were handed over.
        came: how many of each kind of message came back, by its first byte.
    """

    def __init__(self, connection: Connection, latencies: Latencies, *, answer: int) -> None:
        """Take a connection.

        Args:
            connection: past Init, with nothing on its way.
            latencies: where to count how long answers take.
            answer: what answers what is sent, by its first byte.
        """
        self._connection = connection
        self._latencies = latencies
        self._answer = answer
        self.readable, self.writable = _descriptors(connection)
        os.set_blocking(self.readable, False)
        os.set_blocking(self.writable, False)
        self._frames = FrameReader(_kind)
        self._pieces: collections.deque[memoryview] = collections.deque()
        #: When the answers that are still to come were due, with how many they are.
        self._due: collections.deque[tuple[int, int]] = collections.deque()
        self.sent = 0
        self.came: collections.Counter[int] = collections.Counter()

    @property
    def waits(self) -> bool:
        """Whether something is still to be sent, for want of room."""
        return bool(self._pieces)

    @property
    def owed(self) -> int:
        """How many answers are still to come."""
        return sum(count for _, count in self._due)

    def put(self, pieces: tuple[bytes, ...], *, points: int, due_ns: int, answers: int) -> None:
        """Send bytes, each piece with a call of its own; what finds no room waits.

        Args:
            pieces: what to send.
            points: how many points it has.
            due_ns: when it was due, by time.perf_counter_ns.
            answers: how many answers it will have.
        """
        self.sent += points
        if answers:
            self._due.append((due_ns, answers))
            if len(self._due) > _MAX_DUE:
                problem = (
                    f"{_MAX_DUE} answers of the UDF are due at once; it answered each point at "
                    "first, and seems to do so no longer"
                )
                raise LoadError(problem)
        self._pieces.extend(map(memoryview, pieces))
        self.push()

    def keepalive(self, due_ns: int, *, timed: bool) -> None:
        """Send a keepalive, whose answer is counted, and timed if that is what is."""
        frame = REQUESTS.encode(KeepaliveRequest(time=time.time_ns()))
        self.put((frame,), points=0, due_ns=due_ns, answers=1 if timed else 0)

    def push(self) -> None:
        """Send what waits, as far as there is room."""
        while self._pieces:
            try:
                written = os.write(self.writable, self._pieces[0])
            except BlockingIOError:
                return
            except OSError as error:
                raise LoadError(self._lost()) from error
            if written < len(self._pieces[0]):
                self._pieces[0] = self._pieces[0][written:]
                return
            self._pieces.popleft()

    def pull(self) -> None:
        """Take what has come back.

        Raises:
            LoadError: the UDF closed the connection, failed, or sent what is no response.
        """
        try:
            data = os.read(self.readable, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise LoadError(self._lost()) from error
        if not data:
            raise LoadError(self._lost())
        answers = 0
        try:
            for kind in self._frames.feed(data):
                if isinstance(kind, ErrorResponse):
                    text = " ".join(kind.error.split()) or "(no text)"
                    raise LoadError(f"the UDF failed the task: {text:.500}")
                self.came[kind] += 1
                answers += kind == self._answer
        except ProtocolError as error:
            raise LoadError(f"the UDF {fault_of(error)}") from error
        if answers:
            self._settle(answers)

    def _settle(self, answers: int) -> None:
        """Time answers by what was due first."""
        now_ns = time.perf_counter_ns()
        while answers and self._due:
            due_ns, count = self._due.popleft()
            taken = min(answers, count)
            self._latencies.add(now_ns - due_ns, taken)
            answers -= taken
            if taken < count:
                self._due.appendleft((due_ns, count - taken))

    def _lost(self) -> str:
        ending = self._connection.ending(_LAST_WORDS_S)
        problem = f"the UDF closed the connection after {self.sent} points"
        if ending is None:
            return f"{problem}; its log may say why"
        said = f", after saying: {ending.cause:.200}" if ending.cause else ""
        return f"{problem}; it {ending.text}{said}"


def _descriptors(connection: Connection) -> tuple[int, int]:
    duplex = connection.side.connection
    if isinstance(duplex, socket.socket):
        return duplex.fileno(), duplex.fileno()
    if isinstance(duplex, PipePair):
        return duplex.descriptors
    message = f"no load can be put on a {type(duplex).__name__}"
    raise TypeError(message)


def _kind(data: bytes, start: int, end: int) -> int | ErrorResponse:
    """Return what a response is without decoding it, but for an error.

    Raises:
        ProtocolError: it is none.
    """
    first = data[start] if end > start else 0
    if first in {POINT, END} and end - start > 1 and data[start + 1] == _DATA_TAG:
        return first
    response = RESPONSES.decode_in(data, start, end)
    return response if isinstance(response, ErrorResponse) else first
