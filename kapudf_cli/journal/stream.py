"""A socket whose input and output go through a journal, so that another worker can go on."""

from __future__ import annotations

import fcntl
import threading
import time
from typing import TYPE_CHECKING

from kapudf_cli.agent.checkpoints import MAX_MESSAGE_BYTES
from kapudf_cli.journal import syscalls
from kapudf_cli.journal.header import NO_FRAME, REPLAYING_HISTORY
from kapudf_cli.system import loggers
from kapudf_cli.transport import SocketStream
from kapudf_cli.transport.commit import Commit

if TYPE_CHECKING:
    import socket

    from kapudf_cli.journal.header import CommitRecord
    from kapudf_cli.journal.journal import Journal

_log = loggers.get(__name__)

#: A journal is not cut while an unfinished frame is longer, which would be copied each time.
#: It is more than a read, which may bring much of the next batch with the end of one.
_LONGEST_REMAINDER_BYTES = 128 * 1024
#: What a stateless handler has dealt with may be left that long, where each read ends in
#: the midst of a frame, until it is cut.
_KEPT_BYTES = 128 * 1024
#: After a cut, no sooner is another tried: a snapshot may take its time.
_RETRY_S = 1.0
#: But one is where so many times as much is kept as should be, lest the journal be outgrown,
#: unless the last one failed.
_HURRY = 2


