"""The journal of one connection: what lets another worker go on from where one died.

It is memory (a memfd) that the supervisor holds too, in five parts:

- the ledger, with the marks: see `kapudf_cli.journal.header`;
- two halves for input. One is in force: it holds Init, the last snapshot as a Restore,
  and every byte of input since. Fed to a new handler, that gives the state of the old one.
  To cut the journal, the other half is written with a newer snapshot, and put in force;
- a ring for output, and two places, used in turn, for pieces that are too long for it.

Nothing is lost and nothing is sent twice, wherever a worker dies, because the kernel
counts for us, in both directions:

- Input is read from the socket straight into the half. How much was read is known from
  the kernel even if the worker died before it could say so: see `read_count`.
- Output is put into the ring, then put in force together with how much input it answers,
  and only then sent, by sendfile(2) from the memory's own file position. The position
  belongs to the open file and not to a process, and moves with each byte that is sent. So
  what was in force and not sent yet is sent by whoever comes next, from the very byte;
  what was not in force never left, and comes again when the input is repeated.

sendfile does not copy: what was sent is still read from these pages until the peer has
taken it, so a part of the ring is written again only when nothing of it is on its way.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import struct
import termios
import time
from typing import TYPE_CHECKING, Final

from kapudf_cli.journal import read_count, syscalls
from kapudf_cli.journal.header import HEADER_BYTES, NO_FRAME, CommitRecord, Header

if TYPE_CHECKING:
    import socket

    from kapudf_cli.transport.commit import Commit

#: Half of the ring. Linux takes some 250 KiB for a Unix socket whose peer does not read, so
#: that nothing of one half is on its way any more by the time that the other one is full.
_RING_SEGMENT_BYTES: Final = 512 * 1024
_RING: Final = (HEADER_BYTES, HEADER_BYTES + _RING_SEGMENT_BYTES)
_INPUT: Final = HEADER_BYTES + 2 * _RING_SEGMENT_BYTES
#: What the outbox may hand over at once besides a frame: what was held back until Kapacitor
#: could take data, and what it flushes at.
_BESIDES_FRAME_BYTES: Final = 2 * 1024 * 1024
#: Where a read is put that nothing is to be kept of: at the end of a half.
_SCRATCH_BYTES: Final = 96 * 1024
#: A journal that cannot be cut, as in the middle of a batch, may grow to this many times
#: what is asked for. Past that the connection goes on, but a death would end it.
_OVERDRAFT: Final = 4
#: Pages of a half that is no longer in force are given back from so much on: to have them
#: anew costs more than the copying of what is in them.
_KEPT_BYTES: Final = 512 * 1024


def size(*, journal_bytes: int, max_frame_bytes: int) -> int:
    """Return how much address space a connection's memory takes, in bytes; see `create`."""
    return _sizes(journal_bytes, max_frame_bytes)[0]


