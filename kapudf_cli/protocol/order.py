"""The order of messages, in each direction.

From Kapacitor: the rules protect handlers from a faulty peer. To Kapacitor: they protect
kapacitord. Several messages that a handler could send by mistake crash the whole daemon,
with all tasks. These are never sent.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from kapudf_cli.protocol.errors import InvalidWriteError, UnexpectedMessageError
from kapudf_cli.protocol.udf_pb2 import (
    BATCH,
    STREAM,
    BeginBatch,
    EndBatch,
    InfoRequest,
    InitRequest,
    KeepaliveRequest,
    Point,
    RestoreRequest,
    SnapshotRequest,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kapudf_cli.protocol.udf_pb2 import EdgeType

#: Kapacitor allocates 16 bytes for each point that a BeginBatch announces, before the first
#: one arrives (`make([]edge.BatchPointMessage, 0, Size)` in udf/server.go). 2**24 points are
#: 256 MiB: far above a real batch, far below what crashes kapacitord.
MAX_BATCH_SIZE: Final = 1 << 24


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
            batches for STREAM.
        in_batch: whether a batch has been begun and not ended.
        takes_points: whether a Point may be written. A Point does not change the state.
    """

    __slots__ = ("in_batch", "provides", "takes_points")

    def __init__(self) -> None:
        self.declare(STREAM)

    def declare(self, provides: EdgeType) -> None:
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
        if self.in_batch:
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
