"""What leaves towards Kapacitor: checked, in order, in few writes.

The one place where messages become bytes. A handler writes through it from any
thread; the agent answers through it and flushes it when the input runs dry.
"""

from __future__ import annotations

import contextlib
import threading
from threading import get_ident
from typing import TYPE_CHECKING

from kapudf_cli.agent.delivery import Data, Delivery
from kapudf_cli.agent.departures import FLUSH_BYTES, Departures
from kapudf_cli.errors import ConnectionClosedError, InvalidWriteError, shorten
from kapudf_cli.terminal_text import printable
from kapudf_cli.wire.codec import RESPONSES, decode_point, encode_point
from kapudf_cli.wire.framing import HEARTBEAT, encode_varint
from kapudf_cli.wire.udf_pb2 import STREAM, BeginBatch, EndBatch, ErrorResponse, Point

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kapudf_cli.kit.patch import PointPatch
    from kapudf_cli.streams import Stream
    from kapudf_cli.streams.progress import Progress
    from kapudf_cli.wire.codec import DataMessage, ResponseMessage
    from kapudf_cli.wire.point_frames import RawPoint
    from kapudf_cli.wire.udf_pb2 import EdgeType, SnapshotResponse

#: The longest text of an error that is sent. An exception's can be as long as its data.
_ERROR_CHARACTERS = 3000
#: A tag of one byte and a length: what an answer's envelope adds to it at most.
_ENVELOPE_BYTES = 6