def _sizes(journal_bytes: int, max_frame_bytes: int) -> tuple[int, int]:
    """Return the size of the memory, and of one half for input."""
    # A half holds a snapshot and a frame, each of any size allowed, besides the input.
    segment = _OVERDRAFT * journal_bytes + 2 * max_frame_bytes + _SCRATCH_BYTES
    segment = -(-segment // mmap.PAGESIZE) * mmap.PAGESIZE
    # What is held back may end with a frame as long as may be, and one more follow it.
    long = 2 * max_frame_bytes + _BESIDES_FRAME_BYTES
    long = -(-long // mmap.PAGESIZE) * mmap.PAGESIZE
    return _INPUT + 2 * segment + 2 * long, segment


def create(connection: socket.socket, *, journal_bytes: int, max_frame_bytes: int) -> int:
    """Return a new connection's memory, as a descriptor; only what is written takes memory.

    Args:
        connection: the socket; nothing may have been read from it yet.
        journal_bytes: how much input is kept, as a rule, until the journal is cut.
        max_frame_bytes: the longest frame taken or sent.
    """
    total, segment = _sizes(journal_bytes, max_frame_bytes)
    descriptor = os.memfd_create("kapudf-connection")
    try:
        os.ftruncate(descriptor, total)
        with mmap.mmap(descriptor, HEADER_BYTES) as memory:
            header = Header(memory)
            header.segment_bytes = segment
            header.current_frame = NO_FRAME
            # Until it first waits for input, it is at work: its handler is being made.
            header.busy_since_ns = time.monotonic_ns()
            header.commit(CommitRecord(output_start=_RING[0], output_end=_RING[0]))
            read_count.begin(connection, header)
        os.lseek(descriptor, _RING[0], os.SEEK_SET)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


class Journal:
    """A worker's hold on a connection's memory; one worker at a time writes it.

    Attributes:
        ledger: the marks, for whoever looks on.
        marks: the marks in force.
        received: how many bytes of input were taken from the socket.
        descriptor: the memory, which is this journal's to close.
    """

    def __init__(self, descriptor: int, connection: socket.socket) -> None:
        """Take over a descriptor from `create`, and what an earlier worker left in it."""
        self.descriptor = descriptor
        self._connection = connection
        self._memory = mmap.mmap(descriptor, 0)
        self._view = memoryview(self._memory)
        self.header = Header(self._memory)
        self._segment_bytes = self.header.segment_bytes
        self._long_bytes = (len(self._memory) - self._segment_start(2)) // 2
        # How many bytes of output were put into the half of the ring that is in use.
        self._ring_segment_used = 0
        with contextlib.suppress(OSError):
            # A page that was sent must not be a part of a larger one that is written to.
            self._memory.madvise(mmap.MADV_NOHUGEPAGE)
        self.record = self.header.record
        self.received = self.header.received = read_count.total(connection, self.header)
        # Where the next input is put, and how far it may reach.
        self._input_at = self._input_end = 0
        self._locate_input()
        # When the kernel's count is next to be set high.
        self._reset_at = read_count.keep_high(connection, self.header, self.received)
        # Where the file stands; the kernel moves it with what is sent.
        self._at = os.lseek(descriptor, 0, os.SEEK_CUR)

    @property
    def is_closed(self) -> bool:
        """Whether it was let go of."""
        return self._memory.closed

    def close(self) -> None:
        """Let go of the memory; the supervisor still has it."""
        if not self._memory.closed:
            self._view.release()
            self._memory.close()
            os.close(self.descriptor)

    # --- the way in ---

    def receive(self, limit: int, flags: int) -> bytes:
        """Take up to `limit` bytes from the socket into the journal, and return them.

        Raises:
            OSError: as the socket does; BlockingIOError if nothing is there.
        """
        start = self._input_at
        if start + limit > self._input_end:
            start, limit = self._input_when_full(limit)
        count = self._connection.recv_into(self._view[start : start + limit], 0, flags)
        self.received = received = self.received + count
        self.header.received = received
        self._input_at = start + count
        if received >= self._reset_at:
            self._reset_at = read_count.keep_high(self._connection, self.header, received)
        return bytes(self._view[start : start + count])

    @property
    def kept_bytes(self) -> int:
        """How much input the journal holds."""
        return self.received - self.record.input_start

    def history(self, until: int) -> bytes:
        """Return Init, Restore and the input up to an offset: what makes a handler's state."""
        start = self._segment_start(self.record.segment)
        return bytes(self._view[start : self._position_of(until)])

    def unprocessed(self) -> bytes:
        """Return the input that was received and not dealt with."""
        start = self._position_of(self.record.stats.offset)
        return bytes(self._view[start : self._position_of(self.received)])

    @property
    def max_prefix_bytes(self) -> int:
        """How many bytes `cut` has room for, prefix and remainder together."""
        return self._segment_bytes - 2 * _SCRATCH_BYTES

    def compact(self, prefix: bytes, remainder: bytes) -> bool:
        """Begin anew with a prefix that leads to the state at `marks.stats.offset`.

        Args:
            prefix: Init, and a snapshot as Restore, as frames.
            remainder: the input received since that offset.

        Returns:
            Whether there was room for it, and the remainder is all there is. It is not where
            another thread reads ahead just now.
        """
        if self.record.stats.offset + len(remainder) != self.received:
            return False
        if len(prefix) + len(remainder) > self.max_prefix_bytes:
            return False
        old, used = self.record.segment, self.record.prefix_bytes + self.kept_bytes
        start = self._segment_start(1 - old)
        middle = start + len(prefix)
        self._view[start:middle] = prefix
        self._view[middle : middle + len(remainder)] = remainder
        self._commit(
            self.record._replace(
                segment=1 - old,
                prefix_bytes=len(prefix),
                input_start=self.record.stats.offset,
                complete=1,
            )
        )
        self._locate_input()
        if used > _KEPT_BYTES:
            # Of one that was outgrown, more came than there was room for.
            self._release_pages(self._segment_start(old), min(used, self._segment_bytes))
        return True

    # --- the way back ---

    def store(self, piece: bytes, commit: Commit) -> None:
        """Store output and how far the connection has got with it, in one step.

        Args:
            piece: whole messages; they must be sent before the next call.
            commit: what is true from now on.
        """
        messages, in_batch, stats, forget_input = commit
        record = self.record
        cut, complete = record.input_start, record.complete
        # There is no more to a cut where no unfinished frame is to be kept.
        cuts = forget_input and stats and stats.offset == self.received and record.prefix_bytes
        if cuts:
            cut, complete = self.received, 1
        output_start, output_end = record.output_start, record.output_end
        if piece:
            output_start = self._allocate_output(len(piece))
            output_end = output_start + len(piece)
            self._view[output_start:output_end] = piece
        # Spelt out: for each write, _replace() takes twice as long.
        self._commit(
            CommitRecord(
                record.segment,
                record.prefix_bytes,
                cut,
                messages if stats else record.sent + messages,
                int(in_batch),
                complete,
                output_start,
                output_end,
                stats or record.stats,
            )
        )
        if cuts:
            self._locate_input()
            self._release_forgotten_pages(record)

    @property
    def unsent(self) -> int:
        """How many bytes are in force and not sent."""
        record = self.record
        if not record.output_start <= self._at <= record.output_end:
            # The piece does not follow the one before it.
            self._at = syscalls.seek(self.descriptor, record.output_start, os.SEEK_SET)
        return record.output_end - self._at

    def send(self, count: int) -> int:
        """Send up to `count` bytes of what is unsent; return how many went.

        Raises:
            OSError: as the socket does; BlockingIOError if it has no room.
        """
        sent = syscalls.send_file(self._connection.fileno(), self.descriptor, count)
        self._at += sent
        return sent

    # --- inside ---

    def _commit(self, record: CommitRecord) -> None:
        self.header.commit(record)
        self.record = record

    def _locate_input(self) -> None:
        """Find out where the next input is put, for the marks have changed."""
        record = self.record
        end = self._segment_start(record.segment) + self._segment_bytes - _SCRATCH_BYTES
        self._input_at = self._position_of(self.received)
        # Of what is not kept, each read is put into the scratch, so that none may just go on.
        self._input_end = end if record.complete else 0

    def _input_when_full(self, limit: int) -> tuple[int, int]:
        """Return where input that has outgrown its half is put, and how much at once."""
        if self.record.complete:
            self._commit(self.record._replace(complete=0))
            self._locate_input()
        scratch = self._segment_start(self.record.segment) + self._segment_bytes - _SCRATCH_BYTES
        return scratch, min(limit, _SCRATCH_BYTES)

    def _segment_start(self, segment: int) -> int:
        return _INPUT + segment * self._segment_bytes

    def _position_of(self, offset: int) -> int:
        record = self.record
        return (
            self._segment_start(record.segment) + record.prefix_bytes + offset - record.input_start
        )

    def _allocate_output(self, size: int) -> int:
        """Return where a piece of output may be written."""
        end = self.record.output_end
        if size > _RING_SEGMENT_BYTES:
            # Of two in a row, the position after the first must not lie in the second.
            start = self._segment_start(2)
            if start <= end <= start + self._long_bytes:
                start += self._long_bytes
            # The pages of earlier ones may still be on their way; they are left to whoever
            # reads them, and new ones taken.
            self._release_pages(self._segment_start(2), 2 * self._long_bytes)
            return start
        if size >= mmap.PAGESIZE:
            # sendfile(2) takes whole pages, of which one more costs it another round.
            end = -(-end // mmap.PAGESIZE) * mmap.PAGESIZE
        for number, start in enumerate(_RING):
            if start <= end <= start + _RING_SEGMENT_BYTES:
                if end + size <= start + _RING_SEGMENT_BYTES:
                    self._ring_segment_used += size
                    return end
                return self._switch_ring_segment(_RING[1 - number], size)
        self._ring_segment_used = 0
        return self._switch_ring_segment(_RING[0], size)

    def _switch_ring_segment(self, segment: int, size: int) -> int:
        """Begin to use a half of the ring, with a piece of some bytes."""
        # What was sent last is on its way longest: if that is less than what was put into
        # the other half, nothing of this one is.
        if self._in_flight() > self._ring_segment_used:
            self._release_pages(segment, _RING_SEGMENT_BYTES)
        self._ring_segment_used = size
        return segment

    def _in_flight(self) -> int:
        """Return how many bytes the peer has not taken yet, or a little more: unix(7)."""
        answer = fcntl.ioctl(self._connection, termios.TIOCOUTQ, b"\0" * 4)
        return int(struct.unpack("i", answer)[0])

    def _release_forgotten_pages(self, before: CommitRecord) -> None:
        """Give back what a long batch took that is forgotten in place: all but the prefix."""
        if (forgotten := self.received - before.input_start) > _KEPT_BYTES:
            start = -(-before.prefix_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
            end = min(before.prefix_bytes + forgotten, self._segment_bytes)
            self._release_pages(self._segment_start(before.segment) + start, end - start)

    def _release_pages(self, start: int, size: int) -> None:
        """Give the pages of a part back to the system; they read as zeros from then on."""
        size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory.madvise(mmap.MADV_REMOVE, start, size)
