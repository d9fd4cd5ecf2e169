"""The outbox: which thread may write to a connection, which waits, and who flushes.

A handler writes through it from any thread. The agent answers through it, and flushes it
when the input runs dry. What happens to a message is decided by its `Output`.
"""

from __future__ import annotations

import contextlib
import threading
from threading import get_ident
from typing import TYPE_CHECKING, Final

from kapudf_cli.agent.output import FLUSH_BYTES, DataState, Output
from kapudf_cli.agent.refused_writes import RefusedWrites
from kapudf_cli.agent.turns import NoTurn
from kapudf_cli.errors import shorten
from kapudf_cli.handler.errors import ConnectionClosedError
from kapudf_cli.handler.output import with_article, write_batch
from kapudf_cli.protocol.codec import RESPONSES, encode_point
from kapudf_cli.protocol.errors import InvalidWriteError
from kapudf_cli.protocol.framing import HEARTBEAT, encode_varint
from kapudf_cli.protocol.udf_pb2 import STREAM, BeginBatch, EndBatch, ErrorResponse, Point
from kapudf_cli.system import loggers
from kapudf_cli.system.terminal_text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kapudf_cli.agent.turns import Turn
    from kapudf_cli.handler.batches import Batch
    from kapudf_cli.handler.patch import PointPatch
    from kapudf_cli.protocol.codec import DataMessage, ResponseMessage
    from kapudf_cli.protocol.raw_points import RawPoint
    from kapudf_cli.protocol.udf_pb2 import EdgeType, SnapshotResponse
    from kapudf_cli.transport import Stream
    from kapudf_cli.transport.stream import ConnectionStats

_log = loggers.get(__name__)

_NO_TURN: Final = NoTurn()
#: The longest error text that is sent; the text of an exception can be as long as its data.
_ERROR_CHARACTERS = 3000
#: A tag of one byte and a length: what an answer's envelope adds to it at most.
_ENVELOPE_BYTES = 6


