"""The read loop of a partitioned handler: reads ahead while partitions handle points.

It splits input into parts, sends each partition its share, and merges what comes back in the order
of the input. What is committed is a prefix of the input and, without an order, shares after it; see
`partition_line`.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Final, cast

from kapudf_cli.agent.dispatcher import Next, ReplayAgainError, excerpt
from kapudf_cli.agent.errors import WorkerLostError
from kapudf_cli.agent.handover import DRAIN_LIMIT_S
from kapudf_cli.agent.output import FLUSH_BYTES
from kapudf_cli.agent.partition_line import PartitionLine, kind_of
from kapudf_cli.agent.partition_messages import Handle
from kapudf_cli.agent.partitioned_handler import PartitionHandlerError
from kapudf_cli.agent.read_coalescing import ReadCoalescing
from kapudf_cli.agent.recovery import Recovery
from kapudf_cli.handler.errors import ConnectionClosedError
from kapudf_cli.protocol.codec import RESPONSES
from kapudf_cli.protocol.errors import InvalidWriteError, ProtocolError
from kapudf_cli.protocol.framing import MAX_VARINT, FrameReader
from kapudf_cli.protocol.order import Incoming
from kapudf_cli.protocol.udf_pb2 import BeginBatch, EndBatch, Point
from kapudf_cli.system import loggers
from kapudf_cli.transport.meter import BOUNDS_NS, HANDLER_NS, IN_FLIGHT
from kapudf_cli.transport.stream import DONE_BITS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from kapudf_cli.agent.checkpoints import Checkpoints
    from kapudf_cli.agent.dispatcher import Dispatcher
    from kapudf_cli.agent.outbox import Outbox
    from kapudf_cli.agent.partition_line import Part
    from kapudf_cli.agent.partition_messages import Failure
    from kapudf_cli.agent.partitioned_handler import PartitionedDispatcher, PartitionedHandler
    from kapudf_cli.agent.partitions import Partitions
    from kapudf_cli.protocol.request_reader import ReadRequest
    from kapudf_cli.transport import Stream
    from kapudf_cli.transport.meter import Meter
    from kapudf_cli.transport.stream import ConnectionStats

_log = loggers.get(__name__)

_DATA: Final = frozenset({BeginBatch, Point, EndBatch})
_A_POINT: Final = Point()
#: The most parts in the line: a slow share must not stop the other partitions.
_MAX_PARTS: Final = 4
#: How long the handlers should take for a part. Longer parts delay their output.
_PART_NS: Final = 50_000_000
#: The most frames of a part, and their most bytes. The first parts are short, until it is known how
#: long a frame takes.
_MAX_PART_FRAMES: Final = 1024
_MAX_PART_BYTES: Final = 256 * 1024
_FIRST_FRAMES: Final = 16
#: No more input is read while so much is not handled, in bytes.
_MAX_BYTES: Final = 1024 * 1024
#: A checkpoint that was due and could not be stored is tried again after this time.
_RETRY_S: Final = 1.0


class Merger:
    """Sends the parts of a line to partitions, and writes what comes back in their order."""

    def __init__(
        self,
        line: PartitionLine,
        partitions: Partitions,
        dispatcher: Dispatcher,
        *,
        ordered: bool = True,
        meter: Meter | None = None,
        on_given: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Handle the input in `line`.

        Args:
            line: the input.
            partitions: handle it.
            dispatcher: counts what was handled.
            ordered: whether output leaves in the order of the input.
            meter: measures it; None for a replay, in which the handlers only rebuild their state.
            on_given: called with the end of each part before it is sent.
        """
        self._on_given = on_given
        self._line = line
        self._partitions = partitions
        self._dispatcher = dispatcher
        self._outbox: Outbox = dispatcher.outbox
        self._counts = None if meter is None else meter.counts
        self._most = _FIRST_FRAMES
        self._ordered = ordered
        self._longest = _MAX_PART_FRAMES if ordered else DONE_BITS // _MAX_PARTS

    @property
    def has_room(self) -> bool:
        """Whether another part may be sent."""
        if self._ordered:
            return len(self._line.parts) < _MAX_PARTS
        return self._line.frames + self._most <= DONE_BITS

    def send(
        self,
        *,
        most: int = sys.maxsize,
        until: float = math.inf,
        stops_before_batch: bool = False,
        drops: bool = False,
    ) -> Part | None:
        """Send the next part, if there is one; see `PartitionLine.split`.

        Args:
            most: the most frames.
            until: no frame is sent that starts at this offset or later.
            stops_before_batch: whether the part ends before the next BeginBatch.
            drops: whether the handlers do not get the frames.
        """
        line = self._line
        self._outbox.send_data()
        part = line.split(
            self._dispatcher.order,
            most=min(most, self._most),
            until=int(min(until, line.next_offset + _MAX_PART_BYTES)),
            stops_before_batch=stops_before_batch,
        )
        if part is not None:
            self._on_given(part.end)
            for number, frames in part.shares.items():
                self._partitions.send(number, Handle(frames, self._counts is None, drops))
            self._note_in_flight()
        return part

    def take(self) -> None:
        """Take the results that have come."""
        for number, result in self._partitions.take():
            self._line.note(number, result)

    def write(self, part: Part) -> tuple[int, Failure] | None:
        """Write what came back for the first part, and count it.

        Returns:
            The number of the first frame that was not handled, and why; None if all were.

        Raises:
            HandlerError: what was written may not come now.
            ConnectionClosedError: the connection broke.
        """
        failed = part.first_failure()
        count = len(part.route) if failed is None else failed[0] + 1
        self._write(part.outputs(count), only_points=part.only_points)
        dispatcher = self._dispatcher
        points, batches, failures, dropped = part.tally(count)
        dispatcher.points_in += points
        dispatcher.batches_in += batches
        dispatcher.failures += failures
        dispatcher.dropped_points += dropped
        self._measure(part)
        return failed

    def _measure(self, part: Part) -> None:
        took_ns = max((result.took_ns for result in part.results.values()), default=0)
        self._most = min(
            self._longest,
            2 * self._most,
            max(len(part.route) * _PART_NS // max(took_ns, 1), self._partitions.count),
        )
        if self._counts is None:
            return
        for number, result in part.results.items():
            self._counts[HANDLER_NS] += result.took_ns
            frames = part.route.count(number)
            self._counts[bisect_left(BOUNDS_NS, result.took_ns // frames)] += frames

    def overtake(self, stats: Callable[[], ConnectionStats], *, forget_input: bool) -> bool:
        """Send output that need not wait for that of other partitions; return whether there is any.

        It is committed together with the fact that its frames are done.
        """
        outbox = self._outbox
        found = False
        with outbox.changing() as output:
            for part, number in self._line.overtaking():
                if not output.passes_points:
                    break
                found = True
                outputs = part.results[number].outputs
                if outputs:
                    output.write_run(b"".join(outputs), len(outputs))
                    outputs.clear()
                part.note_written(number)
                outbox.commit(output, stats, forget_input=forget_input)
            if found:
                outbox.commit(output, stats, forget_input=forget_input, at_least=0)
                self._note_in_flight()
        return found

    def leave(self) -> None:
        """Remove the first part, whose output was written."""
        self._line.leave()
        self._note_in_flight()

    def _note_in_flight(self) -> None:
        if self._counts is not None:
            self._counts[IN_FLIGHT] = self._line.unanswered

    def _write(self, frames: list[bytes], *, only_points: bool) -> None:
        outbox = self._outbox
        for run in _runs(frames):
            with outbox.changing() as output:
                if only_points and output.replays and output.takes_points:
                    continue
                if only_points and output.passes_points:
                    output.write_run(b"".join(run), len(run))
                else:
                    try:
                        for frame in run:
                            message = _A_POINT if only_points else _decoded(frame)
                            output.write(message, frame, by_owner=True)
                    except InvalidWriteError as error:
                        raise self._dispatcher.caller.blame("point", error) from error
                is_full = output.size >= FLUSH_BYTES
            if is_full:
                outbox.flush()


def _runs(frames: list[bytes]) -> Iterator[list[bytes]]:
    """Yield frames in pieces of about the size that is flushed at once."""
    pieces = sum(map(len, frames)) // FLUSH_BYTES + 1
    count = math.ceil(len(frames) / pieces)
    for start in range(0, len(frames), count or 1):
        yield frames[start : start + count]


def _decoded(frame: bytes) -> Any:
    (message,) = FrameReader(RESPONSES.decode_in, MAX_VARINT).feed(frame)
    return message


class PartitionedRecovery(Recovery[PartitionLine]):
    """Replaces the handlers of all partitions; see `Recovery`."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        line: PartitionLine,
        checkpoints: Checkpoints,
        partitions: Partitions,
    ) -> None:
        """Make the handlers in `partitions` replaceable."""
        super().__init__(dispatcher, line, checkpoints)
        self._partitions = partitions

    def _give(self, history: bytes, until: int) -> None:
        line = PartitionLine(self._partitions.count, MAX_VARINT)
        line.resume_at(until - len(history))
        line.feed(history)
        merger = Merger(line, self._partitions, self._dispatcher)
        while (message := line.peek()) is not None or line.parts:
            merger.take()
            if (part := line.first_done()) is not None:
                if (failed := merger.write(part)) is not None:
                    start, _ = line.place(part, failed[0])
                    raise _error(failed[1], start, self._caller.name)
                merger.leave()
            elif message is None or not self._give_next(merger, line, message):
                self._partitions.wait()
        if line.error is not None:
            raise line.error
        # A batch that is open goes on in the same partition.
        self.requests.batch = line.batch

    def _give_next(self, merger: Merger, line: PartitionLine, message: ReadRequest) -> bool:
        """Give the next frames of a history to the handlers; return False if they must wait."""
        skips = line.next_offset in self._skipped
        if kind_of(message) in _DATA:
            if not merger.has_room:
                return False
            following = (offset for offset in self._skipped if offset > line.next_offset)
            until = min(following, default=math.inf)
            part = merger.send(most=1 if skips else sys.maxsize, until=until, drops=skips)
            return part is not None or not line.parts
        if line.parts:
            return False
        frame = line.take()
        if skips:
            self._dispatcher.drop(frame.message)
        else:
            self._dispatcher.dispatch(frame.message, frame.offset)
        return True


def _error(failure: Failure, offset: int, handler: str) -> Exception:
    """Return the error for a frame, at an offset of the input, that was not handled."""
    match failure.kind:
        case "replay":
            return ReplayAgainError(offset)
        case "protocol":
            return ProtocolError(failure.text, offset=offset)
        case "lost":
            return WorkerLostError(failure.text)
        case _:
            return PartitionHandlerError(handler, failure)


class PartitionedLoop:
    """Reads input and gives it to partitions, until the input ends.

    Attributes:
        bytes_in: bytes received on this connection, by this agent and those before it.
    """

    def __init__(
        self,
        stream: Stream,
        dispatcher: PartitionedDispatcher,
        recovery: PartitionedRecovery,
        partitions: Partitions,
        *,
        ordered: bool,
        linger_ms: float,
    ) -> None:
        """Read from `stream`.

        Args:
            stream: the input.
            dispatcher: answers all requests that are no data.
            recovery: keeps the input since the last checkpoint and replaces the handlers.
            partitions: handle points and batches.
            ordered: whether output leaves in the order of the input.
            linger_ms: the longest pause before a read under load, in milliseconds.
        """
        self._stream = stream
        self._dispatcher = dispatcher
        self._outbox = dispatcher.outbox
        self._recovery = recovery
        self._line = recovery.requests
        self._partitions = partitions
        self._merger = Merger(
            self._line,
            partitions,
            dispatcher,
            ordered=ordered,
            meter=stream.meter,
            on_given=recovery.record_given,
        )
        self._ordered = ordered
        self._coalescing = ReadCoalescing(linger_ms)
        self.bytes_in = 0
        # Of the last read: its bytes, and the frames that were begun since.
        self._read_bytes = self._begun = 0
        self._read_not_before_s = 0.0
        self._compact_not_before_s = 0.0
        self._ended = False

    @property
    def current_frame(self) -> int:
        """A number that changes with each frame that is handled. From any thread."""
        line = self._line
        try:
            part = line.parts[0]
            waiting = [number for number in part.shares if number not in part.results]
            done = [part.place(number, self._partitions.frames_done(number)) for number in waiting]
            return part.start + min(done)
        except (LookupError, ValueError, RuntimeError, StopIteration):
            return line.offset  # The line is empty, or has changed meanwhile.

    # --- from any thread ---

    def wake(self) -> None:
        """Look at once whether to pause or to end."""
        self._partitions.wake()

    def abort(self) -> None:
        """Do not wait for partitions any longer."""
        self._partitions.abort()

    # --- the connection's thread ---

    def choose_form(self) -> None:
        """Do nothing: each partition chooses the form in which it gets points."""

    def run(self, careful_until: int = 0, poison: Collection[int] = ()) -> None:
        """Handle input until it ends and the line is empty.

        Args:
            careful_until: handle one frame at a time before this offset in the input.
            poison: offsets of frames there that killed workers and are dropped.

        Raises:
            ReadPaused: the stream was paused; call again to go on.
            ConnectionClosedError: the connection broke, or was aborted.
            ProtocolError, HandlerError, RefusedError: as `Dispatcher.dispatch` does.
        """
        self._stream.wait_with(lambda each: self._partitions.wait(input_descriptor=each))
        line = self._line
        if not line.parts:
            self._recovery.record_given(line.offset)
        while True:
            if self._stream.is_pausing:
                self._pause()
            self._merger.take()
            if self._retire() or self._begin(careful_until, poison):
                continue
            if line.error is not None and not line.parts:
                raise line.error
            if self._ended and not line.parts:
                return
            self._read()

    def _read(self) -> None:
        """Read input, or wait for it and for results."""
        now_s = time.monotonic()
        if self._begun:
            pause_s = self._coalescing.pause_s(now_s, self._begun, self._read_bytes)
            self._read_not_before_s = now_s + pause_s
            self._begun = 0
        line, partitions = self._line, self._partitions
        if self._ended or line.error is not None or line.unhandled_bytes >= _MAX_BYTES:
            partitions.wait()
        elif now_s < self._read_not_before_s:
            partitions.wait(timeout_s=self._read_not_before_s - now_s)
        else:
            try:
                data = self._stream.read_now() if line.parts else self._stream.read()
            except OSError as error:
                raise ConnectionClosedError(str(error)) from error
            if data is None:
                partitions.wait(input_descriptor=self._stream.input_descriptor)
            elif data:
                self.bytes_in += len(data)
                self._read_bytes = len(data)
                line.feed(data)
            else:
                self._ended = True

    # --- frames ---

    def _begin(self, careful_until: int, poison: Collection[int]) -> bool:
        """Give the next frames to partitions, unless that must wait; return whether it was done."""
        line = self._line
        message = line.peek()
        if message is None or self._must_wait_for_checkpoint():
            return False
        is_data = kind_of(message) in _DATA
        is_careful = line.next_offset < careful_until
        if line.parts and (is_careful or not is_data or not self._merger.has_room):
            return False
        if is_careful:
            return self._begin_carefully(message, poison)
        if not is_data:
            self._dispatch()
            return True
        part = self._send(stops_before_batch=self._is_checkpoint_due())
        self._begun += 0 if part is None else len(part.route)
        return part is not None

    def _send(
        self, *, most: int = sys.maxsize, stops_before_batch: bool = False, drops: bool = False
    ) -> Part | None:
        """Send the next part, if there is one; see `Merger.send`."""
        dispatcher = self._dispatcher
        most = min(most, dispatcher.same_done)
        part = self._merger.send(most=most, stops_before_batch=stops_before_batch, drops=drops)
        if part is not None and dispatcher.take_done(len(part.route)):
            for number in part.shares:
                part.note_written(number)
        return part

    def _must_wait_for_checkpoint(self) -> bool:
        """Store a checkpoint if one is due; return whether that must wait for the line."""
        if not self._is_checkpoint_due() or self._dispatcher.order.state is not Incoming.READY:
            return False
        if not self._dispatcher.allows_checkpoint:
            return True
        self._recovery.compact()
        if self._is_checkpoint_due():
            self._compact_not_before_s = time.monotonic() + _RETRY_S
        return False

    def _begin_carefully(self, message: ReadRequest, poison: Collection[int]) -> bool:
        """Give a frame that may kill the worker to its partition, while no other is handled."""
        line, dispatcher = self._line, self._dispatcher
        offset = line.next_offset
        self._outbox.flush(self._stats())
        self._recovery.record_current_frame(offset)
        drops = offset in poison
        if drops:
            _log.error(
                "dropped what killed the worker",
                extra={"offset": offset, "frame": excerpt(message)},
            )
            dispatcher.failures += 1
            self._recovery.skip_in_replays(offset)
        if kind_of(message) in _DATA:
            return self._send(most=1, drops=drops) is not None
        if drops:
            dispatcher.take_done()
            self._recovery.record_given(line.next_offset)
            frame = line.take()
            dispatcher.drop(frame.message)
            line.advance(frame.end)
        else:
            self._dispatch()
        return True

    def _dispatch(self) -> None:
        """Answer a request while the line is empty."""
        frame = self._line.take()
        self._recovery.record_given(frame.end)
        self._begun += 1
        repeats = self._dispatcher.take_done()
        with self._outbox.discarding() if repeats else contextlib.nullcontext():
            following = self._dispatcher.dispatch(frame.message, frame.offset)
        if following is Next.COMPACT:
            self._recovery.request_compaction()
        self._line.advance(frame.end)
        self._commit()
        self._recovery.compact_if_due(time.monotonic())

    # --- output ---

    def _retire(self) -> bool:
        """Send output of parts or shares that are back; return whether there was any."""
        part = self._line.first_done()
        if part is None:
            return not self._ordered and self._merger.overtake(
                self._stats, forget_input=self._forgets_input
            )
        failed = self._merger.write(part)
        if failed is None:
            self._merger.leave()
        else:
            self._fail(part, *failed)
        self._commit()
        if not self._line.parts:
            self._recovery.compact_if_due(time.monotonic())
        return True

    def _fail(self, part: Part, number: int, failure: Failure) -> None:
        """Do what `on_error` says about a frame that was not handled.

        Raises:
            ProtocolError, HandlerError, WorkerLostError: the task fails.
        """
        line, dispatcher = self._line, self._dispatcher
        done = dispatcher.done >> (number + 1)
        start, end = line.place(part, number)
        line.advance(start)
        if failure.kind != "restart":
            raise _error(failure, start, dispatcher.caller.name)
        # The frames after this one are given to the new handlers.
        in_batch = part.ends_in_batch(number + 1)
        dispatcher.order.state = Incoming.IN_BATCH if in_batch else Incoming.READY
        self._recovery.restart()
        if number in part.begins:
            cast("PartitionedHandler", dispatcher.caller.handler).drop(
                part.route[number], line.rest[: end - start]
            )
        line.advance(end)
        line.rewind(batch=part.route[number] if in_batch else None)
        dispatcher.resume_done(done)

    def _stats(self) -> ConnectionStats:
        return self._recovery.stats()

    @property
    def _forgets_input(self) -> bool:
        dispatcher = self._dispatcher
        return (
            dispatcher.stateless
            and self._line.is_between_batches
            and dispatcher.order.state is not Incoming.BEFORE_INIT
        )

    def _commit(self) -> None:
        self._outbox.flush(self._stats(), forget_input=self._forgets_input)

    # --- checkpoints and handovers ---

    def _is_checkpoint_due(self) -> bool:
        now_s = time.monotonic()
        return now_s >= self._compact_not_before_s and self._recovery.is_compaction_due(now_s)

    def _pause(self) -> None:
        """Wait for the parts in the line, for a limited time.

        Raises:
            ReadPaused: always, unless it raises as `run` does.
        """
        deadline_s = time.monotonic() + DRAIN_LIMIT_S
        while self._line.parts:
            self._merger.take()
            if self._retire():
                continue
            rest_s = deadline_s - time.monotonic()
            if rest_s <= 0:
                _log.info("paused with calls in flight", extra={"calls": self._line.unanswered})
                break
            self._partitions.wait(timeout_s=rest_s)
        self._stream.read_now()
