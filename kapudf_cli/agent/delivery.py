"""What becomes of each message: it leaves, is held back, deferred, muted or left out.

Nothing here knows of threads. Which of them may write, which waits and which flushes is
for the outbox to say, and it calls one at a time.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from kapudf_cli.agent.backlog import BACKLOG_BYTES, Backlog, Written
from kapudf_cli.agent.muting import Muting
from kapudf_cli.errors import InvalidWriteError
from kapudf_cli.wire.conversation import OutgoingOrder
from kapudf_cli.wire.udf_pb2 import BeginBatch, EndBatch, Point

if TYPE_CHECKING:
    from kapudf_cli.agent.departures import Departures
    from kapudf_cli.streams.progress import Progress
    from kapudf_cli.wire.codec import DataMessage, ResponseMessage
    from kapudf_cli.wire.udf_pb2 import EdgeType

#: What a batch is made of, and what is no answer.
_DATA = frozenset({BeginBatch, Point, EndBatch})


class Data(enum.Enum):
    """What becomes of the data that a handler writes."""

    HELD = "kept until Kapacitor can take it"
    SENT = "sent"
    DROPPED = "dropped: the connection ends without Kapacitor having asked for any"
    REFUSED = "refused: the connection has ended"


class Delivery:
    """Checks messages, and lets them out to the departures in the order of the writes.

    Data is held back until `send_data`; answers never are. Where input is repeated, what
    the owner writes over it is muted: it was sent the first time. The owner is the thread
    that reads the input; what other threads write follows from no input, is never repeated
    and never muted.

    Attributes:
        data: what becomes of data.
        defers: whether what other threads write is kept.
        points: points sent, apart from those that the departures count by themselves.
        batches: batches sent whole, their ends counted.
    """

    __slots__ = (
        "_deferred",
        "_departures",
        "_held",
        "_muting",
        "_order",
        "batches",
        "data",
        "defers",
        "points",
    )

    def __init__(self, departures: Departures, provides: EdgeType) -> None:
        """Let out to `departures` what is of an edge, until another is declared."""
        self._departures = departures
        self._order = OutgoingOrder()
        self._order.declare(provides)
        self._muting = Muting()
        self._held = Backlog()
        self._deferred = Backlog()
        self.data = Data.HELD
        self.defers = False
        self.points = 0
        self.batches = 0

    # --- what it would do with a message ---

    @property
    def lets_points_out(self) -> bool:
        """Whether the owner's points leave, whatever they are: nothing else is done to them."""
        return self._order.takes_points and self.data is Data.SENT and self._muting.is_over

    @property
    def mutes_all(self) -> bool:
        """Whether whatever the owner writes goes nowhere and is not counted."""
        return self._muting.is_endless and self.data is Data.SENT

    @property
    def is_full(self) -> bool:
        """Whether as much is held back or deferred as may be."""
        return (self.data is Data.HELD and self._held.is_full) or self._deferred.is_full

    # --- what it has done ---

    @property
    def in_batch(self) -> bool:
        """Whether a batch was begun, be it held back or muted, and not ended."""
        return self._order.in_batch

    @property
    def sent_in_batch(self) -> bool:
        """Whether the last message that was sent is of a batch that has not ended."""
        return self._muting.sent_in_batch(in_batch=self._released_in_batch)

    @property
    def muted(self) -> float:
        """How many messages are still to be muted, infinitely many while `mute` is in force."""
        return self._muting.messages

    @property
    def _released_in_batch(self) -> bool:
        """Whether a batch was begun, held back no more but perhaps muted, and not ended."""
        return self._order.in_batch and self.data is Data.SENT

    # --- messages ---

    def write(self, message: DataMessage, frame: bytes, *, by_owner: bool) -> None:
        """Take a handler's message.

        Raises:
            InvalidWriteError: it may not come now, or there is no room to hold it back.
        """
        if self.data is Data.HELD and self._held.is_full:
            problem = (
                f"more than {BACKLOG_BYTES} bytes of data before Kapacitor can take any; "
                "write them once the first point or batch has come"
            )
            raise InvalidWriteError(problem)
        self._order.write(message)
        written = Written(frame, type(message), by_owner)
        if self.data is Data.HELD:
            self._held.add(written)
        elif self.data is Data.SENT:
            self._release(written)

    def mute_point(self) -> None:
        """Take a point of the owner's while `mutes_all`.

        Raises:
            InvalidWriteError: it may not come now.
        """
        self._order.point()

    def answer(self, kind: type[ResponseMessage], frame: bytes) -> None:
        """Take an answer to a request, which is the owner's."""
        self._release(Written(frame, kind, by_owner=True))

    def _release(self, written: Written) -> None:
        """Let a message out that is not held back, unless it was sent before or may not be."""
        if self.defers and not written.by_owner:
            self._deferred.add(written)
        elif written.by_owner and self._muting.messages:
            self._mute(written)
        elif self._muting.leaves_out and written.kind in _DATA:
            # It is of the batch that is begun, of which Kapacitor knows no begin.
            if written.kind is EndBatch:
                self._muting.end_batch()
        else:
            self._send(written)

    def _mute(self, written: Written) -> None:
        """Keep a message back for good, and count it as sent by the outbox that did."""
        if not self._muting.is_endless:
            self._count(written.kind)
            self._departures.bytes += len(written.frame)
        self._muting.mute_one(in_batch=self._released_in_batch)

    def _send(self, written: Written) -> None:
        self._count(written.kind)
        self._departures.add(written.frame, by_owner=written.by_owner)

    def _count(self, kind: type) -> None:
        if kind is Point:
            self.points += 1
        elif kind is EndBatch:
            self.batches += 1

    # --- data ---

    def declare(self, provides: EdgeType) -> None:
        """Check what is written from now on against an edge.

        Raises:
            InvalidWriteError: data of another edge is held back.
        """
        if provides != self._order.provides and self._held:
            problem = "data before Init, for another edge than the one that info() declares"
            raise InvalidWriteError(problem)
        self._order.declare(provides)

    def send_data(self) -> None:
        """Let out the data held back so far, and whatever follows."""
        if self.data is Data.HELD:
            self.data = Data.SENT
            for written in self._held.take():
                self._release(written)

    def drop_data(self) -> None:
        """Drop what is held back, and whatever follows: nobody has asked for data."""
        if self.data is Data.HELD:
            self._held.take()
            self.data = Data.DROPPED

    def refuse_data(self) -> None:
        """Drop what is held back, and have no more of it: the connection has ended."""
        self._held.take()
        self.data = Data.REFUSED

    def abandon_batch(self) -> None:
        """Forget the batch that is begun and will not be ended; Kapacitor drops it at the next."""
        if self._order.in_batch:
            self._order.declare(self._order.provides)
            self._muting.end_batch()

    # --- input that is repeated ---

    def mute(self) -> None:
        """Mute whatever the owner writes, as if nothing had been said yet."""
        self._muting.begin(in_batch=self._released_in_batch)
        self._held.take()
        self.data = Data.HELD
        self._order.declare(self._order.provides)

    def unmute(self) -> None:
        """Send what comes from now on, after what was sent before `mute`."""
        self._muting.end(in_batch=self._released_in_batch)

    def unmute_after(self, messages: int, *, in_batch: bool, progress: Progress) -> None:
        """Mute so many more messages, which another outbox has sent, and send what follows.

        Args:
            messages: how many of what is written next were sent already.
            in_batch: whether the last one sent is of a batch that has not ended.
            progress: what was sent before them.
        """
        self.points += progress.points_out
        self.batches += progress.batches_out
        self._departures.bytes += progress.bytes_out
        self._muting.end_after(messages, sent_in_batch=in_batch, in_batch=self._released_in_batch)

    def defer(self) -> None:
        """Keep what other threads write until `undefer`; what another outbox left comes first.

        A handler may wait for such a thread while its input is repeated, so that it must
        not wait here.
        """
        self.defers = True

    def undefer(self) -> None:
        """Let out what was kept, and whatever other threads write from now on."""
        self.defers = False
        for written in self._deferred.take():
            # It was written before a batch that is left out now, and is no part of it.
            self._send(written)
