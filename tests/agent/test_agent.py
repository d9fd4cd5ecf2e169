"""One connection from its first byte to its summary, with the agent at work in a thread."""

from __future__ import annotations

import functools
import socket
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, ClassVar

import pytest

from kapudf_cli.agent.agent import ConnectionSummary, Reason
from kapudf_cli.agent.errors import HandlerError, WorkerLostError
from kapudf_cli.handler.errors import ConnectionClosedError
from kapudf_cli.handler.handler import Handler
from kapudf_cli.protocol.codec import REQUESTS, RESPONSES
from kapudf_cli.protocol.errors import (
    DecodeMemoryError,
    EmptyMessageError,
    FrameTooLongError,
    InvalidWriteError,
    TruncatedFrameError,
    UndecodableMessageError,
    UnexpectedMessageError,
    VarintTooLongError,
)
from kapudf_cli.protocol.udf_pb2 import (
    BATCH,
    STREAM,
    BeginBatch,
    EndBatch,
    ErrorResponse,
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
from tests.peers import agent_with, in_thread
from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from kapudf_cli.agent.error_policy import OnError
    from kapudf_cli.handler.output import Writer
    from kapudf_cli.protocol.codec import RequestMessage, ResponseMessage
    from kapudf_cli.protocol.errors import ProtocolError
    from tests.peers import ServedAgent

INIT = InitRequest(taskID="task", nodeID="node2")
INITIALIZED = InitResponse(success=True)
#: A point of about 64 KiB. A socket cannot queue a hundred of these.
LARGE = Point(name="x" * 65_536)


class Mirror(Handler):
    """Sends points back: the smallest possible handler."""

    def point(self, point: Point, /) -> None:
        self.agent.write_point(point)


class BatchMirror(Mirror):
    """Sends batches back."""

    wants = BATCH
    provides = BATCH


class Recorder(Handler):
    """Records each call, and raises in one of them."""

    wants = BATCH
    provides = BATCH
    calls: ClassVar[list[str]]
    fails_in: ClassVar[str] = ""
    error: ClassVar[BaseException] = ValueError("no good,\n  twice")

    def __init__(self, agent: Writer) -> None:
        super().__init__(agent)
        self._note("__init__")

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if call == self.fails_in:
            raise self.error

    def info(self) -> InfoResponse:
        self._note("info")
        return super().info()

    def init(self, request: InitRequest, /) -> InitResponse:
        self._note("init")
        return super().init(request)

    def snapshot(self) -> SnapshotResponse:
        self._note("snapshot")
        return super().snapshot()

    def restore(self, request: RestoreRequest, /) -> RestoreResponse:
        self._note("restore")
        return super().restore(request)

    def begin_batch(self, begin: BeginBatch, /) -> None:
        self._note("begin_batch")
        super().begin_batch(begin)

    def point(self, point: Point, /) -> None:
        self._note("point")
        self.agent.write_point(point)

    def end_batch(self, end: EndBatch, /) -> None:
        self._note("end_batch")
        super().end_batch(end)

    def teardown(self) -> None:
        self._note("teardown")


#: Input that calls each method of a handler, in the order of METHODS.
EVERYTHING: list[RequestMessage] = [
    InfoRequest(),
    INIT,
    RestoreRequest(),
    BeginBatch(),
    Point(),
    SnapshotRequest(),
    EndBatch(),
]
METHODS = [
    "__init__", "info", "init", "restore", "begin_batch", "point", "snapshot", "end_batch",
    "teardown",
]  # fmt: skip


def encoded(*messages: RequestMessage) -> bytes:
    return b"".join(map(REQUESTS.encode, messages))


def play(served: ServedAgent, data: bytes) -> list[ResponseMessage]:
    """Send `data`, end the input, and return every response."""
    served.side.send_bytes(data)
    served.side.half_close()
    return list(served.side.responses())


def play_until_error(served: ServedAgent, data: bytes) -> list[ResponseMessage]:
    """Send `data`, and return the responses up to the error; hang up as Kapacitor does."""
    served.side.send_bytes(data)
    responses: list[ResponseMessage] = []
    while not isinstance(responses[-1] if responses else None, ErrorResponse):
        response = served.side.receive()
        assert response is not None, responses
        responses.append(response)
    served.connection.shutdown(socket.SHUT_WR)
    assert served.side.receive() is None
    return responses


def wait_for_bytes(served: ServedAgent) -> None:
    """Wait until the agent has sent something, without reading it."""
    assert served.connection.recv(1, socket.MSG_PEEK)


# --- an ordinary connection ---


def test_a_handler_with_nothing_but_a_point_method_is_enough() -> None:
    with agent_with(Mirror) as served:
        responses = play(
            served,
            encoded(InfoRequest(), INIT, RestoreRequest(), Point(time=1), SnapshotRequest()),
        )
    assert responses == [
        InfoResponse(wants=STREAM, provides=STREAM),
        INITIALIZED,
        RestoreResponse(success=True),
        Point(time=1),
        SnapshotResponse(),
    ]
    summary = served.summary()
    assert (summary.reason, summary.error) == (Reason.CLOSED, None)


def test_batches_are_passed_on_by_default() -> None:
    sent: list[RequestMessage] = [BeginBatch(name="b", size=1), Point(time=1), EndBatch(tmax=2)]
    with agent_with(BatchMirror) as served:
        assert play(served, encoded(INIT, *sent)) == [INITIALIZED, *sent]


def test_what_a_connection_did_is_counted() -> None:
    data = encoded(
        INIT, BeginBatch(), Point(), Point(), EndBatch(), BeginBatch(), Point(), EndBatch()
    )
    with agent_with(BatchMirror) as served:
        responses = play(served, data)
    summary = served.summary()
    assert (summary.task_id, summary.node_id) == ("task", "node2")
    assert (summary.stats.points_in, summary.stats.points_out) == (3, 3)
    assert (summary.stats.batches_in, summary.stats.batches_out) == (2, 2)
    assert summary.bytes_in == len(data)
    assert summary.stats.bytes_out == sum(len(RESPONSES.encode(response)) for response in responses)
    assert summary.unprocessed_bytes == 0
    assert not summary.batch_unfinished


def test_a_connection_without_a_byte_is_an_ordinary_one() -> None:

    class Idle(Recorder):
        calls: ClassVar[list[str]] = []

    with agent_with(Idle) as served:
        assert play(served, b"") == []
    summary = served.summary()
    assert Idle.calls == ["__init__", "teardown"]
    assert summary == ConnectionSummary(duration_s=summary.duration_s)


def test_on_init_is_called_with_the_task_before_init() -> None:

    class Told(Recorder):
        calls: ClassVar[list[str]] = []

    told: list[tuple[str, str, list[str]]] = []

    def on_init(task_id: str, node_id: str) -> None:
        told.append((task_id, node_id, Told.calls.copy()))

    with agent_with(Told, on_init=on_init) as served:
        play(served, encoded(InfoRequest(), INIT))
    assert told == [("task", "node2", ["__init__", "info"])]


def test_a_keepalive_is_answered_with_its_time() -> None:

    class Alive(Recorder):
        calls: ClassVar[list[str]] = []

    with agent_with(Alive) as served:
        for time, before in enumerate((None, INIT, BeginBatch())):
            if before is not None:
                served.side.send(before)
            served.side.send(KeepaliveRequest(time=time))
            response = served.side.receive()
            while not isinstance(response, KeepaliveResponse):
                response = served.side.receive()
            assert response.time == time
        play(served, b"")
    assert Alive.calls == ["__init__", "info", "init", "begin_batch", "teardown"]


def test_output_of_stop_is_sent() -> None:

    class Last(Mirror):
        def teardown(self) -> None:
            self.agent.write_point(Point(name="last"))

    with agent_with(Last) as served:
        responses = play(served, encoded(INIT, Point(time=1)))
    assert responses == [INITIALIZED, Point(time=1), Point(name="last")]


def test_output_of_stop_is_sent_if_no_data_came() -> None:

    class Last(Mirror):
        def teardown(self) -> None:
            self.agent.write_point(Point(name="last"))

    with agent_with(Last) as served:
        responses = play(served, encoded(INIT))
    assert responses == [INITIALIZED, Point(name="last")]
    assert served.summary().stats.points_out == 1


def test_output_of_stop_without_init_is_not_sent() -> None:

    class Last(Mirror):
        def teardown(self) -> None:
            self.agent.write_point(Point(name="last"))

    with agent_with(Last) as served:
        responses = play(served, encoded(InfoRequest()))
    assert responses == [InfoResponse()]
    assert served.summary().stats.points_out == 0


def test_the_summary_reports_an_unfinished_batch() -> None:

    class Unfinished(BatchMirror):
        def end_batch(self, end: EndBatch, /) -> None:
            del end

    with agent_with(Unfinished) as served:
        play(served, encoded(INIT, BeginBatch(), Point(), EndBatch()))
    summary = served.summary()
    assert summary.batch_unfinished
    assert (summary.stats.batches_in, summary.stats.batches_out) == (1, 0)


# --- when data is sent ---


class Eager(Mirror):
    """Writes in each method that returns an answer."""

    def init(self, request: InitRequest, /) -> InitResponse:
        self.agent.write_point(Point(name="init"))
        return super().init(request)

    def restore(self, request: RestoreRequest, /) -> RestoreResponse:
        self.agent.write_point(Point(name="restore"))
        return super().restore(request)

    def snapshot(self) -> SnapshotResponse:
        self.agent.write_point(Point(name="snapshot"))
        return super().snapshot()


def test_output_of_init_and_restore_is_sent_after_their_answers() -> None:
    with agent_with(Eager) as served:
        served.side.send(INIT)
        assert served.side.receive() == INITIALIZED
        served.side.send(KeepaliveRequest(time=1))
        assert served.side.receive() == KeepaliveResponse(time=1)
        served.side.send(RestoreRequest())
        responses = [served.side.receive() for _ in range(3)]
    assert responses == [RestoreResponse(success=True), Point(name="init"), Point(name="restore")]


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        ([Point(time=1)], [Point(name="init"), Point(time=1)]),
        (
            [SnapshotRequest()],
            [Point(name="init"), Point(name="snapshot"), SnapshotResponse()],
        ),
        (
            [KeepaliveRequest(time=1), KeepaliveRequest(time=2)],
            [KeepaliveResponse(time=1), KeepaliveResponse(time=2), Point(name="init")],
        ),
        ([BeginBatch()], [Point(name="init")]),
    ],
    ids=["point", "snapshot", "two keepalives", "begin"],
)
def test_output_of_init_is_sent_once_no_restore_can_follow(
    sent: list[RequestMessage], received: list[ResponseMessage]
) -> None:
    with agent_with(Eager) as served:
        served.side.send(INIT)
        assert served.side.receive() == INITIALIZED
        served.side.send_bytes(encoded(*sent))
        assert [served.side.receive() for _ in received] == received


