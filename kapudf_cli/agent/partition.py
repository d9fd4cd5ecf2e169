"""One partition of a handler: an instance that gets a share of the groups.

It gets frames of the input, several at a time, and returns what the handler wrote for each of
them. The agent of the connection sends this to Kapacitor. Here is no I/O: where partitions run is
decided elsewhere; see `partitions`.
"""

from __future__ import annotations

import contextlib
import itertools
import traceback
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final, cast

from kapudf_cli.agent.checkpoints import NoCheckpoints
from kapudf_cli.agent.dispatcher import Dispatcher, RefusedError, ReplayAgainError
from kapudf_cli.agent.errors import HandlerError, WorkerLostError
from kapudf_cli.agent.handler_caller import HandlerCaller
from kapudf_cli.agent.outbox import Outbox
from kapudf_cli.agent.output import DataState
from kapudf_cli.agent.partition_messages import (
    Ask,
    Create,
    Drain,
    End,
    Failure,
    Handle,
    Passed,
    Result,
    TakeSnapshot,
)
from kapudf_cli.agent.read_loop import ReadLoop
from kapudf_cli.agent.recovery import Recovery
from kapudf_cli.agent.turns import turn_of
from kapudf_cli.handler.errors import ConnectionClosedError
from kapudf_cli.handler.state import PerGroup
from kapudf_cli.protocol.codec import REQUESTS
from kapudf_cli.protocol.errors import InvalidWriteError, ProtocolError
from kapudf_cli.protocol.framing import MAX_VARINT, FrameReader
from kapudf_cli.protocol.order import Incoming, IncomingOrder
from kapudf_cli.protocol.request_reader import RequestReader
from kapudf_cli.protocol.udf_pb2 import BeginBatch, Point
from kapudf_cli.transport.meter import Meter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sized

    from kapudf_cli.agent.dispatcher import Next
    from kapudf_cli.agent.error_policy import OnError
    from kapudf_cli.agent.partition_messages import Order
    from kapudf_cli.handler.handler import Handler
    from kapudf_cli.protocol.codec import DataMessage, ResponseMessage
    from kapudf_cli.protocol.request_reader import ReadRequest
    from kapudf_cli.protocol.udf_pb2 import EdgeType
    from kapudf_cli.transport import Stream
    from kapudf_cli.transport.stream import ConnectionStats

#: The second output for `TakeSnapshot`, if the partition's own time is a part of the state.
KEEPS_TIME: Final = b"time"
#: The most output for one order, which is kept until all of its frames are handled.
MAX_OUTPUT_BYTES: Final = 256 * 1024 * 1024


