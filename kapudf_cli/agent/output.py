"""Output of one connection: order check, duplicate suppression, backlog, send buffer, counters.

A message that a handler writes takes this way:

    order check → held back? → duplicate? → part of a skipped batch? → send buffer → stream

- **Held back.** Kapacitor takes no data before Restore. Data waits; answers do not.
- **Duplicates.** A new handler replays the input that its predecessor handled, and writes
  again what was already sent. These messages are suppressed: all of them during the
  replay, and then as many as were sent beyond it.
- **Skipped batch.** A handler need not write the same again. Where suppression ends
  inside a batch whose BeginBatch Kapacitor does not know, the rest of that batch is
  skipped: an EndBatch alone would crash kapacitord.

The thread that reads the connection's input is the owner. What other threads write
follows from no input, so it is never replayed and never suppressed; during a takeover it
is deferred until the new handler has its state.

No locks here: the outbox decides which thread may call, one at a time. The one exception
is the owner's points, see `Output.frames`.
"""

from __future__ import annotations

import collections
import enum
import math
from typing import TYPE_CHECKING, Final, NamedTuple

from kapudf_cli.handler.errors import ConnectionClosedError
from kapudf_cli.protocol.errors import InvalidWriteError
from kapudf_cli.protocol.order import OutgoingOrder
from kapudf_cli.protocol.udf_pb2 import BeginBatch, EndBatch, Point
from kapudf_cli.transport.stream import Commit

if TYPE_CHECKING:
    from kapudf_cli.protocol.codec import DataMessage, ResponseMessage
    from kapudf_cli.protocol.udf_pb2 import EdgeType
    from kapudf_cli.transport import Stream
    from kapudf_cli.transport.stream import ConnectionStats

#: Flush from this size on: as much as a read brings, so that a write call is cheap beside
#: the points in it. It also bounds what is kept for a peer that does not read.
FLUSH_BYTES: Final = 96 * 1024
#: The most that is held back or deferred, in bytes.
BACKLOG_BYTES: Final = 1024 * 1024

_DATA = frozenset({BeginBatch, Point, EndBatch})


class DataState(enum.Enum):
    """What happens to the data that a handler writes."""

    HELD = "held back until Kapacitor can take it"
    SENT = "sent"
    DROPPED = "dropped: the connection ends, and Kapacitor never asked for data"
    REFUSED = "refused: the connection has ended"


class _Written(NamedTuple):
    frame: bytes
    kind: type
    by_owner: bool


class _Backlog:
    """Messages that cannot be sent yet; the last one may exceed the limit."""

    __slots__ = ("_bytes", "messages")

    def __init__(self) -> None:
        self.messages: list[_Written] = []
        self._bytes = 0

    @property
    def is_full(self) -> bool:
        return self._bytes >= BACKLOG_BYTES

    def add(self, written: _Written) -> None:
        self.messages.append(written)
        self._bytes += len(written.frame)

    def take(self) -> list[_Written]:
        """Return all messages and empty the backlog."""
        messages, self.messages = self.messages, []
        self._bytes = 0
        return messages


