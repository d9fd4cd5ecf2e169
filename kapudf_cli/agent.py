"""The agent: one connection between Kapacitor and one handler.

It reads, dispatches and writes, and returns an account of how the connection
went; it logs nothing itself and knows no path, process or signal.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ParamSpec, TypeAlias, TypeVar

from kapudf_cli.account import Account, Reason
from kapudf_cli.errors import (
    ConnectionClosedError,
    HandlerError,
    InvalidWriteError,
    KapudfError,
    ProtocolError,
)
from kapudf_cli.linger import DEFAULT_LINGER_MS, Linger
from kapudf_cli.outbox import Outbox
from kapudf_cli.wire.codec import decode_point
from kapudf_cli.wire.conversation import Incoming, IncomingOrder
from kapudf_cli.wire.framing import DEFAULT_MAX_FRAME_BYTES
from kapudf_cli.wire.requests import RequestReader
from kapudf_cli.wire.udf_pb2 import (
    STREAM,
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
    from collections.abc import Callable

    from kapudf_cli.handler import Handler, Writer
    from kapudf_cli.streams import Stream
    from kapudf_cli.wire.codec import RequestMessage, ResponseMessage
    from kapudf_cli.wire.point_frames import RawPoint

HandlerFactory: TypeAlias = "Callable[[Writer], Handler]"

A = TypeVar("A", InfoResponse, InitResponse, SnapshotResponse, RestoreResponse)
P = ParamSpec("P")
R = TypeVar("R")

#: After Init, data may flow once Kapacitor has no Restore left to send. It sends
#: Restore right after it has read the answer to Init, and keepalives half a time-out
#: apart: of two keepalives, the second cannot have overtaken a Restore.
_KEEPALIVES_UNTIL_SETTLED = 2

#: How long Kapacitor may take to read what was sent last. Closing before it has would
#: give its next write a broken pipe, for which it drops what it has not read: answers,
#: or the error that the task should fail with.
_SETTLE_TIMEOUT_S = 1.0


class Agent:
    """Serves one connection: `run` it in a thread, `stop` it from any other."""

    def __init__(
        self,
        stream: Stream,
        handler: HandlerFactory,
        *,
        max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES,
        linger_ms: float = DEFAULT_LINGER_MS,
        on_init: Callable[[Account], None] | None = None,
    ) -> None:
        """Serve `stream`, which becomes the agent's, with a handler of its own.

        Args:
            stream: where the bytes come from and go to.
            handler: makes the handler; its class, as a rule.
            max_frame_bytes: the longest frame taken or sent, in bytes.
            linger_ms: the longest pause before a read under load, in milliseconds.
            on_init: called once Init has named the task and node.
        """
        self._stream = stream
        self._factory = handler
        self._handler: Handler | None = None
        self._handler_name: str = getattr(handler, "__name__", "handler")
        self._on_init = on_init
        self._linger = Linger(linger_ms)
        self._requests = RequestReader(max_frame_bytes)
        self._order = IncomingOrder()
        self._outbox = Outbox(
            stream,
            max_frame_bytes=max_frame_bytes,
            on_failure=stream.interrupt,
            provides=getattr(handler, "provides", STREAM),
        )
        self._keepalives_since_init = 0
        self._run_points = 0
        self._stopping = False
        self._account = Account()

    def run(self) -> Account:
        """Serve until the connection ends; close it and return the account.

        Raises nothing: every failure is in the account.
        """
        started = time.monotonic()
        self._outbox.adopt()
        try:
            self._serve()
        except ConnectionClosedError:
            self._end(Reason.CLOSED)
        except ProtocolError as error:
            self._end(Reason.PROTOCOL_ERROR, error)
        except HandlerError as error:
            self._end(Reason.HANDLER_ERROR, error)
        except _RefusedError as error:
            self._account.refusal = str(error)
            self._end(Reason.CLOSED)
        else:
            self._end(Reason.CLOSED)
        self._account.duration_s = time.monotonic() - started
        return self._account

    def stop(self) -> None:
        """Process what has arrived, then end. From any thread; returns at once."""
        self._stopping = True
        self._stream.interrupt()

    def abort(self) -> None:
        """Break the connection, so that a peer that does not read holds nobody up."""
        self._stream.abort()

    # --- the way in ---

    def _serve(self) -> None:
        handler = self._handler = self._make_handler()
        try:
            while data := self._read():
                self._account.bytes_in += len(data)
                messages = self._take(handler, data)
                if not messages:
                    continue  # a part of a frame; the rest is on its way
                self._outbox.flush()
                # Nothing waits in the outbox while this thread does.
                pause_s = self._linger.pause_s(time.monotonic(), messages)
                if pause_s:
                    time.sleep(pause_s)
            self._raise_failure()
            if not self._stopping:
                self._requests.finish()
        except ProtocolError as error:
            if error.offset is None:
                error.offset = self._requests.offset
            raise
        if self._order.state is Incoming.BEFORE_INIT:
            self._outbox.drop_data()
        else:
            self._outbox.send_data()
        self._stop_handler()
        self._outbox.flush()
        self._raise_failure()

    def _take(self, handler: Handler, data: bytes) -> int:
        """Deal with the requests that `data` completes; return how many.

        The hot path: what is done here for a point is done for every point. Nothing
        is looked up, allocated or called that can be had once for the piece.
        """
        order = self._order
        outbox = self._outbox
        point = handler.point
        raw_point = handler.raw_point or self._decode_raw
        points = others = 0
        self._run_points = 0
        try:
            for message in self._requests.feed(data):
                if type(message) is Point and order.takes_points:
                    points += 1
                    try:
                        point(message)
                    except BaseException as error:
                        raise self._blame("point", error) from error
                elif isinstance(message, bytes) and order.takes_points:
                    points += 1
                    outbox.in_hand = message
                    try:
                        raw_point(message)
                    except BaseException as error:
                        raise self._blame("raw_point", error) from error
                else:
                    others += 1
                    self._dispatch(handler, message)
                    # A handler may choose how it takes points, in setup say.
                    point = handler.point
                    raw_point = handler.raw_point or self._decode_raw
                    self._requests.raw = handler.raw_point is not None
                    # Points that a handler would forward one by one can go in one piece.
                    forwards = handler.raw_point == outbox.forward and order.takes_points
                    self._requests.take_run = self._forward_run if forwards else None
        finally:
            outbox.in_hand = None
            self._account.points_in += points + self._run_points
        return points + self._run_points + others

    def _forward_run(self, frames: bytes, count: int) -> bool:
        """Send points on as they came, if they may leave just so; return whether they did."""
        if not self._outbox.forward_run(frames, count):
            return False
        self._run_points += count
        return True

    def _decode_raw(self, raw: RawPoint) -> None:
        """Hand a point over that was left undecoded for a handler that wants it decoded now."""
        if self._handler is not None:
            self._handler.point(decode_point(raw))

    def _raise_failure(self) -> None:
        """Raise what a thread of the handler's own did wrong, if it did."""
        if self._outbox.failure is not None:
            raise self._blame("write", self._outbox.failure)

    def _read(self) -> bytes:
        try:
            return self._stream.read()
        except OSError as error:
            # A reset is how a connection ends when a task is disabled while data
            # is on its way to Kapacitor. It is nobody's fault.
            raise ConnectionClosedError(str(error)) from error

    def _dispatch(self, handler: Handler, message: RequestMessage | RawPoint) -> None:
        self._order.receive(Point if isinstance(message, bytes) else type(message))
        match message:
            # The first point of either kind; the others do not come here.
            case bytes():
                self._outbox.send_data()
                self._account.points_in += 1
                self._outbox.in_hand = message
                self._call("raw_point", handler.raw_point or self._decode_raw, message)
            case Point():
                self._outbox.send_data()
                self._account.points_in += 1
                self._call("point", handler.point, message)
            case BeginBatch():
                self._outbox.send_data()
                self._call("begin_batch", handler.begin_batch, message)
            case EndBatch():
                self._account.batches_in += 1
                self._call("end_batch", handler.end_batch, message)
            case KeepaliveRequest():
                self._outbox.answer(KeepaliveResponse(time=message.time))
                self._note_keepalive()
            case SnapshotRequest():
                # Kapacitor asks for a snapshot of a task that runs, so no Restore follows.
                self._outbox.send_data()
                self._answer("snapshot", self._ask(SnapshotResponse, "snapshot", handler.snapshot))
            case RestoreRequest():
                restored = self._ask(RestoreResponse, "restore", handler.restore, message)
                self._answer("restore", restored)
                _check_success("restore", restored)
                self._outbox.send_data()
            case InitRequest():
                self._init(handler, message)
            case InfoRequest():
                self._answer("info", self._ask(InfoResponse, "info", handler.info))
            case _:  # pragma: no cover - IncomingOrder lets nothing else through
                raise AssertionError(message)

    def _init(self, handler: Handler, request: InitRequest) -> None:
        self._account.task_id = request.taskID
        self._account.node_id = request.nodeID
        if self._on_init is not None:
            self._on_init(self._account)
        # Kapacitor asked for Info long ago on another connection; this one learns by
        # itself what the handler declares.
        info = self._ask(InfoResponse, "info", handler.info)
        try:
            self._outbox.declare(info.provides)
        except InvalidWriteError as error:
            raise self._blame("__init__", error) from error
        response = self._ask(InitResponse, "init", handler.init, request)
        self._answer("init", response)
        _check_success("init", response)
        self._keepalives_since_init = 0

    def _note_keepalive(self) -> None:
        self._keepalives_since_init += 1
        if (
            self._keepalives_since_init == _KEEPALIVES_UNTIL_SETTLED
            and self._order.state is not Incoming.BEFORE_INIT
        ):
            self._outbox.send_data()

    def _answer(self, method: str, response: ResponseMessage) -> None:
        try:
            self._outbox.answer(response)
        except InvalidWriteError as error:
            raise self._blame(method, error) from error

    # --- the handler ---

    def _make_handler(self) -> Handler:
        return self._call("__init__", self._factory, self._outbox)

    def _ask(
        self,
        expected: type[A],
        method: str,
        call: Callable[P, A],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> A:
        """Call a method of the handler that must return a message."""
        response = self._call(method, call, *args, **kwargs)
        if type(response) is not expected:
            problem = f"returned {type(response).__name__} where {expected.__name__} belongs"
            raise self._blame(method, TypeError(problem))
        return response

    def _call(self, method: str, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return call(*args, **kwargs)
        except BaseException as error:
            # SystemExit too: a plugin's sys.exit() must not end a connection without a word.
            raise self._blame(method, error) from error

    def _blame(self, method: str, error: BaseException) -> HandlerError | ConnectionClosedError:
        """Return whose fault it is that a method raised: the handler's, or a lost connection's."""
        if self._outbox.broken is not None and _is_caused_by(error, ConnectionClosedError):
            return ConnectionClosedError(str(error))
        return HandlerError(self._handler_name, method, error)

    def _stop_handler(self) -> None:
        """Call the handler's last method, if there is a handler and it was not called yet."""
        handler, self._handler = self._handler, None
        if handler is not None:
            self._call("stop", handler.stop)

    # --- the end ---

    def _end(self, reason: Reason, error: KapudfError | None = None) -> None:
        """Tell Kapacitor, let the handler go, close, and complete the account."""
        account = self._account
        account.reason = Reason.STOPPED if self._stopping and reason is Reason.CLOSED else reason
        account.error = error
        self._tell(error)
        self._outbox.close()
        try:
            self._stop_handler()
        except ConnectionClosedError:
            pass
        except HandlerError as stop_error:
            if not _is_caused_by(stop_error, ConnectionClosedError):
                account.stop_error = stop_error
        unread = 0
        if self._order.state is not Incoming.BEFORE_INIT or error is not None:
            # A connection that only asked for Info is closed at once: kapacitord
            # waits for that with its start.
            unread = self._stream.settle(_SETTLE_TIMEOUT_S)
        unread += self._stream.close()
        account.unprocessed_bytes = account.bytes_in - self._requests.offset + unread
        account.points_out = self._outbox.points
        account.batches_out = self._outbox.batches
        account.bytes_out = self._outbox.bytes
        account.batch_unfinished = self._outbox.in_batch

    def _tell(self, error: KapudfError | None) -> None:
        """Send what is pending and then the error, if Kapacitor is still there to be told."""
        try:
            if error is not None:
                self._outbox.fail(str(error))
            self._outbox.flush()
        except ConnectionClosedError:
            pass  # The account tells.


class _RefusedError(Exception):
    """The handler answered Init or Restore with success=False.

    Kapacitor fails the task, but leaves the connection open and goes on sending
    keepalives; it is for the UDF to close it.
    """


def _check_success(method: str, response: InitResponse | RestoreResponse) -> None:
    if not response.success:
        problem = f"{method} was refused: {response.error or 'no reason given'}"
        raise _RefusedError(problem)


def _is_caused_by(error: BaseException, kind: type[BaseException]) -> bool:
    """Return whether an exception, or one that it was raised from, is of a kind."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, kind):
            return True
        link = link.__cause__ or link.__context__
    return False
