"""From a request to the handler's method and its answer, one request at a time.

The agent deals with nearly all points itself, in its loop; what is special comes here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kapudf_cli.agent.on_error import EXCERPT_CHARACTERS, DroppedLog
from kapudf_cli.errors import (
    DecodeMemoryError,
    HandlerError,
    InvalidWriteError,
    UndecodableMessageError,
    WorkerLostError,
    describe,
    shorten,
)
from kapudf_cli.kit.handler import Handler
from kapudf_cli.kit.options import missing_values
from kapudf_cli.wire.codec import REQUESTS, decode_point
from kapudf_cli.wire.conversation import Incoming, IncomingOrder
from kapudf_cli.wire.framing import HEARTBEAT_TIME
from kapudf_cli.wire.udf_pb2 import (
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
    from collections.abc import Callable, Mapping

    from kapudf_cli.agent.account import Account
    from kapudf_cli.agent.callee import Callee
    from kapudf_cli.agent.on_error import OnError
    from kapudf_cli.agent.outbox import Outbox
    from kapudf_cli.wire.codec import DataMessage, RequestMessage, ResponseMessage
    from kapudf_cli.wire.point_frames import RawPoint
    from kapudf_cli.wire.requests import ReadRequest

#: After Init, data may flow once Kapacitor has no Restore left to send. It sends
#: Restore right after it has read the answer to Init, and keepalives half a time-out
#: apart: of two keepalives, the second cannot have overtaken a Restore.
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
    keepalives; it is for the UDF to close it.
    """


class RepeatAgainError(Exception):
    """A frame of the history failed, which was dropped in its time: repeat without it.

    Attributes:
        offset: where it starts in the input, in bytes.
    """

    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self.offset = offset


