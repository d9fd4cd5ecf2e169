"""What leaves towards Kapacitor: checked, in order, in few writes.

The one place where messages become bytes. A handler writes through it from any
thread; the agent answers through it and flushes it when the input runs dry.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from kapudf_cli.errors import ConnectionClosedError, InvalidWriteError
from kapudf_cli.wire.codec import RESPONSES
from kapudf_cli.wire.conversation import OutgoingOrder
from kapudf_cli.wire.udf_pb2 import BeginBatch, EndBatch, ErrorResponse, Point

if TYPE_CHECKING:
    from collections.abc import Callable

    from kapudf_cli.streams import Stream
    from kapudf_cli.wire.codec import DataMessage, ResponseMessage
    from kapudf_cli.wire.udf_pb2 import EdgeType

#: Enough to make a write call cheap beside the points in it, and the most that is
#: kept for a peer that does not read: past it, whoever writes waits.
_FLUSH_BYTES = 64 * 1024
#: The most that is kept while Kapacitor cannot take data yet.
_HELD_BYTES = 1024 * 1024


class Outbox:
    """The way back of one connection; what a handler knows as its agent.

    Data is held back until `open_for_data`, since Kapacitor reads none before
    Init and Restore are answered. Answers are never held back.

    It belongs to the thread that adopts it. A write from that thread waits for the
    next flush; a write from any other thread is flushed at once, for nobody
    knows when the next flush would be.

    Attributes:
        points: points sent.
        batches: batches ended.
        bytes: bytes handed to the stream.
        failure: what another thread tried to write and may not, None if nothing.
        broken: why the stream can no longer be written to, None while it can.
    """

    def __init__(
        self, stream: Stream, *, max_frame_bytes: int, on_failure: Callable[[], None]
    ) -> None:
        """Write to `stream`; call `on_failure` when another thread's write is refused."""
        self._stream = stream
        self._max_frame_bytes = max_frame_bytes
        self._on_failure = on_failure
        self._owner = threading.get_ident()
        self._order = OutgoingOrder()
        # Guards everything below, and the order of bytes on the stream.
        self._lock = threading.Lock()
        self._can_take_data = threading.Condition(self._lock)
        self._held: list[bytes] | None = []
        self._held_bytes = 0
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._closed = False
        self.points = 0
        self.batches = 0
        self.bytes = 0
        self.failure: InvalidWriteError | None = None
        self.broken: OSError | None = None

    # --- for handlers: see kapudf_cli.handler.Writer ---

    def write_point(self, point: Point, /) -> None:
        """Send a point; see `Writer.write_point`."""
        self._write(point, Point)

    def write_begin_batch(self, begin: BeginBatch, /) -> None:
        """Begin a batch; see `Writer.write_begin_batch`."""
        self._write(begin, BeginBatch)

    def write_end_batch(self, end: EndBatch, /) -> None:
        """End a batch; see `Writer.write_end_batch`."""
        self._write(end, EndBatch)

    # --- for the agent ---

    def adopt(self) -> None:
        """Make the calling thread, which will flush, the outbox's own."""
        self._owner = threading.get_ident()

    @property
    def in_batch(self) -> bool:
        """Whether the handler has begun a batch and not ended it."""
        return self._order.in_batch

    def declare(self, provides: EdgeType) -> None:
        """Note which edge the handler provides; its writes are checked against it."""
        with self._lock:
            self._order.provides = provides

    def open_for_data(self) -> None:
        """Let out the data held back so far, and whatever follows."""
        with self._lock:
            if self._held is not None:
                held, self._held = self._held, None
                self._pending += held
                self._pending_bytes += self._held_bytes
                self._can_take_data.notify_all()

    def answer(self, message: ResponseMessage) -> None:
        """Send an answer to a request, after all that was written before it.

        Raises:
            InvalidWriteError: it is longer than a frame may be.
        """
        frame = self._encode(message)
        with self._lock:
            self._pending.append(frame)
            self._pending_bytes += len(frame)

    def fail(self, error: str) -> None:
        """Send an ErrorResponse, the last message of the connection."""
        self.answer(ErrorResponse(error=error))

    def flush(self) -> None:
        """Hand everything that may leave to the stream, waiting while the peer does not read.

        Raises:
            ConnectionClosedError: the connection broke.
        """
        with self._lock:
            self._flush()

    def close(self) -> None:
        """Refuse whatever is written from now on."""
        with self._lock:
            self._closed = True
            self._can_take_data.notify_all()

    # --- inside; the lock is held where a name says nothing else ---

    def _write(self, message: DataMessage, expected: type) -> None:
        """Check a handler's message and queue it. Takes the lock."""
        own_thread = threading.get_ident() == self._owner
        try:
            if type(message) is not expected:
                problem = f"a {type(message).__name__} where a {expected.__name__} belongs"
                raise InvalidWriteError(problem)
            with self._lock:
                if self._held is not None and not own_thread:
                    self._can_take_data.wait_for(self._has_room)
                if self._closed or self.broken:
                    problem = "the connection has ended; nothing can be written after stop"
                    raise ConnectionClosedError(problem) from self.broken
                # Encoded under the lock: a batch is only whole if its messages
                # leave in the order in which they were checked.
                self._admit(message)
                if not own_thread or self._pending_bytes >= _FLUSH_BYTES:
                    self._flush()
        except InvalidWriteError as error:
            if not own_thread:
                # An exception in a thread of the handler's own reaches nobody
                # else; the agent ends the connection for it.
                self.failure = error
                self._on_failure()
            raise

    def _admit(self, message: DataMessage) -> None:
        if isinstance(message, Point):
            self._order.point()
            frame = self._encode(message)
            self.points += 1
        elif isinstance(message, BeginBatch):
            frame = self._encode(message)
            self._order.begin_batch(message)
        else:
            frame = self._encode(message)
            self._order.end_batch()
            self.batches += 1
        if self._held is None:
            self._pending.append(frame)
            self._pending_bytes += len(frame)
            return
        if not self._has_room():
            problem = (
                f"more than {_HELD_BYTES} bytes of data before Kapacitor can take any; "
                "write them once the first point or batch has come"
            )
            raise InvalidWriteError(problem)
        self._held.append(frame)
        self._held_bytes += len(frame)

    def _encode(self, message: ResponseMessage) -> bytes:
        frame = RESPONSES.encode(message)
        if len(frame) > self._max_frame_bytes:
            problem = (
                f"a {type(message).__name__} of {len(frame)} bytes; "
                f"the limit max_frame_bytes is {self._max_frame_bytes}"
            )
            raise InvalidWriteError(problem)
        return frame

    def _has_room(self) -> bool:
        return self._held is None or self._closed or self._held_bytes < _HELD_BYTES

    def _flush(self) -> None:
        if not self._pending:
            return
        data = b"".join(self._pending)
        self._pending.clear()
        self._pending_bytes = 0
        try:
            self._stream.write(data)
        except OSError as error:
            self.broken = error
            problem = f"Kapacitor closed the connection ({error.strerror or error})"
            raise ConnectionClosedError(problem) from error
        self.bytes += len(data)