@pytest.mark.parametrize("before", [1, 2])
def test_keepalives_before_init_release_no_data(before: int) -> None:
    early = [KeepaliveRequest(time=time) for time in range(before)]
    with agent_with(Eager) as served:
        served.side.send_bytes(encoded(*early, INIT, KeepaliveRequest(time=9), RestoreRequest()))
        responses = [served.side.receive() for _ in range(before + 5)]
    assert responses == [
        *(KeepaliveResponse(time=keepalive.time) for keepalive in early),
        INITIALIZED,
        KeepaliveResponse(time=9),
        RestoreResponse(success=True),
        Point(name="init"),
        Point(name="restore"),
    ]


def test_output_is_sent_before_the_snapshot_that_follows_it() -> None:
    points = [Point(time=time) for time in range(100)]
    with agent_with(Eager) as served:
        responses = play(served, encoded(INIT, *points, SnapshotRequest(), Point(time=100)))
    assert responses == [
        INITIALIZED,
        Point(name="init"),
        *points,
        Point(name="snapshot"),
        SnapshotResponse(),
        Point(time=100),
    ]


def test_a_thread_of_the_handlers_own_writes_at_any_time() -> None:
    write = threading.Event()

    class Ticker(Mirror):
        def init(self, request: InitRequest, /) -> InitResponse:
            self._thread = in_thread(self._tick)
            return super().init(request)

        def _tick(self) -> None:
            assert write.wait(PATIENCE_S)
            self.agent.write_point(Point(name="tick"))

        def teardown(self) -> None:
            self._thread.result(PATIENCE_S)

    with agent_with(Ticker) as served:
        served.side.send_bytes(encoded(INIT, Point(time=1)))
        assert [served.side.receive() for _ in range(2)] == [INITIALIZED, Point(time=1)]
        write.set()
        assert served.side.receive() == Point(name="tick")
        play(served, b"")
    assert served.summary().stats.points_out == 2