class Outbox:
    """The way back of one connection; what a handler knows as its agent.

    It has an owner, the thread that reads the connection's input and adopts it. A write
    of the owner waits for the next flush. A write of any other thread, which the handler
    has started, is flushed at once, for nobody knows when the next flush would be.

    What becomes of a message that may be written is for its `Delivery` to say; here is
    which thread writes, waits and flushes.

    Attributes:
        in_hand: the undecoded point that the handler has been given, if it takes them so.
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
        # Whether a point of the owner may leave just so; see write_point.
        self._direct = False
        self._departures = Departures(stream)
        self.in_hand: RawPoint | None = None
        # Guards everything below, and the order of bytes on the stream.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._delivery = Delivery(self._departures, provides)
        self._blocks_others = False
        self.failure: InvalidWriteError | None = None

    # --- for handlers: see kapudf_cli.kit.handler.Writer ---

    def write_point(self, point: Point, /) -> None:
        """Send a point; see `Writer.write_point`."""
        # The hot path: the owner writes a point that may leave. It takes no lock, and
        # needs none: a deque takes an item whole, and what else is touched is this
        # thread's own. All that is special goes the long way.
        if self._direct and type(point) is Point and get_ident() == self._owner:
            frame = encode_point(point)
            size = len(frame)
            if size <= self._max_written_bytes:
                departures = self._departures
                departures.frames.append(frame)
                departures.owner_points += 1
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
        # The hot path, as in write_point.
        if self._direct:
            frame = raw if patch is None else patch.extend(raw)
            if frame is not None and len(frame) <= self._max_written_bytes:
                departures = self._departures
                departures.frames.append(frame)
                departures.owner_points += 1
                departures.size += len(frame)
                if departures.size >= FLUSH_BYTES:
                    self.flush()
                return
        self._forward_checked(raw, patch)

    # --- for the agent ---

    def adopt(self) -> None:
        """Make the calling thread, which will flush, the owner."""
        self._owner = get_ident()

    @property
    def points(self) -> int:
        """How many points were sent."""
        return self._departures.owner_points + self._delivery.points

    @property
    def batches(self) -> int:
        """How many batches were sent whole."""
        return self._delivery.batches

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
        return self._delivery.in_batch

    def forward_run(self, frames: bytes, count: int) -> bool:
        """Send on points that follow each other, as they came; return whether they may leave so.

        For the owner, and a handler that would forward each of them by itself. What is
        flushed for it is what came before it.
        """
        if not self._direct:
            return False
        departures = self._departures
        if departures.size >= FLUSH_BYTES:
            self.flush()
        with self._lock:
            departures.add_run(frames, count)
        return True

    def answer(self, message: ResponseMessage) -> None:
        """Send an answer to a request, after all that was written before it.

        Raises:
            InvalidWriteError: it is longer than a frame may be.
            ConnectionClosedError: the connection broke.
        """
        frame = self._encode(message)
        with self._steering() as delivery:
            delivery.answer(type(message), frame)
            # A snapshot may be long, and be asked for again and again.
            if self._departures.size >= FLUSH_BYTES:
                self._flush()

    def fits(self, message: SnapshotResponse) -> bool:
        """Return whether an answer is no longer than a frame may be."""
        return message.ByteSize() + _ENVELOPE_BYTES <= self._max_frame_bytes

    def heartbeat(self) -> None:
        """Send an unasked-for KeepaliveResponse, and what else is pending. From any thread.

        Where somebody else is writing just now, nothing need be said.
        """
        if self._lock.acquire(blocking=False):
            try:
                delivery = self._delivery
                still = self._blocks_others or delivery.defers or not self._stream.has_room()
                if delivery.data is not Data.REFUSED and not still:
                    self._departures.add(HEARTBEAT, by_owner=False)
                    self._flush()
            except ConnectionClosedError:
                pass  # The agent's own next write tells.
            finally:
                self._lock.release()

    def fail(self, error: str) -> None:
        """Send an ErrorResponse, the last message; its text is bounded in length."""
        frame = self._encode(ErrorResponse(error=self.fit_error(error)))
        with self._lock:
            # It is told though what else comes is muted, or of a batch that is left out.
            self._departures.add(frame, by_owner=True)

    def fit_error(self, text: str) -> str:
        """Return an error's text as Kapacitor may log it and show it on a terminal."""
        shown = shorten(printable(text), _ERROR_CHARACTERS)
        if len(shown.encode()) > self._max_frame_bytes // 2:
            shown = shorten(shown, self._max_frame_bytes // 8)
        return shown

    def flush(self, progress: Progress | None = None, *, forgets: bool = False) -> None:
        """Hand what may leave to the stream, waiting while the peer does not read.

        Args:
            progress: how much input has been dealt with, if not in the midst of it.
            forgets: whether the handler, outside of a batch, needs none of that again.

        Raises:
            ConnectionClosedError: the connection broke.
        """
        with self._lock:
            self._flush(progress, forgets=forgets and not self._delivery.in_batch)

    # --- for the agent: what becomes of what is written ---

    def declare(self, provides: EdgeType) -> None:
        """Check writes against the edge that the handler provides; see `Delivery.declare`."""
        with self._steering() as delivery:
            delivery.declare(provides)

    def send_data(self) -> None:
        """Let out data, once Kapacitor reads any; see `Delivery.send_data`."""
        # Asked for with each request, and nearly always let out already.
        if self._delivery.data is Data.HELD:
            with self._steering() as delivery:
                delivery.send_data()

    def drop_data(self) -> None:
        """Drop data that nobody has asked for; see `Delivery.drop_data`."""
        with self._steering() as delivery:
            delivery.drop_data()

    def close(self) -> None:
        """Refuse whatever is written from now on."""
        with self._steering() as delivery:
            delivery.refuse_data()

    def abandon_batch(self) -> None:
        """Forget a batch that will not be ended; see `Delivery.abandon_batch`."""
        with self._steering() as delivery:
            delivery.abandon_batch()

    def mute(self) -> None:
        """Mute the owner, whose input is repeated; see `Delivery.mute`."""
        with self._steering() as delivery:
            delivery.mute()

    def unmute(self) -> None:
        """Send what the owner writes from now on; see `Delivery.unmute`."""
        with self._steering() as delivery:
            delivery.unmute()

    def unmute_after(self, messages: int, *, in_batch: bool, progress: Progress) -> None:
        """Send what comes after so many more messages; see `Delivery.unmute_after`."""
        with self._steering() as delivery:
            delivery.unmute_after(messages, in_batch=in_batch, progress=progress)

    def defer(self) -> None:
        """Keep what other threads write during a repetition; see `Delivery.defer`."""
        with self._steering() as delivery:
            delivery.defer()

    def undefer(self) -> None:
        """Send what was kept, as if it had been written just now; see `Delivery.undefer`."""
        with self._steering() as delivery:
            delivery.undefer()
            self._flush()

    def block_others(self) -> None:
        """Let writes of other threads wait, while another worker may take over."""
        with self._steering():
            self._blocks_others = True

    def unblock_others(self) -> None:
        """Let them go on."""
        with self._steering():
            self._blocks_others = False

    # --- inside; the lock is held where a name says nothing else ---

    @contextlib.contextmanager
    def _steering(self) -> Iterator[Delivery]:
        """Change what becomes of what is written. Takes the lock."""
        with self._lock:
            try:
                yield self._delivery
            finally:
                self._redirect()
                self._changed.notify_all()

    def _redirect(self) -> None:
        """Find out anew whether a point of the owner may leave just so."""
        self._direct = self._delivery.lets_points_out and self._departures.broken is None

    def _write(self, message: DataMessage, expected: type, *, frame: bytes | None = None) -> None:
        """Check a handler's message and let it out, as `frame` if given. Takes the lock."""
        by_owner = get_ident() == self._owner
        try:
            if type(message) is not expected:
                raise _wrong_type(message, expected)
            with self._lock:
                if not by_owner:
                    self._changed.wait_for(self._need_not_wait)
                if self._departures.broken is not None or self._delivery.data is Data.REFUSED:
                    raise self._closed() from self._departures.broken
                # Encoded under the lock: a batch is only whole if its messages
                # leave in the order in which they were checked.
                if frame is None:
                    frame = self._encode(message)
                else:
                    self._check_length(message, frame)
                self._delivery.write(message, frame, by_owner=by_owner)
                self._redirect()
                much = self._departures.size >= FLUSH_BYTES
                if much if by_owner else not self._delivery.defers:
                    self._flush()
        except InvalidWriteError as error:
            if not by_owner:
                # An exception in a thread that the handler has started reaches
                # nobody else; the agent ends the connection for it.
                self.failure = self.failure or error
                self._on_failure()
            raise

    def _forward_checked(self, raw: RawPoint, patch: PointPatch | None) -> None:
        """Send on a point that may not leave just so. Takes the lock."""
        if self._delivery.mutes_all:
            # A history may be long: its points are not decoded just to be muted.
            with self._lock:
                self._delivery.mute_point()
            return
        # Not decoded here either: its text may not be UTF-8, which Kapacitor takes.
        frame = raw if patch is None else patch.extend(raw)
        if frame is None and patch is not None:
            point = decode_point(raw)
            patch.apply(point)
            self.write_point(point)
        else:
            self._write(Point(), Point, frame=frame)

    def _need_not_wait(self) -> bool:
        """Return whether a thread other than the owner may go on."""
        if self._delivery.data is Data.REFUSED or self.is_broken:
            return True  # to be told so
        return not self._delivery.is_full and not self._blocks_others

    def _closed(self) -> ConnectionClosedError:
        """Return why nothing can be written any more."""
        if self.is_broken:
            return ConnectionClosedError("Kapacitor has closed the connection")
        return ConnectionClosedError("the connection has ended; nothing can be written any more")

    def _encode(self, message: ResponseMessage) -> bytes:
        frame = RESPONSES.encode(message)
        self._check_length(message, frame)
        return frame

    def _check_length(self, message: ResponseMessage, frame: bytes) -> None:
        if len(frame) > self._max_written_bytes:
            problem = (
                f"a {type(message).__name__} of {len(frame)} bytes; "
                f"the limit max_frame_bytes is {self._max_frame_bytes}"
            )
            raise InvalidWriteError(problem)

    def _flush(self, progress: Progress | None = None, *, forgets: bool = False) -> None:
        delivery = self._delivery
        try:
            self._departures.flush(
                progress,
                in_batch=delivery.sent_in_batch,
                # Infinitely many are, as long as progress is not known.
                muted=0 if progress is None else int(delivery.muted),
                forgets=forgets,
            )
        except ConnectionClosedError:
            self._redirect()
            raise


def _wrong_type(message: object, expected: type) -> InvalidWriteError:
    """Return what is wrong with a message of another class than the method is for."""
    kind = type(message)
    # InfluxData's own classes have the same names.
    stranger = kind.__name__ == expected.__name__
    name = f"{kind.__module__}.{kind.__name__}" if stranger else kind.__name__
    return InvalidWriteError(f"a {name} where a {expected.__name__} belongs")
