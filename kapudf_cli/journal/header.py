"""The header of one connection, in memory that the supervisor and a worker share.

It says how far the connection has got, so that another worker can go on from there. A
worker may die between any two instructions. So there are two places for the commit record:
a new record is written to the one that is not active, and then one store of eight bytes
makes it the active one. (`struct` copies a native integer as a whole; a process is killed
between stores, not within one.)

The header is the first page of the memory, and two areas for the supervisor's record. A later
version of kapudf may read it, after an upgrade: `FORMAT` changes with its layout.
"""

from __future__ import annotations

import mmap
import struct
from typing import Protocol, cast

import msgspec

from kapudf_cli.transport.meter import Meter
from kapudf_cli.transport.stream import DONE_BITS, ConnectionStats

#: The version of the layout of the journal, and of everything else that one supervisor leaves to
#: the next one: the messages between supervisor and worker, and the supervisor's records.
FORMAT = 1
#: The versions that this code can read.
READABLE_FORMATS = frozenset({FORMAT})

#: The longest record of the supervisor.
SUPERVISOR_RECORD_BYTES = 64 * 1024
#: The first page and the supervisor's records. The rest of the memory holds input and output: see
#: `Journal`. Only pages that are written take memory.
HEADER_BYTES = mmap.PAGESIZE + 2 * SUPERVISOR_RECORD_BYTES

_WORD = struct.Struct("@q")
_TWO_WORDS = struct.Struct("@qq")
_ACTIVE = 0
_RECEIVED = 8
_BUSY_SINCE = 16
_CURRENT_FRAME = 24
_PEEK_BASE = 32
_PEEK_RESET = 40
_SEGMENT_BYTES = 48
_WAITS_FOR_PEER = 56
_THREAD = 64
_HEARTBEAT = 72
_WAITS_FOR_TURN = 80
_GIVEN = 88
_FORMAT = 96
_HAS_ENDED = 104
_ACTIVE_SUPERVISOR_RECORD = 112
_LOCKS_OUTPUT = 120
_RECORD_OFFSETS = (128, 384)
_TASK_OFFSET = 1024
_NODE_OFFSET = 2048
#: Longer names of tasks and nodes are truncated; they are only for logs.
_TEXT_BYTES = 512
_SUPERVISOR_OFFSETS = (mmap.PAGESIZE, mmap.PAGESIZE + SUPERVISOR_RECORD_BYTES)
_LENGTH = struct.Struct("@H")
_METER_OFFSET = 3072

#: The value of `current_frame` while the handler has no frame, or an unknown one.
NO_FRAME = -1
#: The value of `current_frame` during the replay of the history for a new handler.
REPLAYING_HISTORY = -2


class CommitRecord(msgspec.Struct, frozen=True, gc=False):
    """Everything that one commit changes at once.

    Attributes:
        segment: 0 or 1: the segment of the memory that holds the input.
        prefix_bytes: the length of Init and Restore at the start of the segment.
        input_start: the offset in the input of the first byte after them.
        sent: how many messages that answer the input after `stats.offset` were sent.
        in_batch: 1 if the last message sent belongs to a batch that has not ended.
        complete: 1 if the segment holds all input; 0 once it was full.
        output_start: where in the memory the last piece of output starts.
        output_end: where it ends.
        stats: how far the connection has got.
    """

    segment: int = 0
    prefix_bytes: int = 0
    input_start: int = 0
    sent: int = 0
    in_batch: int = 0
    complete: int = 1
    output_start: int = 0
    output_end: int = 0
    stats: ConnectionStats = ConnectionStats()


_OWN_FIELDS = len(CommitRecord.__struct_fields__) - 1
_STATS_FIELDS = len(ConnectionStats.__struct_fields__) - 1
_DONE_BYTES = DONE_BITS // 8
_RECORD = struct.Struct(f"@{_OWN_FIELDS + _STATS_FIELDS}q{_DONE_BYTES}s")


class _Word(Protocol):
    """An integer of eight bytes in shared memory."""

    def __get__(self, header: Header, owner: type[Header]) -> int: ...

    def __set__(self, header: Header, value: int) -> None: ...


def _word(offset: int) -> _Word:
    """Return the property of the integer at an offset of the header."""

    def read(header: Header) -> int:
        value: int = _WORD.unpack_from(header._memory, offset)[0]  # noqa: SLF001 - a method of it
        return value

    def write(header: Header, value: int) -> None:
        _WORD.pack_into(header._memory, offset, value)  # noqa: SLF001 - a method of it

    return cast("_Word", property(read, write))