class Outbox:
    """The writing side of one connection; handlers know it as `self.agent`.

    Its owner is the thread that reads the connection's input, see `adopt`. What the owner
    writes waits for the next flush. What another thread of the handler writes is flushed
    at once, because the owner may be waiting for input.

    Attributes:
        current_frame: the undecoded point that the handler is handling, if it takes raw points.
        failure: the first write of another thread that was refused, None if there is none.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        max_frame_bytes: int,
        on_failure: Callable[[], None],
        turn: Turn | NoTurn = _NO_TURN,
        provides: EdgeType | None = STREAM,
    ) -> None:
        """Write to `stream`.

        Args:
            stream: where the bytes go.
            max_frame_bytes: the longest frame sent, without its length prefix.
            on_failure: called when another thread's write is refused.
            turn: given up while the peer does not read, and taken again.
            provides: the edge that the handler is expected to provide; None to check no edge.
        """
        self._stream = stream
        self._max_frame_bytes = max_frame_bytes
        self._max_written_bytes = max_frame_bytes + len(encode_varint(max_frame_bytes))
        self._on_failure = on_failure
        self._turn = turn
        self._owner = get_ident()
        self.current_frame: RawPoint | None = None
        # Guards all below and the order of bytes on the stream, except for the owner's
        # points while `_passes_points`.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._output = Output(stream, provides)
        # A copy of Output.passes_points, which is too slow to ask for each point.
        self._passes_points = False
        self._blocks_others = False
        self._refused: RefusedWrites | None = None
        self.failure: InvalidWriteError | None = None

    # --- for handlers: see kapudf_cli.handler.output.Writer ---

    def write_point(self, point: Point, /) -> None:
        """Send a point; see `Writer.write_point`."""
        # The hot path, without a lock: the owner appends to a deque, which is atomic, and
        # all else that changes belongs to this thread.
        if self._passes_points and type(point) is Point and get_ident() == self._owner:
            frame = encode_point(point)
            size = len(frame)
            if size <= self._max_written_bytes:
                output = self._output
                output.frames.append(frame)
                output.owner_points += 1
                output.size += size
                if output.size >= FLUSH_BYTES:
                    self.flush()
                return
        self._write(point, Point)

    def write_batch(self, batch: Batch, /) -> None:
        """Send a whole batch; see `Writer.write_batch`."""
        try:
            write_batch(self, batch)
        except ConnectionClosedError:
            if self._refused is not None and get_ident() != self._owner:
                self._refused.record(len(batch.points))
            raise

    def write_begin_batch(self, begin: BeginBatch, /) -> None:
        """Begin a batch; see `Writer.write_begin_batch`."""
        self._write(begin, BeginBatch)

    def write_end_batch(self, end: EndBatch, /) -> None:
        """End a batch; see `Writer.write_end_batch`."""
        self._write(end, EndBatch)

    def forward(self, raw: RawPoint, patch: PointPatch | None = None, /) -> None:
        """Send the current point on, as it came or patched; see `Writer.forward`."""
        # Bytes are not checked, so they must be the ones that Kapacitor sent.
        if raw is not self.current_frame or get_ident() != self._owner:
            problem = "bytes that are not the current point; forward it before raw_point returns"
            raise InvalidWriteError(problem)
        # The hot path, as in write_point.
        if self._passes_points:
            frame = raw if patch is None else patch.extend(raw)
            size = len(frame)
            if size <= self._max_written_bytes:
                output = self._output
                output.frames.append(frame)
                output.owner_points += 1
                output.size += size
                if output.size >= FLUSH_BYTES:
                    self.flush()
                return
        self._forward_checked(raw, patch)

    # --- for the agent ---

    def adopt(self) -> None:
        """Make the calling thread the owner."""
        self._owner = get_ident()

    @property
    def points(self) -> int:
        """Points sent."""
        return self._output.points

    @property
    def batches(self) -> int:
        """Batches sent to their end."""
        return self._output.batches

    @property
    def bytes_sent(self) -> int:
        """Bytes handed to the stream."""
        return self._output.bytes

    @property
    def written(self) -> tuple[int, int, int]:
        """Points, batches and bytes that were handed to the stream or wait for the next flush."""
        output = self._output
        return output.points, output.batches, output.bytes + output.size

    @property
    def is_broken(self) -> bool:
        """Whether the stream can no longer be written to."""
        return self._output.broken is not None

    @property
    def in_batch(self) -> bool:
        """Whether the handler has begun a batch and not ended it."""
        return self._output.in_batch

    def forward_run(
        self, frames: bytes, count: int, patch: PointPatch | None = None
    ) -> tuple[int, int]:
        """Send points on as they came or patched; return how many, and their bytes in `frames`.

        Both are less than given if the next point needs a check: forward it by itself. For the
        owner, and a handler that would forward each of these points. Flushes only what was
        written before.
        """
        if not self._passes_points:
            return 0, 0
        if self._output.size >= FLUSH_BYTES:
            self.flush()
        size = len(frames)
        if patch is not None:
            frames, count, size = patch.extend_run(frames, self._max_written_bytes)
            if not count:
                return 0, 0
        with self._lock:
            self._output.write_run(frames, count)
        return count, size

    def answer(self, message: ResponseMessage) -> None:
        """Send an answer to a request, after all that was written before it.

        Raises:
            InvalidWriteError: it is longer than a frame may be.
            ConnectionClosedError: the connection broke.
        """
        frame = self._encode(message)
        with self.changing() as output:
            output.answer(type(message), frame)
            # Snapshots may be long and frequent.
            if output.size >= FLUSH_BYTES:
                self._flush()
        self._turn.regain()

    def fits(self, message: SnapshotResponse) -> bool:
        """Return whether an answer is no longer than a frame may be."""
        return message.ByteSize() + _ENVELOPE_BYTES <= self._max_frame_bytes

    def heartbeat(self) -> None:
        """Send an unrequested KeepaliveResponse and what else is pending. From any thread.

        Does nothing while another thread writes: that resets Kapacitor's timer as well.
        """
        if self._lock.acquire(blocking=False):
            try:
                output = self._output
                waits = self._blocks_others or output.defers or not self._stream.has_room()
                if output.data is not DataState.REFUSED and not waits:
                    output.add(HEARTBEAT, by_owner=False)
                    self._flush()
            except ConnectionClosedError:
                pass  # The agent's own next write reports it.
            finally:
                self._lock.release()

    def fail(self, error: str) -> None:
        """Send an ErrorResponse, the last message; its text is bounded in length."""
        frame = self._encode(ErrorResponse(error=self.fit_error(error)))
        with self._lock:
            # Neither duplicate suppression nor a skipped batch applies to it.
            self._output.add(frame, by_owner=get_ident() == self._owner)

    def fit_error(self, text: str) -> str:
        """Return an error's text as Kapacitor may log it and show it on a terminal."""
        shown = shorten(printable(text), _ERROR_CHARACTERS)
        if len(shown.encode()) > self._max_frame_bytes // 2:
            shown = shorten(shown, self._max_frame_bytes // 8)
        return shown

    def flush(self, stats: ConnectionStats | None = None, *, forget_input: bool = False) -> None:
        """Hand everything to the stream, waiting while the peer does not read.

        Args:
            stats: how much input was handled; None in the middle of a read.
            forget_input: whether the handler, outside of a batch, needs none of it again.

        Raises:
            ConnectionClosedError: the connection broke.
        """
        try:
            with self._lock:
                self._flush(stats, forget_input=forget_input)
        finally:
            self._turn.regain()

    def commit(
        self,
        output: Output,
        stats: Callable[[], ConnectionStats],
        *,
        forget_input: bool,
        at_least: int = FLUSH_BYTES,
    ) -> None:
        """Flush, if at least so many bytes are waiting; the caller is inside `changing`.

        Raises:
            ConnectionClosedError: the connection broke.
        """
        if output.size >= at_least:
            self._flush(stats(), forget_input=forget_input)

    def send_data(self) -> None:
        """Send data from now on, and what was held back; see `Output.send_data`."""
        # The dispatcher calls this for each request; after the first it has no effect.
        if self._output.data is DataState.HELD:
            with self.changing() as output:
                output.send_data()

    def send_deferred(self) -> None:
        """Send what other threads wrote during a takeover; see `Output.send_deferred`."""
        with self.changing() as output:
            output.send_deferred()
            self._flush()

    def close(self, cause: str | None = None) -> None:
        """Refuse all writes from now on.

        Args:
            cause: why. The number of points lost in refused writes is logged with it. None if
                Kapacitor has closed the connection, so that nothing could be written anyway.
        """
        with self.changing() as output:
            output.refuse_data()
            if cause is not None:
                self._refused = RefusedWrites(cause)

    def settle(self) -> None:
        """Log how many points were lost in refused writes: the handler was torn down."""
        if self._refused is not None:
            self._refused.settle()

    def disable(self) -> None:
        """Refuse all writes, in a forked process whose parent has the connection."""
        # Another thread of the parent may have held the lock.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self.close()

    def block_others(self) -> None:
        """Make other threads' writes wait, while another worker may take over."""
        with self.changing():
            self._blocks_others = True

    def unblock_others(self) -> None:
        """Let other threads write again."""
        with self.changing():
            self._blocks_others = False

    @contextlib.contextmanager
    def discarding(self) -> Iterator[None]:
        """Discard what the owner writes: another agent has sent it."""
        with self.changing() as output:
            output.discards = True
        try:
            yield
        finally:
            with self.changing() as output:
                output.discards = False

    @contextlib.contextmanager
    def changing(self) -> Iterator[Output]:
        """Change the output's state, under the lock: `with outbox.changing() as output: …`."""
        with self._lock:
            try:
                yield self._output
            finally:
                self._passes_points = self._output.passes_points
                self._changed.notify_all()

    # --- inside ---

    def _write(self, message: DataMessage, expected: type, *, frame: bytes | None = None) -> None:
        """Check a handler's message and accept it, encoded as `frame` if given."""
        self._accept(message, expected, frame, by_owner=get_ident() == self._owner)

    def _accept(
        self, message: DataMessage, expected: type, frame: bytes | None, *, by_owner: bool
    ) -> None:
        try:
            self._check_class(message, expected)
            with self._lock:
                if not by_owner:
                    self._wait_until_accepted()
                output = self._output
                if output.broken is not None or output.data is DataState.REFUSED:
                    if self._refused is not None and not by_owner:
                        self._refused.record(expected is Point)
                    raise self._closed() from output.broken
                # Encoded under the lock: a batch stays whole only if its messages are sent
                # in the order in which they were checked.
                if frame is None:
                    frame = self._encode(message)
                else:
                    self._check_length(message, frame)
                output.write(message, frame, by_owner=by_owner)
                self._passes_points = output.passes_points
                if output.size >= FLUSH_BYTES if by_owner else not output.defers:
                    self._flush()
        except InvalidWriteError as error:
            if not by_owner:
                # No caller handles an exception in a thread of the handler, so the agent
                # ends the connection with it.
                self.failure = self.failure or error
                self._on_failure()
            raise
        finally:
            self._turn.regain()

    def _check_class(self, message: DataMessage, expected: type) -> None:
        if type(message) is not expected:
            problem = f"{with_article(message)} instead of {with_article(expected())}"
            raise InvalidWriteError(problem)

    def _wait_until_accepted(self) -> None:
        """Wait until another thread than the owner may write; the lock is held."""
        self._changed.wait_for(self._need_not_wait)

    def _forward_checked(self, raw: RawPoint, patch: PointPatch | None) -> None:
        """Send a point on that needs a check first."""
        if self._output.replays:
            # A history may be long: its points are not decoded just to be suppressed.
            with self._lock:
                self._output.write_replayed_point()
            return
        self._write(Point(), Point, frame=raw if patch is None else patch.extend(raw))

    def _need_not_wait(self) -> bool:
        """Return whether a thread other than the owner may write, or fail, now."""
        output = self._output
        if output.data is DataState.REFUSED or output.broken is not None:
            return True
        return not output.is_full and not self._blocks_others

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

    def _flush(self, stats: ConnectionStats | None = None, *, forget_input: bool = False) -> None:
        """Do what `flush` does; the lock is held."""
        try:
            self._output.flush(stats, forget_input=forget_input)
        except ConnectionClosedError:
            self._passes_points = False
            raise
