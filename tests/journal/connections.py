"""A connection with its memory, as the supervisor keeps it, and workers that die over it."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from kapudf_cli.journal import journal
from kapudf_cli.journal.header import Header
from kapudf_cli.journal.journal import Journal
from kapudf_cli.journal.stream import JournaledStream
from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from kapudf_cli.journal.header import CommitRecord

JOURNAL_BYTES = 64 * 1024
MAX_FRAME_BYTES = 1024 * 1024


class WorkerDiedError(BaseException):
    """A worker has come to its end, between two instructions of its."""


class JournaledConnection:
    """A connection and its memory, which outlive the journals that are opened on them."""

    def __init__(
        self, *, journal_bytes: int = JOURNAL_BYTES, max_frame_bytes: int = MAX_FRAME_BYTES
    ) -> None:
        self.peer, self.connection = socket.socketpair()
        self.peer.settimeout(PATIENCE_S)
        self.connection.settimeout(0)
        self.memory = journal.create(
            self.connection, journal_bytes=journal_bytes, max_frame_bytes=max_frame_bytes
        )

    def open(self) -> Journal:
        """Open the journal as another worker would, with descriptors of its own."""
        return Journal(os.dup(self.memory), self.connection.dup())

    def serve(
        self, *, journal_bytes: int = JOURNAL_BYTES, snapshot_interval_s: float = 3600.0
    ) -> JournaledStream:
        """Take the connection over as another worker would."""
        held = self.open()
        return JournaledStream(
            held._connection,
            held,
            journal_bytes=journal_bytes,
            snapshot_interval_s=snapshot_interval_s,
        )

    def close(self) -> None:
        self.peer.close()
        self.connection.close()
        os.close(self.memory)


def close_as_dead(held: Journal) -> None:
    """Close what a worker's death closes, and change nothing else."""
    held._connection.close()
    held.close()


class DyingHeader(Header):
    """A ledger with which a worker dies over a store, just before it or just after.

    From then on it stores nothing more, whatever becomes of the exception.
    """

    __slots__ = ("_after", "_left", "_over", "has_died")

    def __init__(self, held: Journal, *, over: str, after: bool, survives: int = 0) -> None:
        super().__init__(held._memory)
        self._over = over
        self._after = after
        self._left = survives
        self.has_died = False

    def commit(self, record: CommitRecord) -> None:
        self._die_over("commit", lambda: super(DyingHeader, self).commit(record))

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
