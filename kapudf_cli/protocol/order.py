"""What may follow what, in each direction.

Towards the handler the rules keep a confused peer from driving a handler out of
order. Towards Kapacitor they keep kapacitord alive: several messages that a
handler could send by mistake crash the whole daemon, every task with it, and
none of them leaves here.
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

#: Kapacitor allocates 16 bytes for each point that a BeginBatch announces, before
#: the first has come (`make([]edge.BatchPointMessage, 0, Size)` in udf/server.go).
#: 2**24 points are 256 MiB: far above a real batch, far below what kills it.
MAX_BATCH_SIZE: Final = 1 << 24


class Incoming(enum.Enum):
    """Where the conversation stands, seen from what Kapacitor has sent."""

    BEFORE_INIT = "before Init"
    READY = "outside a batch"
    IN_BATCH = "inside a batch"


_ANY_TIME = (InfoRequest, KeepaliveRequest)
_AFTER_INIT = (*_ANY_TIME, SnapshotRequest, RestoreRequest)

#: For each state, the messages that may come and the state they lead to.
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
    """Follows what Kapacitor sends, and refuses what may not come.

    Attributes:
        state: where the conversation stands.
        takes_points: whether a Point has come. From then on one may always come and
            changes nothing, so that there is no need to ask.
    """

    __slots__ = ("state", "takes_points")

    def __init__(self) -> None:
        self.state = Incoming.BEFORE_INIT
        self.takes_points = False

    def receive(self, message: type) -> None:
        """Note that a message of this class has come.

        Raises:
            UnexpectedMessageError: it may not come now.
        """
        following = INCOMING[self.state].get(message)
        if following is None:
            problem = f"a {message.__name__} may not come {self.state.value}"
            raise UnexpectedMessageError(problem)
        self.state = following
        if message is Point:
            self.takes_points = True


class OutgoingOrder:
    """Follows what a handler writes, and refuses what would break Kapacitor.

    Attributes:
        provides: the edge that the handler declared; batches fit into a batch
            edge only, and bare points into a stream only.
        in_batch: whether a batch has been begun and not ended.
        takes_points: whether a Point may be written; one changes nothing.
    """

    __slots__ = ("in_batch", "provides", "takes_points")

    def __init__(self) -> None:
        self.declare(STREAM)

    def declare(self, provides: EdgeType) -> None:
        """Begin anew, for a handler that provides this edge."""
        self.provides = provides
        self.in_batch = False
        self.takes_points = provides != BATCH

    def write(self, message: BeginBatch | Point | EndBatch) -> None:
        """Note a message of any of the three; raises as the others do."""
        if isinstance(message, Point):
            self.point()
        elif isinstance(message, BeginBatch):
            self.begin_batch(message)
        else:
            self.end_batch()

    def begin_batch(self, begin: BeginBatch) -> None:
        """Note a BeginBatch.

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
        """Note a Point.

        Raises:
            InvalidWriteError: the edge is a batch edge and no batch is open.
        """
        if not self.takes_points:
            problem = (
                "a Point outside a batch from a handler that provides batches; begin a batch first"
            )
            raise InvalidWriteError(problem)

    def end_batch(self) -> None:
        """Note an EndBatch.

        Raises:
            InvalidWriteError: no batch is open.
        """
        if not self.in_batch:
            problem = "an EndBatch without a BeginBatch before it"
            raise InvalidWriteError(problem)
        self.in_batch = False
        self.takes_points = self.provides != BATCH