@pytest.mark.parametrize("opening", [[], [InfoRequest()], [INIT]], ids=["none", "info", "init"])
def test_a_thread_that_waits_to_write_does_not_delay_the_end(
    opening: list[RequestMessage],
) -> None:

    class Producer(Mirror):
        def __init__(self, agent: Writer) -> None:
            super().__init__(agent)
            self._thread = in_thread(self._produce)

        def _produce(self) -> None:
            for _ in range(40):
                self.agent.write_point(LARGE)

        def teardown(self) -> None:
            self._thread.exception(PATIENCE_S)

    with agent_with(Producer) as served:
        responses = play(served, encoded(*opening))
        summary = served.summary()
    assert [type(response) for response in responses[: len(opening)]] == [
        InfoResponse if isinstance(request, InfoRequest) else InitResponse for request in opening
    ]
    assert summary.error is None
    assert summary.stop_error is None


# --- a handler that raises ---


@pytest.mark.parametrize("error", [ValueError("no good,\n  twice"), SystemExit(3)], ids=type)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_that_raises_ends_the_connection_with_its_error(
    method: str, error: BaseException
) -> None:

    class Broken(Recorder):
        calls: ClassVar[list[str]] = []
        fails_in = method

    Broken.error = error
    cause = "ValueError: no good, twice" if isinstance(error, ValueError) else "SystemExit: 3"
    with agent_with(Broken) as served:
        if method == "teardown":
            responses = play(served, encoded(*EVERYTHING))
        else:
            responses = play_until_error(served, encoded(*EVERYTHING))
        summary = served.summary()

    assert responses[-1] == ErrorResponse(error=f"Broken.{method} raised {cause}")
    assert summary.reason is Reason.HANDLER_ERROR
    assert isinstance(summary.error, HandlerError)
    assert (summary.error.handler, summary.error.method) == ("Broken", method)
    assert summary.error.cause is summary.error.__cause__ is error
    assert summary.stop_error is None
    called = METHODS[: METHODS.index(method) + 1]
    if method not in {"__init__", "teardown"}:
        called.append("teardown")
    if "init" in called:
        called.insert(called.index("init"), "info")
    assert Broken.calls == called


