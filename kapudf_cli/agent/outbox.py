"""What leaves towards Kapacitor: checked, in order, in few writes.

The one place where messages become bytes. A handler writes through it from any
thread; the agent answers through it and flushes it when the input runs dry.
"""

from __future__ import annotations

import enum
import threading
from threading import get_ident
from typing import TYPE_CHECKING

from kapudf_cli.agent.backlog import BACKLOG_BYTES, Backlog, Written
from kapudf_cli.agent.departures import FLUSH_BYTES, Departures
from kapudf_cli.agent.muting import Muting
from kapudf_cli.errors import ConnectionClosedError, InvalidWriteError
from kapudf_cli.wire.codec import RESPONSES, decode_point, encode_point
from kapudf_cli.wire.conversation import OutgoingOrder
from kapudf_cli.wire.framing import HEARTBEAT, encode_varint
from kapudf_cli.wire.udf_pb2 import STREAM, BeginBatch, EndBatch, ErrorResponse, Point

if TYPE_CHECKING:
    from collections.abc import Callable

    from kapudf_cli.kit.patch import PointPatch
    from kapudf_cli.streams import Stream
    from kapudf_cli.streams.progress import Progress
    from kapudf_cli.wire.codec import DataMessage, ResponseMessage
    from kapudf_cli.wire.point_frames import RawPoint
    from kapudf_cli.wire.udf_pb2 import EdgeType

#: What a batch is made of, and what is no answer.
_DATA = frozenset({BeginBatch, Point, EndBatch})

#: Enough for any sentence; an exception's text can be as long as its data.
_ERROR_BYTES = 4096


class Data(enum.Enum):
    """What becomes of the data that a handler writes."""

    HELD = "kept until Kapacitor can take it"
    SENT = "sent"
    DROPPED = "dropped: the connection ends without Kapacitor having asked for any"
    REFUSED = "refused: the connection has ended"


