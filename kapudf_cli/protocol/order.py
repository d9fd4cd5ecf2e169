"""The order of messages, in each direction.

`IncomingOrder`, from Kapacitor: the rules protect handlers from a faulty peer.

`OutgoingOrder`, to Kapacitor: they protect kapacitord. Several messages that a handler could
send by mistake crash the whole daemon, with all tasks. These are never sent.

`ResponseOrder` is for testing other UDFs: it tells what Kapacitor would do about a message. That
follows from handleResponse in its udf/server.go, and was tried with a kapacitord.
"""

from __future__ import annotations

import collections
import enum
from typing import TYPE_CHECKING, Final

from kapudf_cli.protocol.errors import (
    EmptyMessageError,
    FrameTooLongError,
    InvalidWriteError,
    ProtocolError,
    ResponseFaultError,
    UnexpectedMessageError,
    VarintTooLongError,
)
from kapudf_cli.protocol.udf_pb2 import (
    BATCH,
    STREAM,
    BeginBatch,
    EndBatch,
    InfoRequest,
    InfoResponse,
    InitRequest,
    InitResponse,
    KeepaliveRequest,
    Point,
    RestoreRequest,
    RestoreResponse,
    SnapshotRequest,
    SnapshotResponse,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kapudf_cli.protocol.codec import RequestMessage, ResponseMessage
    from kapudf_cli.protocol.udf_pb2 import EdgeType

#: Kapacitor allocates 16 bytes for each point that a BeginBatch announces, before the first
#: one arrives (`make([]edge.BatchPointMessage, 0, Size)` in udf/server.go). 2**24 points are
#: 256 MiB: far above a real batch, far below what crashes kapacitord.
MAX_BATCH_SIZE: Final = 1 << 24

_CRASH: Final = "kapacitord would crash, and every task with it"
_UNREQUESTED: Final = (
    "Kapacitor drops it, or takes it for the answer to its next request of that kind"
)
_LOST: Final = "Kapacitor would drop the points that it has collected"

#: The answer to each request. Keepalives may be answered at any time.
_ANSWERS: Final[Mapping[type, type]] = {
    InfoRequest: InfoResponse,
    InitRequest: InitResponse,
    SnapshotRequest: SnapshotResponse,
    RestoreRequest: RestoreResponse,
}


class Incoming(enum.Enum):
    """The state of the conversation, by what Kapacitor has sent."""

    BEFORE_INIT = "before Init"
    READY = "outside a batch"
    IN_BATCH = "inside a batch"


_ANY_TIME = (InfoRequest, KeepaliveRequest)
_AFTER_INIT = (*_ANY_TIME, SnapshotRequest, RestoreRequest)

#: For each state, the messages that are allowed and the state that follows.
INCOMING: Final[Mapping[Incoming, Mapping[type, Incoming]]] = {
    Incoming.BEFORE_INIT: {
        **dict.fromkeys(_ANY_TIME, Incoming.BEFORE_INIT),
        InitRequest: Incoming.READY,
    },
    Incoming.READY: {
        **dict.fromkeys(_AFTER_INIT, Incoming.READY),
        Point: Incoming.READY,
        BeginBatch: Incoming.IN_BATCH,
    },
    Incoming.IN_BATCH: {
        **dict.fromkeys(_AFTER_INIT, Incoming.IN_BATCH),
        Point: Incoming.IN_BATCH,
        EndBatch: Incoming.READY,
    },
}


class IncomingOrder:
    """Checks the order of messages from Kapacitor.

    Attributes:
        state: the state of the conversation.
        takes_points: whether a Point has come. Further points are always allowed and do not
            change the state, so they need no check.
    """

    __slots__ = ("state", "takes_points")

    def __init__(self) -> None:
        self.state = Incoming.BEFORE_INIT
        self.takes_points = False

    def receive(self, message: type) -> None:
        """Update the state after a message of this class.

        Raises:
            UnexpectedMessageError: it is not allowed now.
        """
        following = INCOMING[self.state].get(message)
        if following is None:
            problem = f"a {message.__name__} may not come {self.state.value}"
            raise UnexpectedMessageError(problem)
        self.state = following
        if message is Point:
            self.takes_points = True


class OutgoingOrder:
    """Checks the messages that a handler writes.

    Attributes:
        provides: the edge that the handler declared: batches for BATCH, points outside of
            batches for STREAM. None if anything may be written that kapacitord accepts.
        in_batch: whether a batch has been begun and not ended.
        takes_points: whether a Point may be written. A Point does not change the state.
    """

    __slots__ = ("in_batch", "provides", "takes_points")

    def __init__(self) -> None:
        self.declare(STREAM)

    def declare(self, provides: EdgeType | None) -> None:
        """Reset the state, for a handler that provides this edge."""
        self.provides = provides
        self.in_batch = False
        self.takes_points = provides != BATCH

    def write(self, message: BeginBatch | Point | EndBatch) -> None:
        """Check a message and update the state. Raises as the methods below do."""
        if isinstance(message, Point):
            self.point()
        elif isinstance(message, BeginBatch):
            self.begin_batch(message)
        else:
            self.end_batch()

    def begin_batch(self, begin: BeginBatch) -> None:
        """Check a BeginBatch and update the state.

        Raises:
            InvalidWriteError: a batch is open, the edge is a stream, or the
                size is negative or above MAX_BATCH_SIZE.
        """
        if self.in_batch and self.provides is not None:
            problem = "a BeginBatch inside a batch; end the open batch first"
            raise InvalidWriteError(problem)
        if self.provides == STREAM:
            problem = (
                "a BeginBatch from a handler that provides a stream; declare that it provides BATCH"
            )
            raise InvalidWriteError(problem)
        if not 0 <= begin.size <= MAX_BATCH_SIZE:
            problem = (
                f"a BeginBatch of size {begin.size}; it must be 0 (unknown) to {MAX_BATCH_SIZE}"
            )
            raise InvalidWriteError(problem)
        self.in_batch = self.takes_points = True

    def point(self) -> None:
        """Check a Point.

        Raises:
            InvalidWriteError: the edge is a batch edge and no batch is open.
        """
        if not self.takes_points:
            problem = (
                "a Point outside a batch from a handler that provides batches; begin a batch first"
            )
            raise InvalidWriteError(problem)

    def end_batch(self) -> None:
        """Check an EndBatch and update the state.

        Raises:
            InvalidWriteError: no batch is open.
        """
        if not self.in_batch:
            problem = "an EndBatch without a BeginBatch before it"
            raise InvalidWriteError(problem)
        self.in_batch = False
        self.takes_points = self.provides != BATCH


class ResponseOrder:
    """Checks what a UDF sends on one connection.

    Attributes:
        in_batch: whether the UDF has begun a batch and not ended it.
    """

    def __init__(self, provides: EdgeType | None = None) -> None:
        """Check a UDF that provides this edge; None if that is unknown."""
        self.in_batch = False
        self._provides = provides
        self._awaited: collections.Counter[type] = collections.Counter()

    def send(self, request: RequestMessage) -> None:
        """Record a request that was sent to the UDF."""
        answer = _ANSWERS.get(type(request))
        if answer is not None:
            self._awaited[answer] += 1

    def receive(self, response: ResponseMessage) -> None:
        """Check a message from the UDF.

        Raises:
            ResponseFaultError: it is not allowed, or not now.
        """
        kind = type(response)
        match response:
            case InfoResponse() | InitResponse() | SnapshotResponse() | RestoreResponse():
                if not self._awaited[kind]:
                    raise ResponseFaultError(
                        f"sent {_a(kind)} that was not requested", _UNREQUESTED
                    )
                self._awaited[kind] -= 1
            case BeginBatch():
                self._begin(response)
            case Point():
                if self._provides == BATCH and not self.in_batch:
                    problem = "sent a Point outside a batch, and provides batches"
                    raise ResponseFaultError(problem, "the task's next node expects batches")
            case EndBatch():
                if not self.in_batch:
                    problem = "sent an EndBatch without a BeginBatch before it"
                    raise ResponseFaultError(problem, _CRASH)
                self.in_batch = False

    def finish(self) -> None:
        """Check the end of the UDF's output.

        Raises:
            ResponseFaultError: a batch is open.
        """
        if self.in_batch:
            raise ResponseFaultError("ended inside a batch that it had begun", _LOST)

    def _begin(self, begin: BeginBatch) -> None:
        if not 0 <= begin.size <= MAX_BATCH_SIZE:
            problem = f"sent a BeginBatch of size {begin.size}, not 0 (unknown) to {MAX_BATCH_SIZE}"
            raise ResponseFaultError(problem, _CRASH)
        if self.in_batch:
            raise ResponseFaultError("sent a BeginBatch inside a batch", _LOST)
        if self._provides == STREAM:
            problem = "sent a BeginBatch, and provides a stream"
            raise ResponseFaultError(problem, "the task's next node expects points")
        self.in_batch = True


def fault_of(error: ProtocolError) -> ResponseFaultError:
    """Return the fault for bytes that are not valid, with what Kapacitor would do."""
    match error:
        case EmptyMessageError():
            fault = ResponseFaultError(f"sent {error}", _CRASH)
        case FrameTooLongError() | VarintTooLongError():
            # Kapacitor allocates a frame's length before the frame comes. Text instead of
            # frames may announce any length.
            consequence = "kapacitord allocates all of it at once, and may crash"
            fault = ResponseFaultError(f"sent bytes that are not frames: {error}", consequence)
        case _:
            consequence = "the task would fail with a read error"
            fault = ResponseFaultError(f"sent bytes that are not frames: {error}", consequence)
    fault.__cause__ = error
    return fault


def _a(kind: type) -> str:
    return f"an {kind.__name__}" if kind.__name__[0] in "AEIOU" else f"a {kind.__name__}"