def test_an_exception_in_info_at_init_is_named() -> None:

    class Broken(Recorder):
        calls: ClassVar[list[str]] = []
        fails_in = "info"

    with agent_with(Broken) as served:
        responses = play_until_error(served, encoded(INIT))
        summary = served.summary()
    assert responses == [ErrorResponse(error="Broken.info raised ValueError: no good, twice")]
    assert summary.reason is Reason.HANDLER_ERROR
    assert Broken.calls == ["__init__", "info", "teardown"]


def test_output_is_sent_before_the_error() -> None:

    class Third(Mirror):
        def point(self, point: Point, /) -> None:
            if point.time == 3:
                raise LookupError
            super().point(point)

    points = [Point(time=time) for time in (1, 2, 3, 4)]
    with agent_with(Third) as served:
        responses = play_until_error(served, encoded(INIT, *points))
        summary = served.summary()
    assert responses == [
        INITIALIZED,
        *points[:2],
        ErrorResponse(error="Third.point raised LookupError"),
    ]
    assert (summary.stats.points_in, summary.stats.points_out) == (3, 2)
    # The frame at which the handler failed is not processed, nor is what follows.
    assert summary.unprocessed_bytes == len(encoded(*points[2:]))


def test_an_exception_in_stop_does_not_hide_the_error() -> None:

    class Twice(Mirror):
        def point(self, point: Point, /) -> None:
            raise ValueError(point.time)

        def teardown(self) -> None:
            raise OSError("stuck")

    with agent_with(Twice) as served:
        play_until_error(served, encoded(INIT, Point(time=7)))
        summary = served.summary()
    assert summary.reason is Reason.HANDLER_ERROR
    assert str(summary.error) == "Twice.point raised ValueError: 7"
    assert str(summary.stop_error) == "Twice.teardown raised OSError: stuck"


def test_writes_in_stop_after_an_error_are_no_second_error() -> None:
    raised: list[Exception] = []

    class Flusher(Mirror):
        def point(self, point: Point, /) -> None:
            raise ValueError(point.time)

        def teardown(self) -> None:
            try:
                self.agent.write_point(Point())
            except ConnectionClosedError as error:
                raised.append(error)
                raise

    with agent_with(Flusher) as served:
        play_until_error(served, encoded(INIT, Point()))
        summary = served.summary()
    assert len(raised) == 1
    assert summary.reason is Reason.HANDLER_ERROR
    assert summary.stop_error is None


class UnprintableError(Exception):
    """An exception whose `str()` raises."""

    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    "error",
    [UnprintableError(), ValueError("caf\udce9"), ValueError("x" * 2000)],
    ids=["without a text", "not encodable", "over the frame limit"],
)
def test_an_error_without_text_ends_the_connection_properly(
    error: Exception,
) -> None:

    class Broken(Recorder):
        calls: ClassVar[list[str]] = []
        fails_in = "init"

    Broken.error = error
    with agent_with(Broken, max_frame_bytes=1000) as served:
        served.side.send(INIT)
        summary = served.summary()
        response = served.side.receive()
    assert summary.reason is Reason.HANDLER_ERROR
    assert Broken.calls[-1] == "teardown"
    assert isinstance(response, ErrorResponse)
    assert response.error.startswith(f"Broken.init raised {type(error).__name__}")


@pytest.mark.parametrize(
    ("method", "request_message"),
    [
        ("info", InfoRequest()),
        ("init", INIT),
        ("snapshot", SnapshotRequest()),
        ("restore", RestoreRequest()),
    ],
)
@pytest.mark.parametrize("answer", [None, True, ErrorResponse(error="no")], ids=type)
def test_a_wrong_return_value_ends_the_connection(
    method: str, request_message: RequestMessage, answer: object
) -> None:

    class Wrong(Mirror):
        pass

    def returns_answer(*_: object) -> object:
        return answer

    returns_answer.__name__ = method
    setattr(Wrong, method, returns_answer)
    opening = encoded(INIT) if method in {"snapshot", "restore"} else b""
    with agent_with(Wrong) as served:
        responses = play_until_error(served, opening + encoded(request_message))
        summary = served.summary()
    expected = f"{method.title()}Response"
    assert responses[-1] == ErrorResponse(
        error=f"Wrong.{method} raised TypeError: "
        f"returned {type(answer).__name__} instead of {expected}"
    )
    assert summary.reason is Reason.HANDLER_ERROR