class Outbox:
    """The way back of one connection; what a handler knows as its agent.

    Data is held back until `send_data`, since Kapacitor reads none before Init
    and Restore are answered. Answers are never held back.

    It belongs to the thread that adopts it. A write from that thread waits for the
    next flush; a write from any other thread is flushed at once, for nobody
    knows when the next flush would be.

    Where input is repeated, to give a new handler the state of an old one, what the
    own thread writes is muted: it was sent the first time.

    Attributes:
        in_hand: the undecoded point that the handler has been given, if it takes them so.
        batches: batches sent whole, their ends counted.
        failure: what another thread tried to write first and may not, None if nothing.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        max_frame_bytes: int,
        on_failure: Callable[[], None],
        provides: EdgeType = STREAM,
    ) -> None:
        """Write to `stream`.

        Args:
            stream: where the bytes go.
            max_frame_bytes: the longest frame sent, its length not counted.
            on_failure: called when another thread's write is refused.
            provides: the edge that the handler is thought to provide.
        """
        self._stream = stream
        self._max_frame_bytes = max_frame_bytes
        self._max_written_bytes = max_frame_bytes + len(encode_varint(max_frame_bytes))
        self._on_failure = on_failure
        self._owner = get_ident()
        self._order = OutgoingOrder()
        self._order.declare(provides)
        # Whether a point of the own thread may leave just so; see write_point.
        self._direct = False
        self._departures = Departures(stream)
        # What the own thread writes while input is repeated.
        self._muting = Muting()
        self._on_hold = False
        # What other threads write while input is repeated: it leaves after that.
        self._deferring = False
        self._deferred = Backlog()
        self.in_hand: RawPoint | None = None
        # Guards everything below, and the order of bytes on the stream.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._data = Data.HELD
        self._held = Backlog()
        self._other_points = 0
        self.batches = 0
        self.failure: InvalidWriteError | None = None

    # --- for handlers: see kapudf_cli.kit.handler.Writer ---

    def write_point(self, point: Point, /) -> None:
        """Send a point; see `Writer.write_point`."""
        # The hot path: the handler's own thread writes a point that may leave. It
        # takes no lock, and needs none: a deque takes an item whole, and what else
        # is touched is this thread's own. All that is special goes the long way.
        if self._direct and type(point) is Point and get_ident() == self._owner:
            frame = encode_point(point)
            size = len(frame)
            if size <= self._max_written_bytes:
                departures = self._departures
                departures.frames.append(frame)
                departures.own_points += 1
                departures.size += size
                if departures.size >= FLUSH_BYTES:
                    self.flush()
                return
        self._write(point, Point)

    def write_begin_batch(self, begin: BeginBatch, /) -> None:
        """Begin a batch; see `Writer.write_begin_batch`."""
        self._write(begin, BeginBatch)

    def write_end_batch(self, end: EndBatch, /) -> None:
        """End a batch; see `Writer.write_end_batch`."""
        self._write(end, EndBatch)

    def forward(self, raw: RawPoint, patch: PointPatch | None = None, /) -> None:
        """Send on the point in hand, as it came or patched; see `Writer.forward`."""
        # Bytes are not checked, so they must be the very ones that Kapacitor sent.
        if raw is not self.in_hand or get_ident() != self._owner:
            problem = "bytes that are not the point in hand; forward it before raw_point returns"
            raise InvalidWriteError(problem)
        if self._muting.is_endless and self._data is Data.SENT:
            # A history may be long: its points are not decoded just to be muted.
            with self._lock:
                self._order.point()
            return
        frame: bytes | None = raw
        if patch is not None:
            frame = patch.extend(raw)
        if frame is None or not self._direct or len(frame) > self._max_written_bytes:
            point = decode_point(raw)
            if patch is not None:
                patch.apply(point)
            self.write_point(point)
            return
        departures = self._departures
        departures.frames.append(frame)
        departures.own_points += 1
        departures.size += len(frame)
        if departures.size >= FLUSH_BYTES:
            self.flush()

    # --- for the agent ---

    def adopt(self) -> None:
        """Make the calling thread, which will flush, the outbox's own."""
        self._owner = get_ident()

    @property
    def points(self) -> int:
        """How many points were sent."""
        return self._departures.own_points + self._other_points

    @property
    def bytes_sent(self) -> int:
        """How many bytes were handed to the stream."""
        return self._departures.bytes

    @property
    def bytes_written(self) -> int:
        """How many bytes were sent, or are about to be."""
        return self._departures.bytes + self._departures.size

    @property
    def is_broken(self) -> bool:
        """Whether the stream can no longer be written to."""
        return self._departures.broken is not None

    @property
    def in_batch(self) -> bool:
        """Whether the handler has begun a batch and not ended it."""
        return self._order.in_batch

    def declare(self, provides: EdgeType) -> None:
        """Note which edge the handler provides; its writes are checked against it.

        Raises:
            InvalidWriteError: it has written for the other edge already.
        """
        with self._lock:
            if provides != self._order.provides and self._held:
                problem = "data before Init, for another edge than the one that info() declares"
                raise InvalidWriteError(problem)
            self._order.declare(provides)
            self._redirect()

    def send_data(self) -> None:
        """Let out the data held back so far, and whatever follows."""
        with self._lock:
            if self._data is Data.HELD:
                held = self._held.take()
                self._release(Data.SENT)
                for written in held:
                    self._queue(written)

    def drop_data(self) -> None:
        """Drop what is held back, and whatever follows: nobody has asked for data."""
        with self._lock:
            if self._data is Data.HELD:
                self._release(Data.DROPPED)

    def forward_run(self, frames: bytes, count: int) -> bool:
        """Send on points that follow each other, as they came; return whether they may leave so.

        The own thread's, for a handler that would forward each of them by itself. What
        is flushed for it is what came before it.
        """
        if not self._direct:
            return False
        departures = self._departures
        if departures.size >= FLUSH_BYTES:
            self.flush()
        departures.frames.append(frames)
        departures.own_points += count
        departures.size += len(frames)
        return True

    def close(self) -> None:
        """Refuse whatever is written from now on."""
        with self._lock:
            self._release(Data.REFUSED)

    def answer(self, message: ResponseMessage) -> None:
        """Send an answer to a request, after all that was written before it.

        Raises:
            InvalidWriteError: it is longer than a frame may be.
            ConnectionClosedError: the connection broke.
        """
        frame = self._encode(message)
        with self._lock:
            self._queue(Written(frame, type(message), own=True))
            # A snapshot may be long, and be asked for again and again.
            if self._departures.size >= FLUSH_BYTES:
                self._flush()

    # --- for an agent that repeats input ---

    def mute(self) -> None:
        """Mute whatever the own thread writes, as if nothing had been said yet."""
        with self._lock:
            self._muting.begin(in_batch=self._let_out_in_batch)
            self._held.take()
            self._data = Data.HELD
            self._order.declare(self._order.provides)
            self._redirect()

    def unmute(self) -> None:
        """Send what comes from now on, after what was sent before `mute`."""
        with self._lock:
            self._muting.end(in_batch=self._let_out_in_batch)
            self._redirect()

    def unmute_after(self, messages: int, *, in_batch: bool, progress: Progress) -> None:
        """Mute so many more messages, which another outbox has sent, and send what follows.

        Args:
            messages: how many of what is written next were sent already.
            in_batch: whether the last one sent is of a batch that has not ended.
            progress: what was sent before them.
        """
        with self._lock:
            self._other_points += progress.points_out
            self.batches += progress.batches_out
            self._departures.bytes += progress.bytes_out
            self._muting.end_after(
                messages, sent_in_batch=in_batch, in_batch=self._let_out_in_batch
            )
            self._redirect()

    def abandon_batch(self) -> None:
        """Forget the batch that is begun and will not be ended; Kapacitor drops it at the next."""
        with self._lock:
            if self._order.in_batch:
                self._order.declare(self._order.provides)
                self._muting.end_batch()
                self._redirect()

    def defer(self) -> None:
        """Keep what other threads write until `undefer`; what another outbox left comes first.

        A handler may wait for such a thread while its input is repeated, so that it must
        not wait here.
        """
        with self._lock:
            self._deferring = True

    def undefer(self) -> None:
        """Let out what was kept, and whatever other threads write from now on."""
        with self._lock:
            self._deferring = False
            for written in self._deferred.take():
                self._send(written)
            self._changed.notify_all()
            # As if they had been written just now.
            self._flush()

    def hold(self) -> None:
        """Let writes of other threads wait, while another worker may take over."""
        with self._lock:
            self._on_hold = True

    def unhold(self) -> None:
        """Let them go on."""
        with self._lock:
            self._on_hold = False
            self._changed.notify_all()

    def heartbeat(self) -> None:
        """Send an unasked-for KeepaliveResponse, and what else is pending. From any thread.

        Where somebody else is writing just now, nothing need be said.
        """
        if self._lock.acquire(blocking=False):
            try:
                still = self._on_hold or self._deferring or not self._stream.has_room()
                if self._data is not Data.REFUSED and not still:
                    self._departures.add(HEARTBEAT)
                    self._flush()
            except ConnectionClosedError:
                pass  # The agent's own next write tells.
            finally:
                self._lock.release()

    def fail(self, error: str) -> None:
        """Send an ErrorResponse, the last message of the connection, cut to a bounded length."""
        room = min(_ERROR_BYTES, self._max_frame_bytes // 2)
        text = error.encode("utf-8", "backslashreplace")[:room].decode("utf-8", "ignore")
        frame = self._encode(ErrorResponse(error=text))
        with self._lock:
            # It is told though what else comes is muted, or of a batch that is left out.
            self._departures.own_others += 1
            self._departures.add(frame)

    def flush(self, progress: Progress | None = None, *, forgets: bool = False) -> None:
        """Hand what may leave to the stream, waiting while the peer does not read.

        Args:
            progress: how much input has been dealt with, if not in the midst of it.
            forgets: whether the handler, outside of a batch, needs none of that again.

        Raises:
            ConnectionClosedError: the connection broke.
        """
        with self._lock:
            self._flush(progress, forgets=forgets and not self._order.in_batch)

    # --- inside; the lock is held where a name says nothing else ---

    def _write(self, message: DataMessage, expected: type) -> None:
        """Check a handler's message and queue it. Takes the lock."""
        own_thread = get_ident() == self._owner
        try:
            if type(message) is not expected:
                kind = type(message)
                # InfluxData's own classes have the same names.
                stranger = kind.__name__ == expected.__name__
                name = f"{kind.__module__}.{kind.__name__}" if stranger else kind.__name__
                problem = f"a {name} where a {expected.__name__} belongs"
                raise InvalidWriteError(problem)
            with self._lock:
                if not own_thread:
                    self._changed.wait_for(self._has_room)
                if (broken := self._departures.broken) is not None:
                    problem = "Kapacitor has closed the connection"
                    raise ConnectionClosedError(problem) from broken
                if self._data is Data.REFUSED:
                    problem = "the connection has ended; nothing can be written any more"
                    raise ConnectionClosedError(problem)
                # Encoded under the lock: a batch is only whole if its messages
                # leave in the order in which they were checked.
                self._admit(message, own=own_thread)
                if self._deferring and not own_thread:
                    return
                if not own_thread or self._departures.size >= FLUSH_BYTES:
                    self._flush()
        except InvalidWriteError as error:
            if not own_thread:
                # An exception in a thread of the handler's own reaches nobody
                # else; the agent ends the connection for it.
                self.failure = self.failure or error
                self._on_failure()
            raise

    def _admit(self, message: DataMessage, *, own: bool) -> None:
        if self._data is Data.HELD and self._held.is_full:
            problem = (
                f"more than {BACKLOG_BYTES} bytes of data before Kapacitor can take any; "
                "write them once the first point or batch has come"
            )
            raise InvalidWriteError(problem)
        frame = self._encode(message)
        if isinstance(message, Point):
            self._order.point()
        elif isinstance(message, BeginBatch):
            self._order.begin_batch(message)
        else:
            self._order.end_batch()
        self._redirect()
        written = Written(frame, type(message), own=own)
        if self._data is Data.HELD:
            self._held.add(written)
        elif self._data is Data.SENT:
            self._queue(written)

    def _queue(self, written: Written) -> None:
        """Let a message out, unless it was sent before or is not to be."""
        if self._deferring and not written.own:
            self._deferred.add(written)
            return
        if written.own and self._muting.messages:
            self._mute_one(written)
            return
        # All data is of the batch that is begun, and Kapacitor knows no begin of it.
        if self._muting.leaves_out and written.kind in _DATA:
            if written.kind is EndBatch:
                self._muting.end_batch()
                self._redirect()
            return
        self._send(written)

    def _send(self, written: Written) -> None:
        if written.own:
            self._departures.own_others += 1
        self._count(written.kind)
        self._departures.add(written.frame)

    def _mute_one(self, written: Written) -> None:
        """Mute a message; unless nobody knows how often it comes, count it as sent before."""
        if not self._muting.is_endless:
            self._count(written.kind)
            self._departures.bytes += len(written.frame)
        self._muting.mute_one(in_batch=self._let_out_in_batch)
        if not self._muting.messages:
            self._redirect()

    @property
    def _let_out_in_batch(self) -> bool:
        """Whether a batch is begun by what is not held back, be it muted, and not ended."""
        return self._order.in_batch and self._data is Data.SENT

    def _count(self, kind: type) -> None:
        if kind is Point:
            self._other_points += 1
        elif kind is EndBatch:
            self.batches += 1

    def _encode(self, message: ResponseMessage) -> bytes:
        frame = RESPONSES.encode(message)
        if len(frame) > self._max_written_bytes:
            problem = (
                f"a {type(message).__name__} of {len(frame)} bytes; "
                f"the limit max_frame_bytes is {self._max_frame_bytes}"
            )
            raise InvalidWriteError(problem)
        return frame

    def _has_room(self) -> bool:
        """Return whether a thread of the handler's own need not wait."""
        if self._data is Data.REFUSED or self.is_broken:
            return True  # to be told so
        full = (self._data is Data.HELD and self._held.is_full) or self._deferred.is_full
        return not full and not self._on_hold

    def _release(self, data: Data) -> None:
        self._held.take()
        self._data = data
        self._redirect()
        self._changed.notify_all()

    def _redirect(self) -> None:
        in_order = self._data is Data.SENT and self._order.takes_points
        self._direct = in_order and self._muting.is_over and not self.is_broken

    def _flush(self, progress: Progress | None = None, *, forgets: bool = False) -> None:
        muted = self._muting.messages
        try:
            self._departures.flush(
                progress,
                in_batch=self._muting.sent_in_batch(in_batch=self._let_out_in_batch),
                # Infinitely many are, as long as progress is not known.
                muted=0 if progress is None else int(muted),
                forgets=forgets,
            )
        except ConnectionClosedError:
            self._redirect()
            raise
