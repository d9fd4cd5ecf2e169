"""Checks the messages of any UDF, and tells what Kapacitor would do about invalid ones.

`OutgoingOrder` keeps our own handlers from sending invalid messages. This module is for
testing other UDFs. What Kapacitor does follows from handleResponse in its udf/server.go, and
was tried with a kapacitord.
"""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Final

from kapudf_cli.protocol.errors import (
    EmptyMessageError,
    FrameTooLongError,
    ProtocolError,
    ResponseFaultError,
    VarintTooLongError,
)
from kapudf_cli.protocol.order import MAX_BATCH_SIZE
from kapudf_cli.protocol.udf_pb2 import (
    BATCH,
    STREAM,
    BeginBatch,
    EndBatch,
    InfoRequest,
    InfoResponse,
    InitRequest,
    InitResponse,
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