class JournaledStream(SocketStream):
    """A stream that a worker can leave at any moment, and another take over.

    It is the agent's journal as well; see `kapudf_cli.agent.checkpoints.Checkpoints`.
    """

    def __init__(
        self,
        connection: socket.socket,
        journal: Journal,
        *,
        journal_bytes: int,
        snapshot_interval_s: float,
        wake: tuple[int, int] | None = None,
    ) -> None:
        """Take over a connection and its journal, with whatever an earlier worker left there.

        Args:
            connection: the socket.
            journal: its journal.
            journal_bytes: how much input it may hold until it is cut.
            snapshot_interval_s: how long it may be left uncut.
            wake: a pipe to wake the reader by.
        """
        left = journal.unprocessed() if journal.record.complete else b""
        super().__init__(connection, wake, receive=self._receive, left=left)
        self._journal = journal
        self._journal_bytes = journal_bytes
        self._snapshot_interval_s = snapshot_interval_s
        self._tried_s = time.monotonic()
        self._due_s = self._tried_s + snapshot_interval_s
        self._failed = False
        if journal.record.stats.offset > journal.record.input_start:
            # Another worker died over this. Whatever becomes of this one, the next shall
            # have less to repeat.
            self._due_s = 0.0
        # Whether the frame in hand is noted by the agent itself, before each.
        self._exact = False
        self._has_warned = False
        # Guards the journal: a writer that waits for room reads ahead.
        self._lock = threading.RLock()

    @property
    def record(self) -> CommitRecord:
        """How far the connection has got, and what was sent of it."""
        return self._journal.record

    @property
    def task(self) -> tuple[str, str]:
        """Which task and node it is for, as far as that was noted."""
        return self._journal.header.task

    def record_task(self, task_id: str, node_id: str) -> None:
        """Note which task and node it is for, for whoever looks on."""
        self._journal.header.task = (task_id, node_id)

    def record_thread(self, identity: int) -> None:
        """Note which thread serves it, for whoever finds out what this process died of."""
        with self._lock:
            if not self._journal.is_closed:
                self._journal.header.thread = identity

    def record_seen_frame(self, offset: int | None) -> None:
        """Note which frame is being handled; see `Checkpoints.note_seen`."""
        with self._lock:
            if self._journal.is_closed:
                return
            self._journal.header.heartbeat_ns = time.monotonic_ns()
            if offset is not None and not self._exact:
                self._journal.header.current_frame = offset

    # --- as a stream ---

    def write(self, data: bytes, commit: Commit | None = None) -> None:
        """Store the data and its commit, and only then send; see `Stream.write`."""
        with self._lock:
            self._journal.store(data, commit or Commit())
        if data:
            self.send_rest()

    def send_rest(self) -> None:
        """Send what is noted and has not left, be it another worker's.

        Raises:
            OSError: the connection broke.
        """
        memory = self._journal.descriptor
        # Nobody else may write in the midst of it; the supervisor does, when nobody else
        # does anything. The lock goes with the process that holds it.
        if not syscalls.try_lock(memory):
            fcntl.lockf(memory, fcntl.LOCK_EX)
        try:
            while unsent := self._journal.unsent:
                try:
                    self._journal.send(unsent)
                except BlockingIOError:
                    self._journal.header.waits_for_peer = 1
                    self._wait_for_room()
                    self._journal.header.waits_for_peer = 0
        finally:
            syscalls.unlock(memory)

    def close(self) -> int:
        """Close the socket and let go of the journal."""
        unread = super().close()
        with self._lock:
            self._journal.close()
        return unread

    def _receive(self, limit: int) -> bytes:
        with self._lock:
            self._exact = False
            data = self._journal.receive(limit, 0)
        if not self._journal.record.complete and not self._has_warned:
            self._has_warned = True
            _log.warning(
                "journal is full",
                extra={
                    "kept_bytes": self._journal.kept_bytes,
                    "advice": "raise journal_mb, or make batches shorter: until the next snapshot, "
                    "a worker's death ends the connection",
                },
            )
        return data

    def _wait_for_input(self) -> None:
        header = self._journal.header
        header.current_frame = NO_FRAME
        header.busy_since_ns = 0
        try:
            super()._wait_for_input()
        finally:
            header.busy_since_ns = time.monotonic_ns()

    # --- as the agent's journal ---

    def is_due(self, now_s: float, *, stateless: bool, snapshot_requested: bool) -> bool:
        """Return whether the journal should be cut; see `Checkpoints.is_due`."""
        journal = self._journal
        if self.input.ahead_bytes:
            return False  # What was read ahead is not dealt with, nor an unfinished frame.
        if stateless:
            # Only until Init is kept by itself; from then on, each write forgets.
            return not journal.record.prefix_bytes or journal.kept_bytes > _KEPT_BYTES
        if snapshot_requested:
            return True
        if now_s >= self._due_s:
            return journal.kept_bytes > 0
        overdue = journal.kept_bytes > self._journal_bytes or not journal.record.complete
        hurries = journal.kept_bytes > _HURRY * self._journal_bytes and not self._failed
        return overdue and (hurries or now_s >= self._tried_s + _RETRY_S)

    def compact(self, prefix: bytes, remainder: bytes) -> bool:
        """Begin the journal anew; see `Checkpoints.cut`."""
        with self._lock:
            done = (
                not self.input.ahead_bytes
                and len(remainder) <= _LONGEST_REMAINDER_BYTES
                and self._journal.compact(prefix, remainder)
            )
        self._record_attempt(failed=not done)
        return done

    @property
    def max_prefix_bytes(self) -> int:
        """The longest prefix that the journal can hold; see `Checkpoints`."""
        return min(self._journal.max_prefix_bytes - _LONGEST_REMAINDER_BYTES, MAX_MESSAGE_BYTES)

    def postpone(self) -> None:
        """Ask for no cut for a while; see `Checkpoints.postpone`."""
        self._record_attempt(failed=True)

    def _record_attempt(self, *, failed: bool) -> None:
        self._tried_s = time.monotonic()
        self._due_s = self._tried_s + self._snapshot_interval_s
        self._failed = failed

    def history(self, until: int) -> bytes:
        """Return what leads to the handler's state at an offset; see `Checkpoints.history`."""
        complete = self._journal.record.complete
        return self._journal.history(until if complete else self._journal.record.input_start)

    def record_current_frame(self, offset: int | None) -> None:
        """Say which frame the handler is given, before it is; None for one of the history."""
        self._exact = True
        self._journal.header.current_frame = REPLAYING_HISTORY if offset is None else offset
