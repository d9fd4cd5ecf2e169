"""Numbers of connections and workers, and counters, which go on after the death of a supervisor."""

from __future__ import annotations

import mmap
import os
import struct
from typing import TYPE_CHECKING, Final

from kapudf_cli.journal.header import FORMAT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kapudf_cli.system.descriptor_store import DescriptorStore

#: The name in the store.
NAME: Final = "numbers"
_WORD: Final = struct.Struct("@q")
_FORMAT, _CONNECTIONS, _WORKERS, _ACTIVE, _STARTS = range(0, 5 * _WORD.size, _WORD.size)
#: Where the counters are: in one of two areas, so that a whole one is left whenever a supervisor
#: dies. Only pages that are written take memory.
_AREA_BYTES: Final = 1024 * 1024
_AREAS: Final = (mmap.PAGESIZE, mmap.PAGESIZE + _AREA_BYTES)


class Numbers:
    """Gives each connection and each worker a number of its own, as its name in the log.

    They are in memory that the next supervisor gets, so that it uses no number again.

    Attributes:
        connections: the numbers of new connections.
        workers: the numbers of new workers.
    """

    def __init__(self, descriptor: int) -> None:
        """Take over memory of `create` or of an earlier supervisor."""
        self._descriptor = descriptor
        self._memory = mmap.mmap(descriptor, mmap.PAGESIZE)
        self.connections = self._numbers(_CONNECTIONS)
        self.workers = self._numbers(_WORKERS)

    @classmethod
    def create(cls, store: DescriptorStore) -> Numbers:
        """Begin to count, and keep the memory for the next supervisor."""
        descriptor = os.memfd_create("kapudf-numbers")
        os.ftruncate(descriptor, mmap.PAGESIZE)
        numbers = cls(descriptor)
        _WORD.pack_into(numbers._memory, _FORMAT, FORMAT)
        store.put(NAME, descriptor)
        return numbers

    def note_start(self) -> int:
        """Note that a supervisor has started; return how many there have been, with this one."""
        return next(self._numbers(_STARTS))

    def close(self) -> None:
        """Close the memory."""
        self._memory.close()
        os.close(self._descriptor)

    @property
    def counters(self) -> bytes:
        """What was last kept with `keep_counters`; b"" at first."""
        offset = _AREAS[self._read(_ACTIVE) & 1]
        header = os.pread(self._descriptor, _WORD.size, offset)
        length = _WORD.unpack(header)[0] if header else 0
        return os.pread(self._descriptor, length, offset + _WORD.size)

    def keep_counters(self, data: bytes) -> None:
        """Keep data for the next supervisor, unless it is too long."""
        if len(data) > _AREA_BYTES - _WORD.size:
            return
        other = ~self._read(_ACTIVE) & 1
        os.pwrite(self._descriptor, _WORD.pack(len(data)) + data, _AREAS[other])
        _WORD.pack_into(self._memory, _ACTIVE, other)

    def _read(self, offset: int) -> int:
        number: int = _WORD.unpack_from(self._memory, offset)[0]
        return number

    def _numbers(self, offset: int) -> Iterator[int]:
        while True:
            number = self._read(offset) + 1
            # Before it is used: a later supervisor must not use it again.
            _WORD.pack_into(self._memory, offset, number)
            yield number


def format_of(memory: int) -> int:
    """Return the version of all that the supervisor has left that has created the memory."""
    (version,) = _WORD.unpack(os.pread(memory, _WORD.size, _FORMAT))
    return int(version)
