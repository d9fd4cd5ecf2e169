"""The journaled stream, which another worker can take over at any moment."""

from __future__ import annotations

import contextlib
import random
import time
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.agent.outbox import Outbox
from kapudf_cli.journal.header import NO_FRAME, REPLAYING_HISTORY
from kapudf_cli.protocol.codec import RESPONSES
from kapudf_cli.protocol.udf_pb2 import Point
from kapudf_cli.transport import ReadPaused
from kapudf_cli.transport.stream import Commit, ConnectionStats
from tests.journal.connections import JOURNAL_BYTES, MAX_FRAME_BYTES, JournaledConnection
from tests.peers import in_thread, is_full
from tests.serve_process import PATIENCE_S
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from kapudf_cli.journal.stream import JournaledStream

#: More than a socket queues for a peer that does not read.
MUCH = random.Random(0).randbytes(3 * 1024 * 1024)  # noqa: S311 - nothing is secret


@pytest.fixture(autouse=True)
def stalls_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a waiting write read ahead at once."""
    monkeypatch.setattr("kapudf_cli.transport.input._STALLED_S", 0.001)
    monkeypatch.setattr("kapudf_cli.transport.input._STALLED_MAX_S", 0.001)


@pytest.fixture
def stream(kept: JournaledConnection) -> Iterator[JournaledStream]:
    """Return the stream of the first worker."""
    stream = kept.serve()
    yield stream
    stream.close()


def wait_for_wait(stream: JournaledStream) -> None:
    wait_until(lambda: stream.waits)


def read_all(kept: JournaledConnection, count: int) -> bytes:
    read = bytearray()
    while len(read) < count:
        data = kept.peer.recv(1 << 20)
        assert data
        read += data
    return bytes(read)


def stalled_write(
    kept: JournaledConnection, stream: JournaledStream, stats: ConnectionStats | None = None
) -> Future[None]:
    """Start a write that waits because the peer does not read."""
    writing = in_thread(lambda: stream.write(MUCH, Commit(1, stats=stats)))
    wait_until(lambda: bool(kept.header.waits_for_peer))
    return writing


# --- from worker to worker ---


def test_the_next_worker_reads_unhandled_input(
    kept: JournaledConnection,
) -> None:
    kept.peer.sendall(b"done, not done")
    first = kept.serve()
    assert first.read() == b"done, not done"
    first.write(b"answer", Commit(1, stats=ConnectionStats(5)))
    first.close()
    kept.peer.sendall(b", new")
    second = kept.serve()
    assert second.record.stats == ConnectionStats(5)
    assert second.history(5) == b"done,"
    assert second.read() == b" not done"
    assert second.read() == b", new"
    second.close()
    assert read_all(kept, 6) == b"answer"


def test_the_next_worker_sends_committed_output(
    kept: JournaledConnection,
) -> None:
    held = kept.open()
    writing = stalled_write(kept, kept.serve(held=held))
    # As after a death: the stream sends nothing more, and its lock is released.
    kept.connection_of(held).close()
    assert isinstance(writing.exception(PATIENCE_S), OSError | ValueError)
    kept.kill(held)
    second = kept.serve()
    sending = in_thread(second.send_rest)
    assert read_all(kept, len(MUCH)) == MUCH
    sending.result(PATIENCE_S)
    second.send_rest()
    second.write(b"more")
    assert read_all(kept, 4) == b"more"
    second.close()


def test_a_commit_without_output_sends_nothing(
    kept: JournaledConnection, stream: JournaledStream
) -> None:
    stream.write(b"", Commit(stats=ConnectionStats(7, points_in=1)))
    assert stream.record.stats == ConnectionStats(7, points_in=1)
    kept.peer.settimeout(0)
    with pytest.raises(BlockingIOError):
        kept.peer.recv(1)


def test_a_peer_that_is_gone_breaks_the_write(
    kept: JournaledConnection, stream: JournaledStream
) -> None:
    kept.peer.close()
    with pytest.raises(BrokenPipeError):
        stream.write(b"answer", Commit(1))
    with pytest.raises(BrokenPipeError):
        stream.send_rest()


def test_an_abort_ends_a_write_that_waits(
    kept: JournaledConnection, stream: JournaledStream
) -> None:
    writing = stalled_write(kept, stream)
    stream.abort()
    with pytest.raises(BrokenPipeError):
        writing.result(PATIENCE_S)


def test_a_pause_is_noticed_while_input_is_waited_for(
    kept: JournaledConnection, stream: JournaledStream
) -> None:
    reading = in_thread(stream.read)
    wait_for_wait(stream)
    stream.pause()
    with pytest.raises(ReadPaused):
        reading.result(PATIENCE_S)
    kept.peer.sendall(b"input")
    assert stream.read() == b"input"


# --- what the supervisor can see ---


def test_the_header_shows_whether_it_waits_for_input(
    kept: JournaledConnection, stream: JournaledStream
) -> None:
    header = kept.header
    stream.record_current_frame(9)
    assert header.busy_since_ns > 0
    reading = in_thread(stream.read)
    wait_until(lambda: header.busy_since_ns == 0)
    assert header.current_frame == NO_FRAME
    kept.peer.sendall(b"input")
    assert reading.result(PATIENCE_S) == b"input"
    assert header.busy_since_ns > 0


def test_the_header_shows_whether_it_waits_for_its_peer(
    kept: JournaledConnection, stream: JournaledStream
) -> None:
    writing = stalled_write(kept, stream)
    assert read_all(kept, len(MUCH)) == MUCH
    writing.result(PATIENCE_S)
    assert not kept.header.waits_for_peer


def test_a_seen_frame_does_not_overwrite_the_agents_record(
    kept: JournaledConnection, stream: JournaledStream
) -> None:
    header = kept.header
    stream.record_seen_frame(3)
    assert header.current_frame == 3
    stream.record_current_frame(5)
    stream.record_seen_frame(3)
    assert header.current_frame == 5
    stream.record_current_frame(None)
    stream.record_seen_frame(3)
    assert header.current_frame == REPLAYING_HISTORY
    kept.peer.sendall(b"input")
    stream.read()
    stream.record_seen_frame(8)
    assert header.current_frame == 8


def test_recording_a_frame_after_close_has_no_effect(kept: JournaledConnection) -> None:
    stream = kept.serve()
    stream.record_task("task", "node")
    stream.record_thread(77)
    assert stream.task == ("task", "node")
    kept.peer.sendall(b"unread")
    assert stream.close() == 6
    assert stream.close() == 0
    stream.record_seen_frame(1)
    stream.record_thread(1)


# --- the journal ---


def test_compaction_waits_for_input_that_was_read_ahead(
    kept: JournaledConnection,
) -> None:
    first = kept.serve(snapshot_interval_s=0.0)
    kept.peer.sendall(b"Init")
    assert first.read() == b"Init"
    writing = stalled_write(kept, first, stats=ConnectionStats(4))
    kept.peer.sendall(b"ahead")
    wait_until(lambda: first.input.ahead_bytes == 5)
    assert read_all(kept, len(MUCH)) == MUCH
    writing.result(PATIENCE_S)

    for stateless in (False, True):
        assert not first.is_due(time.monotonic(), stateless=stateless, snapshot_requested=True)
    first.compact(b"Init", b"")
    first.close()
    second = kept.serve()
    assert second.history(4) == b"Init"
    assert second.read() == b"ahead"
    second.write(b"", Commit(stats=ConnectionStats(9)))
    assert second.is_due(time.monotonic(), stateless=True, snapshot_requested=False)
    second.compact(b"Init", b"")
    assert second.history(9) == b"Init"
    second.close()


def test_compaction_is_due_after_the_interval(
    kept: JournaledConnection,
) -> None:
    stream = kept.serve(snapshot_interval_s=100.0)
    now_s = time.monotonic()

    def is_due(later_s: float, *, snapshot_requested: bool = False) -> bool:
        return stream.is_due(
            now_s + later_s, stateless=False, snapshot_requested=snapshot_requested
        )

    assert [is_due(0), is_due(200), is_due(0, snapshot_requested=True)] == [False, False, True]
    kept.peer.sendall(b"Init")
    stream.read()
    stream.write(b"", Commit(stats=ConnectionStats(4)))
    assert [is_due(50), is_due(200)] == [False, True]
    stream.postpone()
    assert [is_due(50), is_due(200)] == [False, True]
    stream.close()


def test_compaction_is_due_early_when_much_input_is_kept(kept: JournaledConnection) -> None:
    stream = kept.serve(snapshot_interval_s=100.0)
    read = 0
    while read <= JOURNAL_BYTES:
        kept.peer.sendall(bytes(16_000))
        read += len(stream.read())
    stream.write(b"", Commit(stats=ConnectionStats(read)))
    now_s = time.monotonic()
    assert stream.is_due(now_s + 2, stateless=False, snapshot_requested=False)
    stream.postpone()
    assert not stream.is_due(now_s, stateless=False, snapshot_requested=False)
    assert stream.is_due(now_s + 2, stateless=False, snapshot_requested=False)
    stream.compact(b"Init", b"")
    assert not stream.is_due(now_s + 4, stateless=False, snapshot_requested=False)
    stream.close()


def test_compaction_is_due_at_once_at_twice_the_limit(kept: JournaledConnection) -> None:
    stream = kept.serve(snapshot_interval_s=100.0)
    read = 0
    due = []
    for times in (1, 2):
        while read <= times * JOURNAL_BYTES:
            kept.peer.sendall(bytes(16_000))
            read += len(stream.read())
        stream.write(b"", Commit(stats=ConnectionStats(read)))
        due.append(stream.is_due(time.monotonic(), stateless=False, snapshot_requested=False))
    assert due == [False, True]
    stream.postpone()
    assert not stream.is_due(time.monotonic(), stateless=False, snapshot_requested=False)
    stream.close()


def test_compaction_is_due_soon_after_a_death(kept: JournaledConnection) -> None:
    first = kept.serve()
    kept.peer.sendall(b"Init")
    first.read()
    first.write(b"", Commit(stats=ConnectionStats(4)))
    assert not first.is_due(time.monotonic(), stateless=False, snapshot_requested=False)
    first.close()
    second = kept.serve()
    assert second.is_due(time.monotonic(), stateless=False, snapshot_requested=False)
    second.close()


def test_compaction_waits_for_a_long_incomplete_frame(
    kept: JournaledConnection, stream: JournaledStream
) -> None:
    kept.peer.sendall(b"Init")
    stream.read()
    stream.write(b"", Commit(stats=ConnectionStats(4)))
    stream.compact(b"Init", bytes(200_000))
    assert stream.record.input_start == 0
    stream.compact(b"Init", b"")
    assert stream.record.input_start == 4


def test_the_history_of_a_full_journal_is_its_prefix(kept: JournaledConnection) -> None:
    first = kept.serve()
    kept.peer.sendall(b"Init")
    first.read()
    first.write(b"", Commit(stats=ConnectionStats(4)))
    first.compact(b"Init, Restore", b"")
    received = 4
    while first.record.complete:
        kept.peer.sendall(bytes(48_000))
        received += len(first.read())
    first.write(b"", Commit(stats=ConnectionStats(received)))
    assert first.history(received) == b"Init, Restore"
    assert first.is_due(time.monotonic() + 2, stateless=False, snapshot_requested=False)
    first.close()
    second = kept.serve()
    assert not second.record.complete
    reading = in_thread(second.read)
    kept.peer.sendall(b"next")
    assert reading.result(PATIENCE_S) == b"next"
    second.write(b"", Commit(stats=ConnectionStats(received + 4)))
    second.compact(b"Init, Restore again", b"")
    assert second.history(received + 4) == b"Init, Restore again"
    second.close()


# --- with an outbox ---


@pytest.mark.parametrize("max_frame_bytes", [20_000, MAX_FRAME_BYTES])
def test_a_full_backlog_fits_into_the_journal(max_frame_bytes: int) -> None:
    kept = JournaledConnection(max_frame_bytes=max_frame_bytes)
    stream = kept.serve()
    outbox = Outbox(stream, max_frame_bytes=max_frame_bytes, on_failure=stream.interrupt)
    point = Point(name="x" * (max_frame_bytes - 100))
    count = 1
    while not is_full(outbox):
        outbox.write_point(point)
        count += 1
    outbox.send_data()

    def write_one_more() -> None:
        outbox.adopt()
        outbox.write_point(point)
        outbox.flush()

    writing = in_thread(write_one_more)
    expected = RESPONSES.encode(point) * count
    try:
        assert writing.done() or read_all(kept, len(expected)) == expected
        writing.result(PATIENCE_S)
    finally:
        stream.close()
        kept.close()


def test_messages_of_any_length_arrive_whole_after_deaths(
    kept: JournaledConnection,
) -> None:
    sizes = [10, 70_000, 600_000, 600_001, 5000, MAX_FRAME_BYTES - 100] * 3
    sent = bytearray()
    received = bytearray()

    def receive() -> None:
        with contextlib.suppress(OSError):
            while data := kept.peer.recv(30_000):
                received.extend(data)

    receiving = in_thread(receive)
    for number, size in enumerate(sizes):
        stream = kept.serve()
        outbox = Outbox(stream, max_frame_bytes=MAX_FRAME_BYTES, on_failure=stream.interrupt)
        outbox.send_data()
        point = Point(time=number, name="x" * size)
        outbox.write_point(point)
        outbox.flush(ConnectionStats(number))
        sent += RESPONSES.encode(point)
        stream.close()
    kept.connection.shutdown(2)
    receiving.result(PATIENCE_S)
    assert received == sent