def test_a_wrong_return_value_of_info_at_init_ends_the_connection() -> None:

    class Wrong(Recorder):
        calls: ClassVar[list[str]] = []

        def info(self) -> InfoResponse:
            return None  # type: ignore[return-value]

    with agent_with(Wrong) as served:
        served.side.send(INIT)
        summary = served.summary()
        response = served.side.receive()
    assert isinstance(response, ErrorResponse)
    assert response.error.startswith("Wrong.info raised TypeError: returned NoneType")
    assert summary.reason is Reason.HANDLER_ERROR
    assert Wrong.calls == ["__init__", "teardown"]


def test_an_error_names_the_method_even_if_it_is_no_function() -> None:

    def fail(reason: str, end: EndBatch) -> None:
        raise ValueError(reason, end.tmax)

    class Chooser(BatchMirror):
        def init(self, request: InitRequest, /) -> InitResponse:
            self.end_batch = functools.partial(fail, "chosen")  # type: ignore[method-assign]
            return super().init(request)

    with agent_with(Chooser) as served:
        served.side.send_bytes(encoded(INIT, BeginBatch(), EndBatch(tmax=1)))
        summary = served.summary()
    assert str(summary.error) == "Chooser.end_batch raised ValueError: ('chosen', 1)"


def test_a_snapshot_over_the_frame_limit_ends_the_connection() -> None:

    class Hoarder(Mirror):
        def snapshot(self) -> SnapshotResponse:
            return SnapshotResponse(snapshot=b"x" * 1000)

    with agent_with(Hoarder, max_frame_bytes=500) as served:
        responses = play_until_error(served, encoded(INIT, SnapshotRequest()))
        summary = served.summary()
    assert summary.reason is Reason.HANDLER_ERROR
    assert responses[0] == INITIALIZED
    assert isinstance(responses[1], ErrorResponse)
    assert responses[1].error.startswith(
        "Hoarder.snapshot raised InvalidWriteError: a SnapshotResponse of 10"
    )


# --- out of memory ---


def test_a_memory_error_ends_the_connection_with_the_cause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cause = DecodeMemoryError("no memory to decode 7 bytes")

    def fail(_data: bytes, _start: int, _end: int) -> Point:
        raise cause

    with agent_with(Mirror) as served:
        served.side.send(INIT)
        assert served.side.receive() == INITIALIZED
        monkeypatch.setattr(
            "kapudf_cli.protocol.request_reader.REQUESTS", SimpleNamespace(decode_in=fail)
        )
        (error,) = play_until_error(served, encoded(SnapshotRequest()))
        summary = served.summary()
    assert isinstance(error, ErrorResponse)
    assert error.error.endswith("DecodeMemoryError: no memory to decode 7 bytes")
    assert summary.reason is Reason.HANDLER_ERROR
    assert summary.error is not None
    assert summary.error.__cause__ is cause


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_a_lack_of_memory_for_decoding_is_no_handler_error(on_error: OnError) -> None:
    class Decodes(Mirror):
        def point(self, _: Point, /) -> None:
            raise DecodeMemoryError

    with agent_with(Decodes, on_error=on_error) as served:
        served.side.send_bytes(encoded(INIT, Point()))
        *_, error = served.side.responses()
        summary = served.summary()
    assert isinstance(error, ErrorResponse)
    assert isinstance(summary.error, WorkerLostError)


# --- invalid writes ---


def test_an_invalid_write_that_the_handler_does_not_catch_ends_the_connection() -> None:

    class Invalid(Mirror):
        def point(self, point: Point, /) -> None:
            self.agent.write_end_batch(EndBatch(tmax=point.time))

    with agent_with(Invalid) as served:
        responses = play_until_error(served, encoded(INIT, Point()))
        summary = served.summary()
    assert responses == [
        INITIALIZED,
        ErrorResponse(
            error="Invalid.point raised InvalidWriteError: "
            "an EndBatch without a BeginBatch before it"
        ),
    ]
    assert summary.reason is Reason.HANDLER_ERROR


def test_an_invalid_write_that_the_handler_catches_changes_nothing() -> None:

    class Careful(Mirror):
        def point(self, point: Point, /) -> None:
            try:
                self.agent.write_begin_batch(BeginBatch())
            except InvalidWriteError:
                super().point(point)

    with agent_with(Careful) as served:
        responses = play(served, encoded(INIT, Point(time=1), Point(time=2)))
    assert responses == [INITIALIZED, Point(time=1), Point(time=2)]
    assert served.summary().reason is Reason.CLOSED


def test_an_invalid_write_of_another_thread_ends_the_connection() -> None:
    write = threading.Event()

    class Invalid(Mirror):
        def init(self, request: InitRequest, /) -> InitResponse:
            self._thread = in_thread(self._write)
            return super().init(request)

        def _write(self) -> None:
            assert write.wait(PATIENCE_S)
            self.agent.write_end_batch(EndBatch())

    with agent_with(Invalid) as served:
        served.side.send(INIT)
        assert served.side.receive() == INITIALIZED
        write.set()
        responses = play_until_error(served, b"")
        summary = served.summary()
    assert responses == [
        ErrorResponse(
            error="Invalid.write raised InvalidWriteError: "
            "an EndBatch without a BeginBatch before it"
        )
    ]
    assert summary.reason is Reason.HANDLER_ERROR


