"""The output of a connection: order, duplicates, backlog, send buffer and counters."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.agent.output import BACKLOG_BYTES, Output
from kapudf_cli.handler.errors import ConnectionClosedError
from kapudf_cli.protocol.codec import RESPONSES
from kapudf_cli.protocol.errors import InvalidWriteError
from kapudf_cli.protocol.udf_pb2 import (
    BATCH,
    STREAM,
    BeginBatch,
    EndBatch,
    InitResponse,
    KeepaliveResponse,
    Point,
)
from kapudf_cli.transport.stream import Commit, ConnectionStats

if TYPE_CHECKING:
    from kapudf_cli.protocol.codec import DataMessage, ResponseMessage
    from kapudf_cli.protocol.udf_pb2 import EdgeType
    from kapudf_cli.transport import Stream

NOTHING_SENT = ConnectionStats()


class Writes:
    """A stream that records what is written, until it breaks."""

    def __init__(self) -> None:
        self.writes: list[tuple[bytes, Commit | None]] = []
        self.problem: OSError | None = None

    def write(self, data: bytes, commit: Commit | None = None) -> None:
        if self.problem is not None:
            raise self.problem
        self.writes.append((data, commit))


class Out:
    """An output, and the stream that it writes to."""

    def __init__(self, provides: EdgeType = STREAM) -> None:
        self.stream = Writes()
        stream: Stream = self.stream  # type: ignore[assignment]  # nothing else is called
        self.output = Output(stream, provides)

    @property
    def bytes(self) -> int:
        return self.output.bytes + self.output.size

    def write(self, message: DataMessage, *, by_owner: bool = True) -> None:
        self.output.write(message, RESPONSES.encode(message), by_owner=by_owner)

    def write_batch(
        self, name: str, size: int = 1, *, by_owner: bool = True
    ) -> list[ResponseMessage]:
        """Write a whole batch, and return its messages."""
        batch: list[DataMessage] = [
            BeginBatch(name=name), *(Point(time=time) for time in range(size)), EndBatch(name=name),
        ]  # fmt: skip
        for message in batch:
            self.write(message, by_owner=by_owner)
        return [*batch]

    def answer(self, message: ResponseMessage) -> None:
        self.output.answer(type(message), RESPONSES.encode(message))

    def sent(self) -> list[ResponseMessage]:
        """Return the messages sent since the last call."""
        frames = [*self.output.frames]
        self.output.frames.clear()
        return [RESPONSES.decode(frame[1:]) for frame in frames]


def opened(provides: EdgeType = STREAM) -> Out:
    """Return an output that sends data."""
    out = Out(provides)
    out.output.send_data()
    return out


def suppressed(provides: EdgeType = STREAM) -> Out:
    """Return an output that starts to suppress during a connection."""
    out = opened(provides)
    out.output.suppress()
    out.output.send_data()
    return out


def test_data_is_held_back_and_then_sent() -> None:
    out = Out()
    out.write(Point(time=1))
    out.answer(InitResponse(success=True))
    assert out.sent() == [InitResponse(success=True)]
    out.output.send_data()
    out.output.send_data()
    assert out.sent() == [Point(time=1)]
    assert out.output.points == 1


def test_dropped_data_is_not_counted() -> None:
    out = Out()
    out.write(Point(time=1))
    out.output.drop_data()
    out.write(Point(time=2))
    out.output.send_data()
    out.answer(InitResponse())
    assert out.sent() == [InitResponse()]
    assert out.output.points == 0


def test_data_cannot_be_dropped_once_it_may_be_sent() -> None:
    out = opened()
    out.output.drop_data()
    out.write(Point(time=1))
    assert out.sent() == [Point(time=1)]


@pytest.mark.parametrize("way", ["sent", "held back", "refused", "suppressed", "skipped", "bare"])
def test_points_pass_unchecked_only_without_suppression(way: str) -> None:
    out = suppressed(BATCH) if way in {"suppressed", "skipped"} else Out(BATCH)
    if way != "bare":
        out.write(BeginBatch())
    if way == "skipped":
        out.output.suppress_next(0, in_batch=False, stats=NOTHING_SENT)
    if way in {"sent", "bare"}:
        out.output.send_data()
    if way == "refused":
        out.output.refuse_data()
    assert out.output.passes_points == (way == "sent")


def test_an_edge_that_does_not_fit_data_held_back_raises() -> None:
    out = Out()
    out.output.declare(BATCH)
    out.write(BeginBatch())
    out.output.declare(BATCH)
    with pytest.raises(InvalidWriteError, match="for another edge"):
        out.output.declare(STREAM)


# --- replay ---


def test_suppressed_messages_are_neither_sent_nor_counted() -> None:
    out = opened()
    out.write(Point(time=1))
    out.output.suppress()
    out.output.send_data()
    for time in range(10):
        out.write(Point(time=time))
    out.answer(KeepaliveResponse(time=5))
    out.output.stop_suppressing()
    out.write(Point(time=2))
    assert out.sent() == [Point(time=1), Point(time=2)]
    assert out.output.points == 2


def test_messages_held_back_during_a_replay_are_sent_with_the_first_data() -> None:
    out = Out()
    out.output.suppress()
    out.write(Point(time=1))
    out.output.suppress_next(0, in_batch=False, stats=NOTHING_SENT)
    out.answer(InitResponse())
    assert out.sent() == [InitResponse()]
    out.output.send_data()
    assert out.sent() == [Point(time=1)]
    assert out.output.points == 1


def test_deferred_messages_are_counted_when_they_are_sent() -> None:
    out = suppressed()
    out.output.defer_others()
    out.write(Point(), by_owner=False)
    out.output.suppress_next(0, in_batch=False, stats=ConnectionStats(points_out=100))
    assert out.output.points == 100
    out.output.send_deferred()
    assert out.output.points == 101


@pytest.mark.parametrize("sent", range(6))
def test_as_many_messages_are_suppressed_as_were_sent(sent: int) -> None:
    out = suppressed()
    out.output.suppress_next(
        sent, in_batch=False, stats=ConnectionStats(points_out=100, batches_out=7, bytes_out=1000)
    )
    messages: list[ResponseMessage] = []
    for time in range(3):
        out.write(Point(time=time))
        out.answer(KeepaliveResponse(time=time))
        messages += [Point(time=time), KeepaliveResponse(time=time)]
    assert out.sent() == messages[sent:]
    assert (out.output.points, out.output.batches) == (103, 7)
    assert out.bytes == 1000 + sum(len(RESPONSES.encode(message)) for message in messages)


def test_a_batch_that_was_partly_sent_continues() -> None:
    out = suppressed(BATCH)
    out.output.suppress_next(2, in_batch=True, stats=NOTHING_SENT)
    batch = out.write_batch("b", 3)
    assert out.sent() == batch[2:]
    assert not out.output.in_batch


@pytest.mark.parametrize("sent", [1, 2])
def test_a_batch_without_a_sent_begin_is_skipped_to_its_end(
    sent: int,
) -> None:
    out = suppressed(BATCH)
    # Unlike the previous handler, this one has not ended its batch here.
    out.output.suppress_next(sent, in_batch=False, stats=NOTHING_SENT)
    out.write_batch("left out", 3)
    batch = out.write_batch("whole", 2)
    assert out.sent() == batch


def test_a_batch_begun_only_in_the_replay_is_skipped() -> None:
    out = suppressed(BATCH)
    out.write(BeginBatch(name="left out"))
    out.output.suppress_next(0, in_batch=False, stats=NOTHING_SENT)
    out.write(Point())
    out.answer(KeepaliveResponse(time=1))
    out.write(EndBatch(name="left out"))
    batch = out.write_batch("whole")
    assert out.sent() == [KeepaliveResponse(time=1), *batch]


def test_a_batch_held_back_is_sent_whole_after_a_takeover() -> None:
    out = Out(BATCH)
    out.output.suppress()
    out.write(BeginBatch(name="b"))
    out.output.suppress_next(0, in_batch=False, stats=NOTHING_SENT)
    out.output.send_data()
    out.write(EndBatch(name="b"))
    assert out.sent() == [BeginBatch(name="b"), EndBatch(name="b")]


def test_deferred_messages_do_not_belong_to_a_skipped_batch() -> None:
    out = suppressed(BATCH)
    out.output.defer_others()
    other = out.write_batch("other", by_owner=False)
    out.write(BeginBatch(name="left out"))
    out.output.suppress_next(0, in_batch=False, stats=NOTHING_SENT)
    out.output.send_deferred()
    assert out.sent() == other
    out.write(EndBatch(name="left out"))
    batch = out.write_batch("whole")
    assert out.sent() == batch


def test_a_skipped_batch_includes_points_of_other_threads() -> None:
    out = suppressed(BATCH)
    out.write(BeginBatch(name="left out"))
    out.output.suppress_next(0, in_batch=False, stats=NOTHING_SENT)
    out.write(Point(), by_owner=False)
    out.write(EndBatch(name="left out"), by_owner=False)
    assert not out.sent()
    batch = out.write_batch("whole")
    assert out.sent() == batch


def test_a_batch_begun_before_a_replay_continues_after_it() -> None:
    out = opened(BATCH)
    out.write(BeginBatch(name="b"))
    out.write(Point(time=0))
    out.output.suppress()
    out.output.send_data()
    out.write(BeginBatch(name="b"))
    out.write(Point(time=0))
    out.output.stop_suppressing()
    out.write(Point(time=1))
    out.write(EndBatch(name="b"))
    assert out.sent() == [
        BeginBatch(name="b"), Point(time=0), Point(time=1), EndBatch(name="b"),
    ]  # fmt: skip
    assert (out.output.points, out.output.batches) == (2, 1)


def test_a_replay_during_suppression_keeps_the_number_of_duplicates() -> None:
    out = suppressed()
    out.output.suppress_next(
        3, in_batch=False, stats=ConnectionStats(points_out=100, bytes_out=1000)
    )
    out.write(Point(time=1))
    before = (out.output.points, out.bytes)
    out.output.suppress()
    out.write(Point(time=1))
    out.output.send_data()
    out.output.stop_suppressing()
    assert (out.output.points, out.bytes) == before
    for time in range(2, 6):
        out.write(Point(time=time))
    assert out.sent() == [Point(time=4), Point(time=5)]
    assert out.output.points == 105


def test_a_batch_can_begin_after_an_abandoned_one() -> None:
    out = opened(BATCH)
    out.write(BeginBatch(name="abandoned"))
    out.write(Point())
    out.output.abandon_batch()
    assert not out.output.in_batch
    with pytest.raises(InvalidWriteError, match="outside a batch"):
        out.write(Point())
    with pytest.raises(InvalidWriteError, match="without a BeginBatch"):
        out.write(EndBatch())
    batch = out.write_batch("whole")
    assert out.sent() == [BeginBatch(name="abandoned"), Point(), *batch]


def test_abandoning_without_an_open_batch_changes_nothing() -> None:
    out = opened()
    out.output.abandon_batch()
    out.write(Point())
    assert out.sent() == [Point()]


def test_abandoning_a_skipped_batch_ends_the_skipping() -> None:
    out = suppressed(BATCH)
    out.write(BeginBatch(name="left out"))
    out.output.suppress_next(0, in_batch=False, stats=NOTHING_SENT)
    out.output.abandon_batch()
    batch = out.write_batch("whole")
    assert out.sent() == batch


# --- the send buffer ---


def commits(out: Out) -> list[int]:
    """Return the number of messages in the commit of each write."""
    return [commit.messages for _, commit in out.stream.writes if commit is not None]


def test_a_flush_writes_all_frames_in_order_at_once() -> None:
    out = opened(BATCH)
    out.output.add(b"a point", by_owner=True)
    out.output.add(b"an answer", by_owner=True)
    out.output.add(b"a heartbeat", by_owner=False)
    assert out.output.size == 27
    out.output.flush()
    assert out.stream.writes == [(b"a pointan answera heartbeat", Commit(2))]
    assert (out.output.size, out.output.bytes) == (0, 27)


def test_a_flush_without_frames_writes_only_stats() -> None:
    out = opened()
    out.output.flush()
    assert out.stream.writes == []
    out.output.flush(ConnectionStats(offset=7), forget_input=True)
    assert out.stream.writes == [(b"", Commit(0, False, ConnectionStats(offset=7), True))]  # noqa: FBT003 - fields


def test_input_of_an_open_batch_is_not_forgotten() -> None:
    out = opened(BATCH)
    out.write(BeginBatch())
    out.output.flush(ConnectionStats(offset=7), forget_input=True)
    ((_, commit),) = out.stream.writes
    assert commit == Commit(0, in_batch=True, stats=ConnectionStats(offset=7))


def test_a_commit_with_stats_counts_the_remaining_duplicates() -> None:
    out = opened()
    out.output.suppress_next(3, in_batch=False, stats=NOTHING_SENT)
    out.output.add(b"a point", by_owner=True)
    out.output.flush(ConnectionStats(offset=7))
    out.output.add(b"another", by_owner=True)
    out.output.flush()
    assert commits(out) == [3, 1]


def test_a_run_is_counted_by_its_points() -> None:
    out = opened()
    out.output.write_run(b"three points", 3)
    out.output.add(b"another's", by_owner=False)
    assert out.output.points == 3
    out.output.flush()
    out.output.add(b"an answer", by_owner=True)
    out.output.flush()
    assert commits(out) == [3, 1]


class LateFrames(collections.deque[bytes]):
    """A send buffer to which the owner appends while another thread flushes."""

    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output = output
        self.ready = True

    def popleft(self) -> bytes:
        frame = super().popleft()
        if not self and self.ready:
            self.ready = False
            self.append(b"late")
            self._output.owner_points += 1
        return frame


def test_a_point_appended_during_a_flush_is_counted_when_it_is_sent() -> None:
    out = opened()
    out.output.frames = LateFrames(out.output)
    out.output.add(b"a heartbeat", by_owner=False)
    out.output.flush()
    out.output.flush()
    assert [data for data, _ in out.stream.writes] == [b"a heartbeat", b"late"]
    assert commits(out) == [0, 1]


def test_a_broken_stream_stays_broken() -> None:
    out = opened()
    out.stream.problem = BrokenPipeError(32, "Broken pipe")
    out.output.add(b"a point", by_owner=True)
    with pytest.raises(ConnectionClosedError, match="Broken pipe"):
        out.output.flush()
    out.stream.problem = None
    out.output.add(b"another", by_owner=True)
    with pytest.raises(ConnectionClosedError, match="Broken pipe") as caught:
        out.output.flush()
    assert isinstance(caught.value.__cause__, BrokenPipeError)
    assert not out.output.passes_points
    assert (out.stream.writes, out.output.bytes) == ([], 0)


def test_a_full_backlog_refuses_the_owner_and_makes_others_wait() -> None:
    out = Out()
    out.write(Point(name="x" * BACKLOG_BYTES))
    assert out.output.is_full
    with pytest.raises(InvalidWriteError, match="before Kapacitor can take any"):
        out.write(Point())
    out.output.send_data()
    fullness = [out.output.is_full]
    out.output.defer_others()
    out.write(Point(name="x" * BACKLOG_BYTES), by_owner=False)
    fullness.append(out.output.is_full)
    out.output.send_deferred()
    fullness.append(out.output.is_full)
    assert fullness == [False, True, False]


def test_a_replay_that_starts_again_remembers_what_kapacitor_was_sent() -> None:
    out = opened(BATCH)
    out.write(BeginBatch(name="b"))
    for _ in range(2):
        out.output.suppress()
        out.output.send_data()
    out.write(BeginBatch(name="b"))
    out.output.stop_suppressing()
    out.write(EndBatch(name="b"))
    assert out.sent() == [BeginBatch(name="b"), EndBatch(name="b")]


def test_a_batch_that_is_skipped_is_skipped_after_a_replay_as_well() -> None:
    out = suppressed(BATCH)
    out.write(BeginBatch(name="skipped"))
    out.output.suppress_next(0, in_batch=False, stats=NOTHING_SENT)
    out.output.suppress()
    out.output.send_data()
    out.write(BeginBatch(name="skipped"))
    out.output.stop_suppressing()
    out.write(EndBatch(name="skipped"))
    batch = out.write_batch("whole")
    assert out.sent() == batch
