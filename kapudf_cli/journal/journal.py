"""The journal of one connection: another worker can go on with it if one dies.

The journal is shared memory (a memfd) that the supervisor holds too. It has five parts:

- the header, with the commit record: see `kapudf_cli.journal.header`;
- two segments for input. The active one holds Init, the last snapshot as a Restore, and all
  input since. Given to a new handler, they rebuild the state of the old one. Compaction
  writes a newer snapshot to the other segment and makes that the active one;
- a ring buffer for output, in two segments, and two areas, used in turn, for output that is
  too long for the ring.

Nothing is lost and nothing is sent twice, wherever a worker dies, because the kernel counts
in both directions:

- Input is read from the socket straight into the segment. The kernel knows how much was
  read even if the worker died before it could record that: see `kapudf_cli.journal.kernel`.
- Output is written to the ring, then committed together with the offset of the input that
  it answers, and only then sent, by sendfile(2) from the memory's own file position. The
  position belongs to the open file, not to a process, and advances with each byte sent. So
  the next worker sends what was committed and not sent, from the exact byte. Output that
  was not committed was never sent; the replay of the input produces it again.

sendfile(2) does not copy: the peer reads sent data from these pages. So a part of the ring
is overwritten only when none of it is still in flight.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
import time
from typing import TYPE_CHECKING, Final

import msgspec

from kapudf_cli.errors import ConfigError
from kapudf_cli.journal import kernel
from kapudf_cli.journal.header import FORMAT, HEADER_BYTES, NO_FRAME, CommitRecord, Header
from kapudf_cli.transport.descriptors import unsent_bytes

if TYPE_CHECKING:
    import socket

    from kapudf_cli.config import Settings
    from kapudf_cli.transport.stream import Commit

#: One of the two segments of the ring. Linux queues about 250 KiB on a Unix socket whose peer
#: does not read, so nothing of one segment is in flight once the other one is full.
_RING_SEGMENT_BYTES: Final = 512 * 1024
_RING: Final = (HEADER_BYTES, HEADER_BYTES + _RING_SEGMENT_BYTES)
_INPUT: Final = HEADER_BYTES + 2 * _RING_SEGMENT_BYTES
#: What one write may contain besides a frame: the outbox's backlog and its send buffer.
_BACKLOG_BYTES: Final = 2 * 1024 * 1024
#: The end of a segment, where input goes that is not kept because the segment is full.
_SCRATCH_BYTES: Final = 96 * 1024
#: Where in a page input starts, after a prefix of any length. Data comes from pages of the kernel,
#: mostly from their start. Some processors take three times as long to copy it to an address
#: that is a little further in its page, because each load seems to depend on the last store.
_INPUT_OFFSET: Final = mmap.PAGESIZE // 2
#: A journal that cannot be compacted, as in the middle of a batch, may grow to this many times
#: `journal_bytes`. Beyond that the connection goes on, but a worker's death ends it.
_OVERDRAFT: Final = 4
#: Pages that are no longer used are released to the system only if there are more than this:
#: allocating new pages costs more than copying their content.
_KEPT_BYTES: Final = 512 * 1024
#: The address space of a worker with a small handler and one connection, without its journal.
_WORKER_BYTES: Final = 130_000_000


def _sizes(journal_bytes: int, max_frame_bytes: int) -> tuple[int, int]:
    """Return the size of the memory (address space) and of one segment for input, in bytes."""
    # Besides the input, a segment holds a snapshot and a frame of the longest length.
    segment = _OVERDRAFT * journal_bytes + 2 * max_frame_bytes + _SCRATCH_BYTES
    segment = -(-segment // mmap.PAGESIZE) * mmap.PAGESIZE
    # The backlog may end with a frame of the longest length, and one more may follow it.
    long = 2 * max_frame_bytes + _BACKLOG_BYTES
    long = -(-long // mmap.PAGESIZE) * mmap.PAGESIZE
    return _INPUT + 2 * segment + 2 * long, segment


def check_journals(settings: Settings, *, source: str) -> None:
    """Check that the limits of this process leave room for the journal of a connection.

    Args:
        settings: the functions, which are served by workers.
        source: the settings file, for the error.

    Raises:
        ConfigError: it names each function for which they leave no room.
    """
    faults = []
    for name, function in settings.functions.items():
        memory, _ = _sizes(function.journal_bytes, function.max_frame_bytes)
        for limit, flag, directive, needed in (
            (resource.RLIMIT_FSIZE, "-f", "FSIZE", memory),
            (resource.RLIMIT_AS, "-v", "AS", memory + _WORKER_BYTES),
        ):
            soft, _ = resource.getrlimit(limit)
            if soft != resource.RLIM_INFINITY and soft < needed:
                faults.append(
                    f"functions.{name}: RLIMIT_{directive} is {soft} bytes, and a connection needs "
                    f"{needed}, mostly without using memory; raise it (ulimit {flag}, "
                    f"Limit{directive}=), or lower journal_mb and max_frame_bytes"
                )
    if faults:
        raise ConfigError(source, faults)


def create(connection: socket.socket, *, journal_bytes: int, max_frame_bytes: int) -> int:
    """Create the memory of a new connection and return its descriptor.

    Only pages that are written take memory.

    Args:
        connection: the socket; nothing may have been read from it yet.
        journal_bytes: how much input is kept, as a rule, until the journal is compacted.
        max_frame_bytes: the longest frame received or sent.
    """
    total, segment = _sizes(journal_bytes, max_frame_bytes)
    descriptor = os.memfd_create("kapudf-connection")
    try:
        os.ftruncate(descriptor, total)
        with mmap.mmap(descriptor, HEADER_BYTES) as memory:
            header = Header(memory)
            header.format = FORMAT
            header.segment_bytes = segment
            header.current_frame = NO_FRAME
            header.locks_output = int(not kernel.take_part_in_barriers())
            # Until it first waits for input, the worker is busy creating the handler.
            header.busy_since_ns = time.monotonic_ns()
            header.commit(CommitRecord(output_start=_RING[0], output_end=_RING[0]))
            kernel.begin_read_count(connection, header)
        os.lseek(descriptor, _RING[0], os.SEEK_SET)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


class Journal:
    """A worker's access to a connection's memory. One worker at a time writes to it.

    Attributes:
        header: the header, in shared memory.
        record: a copy of the active commit record.
        meter: the connection's meter, in shared memory.
        received: how many bytes of input were taken from the socket.
        descriptor: the memory; `close` closes it.
    """

    def __init__(self, descriptor: int, connection: socket.socket) -> None:
        """Open the memory that `create` has created, with what an earlier worker left in it."""
        self.descriptor = descriptor
        self._connection = connection
        self._memory = mmap.mmap(descriptor, 0)
        self._view = memoryview(self._memory)
        self.header = Header(self._memory)
        self.meter = self.header.open_meter()
        kernel.take_part_in_barriers()
        self._segment_bytes = self.header.segment_bytes
        self._long_bytes = (len(self._memory) - self._segment_start(2)) // 2
        with contextlib.suppress(OSError):
            # A page that was sent must not be part of a huge page that is written to.
            self._memory.madvise(mmap.MADV_NOHUGEPAGE)
        self.record = self.header.record
        self.received = self.header.received = kernel.read_count(connection, self.header)
        # Where in the memory the next input is written, and where the space for it ends.
        self._input_at = self._input_end = 0
        self._locate_input()
        # At how many bytes the kernel's count must be reset.
        self._reset_at = kernel.keep_read_count_high(connection, self.header, self.received)
        # Where the ring's segment with the last output ends, 0 if that is not in the ring.
        end = self.record.output_end
        limits = [start + _RING_SEGMENT_BYTES for start in _RING]
        self._output_limit = next(
            (limit for limit in limits if limit - _RING_SEGMENT_BYTES <= end <= limit), 0
        )
        # How many bytes of output this worker has written to that segment.
        self._ring_segment_used = 0
        # The file position, which the kernel advances with each byte sent.
        self._at = os.lseek(descriptor, 0, os.SEEK_CUR)

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._memory.closed

    def close(self) -> None:
        """Close the memory in this process; the supervisor still has it."""
        if not self._memory.closed:
            self._view.release()
            self.meter.publish()
            self._memory.close()
            os.close(self.descriptor)

    # --- input ---

    def receive(self, limit: int, flags: int) -> bytes:
        """Read up to `limit` bytes from the socket into the journal, and return them.

        Raises:
            OSError: as the socket does; BlockingIOError if there is no input.
        """
        start = self._input_at
        if start + limit > self._input_end:
            start, limit = self._input_when_full(limit)
        count = self._connection.recv_into(self._view[start : start + limit], 0, flags)
        self.received = received = self.received + count
        self.header.received = received
        self._input_at = start + count
        if received >= self._reset_at:
            self._reset_at = kernel.keep_read_count_high(self._connection, self.header, received)
        return self._memory[start : start + count]

    @property
    def kept_bytes(self) -> int:
        """How many bytes of input the journal holds."""
        return self.received - self.record.input_start

    def history(self, until: int) -> bytes:
        """Return Init, Restore and the input up to an offset, which rebuild the handler's state."""
        start = self._prefix_at(self.record.segment, self.record.prefix_bytes)
        return bytes(self._view[start : self._position_of(until)])

    def unprocessed(self) -> bytes:
        """Return the input that was received and not handled."""
        start = self._position_of(self.record.stats.offset)
        return bytes(self._view[start : self._position_of(self.received)])

    @property
    def max_prefix_bytes(self) -> int:
        """How many bytes `compact` has room for, prefix and remainder together."""
        return self._segment_bytes - 2 * _SCRATCH_BYTES - mmap.PAGESIZE

    def compact(self, prefix: bytes, remainder: bytes) -> bool:
        """Replace the input up to `record.stats.offset` by a prefix that rebuilds the state.

        Args:
            prefix: Init, and the snapshot as Restore, as frames.
            remainder: the input received since that offset.

        Returns:
            False, with nothing changed, if there is no room, or if more input was received
            than the remainder because another thread reads ahead.
        """
        if self.record.stats.offset + len(remainder) != self.received:
            return False
        if len(prefix) + len(remainder) > self.max_prefix_bytes:
            return False
        old = self.record.segment
        used = self._position_of(self.received) - self._segment_start(old)
        start = self._prefix_at(1 - old, len(prefix))
        middle = start + len(prefix)
        self._view[start:middle] = prefix
        self._view[middle : middle + len(remainder)] = remainder
        self._commit(
            msgspec.structs.replace(
                self.record,
                segment=1 - old,
                prefix_bytes=len(prefix),
                input_start=self.record.stats.offset,
                complete=1,
            )
        )
        self._locate_input()
        if used > _KEPT_BYTES:
            # After a full segment, `used` is more than it holds.
            self._release_pages(self._segment_start(old), min(used, self._segment_bytes))
        return True

    # --- output ---

    def store(self, piece: bytes, commit: Commit) -> None:
        """Store and commit output, and how far the connection has got with it.

        Args:
            piece: whole messages, which must be sent before the next call.
            commit: what becomes true with it.
        """
        record, stats = self.record, commit.stats
        input_start, complete = record.input_start, record.complete
        output_start, output_end = record.output_start, record.output_end
        # Without an incomplete frame, compaction changes nothing but the record.
        forgets = (
            commit.forget_input and stats and stats.offset == self.received and record.prefix_bytes
        )
        if forgets:
            input_start, complete = self.received, 1
        if piece:
            size = len(piece)
            output_start, output_end = output_end, output_end + size
            if output_end > self._output_limit:
                output_start = self._allocate_output(size)
                output_end = output_start + size
            self._view[output_start:output_end] = piece
            self._ring_segment_used += size
        self._commit(
            CommitRecord(
                record.segment,
                record.prefix_bytes,
                input_start,
                commit.messages if stats else record.sent + commit.messages,
                int(commit.in_batch),
                complete,
                output_start,
                output_end,
                stats or record.stats,
            )
        )
        if forgets:
            forgotten = self.received - record.input_start
            if record.complete:
                self._input_at -= forgotten
            else:
                self._locate_input()
            if forgotten > _KEPT_BYTES:
                self._release_forgotten_pages(forgotten)

    @property
    def unsent(self) -> int:
        """How many bytes are committed and not sent."""
        record = self.record
        if not record.output_start <= self._at <= record.output_end:
            # The piece is not stored right after the one before it.
            self._at = os.lseek(self.descriptor, record.output_start, os.SEEK_SET)
        return record.output_end - self._at

    def send(self, count: int) -> int:
        """Send up to `count` unsent bytes; return how many were sent.

        Raises:
            OSError: as the socket does; BlockingIOError if it has no room.
        """
        sent = kernel.send_file(self._connection.fileno(), self.descriptor, count)
        self._at += sent
        return sent

    # --- inside ---

    def _commit(self, record: CommitRecord) -> None:
        self.header.commit(record)
        self.record = record

    def _locate_input(self) -> None:
        """Set where the next input is written, after the record has changed."""
        record = self.record
        end = self._segment_start(record.segment) + self._segment_bytes - _SCRATCH_BYTES
        self._input_at = self._position_of(self.received)
        # Input that is not kept goes to the scratch area, each read to its start.
        self._input_end = end if record.complete else 0

    def _input_when_full(self, limit: int) -> tuple[int, int]:
        """Mark the segment as full; return where to write input instead, and how much at once."""
        if self.record.complete:
            self._commit(msgspec.structs.replace(self.record, complete=0))
            self._locate_input()
        scratch = self._segment_start(self.record.segment) + self._segment_bytes - _SCRATCH_BYTES
        return scratch, min(limit, _SCRATCH_BYTES)

    def _segment_start(self, segment: int) -> int:
        return _INPUT + segment * self._segment_bytes

    def _prefix_at(self, segment: int, prefix_bytes: int) -> int:
        """Return where a prefix of this length starts, so that input starts at `_INPUT_OFFSET`."""
        return self._segment_start(segment) + (_INPUT_OFFSET - prefix_bytes) % mmap.PAGESIZE

    def _position_of(self, offset: int) -> int:
        record = self.record
        prefix_at = self._prefix_at(record.segment, record.prefix_bytes)
        return prefix_at + record.prefix_bytes + offset - record.input_start

    def _allocate_output(self, size: int) -> int:
        """Return where a piece of output can be written that does not fit after the last one."""
        end = self.record.output_end
        if size > _RING_SEGMENT_BYTES:
            self._output_limit = 0
            # Use the other area if the file position is in the first one.
            start = self._segment_start(2)
            if start <= end <= start + self._long_bytes:
                start += self._long_bytes
            # Pages of earlier output may still be in flight: release them, and write to new
            # ones. The kernel keeps released pages until the peer has read them.
            self._release_pages(self._segment_start(2), 2 * self._long_bytes)
            return start
        if not self._output_limit:
            self._ring_segment_used = 0
        start = _RING[1] if self._output_limit == _RING[1] else _RING[0]
        # Bytes arrive in order. If fewer are in flight than were written to the other
        # segment, none of this segment is.
        if self._in_flight() > self._ring_segment_used:
            self._release_pages(start, _RING_SEGMENT_BYTES)
        self._ring_segment_used = 0
        self._output_limit = start + _RING_SEGMENT_BYTES
        return start

    def _in_flight(self) -> int:
        """Return how many bytes the peer has not read yet, or a little more: unix(7)."""
        return unsent_bytes(self._connection.fileno())

    def _release_forgotten_pages(self, forgotten: int) -> None:
        """Release the pages of input that was forgotten in place: all but the prefix."""
        record = self.record
        start = self._position_of(record.input_start)
        end = min(start + forgotten, self._segment_start(record.segment + 1))
        start = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        self._release_pages(start, end - start)

    def _release_pages(self, start: int, size: int) -> None:
        """Release the pages of a part to the system; they read as zeros from then on."""
        size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory.madvise(mmap.MADV_REMOVE, start, size)
