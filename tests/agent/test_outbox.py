"""The outbox: what is sent, when, and in which order."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.agent import refused_writes
from kapudf_cli.agent.outbox import Outbox
from kapudf_cli.handler.batches import Batch
from kapudf_cli.handler.errors import ConnectionClosedError
from kapudf_cli.protocol.codec import RESPONSES
from kapudf_cli.protocol.errors import InvalidWriteError
from kapudf_cli.protocol.framing import (
    DEFAULT_MAX_FRAME_BYTES,
    HEARTBEAT_TIME,
    FrameReader,
    frame_body,
)
from kapudf_cli.protocol.raw_points import RawPoint
from kapudf_cli.protocol.udf_pb2 import (
    BATCH,
    STREAM,
    BeginBatch,
    EndBatch,
    ErrorResponse,
    InitResponse,
    KeepaliveResponse,
    Point,
    SnapshotResponse,
)
from kapudf_cli.transport import SocketStream
from kapudf_cli.transport.stream import Commit, ConnectionStats
from tests.peers import in_thread, is_full
from tests.serve_process import PATIENCE_S
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from kapudf_cli.protocol.codec import ResponseMessage
    from kapudf_cli.protocol.udf_pb2 import EdgeType

HELD_BYTES = 1024 * 1024
FLUSH_BYTES = 96 * 1024


class Ends:
    """An outbox owned by this thread, and both ends of its connection."""

    def __init__(self) -> None:
        self.peer, self.connection = socket.socketpair()
        self.peer.settimeout(PATIENCE_S)
        self.stream = SocketStream(self.connection)
        self.outbox = self.outbox_of(DEFAULT_MAX_FRAME_BYTES)
        #: How often the outbox has reported a failure.
        self.failures = 0
        self._frames = FrameReader(frame_body)

    def outbox_of(self, max_frame_bytes: int) -> Outbox:
        return Outbox(self.stream, max_frame_bytes=max_frame_bytes, on_failure=self._count_failure)

    def opened(self, provides: EdgeType = STREAM) -> Outbox:
        """Return the outbox after `send_data`."""
        with self.outbox.changing() as output:
            output.declare(provides)
        self.outbox.send_data()
        return self.outbox

    def nothing_has_left(self) -> bool:
        """Return whether the peer has received nothing."""
        return not select.select([self.peer], [], [], 0)[0]

    def receive(self, count: int) -> list[ResponseMessage]:
        """Wait for exactly `count` messages."""
        messages: list[ResponseMessage] = []
        while len(messages) < count:
            data = self.peer.recv(1 << 20)
            assert data, messages
            messages += [RESPONSES.decode(frame) for frame in self._frames.feed(data)]
        assert len(messages) == count
        return messages

    def _count_failure(self) -> None:
        self.failures += 1


@pytest.fixture
def ends() -> Iterator[Ends]:
    """Return an outbox on a socket pair."""
    ends = Ends()
    yield ends
    ends.stream.abort()
    ends.stream.close()
    ends.peer.close()


class WatchedCondition(threading.Condition):
    """A condition that signals when a thread waits for it."""

    def __init__(self, lock: threading.Lock) -> None:
        super().__init__(lock)
        self.waited_for = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        self.waited_for.set()
        return super().wait(timeout)


def watch(outbox: Outbox) -> threading.Event:
    """Return an event that is set once a thread waits in the outbox."""
    condition = WatchedCondition(outbox._lock)
    outbox._changed = condition
    return condition.waited_for


def times(messages: Sequence[ResponseMessage]) -> list[int]:
    """Return the times of points; all messages must be points."""
    points = [message for message in messages if isinstance(message, Point)]
    assert len(points) == len(messages)
    return [point.time for point in points]


def fill(outbox: Outbox) -> int:
    """Write points until the backlog is full; return how many."""
    count = 0
    while not is_full(outbox):
        outbox.write_point(Point(time=count, name="x" * 10_000))
        count += 1
    return count


# --- held back ---


def test_data_is_held_back_until_it_may_be_sent(ends: Ends) -> None:
    ends.outbox.write_point(Point(time=1))
    ends.outbox.answer(InitResponse(success=True))
    ends.outbox.flush()
    assert ends.receive(1) == [InitResponse(success=True)]
    assert ends.nothing_has_left()

    ends.outbox.send_data()
    ends.outbox.write_point(Point(time=2))
    ends.outbox.flush()
    assert ends.receive(2) == [Point(time=1), Point(time=2)]


def test_send_data_is_idempotent(ends: Ends) -> None:
    ends.outbox.write_point(Point(time=1))
    ends.outbox.send_data()
    ends.outbox.send_data()
    ends.outbox.flush()
    assert ends.receive(1) == [Point(time=1)]


def test_data_of_another_thread_is_held_back_too(ends: Ends) -> None:
    in_thread(lambda: ends.outbox.write_point(Point(time=1))).result(PATIENCE_S)
    assert ends.nothing_has_left()
    ends.outbox.send_data()
    ends.outbox.flush()
    assert ends.receive(1) == [Point(time=1)]


def test_the_owners_write_raises_when_the_backlog_is_full(ends: Ends) -> None:
    count = fill(ends.outbox)
    with pytest.raises(InvalidWriteError, match="before Kapacitor can take any"):
        ends.outbox.write_point(Point(time=-1))
    ends.outbox.send_data()
    sending = in_thread(ends.outbox.flush)
    assert times(ends.receive(count)) == list(range(count))
    sending.result(PATIENCE_S)


def test_a_write_refused_by_a_full_backlog_changes_nothing(ends: Ends) -> None:
    with ends.outbox.changing() as output:
        output.declare(BATCH)
    ends.outbox.write_begin_batch(BeginBatch())
    count = fill(ends.outbox)
    with pytest.raises(InvalidWriteError):
        ends.outbox.write_point(Point())
    with pytest.raises(InvalidWriteError):
        ends.outbox.write_end_batch(EndBatch())
    assert ends.outbox.in_batch
    ends.outbox.send_data()
    assert (ends.outbox.points, ends.outbox.batches) == (count, 0)


@pytest.mark.parametrize("release", ["send_data", "close"])
def test_another_thread_waits_while_the_backlog_is_full(ends: Ends, release: str) -> None:
    outbox = ends.outbox
    waited_for = watch(outbox)
    count = fill(outbox)
    writing = in_thread(lambda: outbox.write_point(Point(time=-1)))
    assert waited_for.wait(PATIENCE_S)
    assert not writing.done()

    if release == "close":
        outbox.close()
        with pytest.raises(ConnectionClosedError):
            writing.result(PATIENCE_S)
        assert outbox.points == 0
        assert ends.failures == 0
        return
    outbox.send_data()
    assert times(ends.receive(count + 1)) == [*range(count), -1]
    writing.result(PATIENCE_S)


# --- when it is sent ---


def test_the_owners_writes_are_sent_in_order_by_the_next_flush(ends: Ends) -> None:
    outbox = ends.opened()
    outbox.write_point(Point(time=1))
    outbox.answer(KeepaliveResponse(time=2))
    outbox.write_point(Point(time=3))
    assert ends.nothing_has_left()
    outbox.flush()
    assert ends.receive(3) == [Point(time=1), KeepaliveResponse(time=2), Point(time=3)]
    outbox.flush()
    assert ends.nothing_has_left()


def test_the_owners_writes_are_flushed_at_a_size(ends: Ends) -> None:
    outbox = ends.opened()
    point = Point(name="x" * 1000)
    frame_bytes = len(RESPONSES.encode(point))
    count = -(-FLUSH_BYTES // frame_bytes)
    for _ in range(count - 1):
        outbox.write_point(point)
    assert ends.nothing_has_left()
    outbox.write_point(point)
    assert ends.receive(count) == [point] * count
    assert outbox.bytes_sent == count * frame_bytes


def test_another_threads_write_is_flushed_at_once(ends: Ends) -> None:
    outbox = ends.opened()
    outbox.write_point(Point(time=1))
    in_thread(lambda: outbox.write_point(Point(time=2))).result(PATIENCE_S)
    assert ends.receive(2) == [Point(time=1), Point(time=2)]


def test_the_thread_that_adopts_an_outbox_is_its_owner(ends: Ends) -> None:
    outbox = ends.opened()

    def adopt_and_write() -> None:
        outbox.adopt()
        outbox.write_point(Point(time=1))

    in_thread(adopt_and_write).result(PATIENCE_S)
    assert ends.nothing_has_left()
    outbox.write_point(Point(time=2))
    assert ends.receive(2) == [Point(time=1), Point(time=2)]


def test_a_message_may_be_changed_after_it_was_written(ends: Ends) -> None:
    outbox = ends.opened()
    point = Point(time=1)
    outbox.write_point(point)
    point.time = 2
    outbox.write_point(point)
    outbox.flush()
    assert ends.receive(2) == [Point(time=1), Point(time=2)]


def test_points_of_many_threads_are_sent_in_the_order_of_each(ends: Ends) -> None:
    outbox = ends.opened()

    def write(name: str) -> Callable[[], None]:
        def run() -> None:
            for time in range(200):
                outbox.write_point(Point(name=name, time=time))

        return run

    names = ["a", "b", "c", "d"]
    threads = [in_thread(write(name)) for name in names]
    points = ends.receive(800)
    for thread in threads:
        thread.result(PATIENCE_S)
    for name in names:
        own = [point for point in points if isinstance(point, Point) and point.name == name]
        assert times(own) == list(range(200))


def test_sent_messages_are_counted(ends: Ends) -> None:
    outbox = ends.opened(BATCH)
    outbox.write_begin_batch(BeginBatch(size=2))
    outbox.write_point(Point(time=1))
    outbox.write_point(Point(time=2))
    assert (outbox.points, outbox.batches, outbox.bytes_sent) == (2, 0, 0)
    outbox.write_end_batch(EndBatch())
    outbox.answer(KeepaliveResponse(time=1))
    outbox.flush()
    assert not outbox.in_batch
    assert (outbox.points, outbox.batches) == (2, 1)
    assert outbox.bytes_sent == len(ends.peer.recv(1000))


# --- invalid writes ---

INVALID: dict[str, tuple[EdgeType, Callable[[Outbox], None], str]] = {
    "a begin on a stream": (
        STREAM, lambda outbox: outbox.write_begin_batch(BeginBatch()), "provides a stream",
    ),
    "an end without a begin": (
        BATCH, lambda outbox: outbox.write_end_batch(EndBatch()), "without a BeginBatch",
    ),
    "a bare point among batches": (
        BATCH, lambda outbox: outbox.write_point(Point()), "outside a batch",
    ),
    "a negative size": (
        BATCH, lambda outbox: outbox.write_begin_batch(BeginBatch(size=-1)), "of size -1",
    ),
    "an absurd size": (
        BATCH, lambda outbox: outbox.write_begin_batch(BeginBatch(size=1 << 60)), "of size 115292",
    ),
    "a point written as a begin": (
        BATCH,
        lambda outbox: outbox.write_begin_batch(Point()),  # type: ignore[arg-type]
        "a Point instead of a BeginBatch",
    ),
    "an end written as a point": (
        STREAM,
        lambda outbox: outbox.write_point(EndBatch()),  # type: ignore[arg-type]
        "an EndBatch instead of a Point",
    ),
    "nothing written as an end": (
        BATCH,
        lambda outbox: outbox.write_end_batch(None),  # type: ignore[arg-type]
        "a NoneType instead of an EndBatch",
    ),
}  # fmt: skip

each_invalid_write = pytest.mark.parametrize(
    ("provides", "write", "problem"), INVALID.values(), ids=INVALID.keys()
)


@each_invalid_write
def test_an_invalid_write_raises_and_is_not_sent(
    ends: Ends, provides: EdgeType, write: Callable[[Outbox], None], problem: str
) -> None:
    outbox = ends.opened(provides)
    with pytest.raises(InvalidWriteError, match=problem):
        write(outbox)
    outbox.answer(KeepaliveResponse(time=1))
    outbox.flush()
    assert ends.receive(1) == [KeepaliveResponse(time=1)]
    assert (outbox.points, outbox.batches, outbox.in_batch) == (0, 0, False)
    assert outbox.failure is None
    assert ends.failures == 0


@each_invalid_write
def test_another_threads_invalid_write_is_reported(
    ends: Ends, provides: EdgeType, write: Callable[[Outbox], None], problem: str
) -> None:
    outbox = ends.opened(provides)
    with pytest.raises(InvalidWriteError, match=problem) as caught:
        in_thread(lambda: write(outbox)).result(PATIENCE_S)
    assert outbox.failure is caught.value
    assert ends.failures == 1
    assert ends.nothing_has_left()


def test_a_begin_inside_a_batch_is_refused_and_the_batch_goes_on(ends: Ends) -> None:
    outbox = ends.opened(BATCH)
    outbox.write_begin_batch(BeginBatch(name="open"))
    with pytest.raises(InvalidWriteError, match="inside a batch"):
        outbox.write_begin_batch(BeginBatch(name="refused"))
    outbox.write_end_batch(EndBatch(name="open"))
    outbox.flush()
    assert ends.receive(2) == [BeginBatch(name="open"), EndBatch(name="open")]


def test_a_message_of_exactly_the_frame_limit_is_sent(ends: Ends) -> None:
    point = Point(name="x" * 300)
    data = RESPONSES.encode(point)
    (frame,) = FrameReader(frame_body).feed(data)
    assert list(FrameReader(frame_body, len(frame)).feed(data)) == [frame]

    outbox = ends.outbox_of(len(frame))
    outbox.send_data()
    outbox.write_point(point)
    outbox.flush()
    assert ends.receive(1) == [point]


@pytest.mark.parametrize(
    ("in_batch", "write"),
    [
        (True, lambda outbox: outbox.write_point(Point(name="x" * 100))),
        (False, lambda outbox: outbox.write_begin_batch(BeginBatch(name="x" * 100))),
        (True, lambda outbox: outbox.write_end_batch(EndBatch(name="x" * 100))),
        (False, lambda outbox: outbox.answer(SnapshotResponse(snapshot=b"x" * 100))),
    ],
    ids=["point", "begin", "end", "answer"],
)
def test_a_message_over_the_frame_limit_is_refused(
    ends: Ends, *, in_batch: bool, write: Callable[[Outbox], None]
) -> None:
    outbox = ends.outbox_of(100)
    with outbox.changing() as output:
        output.declare(BATCH)
    outbox.send_data()
    if in_batch:
        outbox.write_begin_batch(BeginBatch())
    with pytest.raises(InvalidWriteError, match="the limit max_frame_bytes is 100"):
        write(outbox)
    assert (outbox.points, outbox.batches, outbox.in_batch) == (0, 0, in_batch)


# --- the end ---


def test_a_failure_is_the_last_message(ends: Ends) -> None:
    outbox = ends.opened()
    outbox.write_point(Point(time=1))
    outbox.fail("it broke")
    outbox.flush()
    assert ends.receive(2) == [Point(time=1), ErrorResponse(error="it broke")]


def test_the_text_of_a_failure_is_printable_and_limited(ends: Ends) -> None:
    outbox = ends.opened()
    outbox.fail("begin\n\x1b[2J" + 50_000_000 * "ü" + "\x9b end")
    outbox.flush()
    (response,) = ends.receive(1)
    assert isinstance(response, ErrorResponse)
    assert response.error.startswith(r"begin\n\x1b[2Jü")
    assert response.error.endswith(r"\x9b end")
    assert re.search(r"ü \[\.\.\. 4999\d{4} characters cut \.\.\.\] ü", response.error)
    assert len(response.error) < 3100


def test_a_failure_is_sent_while_output_is_suppressed(ends: Ends) -> None:
    outbox = ends.opened()
    with outbox.changing() as output:
        output.suppress()
    with outbox.changing() as output:
        output.suppress_next(2, in_batch=False, stats=NOTHING_SENT)
    outbox.fail("it broke")
    outbox.flush()
    assert ends.receive(1) == [ErrorResponse(error="it broke")]


def test_a_broken_stream_closes_the_connection_for_the_handler(ends: Ends) -> None:
    outbox = ends.opened()
    ends.peer.close()
    outbox.write_point(Point())
    with pytest.raises(ConnectionClosedError, match="Broken pipe") as caught:
        outbox.flush()
    assert outbox.is_broken
    assert isinstance(caught.value.__cause__, BrokenPipeError)
    with pytest.raises(ConnectionClosedError) as later:
        outbox.write_point(Point())
    assert later.value.__cause__ is caught.value.__cause__
    with pytest.raises(ConnectionClosedError):
        in_thread(lambda: outbox.write_point(Point())).result(PATIENCE_S)
    assert outbox.bytes_sent == 0
    assert ends.failures == 0


def test_a_broken_stream_raises_in_other_threads(ends: Ends) -> None:
    outbox = ends.opened()
    ends.peer.close()
    with pytest.raises(ConnectionClosedError, match="Broken pipe"):
        in_thread(lambda: outbox.write_point(Point())).result(PATIENCE_S)
    assert outbox.is_broken
    assert ends.failures == 0


@pytest.mark.parametrize("opened", ["before", "never"])
def test_a_closed_outbox_refuses_data_of_any_thread(ends: Ends, opened: str) -> None:
    outbox = ends.outbox
    if opened == "before":
        outbox.send_data()
    outbox.close()
    with pytest.raises(ConnectionClosedError, match="the connection has ended"):
        outbox.write_point(Point())
    with pytest.raises(ConnectionClosedError, match="the connection has ended"):
        in_thread(lambda: outbox.write_point(Point())).result(PATIENCE_S)
    outbox.flush()
    assert ends.nothing_has_left()
    assert outbox.points == 0
    assert ends.failures == 0


# --- replay ---

NOTHING_SENT = ConnectionStats()


def suppressed(ends: Ends, provides: EdgeType = STREAM) -> Outbox:
    """Return an outbox that starts to suppress during a connection."""
    outbox = ends.opened(provides)
    with outbox.changing() as output:
        output.suppress()
    outbox.send_data()
    return outbox


def test_what_other_threads_write_during_a_restart_is_counted(ends: Ends) -> None:
    outbox = suppressed(ends)
    outbox.write_point(Point(name="repeated"))
    in_thread(lambda: outbox.write_point(Point(name="other"))).result(PATIENCE_S)
    with outbox.changing() as output:
        output.stop_suppressing()
    frame = RESPONSES.encode(Point(name="other"))
    assert ends.peer.recv(1000) == frame
    assert (outbox.points, outbox.bytes_sent) == (1, len(frame))


def test_forwarded_points_are_suppressed_in_a_replay(ends: Ends) -> None:
    outbox = suppressed(ends)
    with outbox.changing() as output:
        output.suppress_next(2, in_batch=False, stats=NOTHING_SENT)
    frames = [RawPoint(RESPONSES.encode(Point(time=time))) for time in range(4)]
    assert outbox.forward_run(b"".join(frames[:2]), 2) == (0, 0)
    for frame in frames[:3]:
        outbox.current_frame = frame
        outbox.forward(frame)
    assert outbox.forward_run(frames[3], 1) == (1, len(frames[3]))
    outbox.flush()
    assert ends.receive(2) == [Point(time=2), Point(time=3)]
    assert outbox.points == 4


def test_writes_of_other_threads_during_a_replay_are_sent_after_it(ends: Ends) -> None:
    outbox = ends.outbox
    with outbox.changing() as output:
        output.defer_others()
    with outbox.changing() as output:
        output.suppress()
    in_thread(lambda: outbox.write_point(Point(name="before data"))).result(PATIENCE_S)
    outbox.send_data()
    in_thread(lambda: outbox.write_point(Point(name="among data"))).result(PATIENCE_S)
    outbox.write_point(Point(time=0))
    with outbox.changing() as output:
        output.suppress_next(1, in_batch=False, stats=NOTHING_SENT)
    assert ends.nothing_has_left()
    outbox.send_deferred()
    assert ends.receive(2) == [Point(name="before data"), Point(name="among data")]
    outbox.write_point(Point(time=1))
    outbox.write_point(Point(time=2))
    outbox.flush()
    assert times(ends.receive(1)) == [2]


def test_early_writes_of_other_threads_are_not_suppressed(
    ends: Ends,
) -> None:
    written: list[int] = []

    class Noting(SocketStream):
        def write(self, data: bytes, commit: Commit | None = None) -> None:
            assert commit is not None
            written.append(commit.messages)
            super().write(data, commit)

    ends.stream.__class__ = Noting
    outbox = ends.outbox
    in_thread(lambda: outbox.write_point(Point(name="other"))).result(PATIENCE_S)
    outbox.write_point(Point(name="owner"))
    outbox.send_data()
    outbox.flush()
    assert ends.receive(2) == [Point(name="other"), Point(name="owner")]
    assert written == [1]


def test_a_thread_waits_while_the_deferred_backlog_is_full(ends: Ends) -> None:
    outbox = ends.opened()
    with outbox.changing() as output:
        output.defer_others()
    large = Point(name="x" * 100_000)
    waited_for = watch(outbox)
    count = -(-HELD_BYTES // len(RESPONSES.encode(large))) + 1

    def write() -> None:
        for _ in range(count):
            outbox.write_point(large)

    writing = in_thread(write)
    assert waited_for.wait(PATIENCE_S)
    assert not writing.done()
    letting_out = in_thread(outbox.send_deferred)
    assert ends.receive(count) == [large] * count
    letting_out.result(PATIENCE_S)
    writing.result(PATIENCE_S)


@pytest.mark.parametrize("release", ["unblock_others", "close"])
def test_blocked_threads_wait(ends: Ends, release: str) -> None:
    outbox = ends.opened()
    waited_for = watch(outbox)
    outbox.block_others()
    writing = in_thread(lambda: outbox.write_point(Point(time=1)))
    assert waited_for.wait(PATIENCE_S)
    outbox.heartbeat()
    assert ends.nothing_has_left()
    if release == "close":
        outbox.close()
        with pytest.raises(ConnectionClosedError):
            writing.result(PATIENCE_S)
        assert ends.nothing_has_left()
    else:
        outbox.unblock_others()
        writing.result(PATIENCE_S)
        assert ends.receive(1) == [Point(time=1)]


def test_answers_are_flushed_at_a_size(ends: Ends) -> None:
    answer = SnapshotResponse(snapshot=b"x" * 40_000)

    def answer_five() -> None:
        for _ in range(5):
            ends.outbox.answer(answer)

    sending = in_thread(answer_five)
    assert ends.receive(3) == [answer] * 3
    sending.result(PATIENCE_S)
    assert ends.nothing_has_left()
    ends.outbox.flush()
    assert ends.receive(2) == [answer] * 2


# --- heartbeats ---


def test_a_heartbeat_is_sent_at_once_with_pending_output(ends: Ends) -> None:
    outbox = ends.outbox
    outbox.write_point(Point(time=1))
    in_thread(outbox.heartbeat).result(PATIENCE_S)
    assert ends.receive(1) == [KeepaliveResponse(time=HEARTBEAT_TIME)]
    outbox.send_data()
    outbox.write_point(Point(time=2))
    in_thread(outbox.heartbeat).result(PATIENCE_S)
    assert ends.receive(3) == [
        Point(time=1), Point(time=2), KeepaliveResponse(time=HEARTBEAT_TIME),
    ]  # fmt: skip


def test_a_heartbeat_is_omitted_where_it_is_not_allowed_or_needed(ends: Ends) -> None:
    outbox = ends.opened()
    with outbox.changing():
        outbox.heartbeat()
    with outbox.changing() as output:
        output.defer_others()
    outbox.heartbeat()
    outbox.send_deferred()
    outbox.close()
    outbox.heartbeat()
    assert ends.nothing_has_left()


def test_a_heartbeat_does_not_wait_for_the_peer(ends: Ends) -> None:
    outbox = ends.opened()
    ends.connection.settimeout(0)
    with contextlib.suppress(BlockingIOError):
        while True:
            ends.connection.send(bytes(1000))
    in_thread(outbox.heartbeat).result(PATIENCE_S)
    assert outbox.bytes_sent == 0


def test_a_heartbeat_on_a_broken_connection_is_no_error(ends: Ends) -> None:
    outbox = ends.opened()
    ends.peer.close()
    outbox.heartbeat()
    with pytest.raises(ConnectionClosedError):
        outbox.flush(ConnectionStats())


# --- refused writes ---


def write_after_the_end(outbox: Outbox, count: int) -> None:
    for _ in range(count):
        with pytest.raises(ConnectionClosedError):
            outbox.write_point(Point())


def test_points_lost_after_the_end_are_logged_once_with_their_number(
    ends: Ends, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = ends.opened()
    outbox.close("the connection was handed over")
    in_thread(lambda: write_after_the_end(outbox, 1234)).result(PATIENCE_S)
    assert caplog.records == []
    outbox.settle()
    in_thread(lambda: write_after_the_end(outbox, 1)).result(PATIENCE_S)
    outbox.settle()
    (record,) = caplog.records
    assert record.getMessage() == "writes refused"
    assert (record.lost_points, record.cause) == (1234, "the connection was handed over")  # type: ignore[attr-defined]


def test_points_lost_after_teardown_are_counted_for_a_moment(
    ends: Ends, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kapudf_cli.agent.refused_writes._COUNTED_S", 3600.0)
    outbox = ends.opened()
    outbox.close("the connection was handed over")
    outbox.settle()
    in_thread(lambda: write_after_the_end(outbox, 3)).result(PATIENCE_S)
    assert caplog.records == []
    # The process may end before that.
    refused_writes.log_all()
    assert [record.lost_points for record in caplog.records] == [3]  # type: ignore[attr-defined]


def test_a_moment_after_teardown_the_number_is_logged(
    ends: Ends, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kapudf_cli.agent.refused_writes._COUNTED_S", 0.0)
    outbox = ends.opened()
    outbox.close("the connection was handed over")
    outbox.settle()
    in_thread(lambda: write_after_the_end(outbox, 1)).result(PATIENCE_S)
    wait_until(lambda: bool(caplog.records))
    assert caplog.records[0].lost_points == 1  # type: ignore[attr-defined]


def test_all_points_of_a_batch_are_lost_with_it(
    ends: Ends, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = ends.opened(BATCH)
    outbox.close("the connection was handed over")
    batch = Batch(points=[Point(), Point()])
    with pytest.raises(ConnectionClosedError):
        in_thread(lambda: outbox.write_batch(batch)).result(PATIENCE_S)
    outbox.settle()
    assert [record.lost_points for record in caplog.records] == [2]  # type: ignore[attr-defined]


@pytest.mark.parametrize("cause", [None, "the connection has ended"], ids=["gone", "by the owner"])
def test_expected_refusals_are_not_logged(
    ends: Ends, caplog: pytest.LogCaptureFixture, cause: str | None
) -> None:
    outbox = ends.opened()
    outbox.close(cause)
    if cause is None:
        in_thread(lambda: write_after_the_end(outbox, 1)).result(PATIENCE_S)
    else:
        write_after_the_end(outbox, 1)
    assert not caplog.records