class PartitionAgent:
    """Calls the handler of one partition of one connection. For one thread at a time."""

    def __init__(
        self,
        handler: type[Handler],
        *,
        max_frame_bytes: int,
        on_error: OnError,
        on_written: Callable[[bytes], None],
        on_init: Callable[[str, str], None] | None = None,
    ) -> None:
        """Create handlers of a class.

        Args:
            handler: the class.
            max_frame_bytes: the longest frame that it may write.
            on_error: what happens when it raises over data.
            on_written: called with each message, as a frame, that a thread of a handler writes.
            on_init: called with the names of the task and the node at Init.
        """
        self._handler = handler
        self._max_frame_bytes = max_frame_bytes
        self._on_error = on_error
        self._on_written = on_written
        self._on_init = on_init
        self._has_failed = False
        self._create()

    @property
    def frames_done(self) -> int:
        """How many frames of the current order are handled. From any thread."""
        return len(self._dispatcher.marks)

    def execute(self, order: Order) -> Result:
        """Execute an order. Errors of the handler are in the result.

        Raises:
            Exception: a bug of kapudf, or memory ran out.
        """
        began_ns = monotonic_ns()
        self._outbox.adopt()
        # The agent of the connection holds data back until Kapacitor can take it.
        self._outbox.send_data()
        failure = None
        try:
            failure = self._execute(order)
        except HandlerError as error:
            failure = self._of_handler(error)
        except ConnectionClosedError:
            pass  # There is no handler any longer.
        return self._result(failure, monotonic_ns() - began_ns)

    def close(self) -> None:
        """End a handler that gets no more orders; what it raises is logged."""
        self._outbox.close(None)
        self._caller.stop_quietly()

    def _create(self) -> None:
        """Begin without a handler."""
        self._outbox = _PartitionOutbox(
            max_frame_bytes=self._max_frame_bytes,
            provides=self._handler.provides,
            on_written=self._on_written,
        )
        self._caller = HandlerCaller(self._handler, self._outbox, turn_of(self._handler))
        self._dispatcher = _PartitionDispatcher(
            self._caller, self._outbox, on_error=self._on_error, on_init=self._on_init
        )
        self._requests = _MarkingReader(self._outbox.frames, self._dispatcher.marks)
        recovery = _NoRecovery(self._dispatcher, self._requests, NoCheckpoints())
        self._read_loop = _PartitionReadLoop(
            self._outbox.stream, self._dispatcher, recovery, linger_ms=0
        )
        self._has_failed = False

    def _execute(self, order: Order) -> Failure | None:
        match order:
            case Handle():
                return None if self._has_failed else self._handle(order)
            case Create():
                self._create()
                self._outbox.adopt()
                self._outbox.send_data()
                self._caller.create()
            case Ask():
                self._answer(order.frame)
            case TakeSnapshot():
                self._outbox.add_raw(self._dispatcher.snapshot())
                state = getattr(self._caller.handler, "state", None)
                if isinstance(state, PerGroup) and state.has_expiry:
                    self._outbox.add_raw(KEEPS_TIME)
            case Drain():
                self._caller.drain(order.limit_s)
            case End():
                self._caller.stop()
        return None

    def _answer(self, frame: bytes) -> None:
        (message,) = FrameReader(REQUESTS.decode_in, MAX_VARINT).feed(frame)
        with contextlib.suppress(RefusedError):  # The answer says so.
            self._dispatcher.dispatch(message, 0)
        self._read_loop.choose_form()

    def _handle(self, order: Handle) -> Failure | None:
        dispatcher = self._dispatcher
        dispatcher.set_replaying(replays=order.replays)
        try:
            if order.drops:
                for message in self._requests.feed(order.frames):
                    dispatcher.drop(message)
            else:
                with self._caller.turn:
                    self._read_loop.handle(order.frames)
        except (
            HandlerError,
            ProtocolError,
            WorkerLostError,
            ReplayAgainError,
            _NeedsRestartError,
        ) as error:
            dispatcher.note_passed()
            # What the handler wrote before belongs to the frame at fault.
            self._requests.end_frame()
            self._has_failed = True
            return self._failure(error, self.frames_done - 1)
        return None

    def _failure(self, error: Exception, frame: int) -> Failure:
        match error:
            case HandlerError():
                return self._of_handler(error, frame)
            case ProtocolError():
                return Failure(frame, "protocol", error.problem)
            case WorkerLostError():
                return Failure(frame, "lost", str(error))
            case ReplayAgainError():
                return Failure(frame, "replay")
            case _:
                return Failure(frame, "restart")

    def _of_handler(self, error: HandlerError, frame: int = 0) -> Failure:
        trace = "".join(traceback.format_exception(error.cause))
        return Failure(frame, "handler", str(error), error.method, trace)

    def _result(self, failure: Failure | None, took_ns: int) -> Result:
        outputs, only_points = self._outbox.take()
        marks, passed = self._dispatcher.take()
        counts = None
        if marks != list(range(1, len(outputs) + 1)):
            counts = [end - start for start, end in itertools.pairwise([0, *marks])]
        return Result(outputs, counts, only_points, passed, failure, took_ns)


class _NeedsRestartError(Exception):
    """The handler raised, and a new one takes its place."""


class _NoRecovery(Recovery[RequestReader]):
    """Has the agent of the connection replace the handler."""

    def restart(self) -> None:
        """Stop at the current frame.

        Raises:
            _NeedsRestartError: always.
        """
        raise _NeedsRestartError


class _AnyOrder(IncomingOrder):
    """The order of messages, which the agent of the connection has checked."""

    __slots__ = ()

    def receive(self, message: type) -> None:
        """Update the state after a message of this class."""
        if message is BeginBatch:
            self.state = Incoming.IN_BATCH
        elif message is Point:
            self.takes_points = True
        else:
            self.state = Incoming.READY


