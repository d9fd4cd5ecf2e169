"""Sessions with scripted UDFs: results, faults and limits."""

from __future__ import annotations

import contextlib
import queue
import socket
import time
from typing import TYPE_CHECKING, TypeAlias

import pytest
from kapudf_handlers.mirror import Mirror

from kapudf_cli.client.driver import KapacitorSide
from kapudf_cli.client.errors import UdfFaultError
from kapudf_cli.client.session import Session, drain
from kapudf_cli.client.target import Connection, Ending, HandlerTarget
from kapudf_cli.protocol.codec import REQUESTS, RESPONSES
from kapudf_cli.protocol.framing import FrameReader
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
from tests.peers import in_thread
from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

    from kapudf_cli.protocol.codec import RequestMessage, ResponseMessage

#: The answers of a UDF, by the class of the request: messages or bytes; None to close.
Script: TypeAlias = "Mapping[type, Sequence[ResponseMessage] | bytes | None]"

INIT = InitRequest(taskID="task", nodeID="node")
POINTS = [Point(time=number) for number in range(3)]
INITIALIZED: Script = {InitRequest: [InitResponse(success=True)]}
UNANSWERED_S = 0.05


class ScriptedUdf:
    """Kapacitor's side of a connection to a UDF that follows a script.

    Attributes:
        connection: the connection for a session.
        requests: the requests that the UDF has received.
    """

    def __init__(
        self, script: Script, ours: socket.socket, ending: Ending | None, *, drains: bool
    ) -> None:
        self.requests: queue.SimpleQueue[RequestMessage] = queue.SimpleQueue()
        self.script = script
        self.connection = Connection(
            KapacitorSide(ours, timeout_s=PATIENCE_S), None, lambda _: ending, drains
        )

    def serve(self, connection: socket.socket) -> None:
        reader = FrameReader(REQUESTS.decode_in)
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65536):
                for request in reader.feed(data):
                    self.requests.put(request)
                    answer = self.script.get(type(request), [])
                    if isinstance(request, KeepaliveRequest) and not answer:
                        answer = [KeepaliveResponse(time=request.time)]
                    if answer is None:
                        return
                    if not isinstance(answer, bytes):
                        answer = b"".join(map(RESPONSES.encode, answer))
                    connection.sendall(answer)


@contextlib.contextmanager
def scripted(
    script: Script, *, ending: Ending | None = None, drains: bool = False
) -> Iterator[ScriptedUdf]:
    ours, theirs = socket.socketpair()
    udf = ScriptedUdf(script, ours, ending, drains=drains)
    served = in_thread(lambda: udf.serve(theirs))
    with udf.connection.side:
        yield udf
    served.result(PATIENCE_S)


def session_with(udf: ScriptedUdf, **how: float) -> Session:
    return Session(udf.connection, **{"timeout_s": PATIENCE_S, **how})  # type: ignore[arg-type]


# --- what a UDF does wrong ---


def ask_info(session: Session) -> Generator[object, None, object]:
    return session.ask(InfoRequest(), InfoResponse, "Info")


def start(session: Session) -> Generator[object, None, object]:
    return session.start(INIT)


def restore(session: Session) -> Generator[object, None, object]:
    return session.restore(b"state")


def snapshot(session: Session) -> Generator[object, None, object]:
    return session.snapshot()


def exchange(session: Session) -> Generator[object, None, object]:
    return session.exchange(POINTS, "a keepalive behind 3 points")


def finish(session: Session) -> Generator[object, None, object]:
    return session.finish()


