"""A connection with a journal, as the supervisor keeps it, and workers that die."""

from __future__ import annotations

import mmap
import os
import socket
from typing import TYPE_CHECKING

from kapudf_cli.journal import journal
from kapudf_cli.journal.header import HEADER_BYTES, Header
from kapudf_cli.journal.journal import Journal
from kapudf_cli.journal.stream import JournaledStream
from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from kapudf_cli.journal.header import CommitRecord

JOURNAL_BYTES = 64 * 1024
MAX_FRAME_BYTES = 1024 * 1024


class WorkerDiedError(BaseException):
    """Raised where a worker of the test dies, between two instructions."""


class DyingHeader(Header):
    """A header that simulates a death: a worker dies right before or right after a store.

    After that, all stores fail, even if the exception was caught.
    """

    __slots__ = ("_after", "_held", "_left", "_over", "has_died")

    def __init__(self, held: Journal, *, over: str, after: bool, survives: int = 0) -> None:
        """Die at the store named by `over` ("commit" or "received"), after `survives` others."""
        super().__init__(mmap.mmap(held.descriptor, HEADER_BYTES))
        self._held = held
        self._over = over
        self._after = after
        self._left = survives
        self.has_died = False

    def commit(self, record: CommitRecord) -> None:
        def store() -> None:
            super(DyingHeader, self).commit(record)
            # Its code runs on in the test, and must not overwrite what it has committed.
            self._held.record = record

        self._die_over("commit", store)

    @property
    def received(self) -> int:
        return super().received

    @received.setter
    def received(self, value: int) -> None:
        stored = Header.__dict__["received"]
        self._die_over("received", lambda: stored.__set__(self, value))

    def _die_over(self, what: str, store: Callable[[], None]) -> None:
        if self.has_died:
            raise WorkerDiedError
        if what == self._over:
            self._left -= 1
            self.has_died = self._left < 0
        if not self.has_died or self._after:
            store()
        if self.has_died:
            raise WorkerDiedError


class JournaledConnection:
    """A connection and its memory, which outlive the journals that are opened on them.

    Attributes:
        peer: Kapacitor's end of the connection.
        connection: the other end.
        memory: the descriptor of the journal's memory.
        header: the header in it, as the supervisor sees it.
    """

    def __init__(
        self, *, journal_bytes: int = JOURNAL_BYTES, max_frame_bytes: int = MAX_FRAME_BYTES
    ) -> None:
        self.peer, self.connection = socket.socketpair()
        self.peer.settimeout(PATIENCE_S)
        self.connection.settimeout(0)
        self.memory = journal.create(
            self.connection, journal_bytes=journal_bytes, max_frame_bytes=max_frame_bytes
        )
        self._header_map = mmap.mmap(self.memory, HEADER_BYTES)
        self.header = Header(self._header_map)
        self._opened: dict[Journal, socket.socket] = {}

    def open(self) -> Journal:
        """Open the journal as another worker would, with descriptors of its own."""
        connection = self.connection.dup()
        held = Journal(os.dup(self.memory), connection)
        self._opened[held] = connection
        return held

    def connection_of(self, held: Journal) -> socket.socket:
        """Return the socket of a worker that has opened the journal."""
        return self._opened[held]

    def kill(self, held: Journal) -> None:
        """Close the descriptors that a worker's death closes; change nothing else."""
        self._opened.pop(held).close()
        held.close()

    def serve(
        self,
        *,
        journal_bytes: int = JOURNAL_BYTES,
        snapshot_interval_s: float = 3600.0,
        held: Journal | None = None,
    ) -> JournaledStream:
        """Return the stream of another worker, over a journal from `open`."""
        held = held or self.open()
        return JournaledStream(
            self.connection_of(held),
            held,
            journal_bytes=journal_bytes,
            snapshot_interval_s=snapshot_interval_s,
        )

    def close(self) -> None:
        self.peer.close()
        self.connection.close()
        self._header_map.close()
        os.close(self.memory)