class _PartitionDispatcher(Dispatcher):
    """Gives requests to the handler of a partition, and notes what comes of each frame.

    Attributes:
        marks: after each frame, how many messages were written so far.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        """Give requests to a handler; see `Dispatcher`."""
        super().__init__(*args, **settings)
        self.marks: list[int] = []
        self._passed: list[Passed] = []
        self._noted = (0, 0)

    def _begin(self) -> None:
        super()._begin()
        self.order = _AnyOrder()

    def set_replaying(self, *, replays: bool) -> None:
        """Set whether the next frames rebuild the handler's state."""
        self._replays = replays

    def dispatch(self, message: ReadRequest, offset: int) -> Next:
        """Handle a request; see `Dispatcher.dispatch`."""
        if isinstance(message, BeginBatch) and self.order.state is Incoming.IN_BATCH:
            # The end of the last batch was dropped, after the handler had raised over it.
            self._abandon_batch()
        following = super().dispatch(message, offset)
        self.note_passed()
        return following

    def failed(self, method: str, error: BaseException, offset: int) -> Next:
        """Handle an exception of the handler; see `Dispatcher.failed`."""
        following = super().failed(method, error, offset)
        self.note_passed()
        return following

    def drop(self, message: ReadRequest) -> None:
        """Accept a request without the handler; see `Dispatcher.drop`."""
        super().drop(message)
        self.note_passed()

    def note_passed(self) -> None:
        """Note what was passed over at the current frame, if anything was."""
        failures, points = self._noted
        self._noted = (self.failures, self.dropped_points)
        if self._noted != (failures, points):
            self._passed.append(
                Passed(len(self.marks), self.failures - failures, self.dropped_points - points)
            )

    def take(self) -> tuple[list[int], list[Passed]]:
        """Return the marks, and where something was passed over; forget both."""
        taken = self.marks.copy(), self._passed
        self.marks.clear()
        self._passed = []
        return taken


class _PartitionReadLoop(ReadLoop):
    """Gives a handler its points one by one, so that each frame gets a mark."""

    def choose_form(self) -> None:
        """Have points read in the form in which the handler takes them; see `ReadLoop`."""
        super().choose_form()
        self._requests.take_run = None


class _MarkingReader(RequestReader):
    """Reads requests, and notes after each how many messages were written so far."""

    def __init__(self, written: Sized, marks: list[int]) -> None:
        """Add the length of `written` to `marks` after each request."""
        super().__init__(MAX_VARINT)
        self._written = written
        self._marks = marks

    def feed(self, data: bytes) -> Iterator[ReadRequest]:
        """Yield the requests in `data`; see `RequestReader.feed`."""
        # As `end_frame`; a call for each point costs time.
        mark, written = self._marks.append, self._written
        for message in super().feed(data):
            yield message
            mark(len(written))

    def end_frame(self) -> None:
        """Note that the current frame is handled."""
        self._marks.append(len(self._written))


class _NoStream:
    """Stands for the stream, which only the agent of the connection has."""

    def __init__(self) -> None:
        self.on_full = None
        self.meter = Meter()


class _PartitionOutbox(Outbox):
    """Keeps what a handler writes until the agent of the connection takes it.

    Attributes:
        stream: stands for the stream of the connection.
    """

    def __init__(
        self, *, max_frame_bytes: int, provides: EdgeType, on_written: Callable[[bytes], None]
    ) -> None:
        """Keep messages.

        Args:
            max_frame_bytes: the longest frame, without its length.
            provides: the edge that the handler provides.
            on_written: called with each message, as a frame, that another thread writes.
        """
        self.stream = cast("Stream", _NoStream())
        super().__init__(
            self.stream,
            max_frame_bytes=max_frame_bytes,
            on_failure=lambda: None,
            provides=provides,
        )
        self._on_written = on_written
        self._only_points = True

    @property
    def frames(self) -> Sized:
        """The messages that the owner has written since the last `take`."""
        return self._output.frames

    def answer(self, message: ResponseMessage) -> None:
        """Keep an answer; see `Outbox.answer`."""
        self._only_points = False
        super().answer(message)

    def add_raw(self, data: bytes) -> None:
        """Keep bytes that are no message."""
        with self.changing() as output:
            output.add(data, by_owner=True)

    def flush(self, stats: ConnectionStats | None = None, *, forget_input: bool = False) -> None:
        """Keep what was written.

        Raises:
            InvalidWriteError: it is too much.
        """
        del stats, forget_input
        if self._output.size > MAX_OUTPUT_BYTES:
            problem = f"more than {MAX_OUTPUT_BYTES} bytes for a few points or batches"
            raise InvalidWriteError(problem)

    def take(self) -> tuple[list[bytes], bool]:
        """Return what was written since the last call, and whether all of it are points."""
        with self.changing() as output:
            taken = list(output.frames)
            output.frames.clear()
            output.size = 0
        only_points, self._only_points = self._only_points, True
        return taken, only_points

    def _accept(
        self, message: DataMessage, expected: type, frame: bytes | None, *, by_owner: bool
    ) -> None:
        if by_owner:
            self._only_points = self._only_points and expected is Point
            super()._accept(message, expected, frame, by_owner=True)
            return
        self._check_class(message, expected)
        with self._lock:
            if self._output.data is DataState.REFUSED:
                raise self._closed()
            self._on_written(self._encode(message) if frame is None else frame)

    def _flush(self, stats: ConnectionStats | None = None, *, forget_input: bool = False) -> None:
        self.flush(stats, forget_input=forget_input)