@pytest.mark.parametrize(
    ("script", "call", "problem"),
    [
        (
            {InitRequest: [InitResponse(error="no\nlicence")]}, start,
            "refused Init: no licence",
        ),
        (
            {InitRequest: [InitResponse()]}, start,
            "refused Init: it gives no reason; set `error` in its answer",
        ),
        (
            {RestoreRequest: [RestoreResponse(error="of another version")]}, restore,
            "refused Restore: of another version",
        ),
        (
            {SnapshotRequest: [ErrorResponse(error="no\nsnapshot")]}, snapshot,
            "failed the task: no snapshot",
        ),
        (
            {InfoRequest: None}, ask_info,
            "closed the connection instead of answering Info",
        ),
        (
            {SnapshotRequest: [Point(), SnapshotResponse(), SnapshotResponse()]},
            lambda session: session.exchange([SnapshotRequest()]),
            "sent a SnapshotResponse that was not requested",
        ),
        (
            {Point: None}, exchange,
            "closed the connection instead of answering a keepalive behind 3 points (0 points",
        ),
        (
            {Point: b"\x00"}, exchange,
            "sent a Response in which no message is set",
        ),
        (
            {Point: [EndBatch()]}, exchange,
            "sent an EndBatch without a BeginBatch before it",
        ),
        (
            {KeepaliveRequest: [BeginBatch(), KeepaliveResponse(), KeepaliveResponse()]},
            lambda session: session.finish([KeepaliveRequest(time=1)]),
            "ended inside a batch that it had begun",
        ),
        (
            {InitRequest: RESPONSES.encode(InitResponse(success=True))[:-1], Point: None},
            lambda session: session.exchange([INIT, *POINTS]),
            "sent bytes that are not frames: the input ended inside a frame",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_fault_of_a_udf_is_an_error(
    script: Script, call: Callable[[Session], Generator[object, None, object]], problem: str
) -> None:
    with scripted(script) as udf, pytest.raises(UdfFaultError) as raised:
        drain(call(session_with(udf)))
    assert raised.value.problem.startswith(problem)


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (ask_info, "gave no answer to Info within 0.05 s"),
        (snapshot, "gave no answer to a snapshot request within 0.05 s"),
    ],
)
def test_a_silent_udf_is_an_error(
    call: Callable[[Session], Generator[object, None, object]], problem: str
) -> None:
    with scripted({}) as udf, pytest.raises(UdfFaultError) as raised:
        drain(call(session_with(udf, timeout_s=UNANSWERED_S)))
    assert raised.value.problem == problem


def test_a_udf_that_does_not_close_is_an_error() -> None:
    ours, theirs = socket.socketpair()
    with theirs, KapacitorSide(ours, timeout_s=PATIENCE_S) as side:
        session = Session(Connection(side, None, lambda _: None), timeout_s=UNANSWERED_S)
        with pytest.raises(UdfFaultError, match=r"did not close the connection within 0\.05 s of"):
            drain(session.finish())


def test_the_text_of_an_error_response_is_kept_whole() -> None:
    script: Script = {InitRequest: [ErrorResponse(error="two\nlines")]}
    with scripted(script) as udf, pytest.raises(UdfFaultError) as raised:
        drain(session_with(udf).start(INIT))
    assert raised.value.reported == "two\nlines"


@pytest.mark.parametrize(
    ("ending", "told"),
    [
        (
            Ending(clean=False, text="exited with status 3", last_words=("loading", "no model")),
            "; it exited with status 3, after saying: no model",
        ),
        (None, ". Its log may say why"),
    ],
    ids=["known", "unknown"],
)
def test_the_error_says_how_the_process_ended(ending: Ending | None, told: str) -> None:
    script: Script = {InitRequest: None}
    with scripted(script, ending=ending) as udf, pytest.raises(UdfFaultError) as raised:
        drain(session_with(udf).start(INIT))
    assert str(raised.value) == (
        f"the UDF closed the connection instead of answering Init{told}. "
        "In Kapacitor the task fails; `kapacitor reload TASK` starts it again"
    )


# --- answers and data ---


def test_data_that_comes_before_an_answer_is_yielded() -> None:
    script: Script = {SnapshotRequest: [*POINTS, SnapshotResponse(snapshot=b"state")]}
    with scripted(script) as udf:
        session = session_with(udf)
        waiting = session.snapshot()
        assert [next(waiting) for _ in POINTS] == POINTS
        assert drain(waiting) == b"state"
    assert session.counts.points_received == len(POINTS)


def test_a_keepalive_that_is_answered_without_its_time_is_answered() -> None:
    with scripted({KeepaliveRequest: [KeepaliveResponse()]}) as udf:
        assert drain(session_with(udf).exchange())


def test_points_that_an_answer_overtakes_are_still_received() -> None:
    script: Script = {KeepaliveRequest: [KeepaliveResponse(), Point(time=7)]}
    with scripted(script) as udf:
        session = session_with(udf)
        came = list(session.exchange(POINTS[:1]))
        came += session.settle()
    assert session.settled
    assert came == [Point(time=7)] * 3


def test_a_udf_that_is_known_to_answer_everything_is_not_asked_again() -> None:
    with scripted({}, drains=True) as udf:
        session = session_with(udf)
        drain(session.exchange(POINTS[:1]))
        drain(session.finish())
    assert [type(udf.requests.get()) for _ in range(udf.requests.qsize())] == [
        Point, KeepaliveRequest,
    ]  # fmt: skip


@pytest.mark.parametrize("provides", [STREAM, BATCH])
def test_data_is_checked_against_what_the_udf_provides(provides: int) -> None:
    with scripted({Point: POINTS[:1]}) as udf:
        session = session_with(udf, provides=provides)
        if provides == STREAM:
            assert list(session.exchange(POINTS[:1])) == POINTS[:1]
        else:
            with pytest.raises(UdfFaultError, match="sent a Point outside a batch, and provides"):
                drain(session.exchange(POINTS[:1]))


# --- limits, and pauses of the caller ---


class Clock:
    """A replacement of the module `time`, whose clock a test can advance."""

    def __init__(self) -> None:
        self.ahead_s = 0.0
        self.time_ns = time.time_ns

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("kapudf_cli.client.session.time", clock)
    return clock


@pytest.mark.parametrize("limit", [2, 3])
def test_a_udf_that_sends_too_many_messages_fails(limit: int) -> None:
    with HandlerTarget("mirror", Mirror).open(timeout_s=PATIENCE_S) as connection:
        session = Session(connection, timeout_s=PATIENCE_S, limit_messages=limit)
        list(session.start(InitRequest(taskID="task")))
        if limit < len(POINTS):
            with pytest.raises(UdfFaultError, match="sent more than 2 messages"):
                list(session.exchange(POINTS, "points"))
        else:
            list(session.exchange(POINTS, "points"))
            assert session.counts.points_received == limit


def test_a_udf_that_sends_data_instead_of_a_snapshot_fails_after_a_while() -> None:
    with (
        scripted({SnapshotRequest: POINTS}) as udf,
        pytest.raises(UdfFaultError, match="gave no answer to a snapshot request within 0 s"),
    ):
        drain(session_with(udf).snapshot(at_most_s=0))


def test_a_session_has_a_limit_that_can_be_restarted(clock: Clock) -> None:
    with scripted({}) as udf:
        session = session_with(udf, limit_s=600)
        clock.ahead_s += 700
        with pytest.raises(UdfFaultError, match="is still not done after 600 s"):
            drain(session.exchange())
        session.restart_limit()
        assert drain(session.exchange())


def test_a_pause_of_the_caller_does_not_count_as_time_of_the_udf(clock: Clock) -> None:
    script: Script = {SnapshotRequest: [*POINTS, SnapshotResponse()], Point: [Point(), Point()]}
    with scripted(script) as udf:
        session = session_with(udf, settle_limit_s=600)
        for waiting in (
            session.snapshot(at_most_s=600),
            session.exchange(POINTS, at_most_s=600),
            session.settle(),
        ):
            for _ in waiting:
                clock.ahead_s += 700
        assert session.settled


def test_keepalives_are_sent_while_the_caller_pauses(clock: Clock) -> None:
    with scripted(INITIALIZED) as udf:
        session = session_with(udf, keepalives=True)
        drain(session.start(INIT))
        session.keep_alive()
        clock.ahead_s += PATIENCE_S / 2
        session.keep_alive()
        session.keep_alive()
        clock.ahead_s += PATIENCE_S / 2
        session.keep_alive()
        session.post(Point())
        kinds = [type(udf.requests.get(timeout=PATIENCE_S)) for _ in range(4)]
        assert kinds == [InitRequest, KeepaliveRequest, KeepaliveRequest, Point]


def test_an_exchange_ends_with_the_answer_to_its_own_keepalive(clock: Clock) -> None:
    with scripted({Point: [Point(time=7)]}) as udf:
        session = session_with(udf, keepalives=True)
        clock.ahead_s += PATIENCE_S
        session.keep_alive()
        assert list(session.exchange(POINTS)) == [Point(time=7)] * 3
        assert str(session.counts) == "3 points back of 3 sent"


def test_no_keepalive_is_sent_after_the_end_of_the_input(clock: Clock) -> None:
    with scripted(INITIALIZED) as udf:
        session = session_with(udf, keepalives=True)
        drain(session.finish())
        clock.ahead_s += PATIENCE_S
        session.keep_alive()
    assert udf.requests.empty()


# --- giving up ---


def test_a_session_that_is_left_reads_what_is_on_its_way() -> None:
    with scripted({Point: POINTS}) as udf:
        session = session_with(udf)
        session.post(*POINTS)
        session.part()
    assert [udf.requests.get_nowait() for _ in POINTS] == POINTS


def test_a_cut_connection_is_not_read_any_more() -> None:
    with scripted({}) as udf:
        session = session_with(udf)
        session.post(*POINTS)
        session.cut()
        session.part()
        with pytest.raises((OSError, ValueError), match="file descriptor"):
            udf.connection.side.send(Point())