class Dispatcher:
    """Gives requests to the handler, in an order that it can rely on.

    Attributes:
        order: where the conversation stands.
        init_frame: the Init that came last, as a frame; empty before one.
        stateless: whether the handler that was given it has no state.
        repeats: whether what comes is a repetition, for a new handler.
        snapshot_asked: whether Kapacitor has asked for a snapshot; the agent resets it.
        wants_restart: whether the handler is to be made anew before it is given more.
    """

    def __init__(
        self,
        callee: Callee,
        outbox: Outbox,
        account: Account,
        *,
        on_error: OnError,
        on_init: Callable[[Account], None] | None,
    ) -> None:
        """Give requests to `callee`.

        Args:
            callee: the handler.
            outbox: where answers go.
            account: what is to be counted in.
            on_error: what becomes of an exception over data.
            on_init: called once Init has named the task and node.
        """
        self._callee = callee
        self._outbox = outbox
        self._account = account
        self._on_error = on_error
        self._on_init = on_init
        self._dropped = DroppedLog()
        self._last_snapshot = b""
        self.repeats = False
        self.snapshot_asked = False
        self.wants_restart = False
        self.begin()

    def begin(self) -> None:
        """Begin the conversation anew, for a new handler."""
        self.order = IncomingOrder()
        self.init_frame = b""
        self.stateless = False
        self._leaves_batch_out = False
        self._keepalives_since_init = 0

    def dispatch(self, message: ReadRequest, offset: int) -> None:
        """Deal with a request whose frame starts at `offset`.

        Raises:
            UndecodableMessageError: it cannot be decoded, and `on_error` is to fail.
            UnexpectedMessageError: it may not come now.
            HandlerError: the handler raised, and `on_error` is to fail.
            ConnectionClosedError: it raised because the connection was lost.
            RefusedError: it refused Init or Restore.
            RepeatAgainError: it raised over a repetition, which must begin again without
                this request.
        """
        if isinstance(message, UndecodableMessageError):
            self._undecodable(message, offset)
            return
        self.order.receive(Point if isinstance(message, bytes) else type(message))
        match message:
            case bytes() | Point():
                self._account.points_in += 1
                if self._leaves_batch_out:
                    # The agent must not deal with the next one by itself.
                    self.order.takes_points = False
                else:
                    self._outbox.send_data()
                    self._point(message, offset)
            case BeginBatch():
                self._outbox.send_data()
                self._give("begin_batch", self._callee.handler.begin_batch, message, offset)
            case EndBatch():
                self._account.batches_in += 1
                if self._leaves_batch_out:
                    self._leaves_batch_out = False
                else:
                    self._give("end_batch", self._callee.handler.end_batch, message, offset)
            case _:
                self._answer_request(message)

    def _answer_request(self, message: RequestMessage) -> None:
        """Deal with what is no data; raises as `dispatch` does."""
        handler = self._callee.handler
        match message:
            case KeepaliveRequest():
                self._outbox.answer(KeepaliveResponse(time=message.time))
                self._note_keepalive()
            case SnapshotRequest():
                # Kapacitor asks for a snapshot of a task that runs, so no Restore follows.
                self._outbox.send_data()
                self._answer_snapshot()
                self.snapshot_asked = True
            case RestoreRequest():
                restored = self._callee.ask(RestoreResponse, "restore", handler.restore, message)
                self._answer_start("restore", restored)
                self._last_snapshot = message.snapshot
                self._outbox.send_data()
            case InitRequest():
                self._init(message)
            case InfoRequest():
                self._answer("info", self._callee.ask(InfoResponse, "info", handler.info))
            case _:  # pragma: no cover - IncomingOrder lets nothing else through
                raise AssertionError(message)

    def decode_raw(self, raw: RawPoint) -> None:
        """Hand a point over that was left undecoded for a handler that wants it decoded now."""
        self._callee.handler.point(decode_point(raw))

    def snapshot(self) -> bytes:
        """Return the handler's state.

        Raises:
            HandlerError: it raised.
            ConnectionClosedError: it raised because the connection was lost.
        """
        take = self._callee.handler.snapshot
        response = self._callee.ask(SnapshotResponse, "snapshot", take)
        if self._outbox.fits(response):
            self._last_snapshot = response.snapshot
        return response.snapshot

    # --- what goes wrong ---

    def failed(self, method: str, error: BaseException, offset: int) -> None:
        """Deal with an exception that the handler raised over data, as `on_error` says.

        Args:
            method: the handler's method that raised.
            error: what it raised.
            offset: where the frame that it was given starts in the input, in bytes.

        Raises:
            HandlerError, ConnectionClosedError, RepeatAgainError: as `dispatch` does.
            DecodeMemoryError: it decoded the point by itself, and there is no memory for that.
        """
        if isinstance(error, DecodeMemoryError):
            raise error
        blamed = self._callee.blame(method, error)
        if self._on_error == "fail" or not isinstance(blamed, HandlerError):
            raise blamed from error
        if self.repeats:
            if self._on_error == "restart":
                raise RepeatAgainError(offset) from error
        else:
            self._account.failures += 1
            what = "batch" if method.endswith("_batch") else "point"
            self._dropped.note(blamed, what=what, offset=offset, on_error=self._on_error)
            self.wants_restart = self._on_error == "restart"
        if method == "begin_batch":
            self.leave_batch_out()
        elif method == "end_batch":
            with self._outbox.changing() as output:
                output.abandon_batch()

    def drop(self, message: ReadRequest) -> None:
        """Take a request, but do not give it to the handler: it killed a worker.

        Raises:
            WorkerLostError: the connection cannot go on without it.
        """
        kind = _kind(message)
        if kind is InitRequest or kind is RestoreRequest or kind is InfoRequest:
            problem = f"{kind.__name__} killed the worker, and cannot be left out"
            raise WorkerLostError(problem)
        time = message.time if isinstance(message, KeepaliveRequest) else HEARTBEAT_TIME
        self._pass_over(kind, time)

    def _undecodable(self, error: UndecodableMessageError, offset: int) -> None:
        """Deal with a frame that cannot be decoded, as `on_error` says.

        Raises:
            UndecodableMessageError: `on_error` is to fail, or no task has begun.
            RefusedError: it is the Init or the Restore of a task, which cannot go on without.
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
        if not self.repeats:
            self._account.failures += 1
            what = _DROPPED.get(error.kind, "request")
            self._dropped.note(error, what=what, offset=offset, on_error=self._on_error)
        self._pass_over(error.kind, HEARTBEAT_TIME)

    def _pass_over(self, kind: type | None, time: int) -> None:
        """Do what a request of a kind needs without the handler; `time` is of a keepalive."""
        if kind is None:
            return
        self.order.receive(kind)
        if kind is Point:
            self._account.points_in += 1
            # As long as a batch is left out, the agent must not deal with points by itself.
            self.order.takes_points = not self._leaves_batch_out
        elif kind is BeginBatch:
            self.leave_batch_out()
        elif kind is EndBatch:
            self._account.batches_in += 1
            self._leaves_batch_out = False
            with self._outbox.changing() as output:
                output.abandon_batch()
        elif kind is SnapshotRequest:
            self._answer("snapshot", SnapshotResponse(snapshot=self._last_snapshot))
        elif kind is KeepaliveRequest:
            self._outbox.answer(KeepaliveResponse(time=time))

    def leave_batch_out(self) -> None:
        """Give nothing of the batch that is under way to the handler."""
        self._leaves_batch_out = True
        self.order.takes_points = False
        with self._outbox.changing() as output:
            output.abandon_batch()

    # --- inside ---

    def _point(self, message: RawPoint | Point, offset: int) -> None:
        handler = self._callee.handler
        try:
            if isinstance(message, bytes):
                self._outbox.in_hand = message
                (handler.raw_point or self.decode_raw)(message)
            else:
                handler.point(message)
        except BaseException as error:  # noqa: BLE001 - a plugin's sys.exit() included
            method = "raw_point" if isinstance(message, bytes) else "point"
            self.failed(method, error, offset)

    def _give(
        self,
        method: str,
        call: Callable[[BeginBatch], None] | Callable[[EndBatch], None],
        message: DataMessage,
        offset: int,
    ) -> None:
        try:
            call(message)  # type: ignore[arg-type]  # the one goes with the other
        except BaseException as error:  # noqa: BLE001 - a plugin's sys.exit() included
            self.failed(method, error, offset)

    def _init(self, request: InitRequest) -> None:
        self._account.task_id = request.taskID
        self._account.node_id = request.nodeID
        if self._on_init is not None:
            self._on_init(self._account)
        handler = self._callee.handler
        # Kapacitor asked for Info long ago on another connection; this one learns by
        # itself what the handler declares.
        info = self._callee.ask(InfoResponse, "info", handler.info)
        try:
            with self._outbox.changing() as output:
                output.declare(info.provides)
        except InvalidWriteError as error:
            raise self._callee.blame("__init__", error) from error
        reads_values_itself = type(handler).init is not Handler.init
        if reads_values_itself and (faults := missing_values(request.options)):
            # It would read the default of a value that is not there.
            response = InitResponse(error="; ".join(faults))
        else:
            response = self._callee.ask(InitResponse, "init", handler.init, request)
        self._answer_start("init", response)
        self._keepalives_since_init = 0
        self.init_frame = REQUESTS.encode(request)
        self.stateless = not handler.keeps_state()

    def _answer_snapshot(self) -> None:
        """Answer with the handler's state, or with its last good one, as `on_error` says."""
        try:
            self._answer("snapshot", SnapshotResponse(snapshot=self.snapshot()))
        except HandlerError as error:
            if self._on_error == "fail":
                raise
            self._account.failures += 1
            self._dropped.note(error, what="snapshot", offset=-1, on_error=self._on_error)
            self._answer("snapshot", SnapshotResponse(snapshot=self._last_snapshot))

    def _note_keepalive(self) -> None:
        self._keepalives_since_init += 1
        if (
            self._keepalives_since_init == _KEEPALIVES_UNTIL_SETTLED
            and self.order.state is not Incoming.BEFORE_INIT
        ):
            self._outbox.send_data()

    def _answer_start(self, method: str, response: InitResponse | RestoreResponse) -> None:
        """Answer Init or Restore.

        Raises:
            RefusedError: the answer is that it failed.
        """
        if response.error:
            response.error = self._outbox.fit_error(response.error)
        self._answer(method, response)
        if not response.success:
            problem = f"{method} was refused: {response.error or 'no reason given'}"
            raise RefusedError(problem)

    def _answer(self, method: str, response: ResponseMessage) -> None:
        try:
            self._outbox.answer(response)
        except InvalidWriteError as error:
            raise self._callee.blame(method, error) from error


def _kind(message: ReadRequest) -> type | None:
    """Return the class of a request, None where that cannot be told."""
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
