"""The journal: nothing is lost and nothing is sent twice, wherever a worker dies."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
from typing import TYPE_CHECKING

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from kapudf_cli.journal import journal
from kapudf_cli.journal.header import NO_FRAME, Header
from kapudf_cli.transport.stream import Commit, ConnectionStats
from tests.examples import examples
from tests.journal.connections import (
    JOURNAL_BYTES,
    MAX_FRAME_BYTES,
    DyingHeader,
    JournaledConnection,
    WorkerDiedError,
)
from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kapudf_cli.journal.journal import Journal

RING_SEGMENT_BYTES = journal._RING_SEGMENT_BYTES
#: At least as much input as a segment holds.
SEGMENT_BYTES = 4 * JOURNAL_BYTES + 2 * MAX_FRAME_BYTES
READ_BYTES = 96 * 1024


@pytest.fixture
def held(kept: JournaledConnection) -> Iterator[Journal]:
    """Give the journal of the first worker."""
    held = kept.open()
    yield held
    kept.kill(held)


def content(size: int, seed: int) -> bytes:
    """Return random bytes that differ for each seed."""
    return random.Random(seed).randbytes(size)  # noqa: S311 - nothing is secret


def put(
    held: Journal, piece: bytes, *, stats: ConnectionStats | None = None, forgets: bool = False
) -> None:
    held.store(piece, Commit(1, stats=stats, forget_input=forgets))


def send_all(held: Journal, kept: JournaledConnection, at_once: int = 1 << 20) -> bytes:
    """Send committed output; when the socket is full, the peer reads. Return what it has read."""
    read = bytearray()
    while unsent := held.unsent:
        try:
            held.send(unsent)
        except BlockingIOError:
            read += kept.peer.recv(at_once)
    return bytes(read)


def read_rest(kept: JournaledConnection) -> bytes:
    """Return what was sent and the peer has not read."""
    read = bytearray()
    kept.peer.settimeout(0)
    with contextlib.suppress(BlockingIOError):
        while True:
            read += kept.peer.recv(1 << 20)
    return bytes(read)


def feed(held: Journal, kept: JournaledConnection, data: bytes) -> None:
    """Send data to the journal and receive all of it, in pieces of any size."""
    place = 0
    while place < len(data):
        place += kept.peer.send(data[place : place + READ_BYTES])
        with contextlib.suppress(BlockingIOError):
            while True:
                held.receive(READ_BYTES, 0)


# --- a new connection ---


def test_a_new_connection_is_empty_and_busy(kept: JournaledConnection, held: Journal) -> None:
    assert held.received == held.unsent == held.kept_bytes == 0
    assert held.unprocessed() == held.history(0) == b""
    assert held.record.complete
    assert held.header.current_frame == NO_FRAME
    assert held.header.busy_since_ns > 0
    assert read_rest(kept) == b""


def test_only_written_pages_take_memory(kept: JournaledConnection, held: Journal) -> None:
    status = os.fstat(kept.memory)
    assert status.st_size > 2 * SEGMENT_BYTES
    assert status.st_blocks * 512 <= 2 * mmap.PAGESIZE
    held.close()


def test_a_failed_creation_leaves_no_descriptor(
    kept: JournaledConnection,
) -> None:
    gone = kept.connection.dup()
    gone.close()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="Bad file descriptor"):
        journal.create(gone, journal_bytes=1, max_frame_bytes=1)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_closed_journal_can_be_closed_again(held: Journal) -> None:
    states = [held.is_closed]
    for _ in range(2):
        held.close()
        states.append(held.is_closed)
    assert states == [False, True, True]


# --- input ---


def test_input_is_kept_until_compaction(kept: JournaledConnection, held: Journal) -> None:
    kept.peer.sendall(b"processed, and not")
    assert held.receive(9, 0) == b"processed"
    assert held.receive(READ_BYTES, 0) == b", and not"
    put(held, b"", stats=ConnectionStats(9))
    assert held.history(9) == b"processed"
    assert held.unprocessed() == b", and not"
    assert held.kept_bytes == 18

    assert held.compact(b"Init, Restore", b", and not")
    assert held.history(9) == b"Init, Restore"
    assert held.unprocessed() == b", and not"
    assert held.kept_bytes == 9
    assert held.record.prefix_bytes == 13


def test_receiving_nothing_raises_and_changes_nothing(held: Journal) -> None:
    with pytest.raises(BlockingIOError):
        held.receive(10, 0)
    assert held.received == 0


def test_the_end_of_input_can_be_read_repeatedly(kept: JournaledConnection, held: Journal) -> None:
    kept.peer.close()
    assert held.receive(10, 0) == held.receive(10, 0) == b""
    assert held.received == 0


@pytest.mark.parametrize("after", [False, True], ids=["before the note", "after it"])
def test_input_read_by_a_worker_that_died_is_known(
    kept: JournaledConnection, *, after: bool
) -> None:
    kept.peer.sendall(b"noted, not noted")
    held = kept.open()
    held.receive(7, 0)
    held.header = DyingHeader(held, over="received", after=after)
    with pytest.raises(WorkerDiedError):
        held.receive(4, 0)
    kept.kill(held)

    held = kept.open()
    assert held.received == held.header.received == 11
    assert held.unprocessed() == b"noted, not "
    assert held.receive(READ_BYTES, 0) == b"noted"
    assert held.unprocessed() == b"noted, not noted"
    kept.kill(held)


def test_a_full_journal_is_incomplete_and_goes_on_reading(
    kept: JournaledConnection, held: Journal
) -> None:
    data = content(SEGMENT_BYTES + 3 * READ_BYTES, 1)
    received = bytearray()
    while len(received) < len(data):
        kept.peer.sendall(data[len(received) : len(received) + READ_BYTES])
        received += held.receive(READ_BYTES, 0)
    assert received == data
    assert held.received == len(data)
    assert held.record.complete == 0

    put(held, b"", stats=ConnectionStats(len(data) - 5))
    assert held.compact(b"prefix", data[-5:])
    assert held.record.complete == 1
    assert held.history(held.received) == b"prefix" + data[-5:]
    feed(held, kept, b"and on")
    assert held.unprocessed() == data[-5:] + b"and on"


def test_a_compaction_without_room_changes_nothing(
    kept: JournaledConnection, held: Journal
) -> None:
    feed(held, kept, b"input")
    assert not held.compact(bytes(SEGMENT_BYTES), b"input")
    assert held.history(5) == b"input"
    assert held.record.complete == 1


@pytest.mark.parametrize("after", [False, True], ids=["not committed", "committed"])
def test_a_death_during_compaction_leaves_the_old_or_the_new_state(
    kept: JournaledConnection, *, after: bool
) -> None:
    held = kept.open()
    feed(held, kept, b"processed, rest")
    put(held, b"", stats=ConnectionStats(9))
    held.header = DyingHeader(held, over="commit", after=after)
    with pytest.raises(WorkerDiedError):
        held.compact(b"Init", b", rest")
    kept.kill(held)

    held = kept.open()
    assert held.history(9) == (b"Init" if after else b"processed")
    assert held.unprocessed() == b", rest"
    kept.kill(held)


def test_compaction_fails_if_more_input_was_received(
    kept: JournaledConnection, held: Journal
) -> None:
    feed(held, kept, b"processed, rest")
    put(held, b"", stats=ConnectionStats(9))
    before = held.record
    assert not held.compact(b"Init", b", re")
    assert held.record == before
    assert held.unprocessed() == b", rest"


def test_compaction_releases_memory(kept: JournaledConnection, held: Journal) -> None:
    feed(held, kept, content(SEGMENT_BYTES // 2, 2))
    put(held, b"", stats=ConnectionStats(held.received))
    assert os.fstat(kept.memory).st_blocks * 512 >= SEGMENT_BYTES // 2
    assert held.compact(b"Init", b"")
    assert os.fstat(kept.memory).st_blocks * 512 < RING_SEGMENT_BYTES


@pytest.mark.parametrize("size", [SEGMENT_BYTES // 2, 2 * SEGMENT_BYTES], ids=["long", "outgrown"])
def test_forgetting_input_releases_memory(
    kept: JournaledConnection, held: Journal, size: int
) -> None:
    feed(held, kept, b"Init")
    put(held, b"", stats=ConnectionStats(4))
    assert held.compact(b"Init", b"")
    feed(held, kept, content(size, 2))
    put(held, b"", stats=ConnectionStats(held.received), forgets=True)
    assert os.fstat(kept.memory).st_blocks * 512 < RING_SEGMENT_BYTES
    feed(held, kept, b"more")
    assert held.history(held.received) == b"Initmore"


# --- output ---


def test_the_next_worker_sends_the_rest_of_committed_output(kept: JournaledConnection) -> None:
    held = kept.open()
    put(held, b"0123456789")
    assert held.unsent == 10
    assert held.send(4) == 4
    kept.kill(held)
    held = kept.open()
    assert held.unsent == 6
    assert held.send(6) == 6
    assert held.unsent == 0
    assert read_rest(kept) == b"0123456789"
    kept.kill(held)


@pytest.mark.parametrize("after", [False, True], ids=["not committed", "committed"])
def test_output_that_is_not_committed_is_never_sent(
    kept: JournaledConnection, *, after: bool
) -> None:
    held = kept.open()
    put(held, b"first")
    send_all(held, kept)
    held.header = DyingHeader(held, over="commit", after=after)
    with pytest.raises(WorkerDiedError):
        put(held, b"second", stats=ConnectionStats(7))
    kept.kill(held)
    held = kept.open()
    assert held.record.stats.offset == (7 if after else 0)
    send_all(held, kept)
    assert read_rest(kept) == (b"firstsecond" if after else b"first")
    kept.kill(held)


def test_sent_messages_are_counted_until_their_input_is_handled(
    held: Journal,
) -> None:
    held.store(b"a", Commit(2, in_batch=True))
    held.store(b"b", Commit(3, in_batch=True))
    assert (held.record.sent, held.record.in_batch) == (5, 1)
    held.store(b"c", Commit(0, stats=ConnectionStats(10)))
    assert (held.record.sent, held.record.in_batch, held.record.stats.offset) == (0, 0, 10)
    held.store(b"", Commit(4, stats=ConnectionStats(20)))
    assert (held.record.sent, held.record.stats.offset) == (4, 20)


def test_handled_input_of_a_stateless_handler_is_forgotten(
    kept: JournaledConnection, held: Journal
) -> None:
    feed(held, kept, b"Init")
    held.store(b"", Commit(0, stats=ConnectionStats(4), forget_input=True))
    assert held.history(4) == b"Init"
    assert held.compact(b"Init", b"")
    feed(held, kept, b"point, par")
    held.store(b"", Commit(0, stats=ConnectionStats(4 + 7), forget_input=True))
    assert held.history(11) == b"Initpoint, "
    assert held.unprocessed() == b"par"
    feed(held, kept, b"t")
    held.store(b"", Commit(0, stats=ConnectionStats(held.received), forget_input=True))
    assert held.history(held.received) == b"Init"
    assert held.unprocessed() == b""


SIZES = {
    "small ones": [100] * 20_000,
    "just over a page": [mmap.PAGESIZE + 1] * 600,
    "half of a half": [RING_SEGMENT_BYTES // 2] * 12,
    "half of a half and a byte": [RING_SEGMENT_BYTES // 2 + 1] * 12,
    "just a half": [RING_SEGMENT_BYTES] * 12,
    "a little too long for the ring": [RING_SEGMENT_BYTES + 1] * 12,
    "longer and longer": [RING_SEGMENT_BYTES + number for number in range(1, 12)],
    "as long as may be": [MAX_FRAME_BYTES + 64 * 1024] * 5,
    "long and short": [RING_SEGMENT_BYTES + 1, 10, RING_SEGMENT_BYTES + 1, 5000, MAX_FRAME_BYTES]
    * 3,
    "gaps after a large one": ([RING_SEGMENT_BYTES] + [mmap.PAGESIZE + 1] * 64) * 8,
    "gaps, and then a large one": ([mmap.PAGESIZE + 1] * 64 + [RING_SEGMENT_BYTES]) * 8,
}


@pytest.mark.parametrize("at_once", [1000, 100_000, 1 << 20])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_pieces_of_any_size_arrive_unchanged(
    kept: JournaledConnection, held: Journal, sizes: list[int], at_once: int
) -> None:
    written, arrived = bytearray(), bytearray()
    for number, size in enumerate(sizes):
        piece = content(size, number)
        written += piece
        put(held, piece)
        arrived += send_all(held, kept, at_once)
        assert held.unsent == 0
    arrived += read_rest(kept)
    assert len(arrived) == len(written)
    assert arrived == written


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_a_death_after_each_piece_loses_nothing(
    kept: JournaledConnection, sizes: list[int]
) -> None:
    written, arrived = bytearray(), bytearray()
    for number, size in enumerate(sizes[:200]):
        piece = content(size, number)
        written += piece
        held = kept.open()
        arrived += send_all(held, kept, 1000)
        put(held, piece)
        with contextlib.suppress(BlockingIOError):
            held.send(held.unsent // 2 + 1)
        kept.kill(held)
    held = kept.open()
    arrived += send_all(held, kept) + read_rest(kept)
    assert arrived == written
    kept.kill(held)


def test_long_pieces_reuse_memory(kept: JournaledConnection, held: Journal) -> None:
    for number in range(6):
        put(held, content(MAX_FRAME_BYTES, number))
        send_all(held, kept)
        assert os.fstat(kept.memory).st_blocks * 512 <= 2 * MAX_FRAME_BYTES
        read_rest(kept)
        kept.peer.settimeout(PATIENCE_S)


# --- any sequence of steps ---


class AnySteps(RuleBasedStateMachine):
    """A connection and its workers, with a model of the bytes in both directions."""

    @initialize()
    def begin(self) -> None:
        self.kept = JournaledConnection()
        self.kept.peer.settimeout(0)
        self.held = self.kept.open()
        #: All input that the peer has sent, and how much of it was received and handled.
        self.input = bytearray()
        self.received = self.offset = 0
        #: The expected history up to `offset`, while the journal is complete.
        self.prefix, self.cut_at, self.complete = b"", 0, True
        #: All committed output, and what the peer has read of it.
        self.output = bytearray()
        self.arrived = bytearray()
        self.seed = 0

    def content(self, size: int) -> bytes:
        self.seed += 1
        return content(size, self.seed)

    def die(self) -> None:
        self.kept.kill(self.held)
        self.held = self.kept.open()

    def note_received(self) -> None:
        """Record how much a read took, even if the worker died right after it."""
        self.received = self.held.received
        self.complete = bool(self.held.record.complete)

    # --- the peer ---

    @rule(size=st.integers(1, 100_000))
    def peer_sends(self, size: int) -> None:
        data = self.content(size)
        with contextlib.suppress(BlockingIOError):
            self.input += data[: self.kept.peer.send(data)]

    @rule(size=st.sampled_from([1, 100, 5000, 100_000, 1 << 20]))
    def peer_reads(self, size: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self.arrived += self.kept.peer.recv(size)

    # --- the worker ---

    @rule(limit=st.sampled_from([1, 1000, READ_BYTES]))
    def worker_reads(self, limit: int) -> None:
        with contextlib.suppress(BlockingIOError):
            data = self.held.receive(limit, 0)
            assert data == self.input[self.received : self.received + len(data)]
            self.note_received()

    @rule(rounds=st.integers(1, 60))
    def worker_reads_much(self, rounds: int) -> None:
        for _ in range(rounds):
            self.peer_sends(READ_BYTES)
            self.worker_reads(READ_BYTES)

    @rule(after=st.booleans())
    def worker_dies_over_a_read(self, *, after: bool) -> None:
        before = self.held.record.complete
        self.held.header = DyingHeader(self.held, over="received", after=after)
        with contextlib.suppress(BlockingIOError, WorkerDiedError):
            self.held.receive(READ_BYTES, 0)
        self.die()
        assert self.held.received >= self.received
        assert before or not self.held.record.complete
        self.note_received()

    @precondition(lambda self: self.held.unsent == 0)
    @rule(
        size=st.one_of(
            st.integers(0, 200),
            st.integers(mmap.PAGESIZE - 1, 4 * mmap.PAGESIZE),
            st.integers(0, RING_SEGMENT_BYTES),
            st.integers(RING_SEGMENT_BYTES - 1, MAX_FRAME_BYTES),
        ),
        step=st.one_of(st.none(), st.floats(0, 1), st.just(1)),
        forgets=st.booleans(),
        dies=st.sampled_from(["never", "before", "after"]),
    )
    def worker_writes(self, size: int, step: float | None, *, forgets: bool, dies: str) -> None:
        piece = self.content(size)
        stats = None
        if step is not None:
            stats = ConnectionStats(self.offset + int((self.received - self.offset) * step))
        if dies == "never":
            put(self.held, piece, stats=stats, forgets=forgets)
        else:
            self.held.header = DyingHeader(self.held, over="commit", after=dies == "after")
            with pytest.raises(WorkerDiedError):
                put(self.held, piece, stats=stats, forgets=forgets)
            self.die()
        if dies != "before":
            self.output += piece
            self.offset = self.offset if stats is None else stats.offset
            if forgets and stats and self.offset == self.received and self.prefix:
                self.cut_at, self.complete = self.offset, True

    @rule(count=st.sampled_from([1, 5000, 1 << 20]))
    def worker_sends(self, count: int) -> None:
        if unsent := self.held.unsent:
            with contextlib.suppress(BlockingIOError):
                self.held.send(min(count, unsent))

    @rule(at_once=st.sampled_from([1000, 50_000]))
    def worker_sends_all(self, at_once: int) -> None:
        while unsent := self.held.unsent:
            try:
                self.held.send(unsent)
            except BlockingIOError:
                self.peer_reads(at_once)

    @rule(size=st.integers(0, 10_000), dies=st.sampled_from(["never", "before", "after"]))
    def worker_cuts(self, size: int, dies: str) -> None:
        prefix = self.content(size)
        remainder = bytes(self.input[self.offset : self.received])
        if dies == "never":
            was_cut = self.held.compact(prefix, remainder)
        else:
            self.held.header = DyingHeader(self.held, over="commit", after=dies == "after")
            try:
                was_cut = self.held.compact(prefix, remainder)
            except WorkerDiedError:
                was_cut = dies == "after"
            self.die()
        if was_cut:
            self.prefix, self.cut_at, self.complete = prefix, self.offset, True

    @rule()
    def worker_dies(self) -> None:
        self.die()

    # --- invariants ---

    @invariant()
    def nothing_read_is_lost(self) -> None:
        assert self.held.received == self.received == self.held.header.received
        assert self.held.record.stats.offset == self.offset
        if self.held.record.complete:
            assert self.held.unprocessed() == self.input[self.offset : self.received]
            assert self.held.history(self.offset) == (
                self.prefix + self.input[self.cut_at : self.offset]
            )

    @invariant()
    def what_arrives_is_what_was_put_in_force(self) -> None:
        assert self.arrived == self.output[: len(self.arrived)]

    def teardown(self) -> None:
        self.worker_sends_all(50_000)
        self.arrived += read_rest(self.kept)
        try:
            assert self.arrived == self.output
        finally:
            self.kept.kill(self.held)
            self.kept.close()


TestAnySteps = AnySteps.TestCase
TestAnySteps.settings = examples(0.6, stateful_step_count=40)


def test_another_process_can_read_the_header(kept: JournaledConnection, held: Journal) -> None:
    put(held, b"answer", stats=ConnectionStats(3, points_in=2))
    with mmap.mmap(kept.memory, mmap.PAGESIZE) as memory:
        record = Header(memory).record
    assert record == held.record
    assert record.stats.points_in == 2