def test_the_summary_has_an_invalid_write_of_a_thread_during_stop() -> None:

    class Invalid(Mirror):
        def _write(self) -> None:
            self.agent.write_end_batch(EndBatch())

        def teardown(self) -> None:
            in_thread(self._write).exception(PATIENCE_S)

    with agent_with(Invalid) as served:
        play(served, encoded(INIT, Point()))
        summary = served.summary()
    assert summary.reason is Reason.HANDLER_ERROR
    assert isinstance(summary.error, HandlerError)
    assert isinstance(summary.error.cause, InvalidWriteError)


def test_a_handler_of_batches_cannot_write_a_bare_point_before_init() -> None:
    refused: list[InvalidWriteError] = []

    class Early(BatchMirror):
        def __init__(self, agent: Writer) -> None:
            super().__init__(agent)
            try:
                agent.write_point(Point(name="bare"))
            except InvalidWriteError as error:
                refused.append(error)

    sent: list[RequestMessage] = [BeginBatch(), EndBatch()]
    with agent_with(Early) as served:
        assert play(served, encoded(INIT, *sent)) == [INITIALIZED, *sent]
    assert len(refused) == 1


# --- protocol errors of the peer ---

#: Bytes after an Init, the offset of the fault in them, and the error.
FAULTS: dict[str, tuple[bytes, int, type[ProtocolError]]] = {
    "a length of too many bits": (b"\xff\xff\xff\xff\x7f", 0, VarintTooLongError),
    "a frame over the limit": (b"\x81\x80\x01", 0, FrameTooLongError),
    "garbage": (b"\x03\xff\xff\xff", 0, UndecodableMessageError),
    "text that is no UTF-8": (b"\x06\x8a\x01\x03\x12\x01\xff", 0, UndecodableMessageError),
    "an empty request": (b"\x00", 0, EmptyMessageError),
    "an empty request after another": (encoded(SnapshotRequest()) + b"\x00", 3, EmptyMessageError),
    "a second init": (encoded(INIT), 0, UnexpectedMessageError),
    "an end without a begin": (encoded(EndBatch()), 0, UnexpectedMessageError),
    "a begin inside a batch": (encoded(BeginBatch(), BeginBatch()), 4, UnexpectedMessageError),
    "an end after an end": (
        encoded(BeginBatch(), EndBatch(), EndBatch()),
        8,
        UnexpectedMessageError,
    ),
}


@pytest.mark.parametrize(("data", "offset", "kind"), FAULTS.values(), ids=FAULTS.keys())
def test_a_protocol_error_ends_the_connection_with_its_offset(
    data: bytes, offset: int, kind: type[ProtocolError]
) -> None:

    class Innocent(Recorder):
        calls: ClassVar[list[str]] = []

    opening = encoded(KeepaliveRequest(time=1), INIT)
    with agent_with(Innocent, max_frame_bytes=0x4000) as served:
        responses = play_until_error(served, opening + data)
        summary = served.summary()
    assert summary.reason is Reason.PROTOCOL_ERROR
    error = summary.error
    assert isinstance(error, kind)
    assert error.offset == len(opening) + offset
    assert responses[-1] == ErrorResponse(error=str(error))
    assert f"(in the frame at byte {error.offset})" in str(error)
    assert summary.unprocessed_bytes == len(data) - offset
    assert Innocent.calls.count("teardown") == 1
    assert Innocent.calls[-1] == "teardown"


@pytest.mark.parametrize(
    "message",
    [Point(), BeginBatch(), EndBatch(), SnapshotRequest(), RestoreRequest()],
    ids=lambda message: type(message).__name__,
)
def test_nothing_reaches_a_handler_before_init(message: RequestMessage) -> None:

    class Innocent(Recorder):
        calls: ClassVar[list[str]] = []

    with agent_with(Innocent) as served:
        responses = play_until_error(served, encoded(message))
        summary = served.summary()
    problem = f"a {type(message).__name__} may not come before Init (in the frame at byte 0)"
    assert responses == [ErrorResponse(error=problem)]
    assert summary.reason is Reason.PROTOCOL_ERROR
    assert Innocent.calls == ["__init__", "teardown"]


def test_an_input_that_ends_inside_a_frame_is_a_protocol_error() -> None:
    data = encoded(INIT, Point(time=1), Point(time=2))
    with agent_with(Mirror) as served:
        responses = play(served, data[:-1])
        summary = served.summary()
    assert responses[:2] == [INITIALIZED, Point(time=1)]
    assert isinstance(responses[2], ErrorResponse)
    assert isinstance(summary.error, TruncatedFrameError)
    assert summary.error.offset == len(encoded(INIT, Point(time=1)))
    assert summary.reason is Reason.PROTOCOL_ERROR
    assert summary.unprocessed_bytes == len(encoded(Point(time=2))) - 1