class Header:
    """The header's fields in shared memory. Each field has one writer at a time.

    Attributes:
        received: bytes taken from the socket; possibly outdated after a death, see `kernel`.
        busy_since_ns: since when the worker has been handling input (CLOCK_MONOTONIC); 0
            while it waits for input.
        current_frame: the offset of the frame that the handler has, as last recorded.
        peek_base: input bytes at the last reset of the kernel's count; see `kernel`.
        peek_reset: the same for a reset in progress; -1 if there is none.
        segment_bytes: the length of each of the two segments for input.
        thread: the identity of the thread that serves the connection, 0 if unknown.
        heartbeat_ns: when the worker last ran Python code for it (CLOCK_MONOTONIC), updated
            every `HEARTBEAT_INTERVAL_S`.
        waits_for_turn: 1 while the handler waits for those of other connections of the worker.
        given: where the last frame ends that an async handler was given; 0 if any input that was
            received may have been given to the handler.
        waits_for_peer: 1 while output cannot be sent because the peer does not read.
        format: the version of the layout.
        has_ended: 1 once the supervisor knows that the connection has ended.
        locks_output: 1 while the worker must lock the memory to send; see `output_lock`.
    """

    __slots__ = ("_memory",)

    def __init__(self, memory: mmap.mmap) -> None:
        """Read and write `memory`, of at least HEADER_BYTES."""
        self._memory = memory

    @property
    def record(self) -> CommitRecord:
        """The active commit record."""
        (active,) = _WORD.unpack_from(self._memory, _ACTIVE)
        *values, done = _RECORD.unpack_from(self._memory, _RECORD_OFFSETS[active & 1])
        own, stats = values[:_OWN_FIELDS], values[_OWN_FIELDS:]
        stats.append(int.from_bytes(done, "little"))
        return msgspec.structs.replace(CommitRecord(*own), stats=ConnectionStats(*stats))

    def commit(self, record: CommitRecord) -> None:
        """Replace the commit record at once."""
        (active,) = _WORD.unpack_from(self._memory, _ACTIVE)
        other = ~active & 1
        stats = record.stats
        done = stats.done.to_bytes(_DONE_BYTES, "little") if stats.done else b""
        _RECORD.pack_into(
            self._memory,
            _RECORD_OFFSETS[other],
            record.segment,
            record.prefix_bytes,
            record.input_start,
            record.sent,
            record.in_batch,
            record.complete,
            record.output_start,
            record.output_end,
            stats.offset,
            stats.points_in,
            stats.points_out,
            stats.batches_in,
            stats.batches_out,
            stats.bytes_out,
            stats.failures,
            stats.restarts,
            stats.takeovers,
            stats.dropped_points,
            done,
        )
        _WORD.pack_into(self._memory, _ACTIVE, other)

    def record_waiting(self) -> None:
        """Record that the worker waits for input and the handler has no frame."""
        _TWO_WORDS.pack_into(self._memory, _BUSY_SINCE, 0, NO_FRAME)

    received = _word(_RECEIVED)
    busy_since_ns = _word(_BUSY_SINCE)
    current_frame = _word(_CURRENT_FRAME)
    peek_base = _word(_PEEK_BASE)
    peek_reset = _word(_PEEK_RESET)
    segment_bytes = _word(_SEGMENT_BYTES)
    waits_for_peer = _word(_WAITS_FOR_PEER)
    waits_for_turn = _word(_WAITS_FOR_TURN)
    heartbeat_ns = _word(_HEARTBEAT)
    locks_output = _word(_LOCKS_OUTPUT)
    given = _word(_GIVEN)
    thread = _word(_THREAD)
    format = _word(_FORMAT)
    has_ended = _word(_HAS_ENDED)
    _active_supervisor_record = _word(_ACTIVE_SUPERVISOR_RECORD)

    @property
    def supervisor_record(self) -> bytes:
        """What the supervisor knows of the connection besides; b"" at first."""
        offset = _SUPERVISOR_OFFSETS[self._active_supervisor_record & 1]
        (length,) = _WORD.unpack_from(self._memory, offset)
        return self._memory[offset + _WORD.size : offset + _WORD.size + length]

    @supervisor_record.setter
    def supervisor_record(self, data: bytes) -> None:
        # Like a commit: to the area that is not active, and then one store makes it active.
        other = ~self._active_supervisor_record & 1
        offset = _SUPERVISOR_OFFSETS[other]
        if len(data) > SUPERVISOR_RECORD_BYTES - _WORD.size:
            raise ValueError(len(data))
        _WORD.pack_into(self._memory, offset, len(data))
        self._memory[offset + _WORD.size : offset + _WORD.size + len(data)] = data
        self._active_supervisor_record = other

    def open_meter(self) -> Meter:
        """Return the connection's meter."""
        return Meter(self._memory, _METER_OFFSET)

    @property
    def task(self) -> tuple[str, str]:
        """The task's and the node's name, empty before Init."""
        return self._read_text(_TASK_OFFSET), self._read_text(_NODE_OFFSET)

    @task.setter
    def task(self, names: tuple[str, str]) -> None:
        for offset, name in zip((_TASK_OFFSET, _NODE_OFFSET), names, strict=True):
            text = name.encode()[:_TEXT_BYTES]
            start = offset + _LENGTH.size
            self._memory[start : start + len(text)] = text
            _LENGTH.pack_into(self._memory, offset, len(text))

    def _read_text(self, offset: int) -> str:
        (length,) = _LENGTH.unpack_from(self._memory, offset)
        start = offset + _LENGTH.size
        return self._memory[start : start + length].decode("utf-8", "replace")
