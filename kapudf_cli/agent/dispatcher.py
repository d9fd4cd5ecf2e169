"""The dispatcher: from one request to the handler's method and its answer.

The read loop calls the handler for nearly all points itself; everything else comes here.
"""

from __future__ import annotations

import contextlib
import enum
from typing import TYPE_CHECKING, Final

from kapudf_cli.agent.error_policy import EXCERPT_CHARACTERS, DropLog
from kapudf_cli.agent.errors import HandlerError, WorkerLostError
from kapudf_cli.errors import describe, shorten
from kapudf_cli.handler.handler import Handler
from kapudf_cli.handler.options import missing_values
from kapudf_cli.handler.output import write_returned
from kapudf_cli.protocol.codec import REQUESTS, decode_point
from kapudf_cli.protocol.errors import DecodeMemoryError, InvalidWriteError, UndecodableMessageError
from kapudf_cli.protocol.framing import HEARTBEAT_TIME
from kapudf_cli.protocol.order import Incoming, IncomingOrder
from kapudf_cli.protocol.udf_pb2 import (
    BeginBatch,
    EndBatch,
    InfoRequest,
    InfoResponse,
    InitRequest,
    InitResponse,
    KeepaliveRequest,
    KeepaliveResponse,
    Point,
    RestoreRequest,
    RestoreResponse,
    SnapshotRequest,
    SnapshotResponse,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from kapudf_cli.agent.error_policy import OnError
    from kapudf_cli.agent.handler_caller import HandlerCaller
    from kapudf_cli.agent.outbox import Outbox
    from kapudf_cli.handler.output import MaybeAsync, Returned
    from kapudf_cli.protocol.codec import DataMessage, RequestMessage, ResponseMessage
    from kapudf_cli.protocol.raw_points import RawPoint
    from kapudf_cli.protocol.request_reader import ReadRequest

#: After Init, data may be sent once Kapacitor will send no Restore. Kapacitor sends Restore
#: right after it has read the answer to Init, and keepalives at intervals of half a
#: time-out. So the second keepalive after Init comes after any Restore.
_KEEPALIVES_UNTIL_SETTLED = 2

#: What the log calls data that is dropped.
_DROPPED: Final[Mapping[type | None, str]] = {
    Point: "point",
    BeginBatch: "batch",
    EndBatch: "batch",
}


class RefusedError(Exception):
    """The handler answered Init or Restore with success=False.

    Kapacitor fails the task, but leaves the connection open and goes on sending
    keepalives. The UDF must close it.
    """


class ReplayAgainError(Exception):
    """A frame of the history raised. It was dropped the first time: replay without it.

    Attributes:
        offset: where it starts in the input, in bytes.
    """

    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self.offset = offset


class Next(enum.Enum):
    """What the read loop does after a request."""

    GO_ON = enum.auto()
    #: The handler raised, and a new one takes its place before the next request.
    RESTART_HANDLER = enum.auto()
    #: Kapacitor has asked for a snapshot: a checkpoint now loses the least.
    COMPACT = enum.auto()


class Dispatcher:
    """Gives requests to the handler in a valid order, and answers them.

    Attributes:
        caller: the handler.
        outbox: where answers go.
        order: the state of the conversation.
        init_frame: the last Init, as a frame; empty before one.
        stateless: whether the handler that got it keeps no state.
        points_in: points received.
        batches_in: batches received to their end.
        failures: exceptions of the handler that `on_error` passed over.
        dropped_points: see `ConnectionStats`.
        task: the names of the task and the node, empty before Init.
    """

    def __init__(
        self,
        caller: HandlerCaller,
        outbox: Outbox,
        *,
        on_error: OnError,
        on_init: Callable[[str, str], None] | None = None,
    ) -> None:
        """Give requests to the handler of `caller`.

        Args:
            caller: the handler.
            outbox: where answers go.
            on_error: what happens when the handler raises an exception over data.
            on_init: called with the names of the task and the node at the first Init.
        """
        self.caller = caller
        self.outbox = outbox
        self._on_error = on_error
        self._on_init = on_init
        self._dropped = DropLog()
        self._last_snapshot = b""
        self._replays = False
        self.points_in = self.batches_in = self.failures = self.dropped_points = 0
        # Points of the current batch: how many had come before it, and how many were dropped.
        self._points_before_batch = self._dropped_of_batch = 0
        self.task = ("", "")
        self._done = 0
        self._begin()

    def _begin(self) -> None:
        """Reset the state of the conversation, for a new handler."""
        self.order = IncomingOrder()
        self.init_frame = b""
        self.stateless = False
        self._skips_batch = False
        self._keepalives_since_init = 0

    def resume_counts(self, points_in: int, batches_in: int) -> None:
        """Set the counters after a replay, which has counted points and batches again."""
        self._points_before_batch += points_in - self.points_in
        self.points_in, self.batches_in = points_in, batches_in

    @property
    def allows_checkpoint(self) -> bool:
        """Whether a snapshot of the handler would contain just what the counted input has done."""
        return True

    @property
    def done(self) -> int:
        """Which of the next frames were answered, as bits; see `ConnectionStats.done`."""
        return self._done

    def resume_done(self, done: int) -> None:
        """Set which of the next frames were answered by another agent."""
        self._done = done

    def take_done(self) -> bool:
        """Return whether the next frame was answered, and go on to the one after it."""
        is_done = bool(self._done & 1)
        self._done >>= 1
        return is_done

    def drain(self) -> None:
        """Wait until the handler has finished all requests that it was given."""

    @contextlib.contextmanager
    def replaying(self) -> Iterator[None]:
        """Treat the requests inside as a replay for a new handler, from Init on.

        Failures were counted and logged the first time.
        """
        self._begin()
        self._replays = True
        try:
            yield
        finally:
            self._replays = False

    def dispatch(self, message: ReadRequest, offset: int) -> Next:
        """Handle a request whose frame starts at `offset`; return what comes next.

        Raises:
            UndecodableMessageError: it cannot be decoded, and `on_error` is to fail.
            UnexpectedMessageError: it may not come now.
            HandlerError: the handler raised, and `on_error` is to fail.
            ConnectionClosedError: it raised because the connection was lost.
            RefusedError: it refused Init or Restore.
            ReplayAgainError: it raised over a replay, which must start again without
                this request.
        """
        if isinstance(message, UndecodableMessageError):
            self._undecodable(message, offset)
            return Next.GO_ON
        self.order.receive(Point if isinstance(message, bytes) else type(message))
        match message:
            case bytes() | Point():
                self.points_in += 1
                return self._point(message, offset)
            case BeginBatch():
                self.begin_counting_batch()
                self.outbox.send_data()
                return self._give("begin_batch", self.caller.handler.begin_batch, message, offset)
            case EndBatch():
                self.batches_in += 1
                if not self._skips_batch:
                    return self._give("end_batch", self.caller.handler.end_batch, message, offset)
                self._skips_batch = False
                return Next.GO_ON
            case _:
                return self._answer_request(message)

    def _answer_request(self, message: RequestMessage) -> Next:
        """Handle a request that is not data; raises as `dispatch` does."""
        handler = self.caller.handler
        match message:
            case KeepaliveRequest():
                self.outbox.answer(KeepaliveResponse(time=message.time))
                self._count_keepalive()
            case SnapshotRequest():
                # Kapacitor asks for a snapshot of a task that runs, so no Restore follows.
                self.outbox.send_data()
                self._answer_snapshot()
                return Next.COMPACT
            case RestoreRequest():
                restore = handler.restore
                if self._replays:
                    # Many scripts for InfluxData's agent cannot restore their own snapshots.
                    restore = getattr(handler, "restore_again", restore)
                restored = self.caller.ask(RestoreResponse, "restore", restore, message)
                self._answer_start("restore", restored)
                self._last_snapshot = message.snapshot
                self.outbox.send_data()
            case InitRequest():
                self._init(message)
            case InfoRequest():
                self._answer("info", self.caller.ask(InfoResponse, "info", handler.info))
            case _:  # pragma: no cover - IncomingOrder lets nothing else through
                raise AssertionError(message)
        return Next.GO_ON

    def snapshot(self) -> bytes:
        """Return the handler's state.

        Raises:
            HandlerError: it raised.
            ConnectionClosedError: it raised because the connection was lost.
        """
        take = self.caller.handler.snapshot
        response = self.caller.ask(SnapshotResponse, "snapshot", take)
        if self.outbox.fits(response):
            self._last_snapshot = response.snapshot
        return response.snapshot

    # --- failures ---

    def failed(self, method: str, error: BaseException, offset: int) -> Next:
        """Handle an exception that the handler raised over data, as `on_error` says.

        Args:
            method: the handler's method that raised.
            error: what it raised.
            offset: where the frame that it was given starts in the input, in bytes.

        Raises:
            HandlerError, ConnectionClosedError, ReplayAgainError: as `dispatch` does.
            DecodeMemoryError: it decoded the point itself, and memory ran out.
        """
        if isinstance(error, DecodeMemoryError):
            raise error
        blamed = self.caller.blame(method, error)
        if self._on_error == "fail" or not isinstance(blamed, HandlerError):
            raise blamed from error
        if self._replays:
            if self._on_error == "restart":
                raise ReplayAgainError(offset) from error
        else:
            self.failures += 1
            what = "batch" if method.endswith("_batch") else "point"
            self._dropped.record(blamed, what=what, offset=offset, on_error=self._on_error)
        if method == "begin_batch":
            self.skip_batch()
        elif method == "end_batch":
            self._drop_batch()
        else:
            self._count_dropped(1)
        return Next.RESTART_HANDLER if self._on_error == "restart" else Next.GO_ON

    def drop(self, message: ReadRequest) -> None:
        """Accept a request without giving it to the handler, because it killed a worker.

        Raises:
            WorkerLostError: the connection cannot go on without it.
        """
        kind = _kind(message)
        if kind is InitRequest or kind is RestoreRequest or kind is InfoRequest:
            problem = f"{kind.__name__} killed the worker, and cannot be dropped"
            raise WorkerLostError(problem)
        time = message.time if isinstance(message, KeepaliveRequest) else HEARTBEAT_TIME
        self._pass_over(kind, time)

    def _undecodable(self, error: UndecodableMessageError, offset: int) -> None:
        """Handle a frame that cannot be decoded, as `on_error` says.

        Raises:
            UndecodableMessageError: `on_error` is to fail, or no task has begun.
            RefusedError: it is Init or Restore, which a task cannot do without.
        """
        if error.kind is InitRequest or error.kind is RestoreRequest:
            self.order.receive(error.kind)
            if error.kind is InitRequest:
                self._answer_start("init", InitResponse(error=str(error)))
            else:
                self._answer_start("restore", RestoreResponse(error=str(error)))
        if self._on_error == "fail" or self.order.state is Incoming.BEFORE_INIT:
            if error.kind in _DROPPED:
                error.problem += "; with on_error skip or restart, such data is dropped"
            raise error
        if not self._replays:
            self.failures += 1
            what = _DROPPED.get(error.kind, "request")
            self._dropped.record(error, what=what, offset=offset, on_error=self._on_error)
        self._pass_over(error.kind, HEARTBEAT_TIME)

    def _pass_over(self, kind: type | None, time: int) -> None:
        """Do what a request of this kind needs, without the handler; `time` is a keepalive's."""
        if kind is None:
            return
        self.order.receive(kind)
        if kind is Point:
            self.points_in += 1
            self._count_dropped(1)
            # While a batch is skipped, the read loop must not handle points itself.
            self.order.takes_points = not self._skips_batch
        elif kind is BeginBatch:
            self.begin_counting_batch()
            self.skip_batch()
        elif kind is EndBatch:
            self.batches_in += 1
            self._skips_batch = False
            self._drop_batch()
        elif kind is SnapshotRequest:
            self._answer("snapshot", SnapshotResponse(snapshot=self._last_snapshot))
        elif kind is KeepaliveRequest:
            self.outbox.answer(KeepaliveResponse(time=time))

    def skip_batch(self) -> None:
        """Skip the rest of the current batch: the handler gets none of it."""
        self._skips_batch = True
        self.order.takes_points = False
        self._abandon_batch()

    def begin_counting_batch(self) -> None:
        """Begin to count the points of a batch, for the case that it is dropped."""
        self._points_before_batch = self.points_in
        self._dropped_of_batch = 0

    # --- inside ---

    def _count_dropped(self, points: int) -> None:
        if not self._replays:
            self.dropped_points += points
            self._dropped_of_batch += points

    def _drop_batch(self) -> None:
        """Drop the current batch at its end."""
        points = self.points_in - self._points_before_batch
        self._count_dropped(points - self._dropped_of_batch)
        self._abandon_batch()

    def _abandon_batch(self) -> None:
        with self.outbox.changing() as output:
            output.abandon_batch()

    def _point(self, message: RawPoint | Point, offset: int) -> Next:
        if self._skips_batch:
            # The read loop must not handle the next one itself.
            self.order.takes_points = False
            self._count_dropped(1)
            return Next.GO_ON
        self.outbox.send_data()
        try:
            self.caller.give_point(message)
        except BaseException as error:  # noqa: BLE001 - a plugin's sys.exit() included
            method = "raw_point" if isinstance(message, bytes) else "point"
            return self.failed(method, error, offset)
        return Next.GO_ON

    def _give(
        self,
        method: str,
        call: Callable[[BeginBatch], Returned] | Callable[[EndBatch], MaybeAsync],
        message: DataMessage,
        offset: int,
    ) -> Next:
        try:
            with self.caller.turn:
                returned = call(message)  # type: ignore[arg-type]  # the method fits the message
                write_returned(self.outbox, method, returned)
        except BaseException as error:  # noqa: BLE001 - a plugin's sys.exit() included
            return self.failed(method, error, offset)
        return Next.GO_ON

    def _init(self, request: InitRequest) -> None:
        self.task = (request.taskID, request.nodeID)
        if self._on_init is not None and not self._replays:
            self._on_init(*self.task)
        handler = self.caller.handler
        # Kapacitor asked for Info on another connection, so this agent asks the handler
        # what it declares.
        info = self.caller.ask(InfoResponse, "info", handler.info)
        try:
            with self.outbox.changing() as output:
                output.declare(info.provides)
        except InvalidWriteError as error:
            raise self.caller.blame("__init__", error) from error
        response = self._initialize(request)
        if response.success:
            self.caller.choose_form()
        self._answer_start("init", response)
        self._keepalives_since_init = 0
        self.init_frame = REQUESTS.encode(request)
        self.stateless = not handler.keeps_state()

    def _initialize(self, request: InitRequest) -> InitResponse:
        """Return the handler's answer to Init."""
        handler = self.caller.handler
        reads_values_itself = type(handler).init is not Handler.init
        if reads_values_itself and (faults := missing_values(request.options)):
            # The handler would read a default where the value is missing.
            return InitResponse(error="; ".join(faults))
        return self.caller.ask(InitResponse, "init", handler.init, request)

    def _answer_snapshot(self) -> None:
        """Answer with the handler's state, or with its last good one, as `on_error` says."""
        try:
            self._answer("snapshot", SnapshotResponse(snapshot=self.snapshot()))
        except HandlerError as error:
            if self._on_error == "fail":
                raise
            self.failures += 1
            self._dropped.record(error, what="snapshot", offset=-1, on_error=self._on_error)
            self._answer("snapshot", SnapshotResponse(snapshot=self._last_snapshot))

    def _count_keepalive(self) -> None:
        self._keepalives_since_init += 1
        if (
            self._keepalives_since_init == _KEEPALIVES_UNTIL_SETTLED
            and self.order.state is not Incoming.BEFORE_INIT
        ):
            self.outbox.send_data()

    def _answer_start(self, method: str, response: InitResponse | RestoreResponse) -> None:
        """Answer Init or Restore.

        Raises:
            RefusedError: the answer is that it failed.
        """
        if response.error:
            response.error = self.outbox.fit_error(response.error)
        self._answer(method, response)
        if not response.success:
            problem = f"{method} was refused: {response.error or 'no reason given'}"
            raise RefusedError(problem)

    def _answer(self, method: str, response: ResponseMessage) -> None:
        try:
            self.outbox.answer(response)
        except InvalidWriteError as error:
            raise self.caller.blame(method, error) from error


def _kind(message: ReadRequest) -> type | None:
    """Return the class of a request, None if it is unknown."""
    if isinstance(message, UndecodableMessageError):
        return message.kind
    return Point if isinstance(message, bytes) else type(message)


def excerpt(message: ReadRequest) -> str:
    """Return the beginning of a request, for a log."""
    if isinstance(message, UndecodableMessageError):
        return str(message)
    if isinstance(message, bytes):
        try:
            message = decode_point(message)
        except Exception as error:  # noqa: BLE001 - it is only shown
            return describe(error)
    text = f"{type(message).__name__} {' '.join(str(message).split())}"
    return shorten(text, EXCERPT_CHARACTERS)