def test_input_after_an_error_counts_as_unprocessed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kapudf_cli.agent.agent._SETTLE_TIMEOUT_S", PATIENCE_S)
    with agent_with(Mirror) as served:
        served.side.send_bytes(encoded(INIT) + b"\x00")
        wait_for_bytes(served)
        served.side.send_bytes(b"x" * 1000)
        responses = list(served.side.responses())
        summary = served.summary()
    assert responses[0] == INITIALIZED
    assert isinstance(responses[1], ErrorResponse)
    assert len(responses) == 2
    assert summary.unprocessed_bytes == 1 + 1000


# --- a handler that refuses ---


@pytest.mark.parametrize(
    ("error", "refusal"), [("not now", "not now"), ("", "no reason given")], ids=["reason", "none"]
)
@pytest.mark.parametrize("method", ["init", "restore"])
def test_a_refused_connection_ends_after_the_answer(method: str, error: str, refusal: str) -> None:

    class Refuser(Recorder):
        calls: ClassVar[list[str]] = []

        def init(self, request: InitRequest, /) -> InitResponse:
            super().init(request)
            return InitResponse(success=method != "init", error=error)

        def restore(self, request: RestoreRequest, /) -> RestoreResponse:
            super().restore(request)
            return RestoreResponse(success=False, error=error)

    opening: list[RequestMessage] = [INIT] if method == "init" else [INIT, RestoreRequest()]
    rest = encoded(BeginBatch(), Point())
    with agent_with(Refuser) as served:
        served.side.send_bytes(encoded(*opening) + rest)
        responses = list(served.side.responses())
        summary = served.summary()
    answers: list[ResponseMessage] = [InitResponse(success=method != "init", error=error)]
    if method == "restore":
        answers.append(RestoreResponse(error=error))
    assert responses == answers
    assert (summary.reason, summary.error) == (Reason.CLOSED, None)
    assert summary.refusal == f"{method} was refused: {refusal}"
    assert Refuser.calls[-2:] == [method, "teardown"]
    assert summary.stats.points_in == 0


def test_the_reason_of_a_refusal_is_one_line_of_limited_length() -> None:
    class Refuser(Handler):
        def init(self, request: InitRequest, /) -> InitResponse:
            del request
            return InitResponse(error="no\n\x1b[2J" + 1_000_000 * "x")

        def point(self, _: Point, /) -> None:
            raise AssertionError

    with agent_with(Refuser) as served:
        served.side.send_bytes(encoded(INIT))
        (response,) = served.side.responses()
        summary = served.summary()
    assert isinstance(response, InitResponse)
    assert response.error.startswith(r"no\n\x1b[2Jxxx")
    assert "characters cut" in response.error
    assert len(response.error) < 4000
    assert summary.refusal == f"init was refused: {response.error}"


# --- a peer that closes the connection ---


@pytest.mark.parametrize("style", ["lets it out", "wraps it", "swallows it"])
def test_a_broken_pipe_is_the_ordinary_end_of_a_connection(style: str) -> None:
    entered, gone = threading.Event(), threading.Event()

    class Writes(Mirror):
        def point(self, point: Point, /) -> None:
            entered.set()
            assert gone.wait(PATIENCE_S)
            try:
                for _ in range(3):
                    self.agent.write_point(LARGE)
            except ConnectionClosedError as error:
                if style == "wraps it":
                    raise RuntimeError(point.time) from error
                if style == "lets it out":
                    raise

    with agent_with(Writes) as served:
        served.side.send_bytes(encoded(INIT, Point()))
        assert entered.wait(PATIENCE_S)
    gone.set()
    summary = served.summary()
    assert summary.reason is Reason.CLOSED
    assert summary.error is None
    assert summary.stop_error is None


def test_a_broken_pipe_at_a_flush_is_the_ordinary_end_of_a_connection() -> None:
    entered, gone = threading.Event(), threading.Event()

    class Writes(Mirror):
        def point(self, point: Point, /) -> None:
            entered.set()
            assert gone.wait(PATIENCE_S)
            super().point(point)

    with agent_with(Writes) as served:
        served.side.send_bytes(encoded(INIT, Point()))
        assert entered.wait(PATIENCE_S)
    gone.set()
    summary = served.summary()
    assert (summary.reason, summary.error) == (Reason.CLOSED, None)
    assert summary.stats.bytes_out == 0


def test_a_reset_is_the_ordinary_end_of_a_connection() -> None:

    class Stopped(Recorder):
        calls: ClassVar[list[str]] = []

    with agent_with(Stopped) as served:
        served.side.send_bytes(encoded(INIT, BeginBatch(), Point()))
        wait_for_bytes(served)
    summary = served.summary()
    assert (summary.reason, summary.error) == (Reason.CLOSED, None)
    assert Stopped.calls[-1] == "teardown"


