"""Numbers of connections and workers, which go on after the death of a supervisor."""

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
_FORMAT, _CONNECTIONS, _WORKERS = range(0, 3 * _WORD.size, _WORD.size)


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

    def close(self) -> None:
        """Close the memory."""
        self._memory.close()
        os.close(self._descriptor)

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