class Output:
    """Checks, suppresses, holds back and buffers what is written to one connection.

    Attributes:
        data: what happens to data.
        discards: whether messages of the owner are discarded.
        defers: whether messages of threads other than the owner are deferred.
        frames: the send buffer. The owner may append a point at any time without a lock,
            if `passes_points`: a deque appends atomically, and the owner alone changes
            `owner_points`.
        size: bytes in `frames`. Approximate where several threads write; it only decides
            when to flush.
        owner_points: points that the owner appended, one by one or in runs.
        batches: EndBatch messages sent.
        bytes: bytes handed to the stream, by this agent and by those before it.
        broken: why the stream can no longer be written to; None while it can.
    """

    __slots__ = (
        "_deferred",
        "_extra_messages",
        "_held",
        "_order",
        "_other_points",
        "_sent_in_batch",
        "_skips_batch",
        "_stream",
        "_suppressed",
        "_suppressed_after_replay",
        "batches",
        "broken",
        "bytes",
        "data",
        "defers",
        "discards",
        "frames",
        "owner_points",
        "size",
    )

    def __init__(self, stream: Stream, provides: EdgeType | None) -> None:
        """Write to `stream`, with the edge that the handler is expected to provide.

        If that is None, no edge is checked.
        """
        self._stream = stream
        self._order = OutgoingOrder()
        self._order.declare(provides)
        self._held = _Backlog()
        self._deferred = _Backlog()
        self.data = DataState.HELD
        self.defers = False
        self.discards = False
        # How many of the owner's next messages are duplicates: infinitely many during a
        # replay. The second number is what applies after the replay.
        self._suppressed: float = 0
        self._suppressed_after_replay: float = 0
        # Whether the last message that Kapacitor was sent belongs to an open batch.
        # Not updated while `passes_points`; ask `sent_in_batch`.
        self._sent_in_batch = False
        self._skips_batch = False
        self.frames: collections.deque[bytes] = collections.deque()
        self.size = 0
        # The owner's messages in `frames` minus the number of frames: a run has many,
        # a frame of another thread none.
        self._extra_messages = 0
        self.owner_points = 0
        self._other_points = 0
        self.batches = 0
        self.bytes = 0
        self.broken: OSError | None = None

    # --- queries ---

    @property
    def points(self) -> int:
        """Points sent, by this agent and by those before it."""
        return self.owner_points + self._other_points

    @property
    def passes_points(self) -> bool:
        """Whether the owner's next points need no check: each goes straight to `frames`."""
        return (
            self._order.takes_points
            and self.data is DataState.SENT
            and not self._suppressed
            and not self.discards
            and not self._skips_batch
            and self.broken is None
        )

    @property
    def replays(self) -> bool:
        """Whether everything that the owner writes is suppressed and not counted."""
        return self._suppressed == math.inf and self.data is DataState.SENT

    @property
    def takes_points(self) -> bool:
        """Whether the handler may write a point now, outside of a batch or inside one."""
        return self._order.takes_points

    @property
    def is_full(self) -> bool:
        """Whether the backlog has reached its limit, so that other threads must wait."""
        return (self.data is DataState.HELD and self._held.is_full) or self._deferred.is_full

    @property
    def in_batch(self) -> bool:
        """Whether the handler has begun a batch and not ended it, sent or not."""
        return self._order.in_batch

    @property
    def sent_in_batch(self) -> bool:
        """Whether the last message that Kapacitor was sent belongs to an open batch."""
        if self._suppressed or self._skips_batch:
            return self._sent_in_batch
        return self._released_in_batch

    @property
    def _released_in_batch(self) -> bool:
        """Whether the handler has an open batch that is not held back; it may be suppressed."""
        return self._order.in_batch and self.data is DataState.SENT

    # --- messages ---

    def write(self, message: DataMessage, frame: bytes, *, by_owner: bool) -> None:
        """Accept a message of the handler.

        Args:
            message: a point, or the begin or end of a batch.
            frame: the same, encoded.
            by_owner: whether the owner wrote it.

        Raises:
            InvalidWriteError: it may not come now, or the backlog is full.
        """
        if self.data is DataState.HELD and self._held.is_full:
            problem = (
                f"more than {BACKLOG_BYTES} bytes of data before Kapacitor can take any; "
                "write them once the first point or batch has come"
            )
            raise InvalidWriteError(problem)
        self._order.write(message)
        written = _Written(frame, type(message), by_owner)
        if self.data is DataState.HELD:
            self._held.add(written)
        elif self.data is DataState.SENT:
            self._release(written)

    def write_replayed_point(self) -> None:
        """Accept a point of the owner while `replays`, without its bytes.

        Raises:
            InvalidWriteError: it may not come now.
        """
        self._order.point()

    def write_run(self, frames: bytes, count: int) -> None:
        """Accept points of the owner in one piece, while `passes_points`."""
        self.frames.append(frames)
        self.size += len(frames)
        self.owner_points += count
        self._extra_messages += count - 1

    def answer(self, kind: type[ResponseMessage], frame: bytes) -> None:
        """Accept the owner's answer to a request."""
        self._release(_Written(frame, kind, by_owner=True))

    def add(self, frame: bytes, *, by_owner: bool) -> None:
        """Put a frame into the send buffer, whatever else is suppressed or skipped."""
        self.frames.append(frame)
        self.size += len(frame)
        self._extra_messages -= not by_owner

    def _release(self, written: _Written) -> None:
        """Send a message that is not held back, unless it is deferred, suppressed or skipped."""
        if self.defers and not written.by_owner:
            self._deferred.add(written)
        elif written.by_owner and self.discards:
            pass
        elif written.by_owner and self._suppressed:
            if self._suppressed != math.inf:
                # The agent that sent it did not count it as stats.
                self._count(written.kind)
                self.bytes += len(written.frame)
            self._suppressed -= 1
            self._skip_unknown_batch()
        elif self._skips_batch and written.kind in _DATA:
            if written.kind is EndBatch:
                self._skips_batch = False
        else:
            self._send(written)

    def _send(self, written: _Written) -> None:
        self._count(written.kind)
        self.add(written.frame, by_owner=written.by_owner)

    def _count(self, kind: type) -> None:
        if kind is Point:
            self._other_points += 1
        elif kind is EndBatch:
            self.batches += 1

    # --- data ---

    def declare(self, provides: EdgeType) -> None:
        """Check what is written from now on against this edge, if edges are checked.

        Raises:
            InvalidWriteError: data of another edge is held back.
        """
        if self._order.provides is None:
            return
        if provides != self._order.provides and self._held.messages:
            problem = "data before Init, for another edge than the one that info() declares"
            raise InvalidWriteError(problem)
        self._order.declare(provides)

    def send_data(self) -> None:
        """Send the data held back so far and all that follows."""
        if self.data is DataState.HELD:
            self.data = DataState.SENT
            for written in self._held.take():
                self._release(written)

    def drop_data(self) -> None:
        """Drop data held back, and all that follows: Kapacitor never asked for any."""
        if self.data is DataState.HELD:
            self._held.take()
            self.data = DataState.DROPPED

    def refuse_data(self) -> None:
        """Drop data held back and refuse all that follows: the connection has ended."""
        self._held.take()
        self.data = DataState.REFUSED

    def abandon_batch(self) -> None:
        """Forget the open batch, which will not be ended; Kapacitor drops it at the next begin."""
        if self._order.in_batch:
            self._order.declare(self._order.provides)
            self._skips_batch = False

    # --- duplicates: the input is replayed for a new handler ---

    def suppress(self) -> None:
        """Suppress all that the owner writes until `stop_suppressing` or `suppress_next`."""
        self._sent_in_batch = self.sent_in_batch
        if self._suppressed != math.inf:
            self._suppressed_after_replay = self._suppressed
        self._suppressed = math.inf
        self._skips_batch = False
        self._held.take()
        self.data = DataState.HELD
        self._order.declare(self._order.provides)

    def stop_suppressing(self) -> None:
        """End a replay in the agent that sent the first output itself."""
        self._suppressed = self._suppressed_after_replay
        self._skip_unknown_batch()

    def suppress_next(self, messages: int, *, in_batch: bool, stats: ConnectionStats) -> None:
        """End a replay in an agent that takes over: suppress so many more messages.

        Args:
            messages: how many of the owner's next messages were sent already.
            in_batch: whether the last of them belongs to a batch that has not ended.
            stats: what the connection had done before them; counted on from there.
        """
        self._other_points += stats.points_out
        self.batches += stats.batches_out
        self.bytes += stats.bytes_out
        self._suppressed = messages
        self._sent_in_batch = in_batch
        self._skip_unknown_batch()

    def _skip_unknown_batch(self) -> None:
        """Where suppression ends, skip the open batch if Kapacitor was not sent its begin."""
        if not self._suppressed:
            self._skips_batch = self._released_in_batch and not self._sent_in_batch

    def defer_others(self) -> None:
        """Defer what other threads write: output of the previous agent goes out first.

        They must not wait instead, for the handler may wait for them during the replay.
        """
        self.defers = True

    def send_deferred(self) -> None:
        """Send what was deferred, and from now on what other threads write."""
        self.defers = False
        for written in self._deferred.take():
            # It was written before a batch that is skipped now, and is no part of it.
            self._send(written)

    # --- the stream ---

    def flush(self, stats: ConnectionStats | None = None, *, forget_input: bool = False) -> None:
        """Hand everything to the stream, waiting while the peer does not read.

        Args:
            stats: how much input was handled; None in the middle of a read.
            forget_input: whether the handler needs none of the input again.

        Raises:
            ConnectionClosedError: the connection broke.
        """
        # The owner may append while another thread takes. Only what was there is taken and
        # counted: a message counted too early would be lost if this process died.
        self.size = 0
        taken = [self.frames.popleft() for _ in range(len(self.frames))]
        messages = len(taken) + self._extra_messages
        self._extra_messages = 0
        data = b"".join(taken)
        # With stats, the number is of duplicates still to come; it is finite then.
        number = messages if stats is None else int(self._suppressed)
        try:
            if self.broken is not None:
                raise self.broken
            if data or stats is not None:
                forget_input = forget_input and not self._order.in_batch
                self._stream.write(data, Commit(number, self.sent_in_batch, stats, forget_input))
        except OSError as error:
            self.broken = error
            problem = f"Kapacitor closed the connection ({error.strerror or error})"
            raise ConnectionClosedError(problem) from error
        self.bytes += len(data)