def test_a_handler_error_on_a_lost_connection_is_reported() -> None:
    entered, gone = threading.Event(), threading.Event()

    class Fails(Mirror):
        def point(self, point: Point, /) -> None:
            entered.set()
            assert gone.wait(PATIENCE_S)
            raise ValueError(point.time)

    with agent_with(Fails) as served:
        served.side.send_bytes(encoded(INIT, Point()))
        assert entered.wait(PATIENCE_S)
    gone.set()
    summary = served.summary()
    assert summary.reason is Reason.HANDLER_ERROR
    assert str(summary.error) == "Fails.point raised ValueError: 0"


# --- stop and abort ---

STOPPED = ErrorResponse(
    error="kapudf stopped serving this task; start it, then run: kapacitor reload task"
)


def test_a_stop_does_not_fail_a_task_that_has_ended_or_that_is_none() -> None:
    with agent_with(Mirror) as served:
        served.side.send_bytes(encoded(INIT, Point(time=1)))
        served.side.half_close()
        served.agent.stop()
        assert list(served.side.responses()) == [INITIALIZED, Point(time=1)]
    with agent_with(Mirror) as served:
        served.side.send(InfoRequest())
        served.side.receive()
        served.agent.stop()
        assert list(served.side.responses()) == []


def test_an_idle_agent_stops_at_once() -> None:

    class Last(Mirror):
        def teardown(self) -> None:
            self.agent.write_point(Point(name="last"))

    with agent_with(Last) as served:
        served.side.send_bytes(encoded(INIT, Point(time=1)))
        assert [served.side.receive() for _ in range(2)] == [INITIALIZED, Point(time=1)]
        served.agent.stop()
        assert list(served.side.responses()) == [Point(name="last"), STOPPED]
        summary = served.summary()
    assert summary.reason is Reason.STOPPED
    assert summary.error is None
    assert summary.unprocessed_bytes == 0


def test_an_agent_that_is_stopped_processes_what_has_arrived() -> None:
    entered, go_on = threading.Event(), threading.Event()

    class Slow(Mirror):
        def point(self, point: Point, /) -> None:
            entered.set()
            assert go_on.wait(PATIENCE_S)
            super().point(point)

    points = [Point(time=time, name="x" * 1000) for time in range(100)]
    with agent_with(Slow) as served:
        served.side.send_bytes(encoded(INIT, points[0]))
        assert entered.wait(PATIENCE_S)
        served.side.send_bytes(encoded(*points[1:]))
        served.agent.stop()
        go_on.set()
        assert list(served.side.responses()) == [INITIALIZED, *points, STOPPED]
        summary = served.summary()
    assert summary.reason is Reason.STOPPED
    assert summary.stats.points_in == summary.stats.points_out == 100


def test_an_agent_that_is_stopped_inside_a_frame_leaves_it_unprocessed() -> None:
    part = encoded(Point(time=1))[:-1]
    with agent_with(Mirror) as served:
        served.side.send(INIT)
        assert served.side.receive() == INITIALIZED
        served.side.send_bytes(part)
        served.agent.stop()
        assert list(served.side.responses()) == [STOPPED]
        summary = served.summary()
    assert (summary.reason, summary.error) == (Reason.STOPPED, None)
    assert summary.unprocessed_bytes == len(part)


def test_an_exception_during_stop_is_a_handler_error() -> None:

    class Broken(Recorder):
        calls: ClassVar[list[str]] = []
        fails_in = "teardown"

    with agent_with(Broken) as served:
        served.side.send(INIT)
        assert served.side.receive() == INITIALIZED
        served.agent.stop()
        response = served.side.receive()
        served.connection.shutdown(socket.SHUT_WR)
        summary = served.summary()
    assert response == ErrorResponse(error="Broken.teardown raised ValueError: no good, twice")
    assert summary.reason is Reason.HANDLER_ERROR
    assert Broken.calls.count("teardown") == 1


def test_an_abort_frees_an_agent_whose_peer_does_not_read() -> None:

    class Flood(Mirror):
        def point(self, point: Point, /) -> None:
            del point
            for _ in range(200):
                self.agent.write_point(LARGE)

    with agent_with(Flood) as served:
        served.side.send_bytes(encoded(INIT, Point()))
        wait_for_bytes(served)
        served.agent.abort()
        summary = served.summary()
    assert (summary.reason, summary.error) == (Reason.CLOSED, None)


def test_an_agent_that_has_ended_can_be_stopped_and_aborted() -> None:
    with agent_with(Mirror) as served:
        play(served, encoded(INIT))
        summary = served.summary()
        served.agent.stop()
        served.agent.abort()
    assert summary.reason is Reason.CLOSED


def test_a_write_after_the_end_raises() -> None:
    writers: list[Writer] = []

    class Kept(Mirror):
        def __init__(self, agent: Writer) -> None:
            super().__init__(agent)
            writers.append(agent)

    with agent_with(Kept) as served:
        play(served, encoded(INIT, Point()))
        served.summary()
    with pytest.raises(ConnectionClosedError):
        writers[0].write_point(Point())
