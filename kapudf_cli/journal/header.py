"""The marks of one connection, in memory that the supervisor and a worker share.

They say how far a connection has got, so that another worker can go on from there. A
worker may die between any two instructions; therefore a set of marks is written to
whichever of two places is not in force, and one store of eight bytes puts it in force.
(`struct` copies a native integer as a whole; a process is killed between stores, not
within one.)

The layout is that of the first page of a connection's memory. It is private to one
start of kapudf, so it needs no version.
"""

from __future__ import annotations

import mmap
import struct
from typing import NamedTuple

from kapudf_cli.transport.commit import ConnectionStats

#: The first page; the rest of the memory is the journal's.
HEADER_BYTES = mmap.PAGESIZE

_WORD = struct.Struct("@q")
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
_RECORD_OFFSETS = (128, 384)
_TASK_OFFSET = 1024
_NODE_OFFSET = 2048
#: A longer task or node is cut; it is only shown.
_TEXT_BYTES = 512
_LENGTH = struct.Struct("@H")

#: No frame is in hand, or none that is known.
NO_FRAME = -1
#: What was processed before is being repeated, on a new handler.
REPLAYING_HISTORY = -2


class CommitRecord(NamedTuple):
    """What is in force, all of it at once.

    Attributes:
        half: which half of the journal holds what leads to the handler's state.
        prefix_bytes: how long the Init and Restore at its start are.
        input_start: the offset in the input of the first byte after them.
        sent: how many messages were sent of what the input from `stats.offset` on brings.
        in_batch: 1 if the last message sent is of a batch that has not ended.
        covered: 1 if the journal holds everything; 0 once it was outgrown.
        out_at: where in the memory the last piece of output begins.
        out_end: where it ends.
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


_OWN_FIELDS = len(CommitRecord._fields) - 1
_RECORD = struct.Struct(f"@{_OWN_FIELDS + len(ConnectionStats._fields)}q")


class Header:
    """Marks in shared memory; of each field there is one writer at any time.

    Attributes:
        received: bytes taken from the socket. Only a hint after a death: see `Journal`.
        busy_since_ns: since when input waits for the handler (CLOCK_MONOTONIC), 0 if
            none does.
        current_frame: the offset of the frame that the handler was last seen with.
        peek_base: input bytes at the last reset of the kernel's own count.
        peek_reset: the same, of a reset that is under way; -1 if none is.
        half_bytes: how long each half of the journal is.
        thread: the identity of the thread that serves it, 0 while that is not known.
        heartbeat_ns: when the worker last ran any Python code for it, at intervals of
            `HEARTBEAT_INTERVAL_S` (CLOCK_MONOTONIC).
        waits_for_peer: 1 while something cannot be sent, for the peer does not read.
    """

    __slots__ = ("_memory",)

    def __init__(self, memory: mmap.mmap) -> None:
        """Look at `memory`, of at least HEADER_BYTES."""
        self._memory = memory

    @property
    def record(self) -> CommitRecord:
        """The marks in force."""
        (in_force,) = _WORD.unpack_from(self._memory, _ACTIVE)
        values = _RECORD.unpack_from(self._memory, _RECORD_OFFSETS[in_force & 1])
        return CommitRecord._make(
            (*values[:_OWN_FIELDS], ConnectionStats._make(values[_OWN_FIELDS:]))
        )

    def commit(self, record: CommitRecord) -> None:
        """Replace all marks at once."""
        (in_force,) = _WORD.unpack_from(self._memory, _ACTIVE)
        other = ~in_force & 1
        _RECORD.pack_into(self._memory, _RECORD_OFFSETS[other], *record[:-1], *record.stats)
        _WORD.pack_into(self._memory, _ACTIVE, other)

    @property
    def received(self) -> int:
        """See the class."""
        return self._read(_RECEIVED)

    @received.setter
    def received(self, value: int) -> None:
        _WORD.pack_into(self._memory, _RECEIVED, value)

    @property
    def busy_since_ns(self) -> int:
        """See the class."""
        return self._read(_BUSY_SINCE)

    @busy_since_ns.setter
    def busy_since_ns(self, value: int) -> None:
        _WORD.pack_into(self._memory, _BUSY_SINCE, value)

    @property
    def current_frame(self) -> int:
        """See the class."""
        return self._read(_CURRENT_FRAME)

    @current_frame.setter
    def current_frame(self, value: int) -> None:
        _WORD.pack_into(self._memory, _CURRENT_FRAME, value)

    @property
    def peek_base(self) -> int:
        """See the class."""
        return self._read(_PEEK_BASE)

    @peek_base.setter
    def peek_base(self, value: int) -> None:
        _WORD.pack_into(self._memory, _PEEK_BASE, value)

    @property
    def peek_reset(self) -> int:
        """See the class."""
        return self._read(_PEEK_RESET)

    @peek_reset.setter
    def peek_reset(self, value: int) -> None:
        _WORD.pack_into(self._memory, _PEEK_RESET, value)

    @property
    def segment_bytes(self) -> int:
        """See the class."""
        return self._read(_SEGMENT_BYTES)

    @segment_bytes.setter
    def segment_bytes(self, value: int) -> None:
        _WORD.pack_into(self._memory, _SEGMENT_BYTES, value)

    @property
    def waits_for_peer(self) -> int:
        """See the class."""
        return self._read(_WAITS_FOR_PEER)

    @waits_for_peer.setter
    def waits_for_peer(self, value: int) -> None:
        _WORD.pack_into(self._memory, _WAITS_FOR_PEER, value)

    @property
    def heartbeat_ns(self) -> int:
        """See the class."""
        return self._read(_HEARTBEAT)

    @heartbeat_ns.setter
    def heartbeat_ns(self, value: int) -> None:
        _WORD.pack_into(self._memory, _HEARTBEAT, value)

    @property
    def thread(self) -> int:
        """See the class."""
        return self._read(_THREAD)

    @thread.setter
    def thread(self, value: int) -> None:
        _WORD.pack_into(self._memory, _THREAD, value)

    @property
    def task(self) -> tuple[str, str]:
        """The task's and the node's name, empty before Init."""
        return self._read_text(_TASK_OFFSET), self._read_text(_NODE_OFFSET)

    @task.setter
    def task(self, names: tuple[str, str]) -> None:
        for place, name in zip((_TASK_OFFSET, _NODE_OFFSET), names, strict=True):
            text = name.encode()[:_TEXT_BYTES]
            self._memory[place + _LENGTH.size : place + _LENGTH.size + len(text)] = text
            _LENGTH.pack_into(self._memory, place, len(text))

    def _read(self, place: int) -> int:
        value: int = _WORD.unpack_from(self._memory, place)[0]
        return value

    def _read_text(self, place: int) -> str:
        (length,) = _LENGTH.unpack_from(self._memory, place)
        start = place + _LENGTH.size
        return self._memory[start : start + length].decode("utf-8", "replace")
