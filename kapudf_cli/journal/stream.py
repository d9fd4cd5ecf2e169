"""A stream whose input and output go through a journal, so that another worker can go on."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from kapudf_cli.agent.checkpoints import MAX_MESSAGE_BYTES, ResumePoint
from kapudf_cli.journal.header import REPLAYING_HISTORY
from kapudf_cli.journal.output_lock import locked_for_worker
from kapudf_cli.system import loggers
from kapudf_cli.transport import SocketStream
from kapudf_cli.transport.stream import Commit

if TYPE_CHECKING:
    import socket

    from kapudf_cli.journal.header import CommitRecord
    from kapudf_cli.journal.journal import Journal

_log = loggers.get(__name__)

#: No compaction while unhandled input is longer: each compaction copies it. The limit is more
#: than one read, which may contain the end of a batch and much of the next one.
_LONGEST_REMAINDER_BYTES = 128 * 1024
#: A stateless handler's handled input is forgotten with each write, except where the read ends
#: inside a frame. Then it is compacted at this length.
_KEPT_BYTES = 128 * 1024
#: The shortest interval between two compactions, as a snapshot may be slow.
_RETRY_S = 1.0
#: At this multiple of `journal_bytes` the interval is ignored, to keep the journal from
#: filling up, unless the last compaction failed.
_URGENT = 2


class JournaledStream(SocketStream):
    """A stream that another worker can take over at any moment.

    It also implements `kapudf_cli.agent.checkpoints.Checkpoints` for the agent.
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
        """Take over a connection and its journal, with what an earlier worker left in it.

        Args:
            connection: the socket.
            journal: its journal.
            journal_bytes: how much input it may hold until it is compacted.
            snapshot_interval_s: the longest time between two compactions.
            wake: a pipe to wake the reader with.
        """
        unread = journal.unprocessed() if journal.record.complete else b""
        super().__init__(connection, wake, receive=self._receive, unread=unread)
        self._journal = journal
        self.meter = journal.meter
        self._journal_bytes = journal_bytes
        self._snapshot_interval_s = snapshot_interval_s
        self._compacted_s = time.monotonic()
        self._due_s = self._compacted_s + snapshot_interval_s
        self._failed = False
        if journal.record.stats.offset > journal.record.input_start:
            # Another worker has died. Compact soon, so that a further worker has less input
            # to replay.
            self._due_s = 0.0
        # True while the agent records each frame's offset before handling it.
        self._agent_records = False
        self._has_warned = False
        # Guards the journal: a writer that waits for the peer reads ahead.
        self._lock = threading.RLock()

    @property
    def record(self) -> CommitRecord:
        """The journal's commit record: how far the connection has got."""
        return self._journal.record

    @property
    def task(self) -> tuple[str, str]:
        """The names of the task and the node, empty before Init."""
        return self._journal.header.task

    def record_task(self, task_id: str, node_id: str) -> None:
        """Record the names of the task and the node, for the supervisor."""
        self._journal.header.task = (task_id, node_id)

    def record_thread(self, identity: int) -> None:
        """Record the thread that serves the connection, to find its stack after a death."""
        with self._lock:
            if not self._journal.is_closed:
                self._journal.header.thread = identity

    def record_turn(self, waits: bool) -> None:  # noqa: FBT001 - a callback
        """Record whether the handler waits for its turn, for the supervisor."""
        self._journal.header.waits_for_turn = int(waits)

    def record_seen_frame(self, offset: int | None) -> None:
        """Record a heartbeat and the current frame; see `Checkpoints.record_seen_frame`."""
        with self._lock:
            if self._journal.is_closed:
                return
            self._journal.header.heartbeat_ns = time.monotonic_ns()
            self.meter.publish()
            if offset is not None and not self._agent_records:
                self._journal.header.current_frame = offset

    # --- as a stream ---

    def write(self, data: bytes, commit: Commit | None = None) -> None:
        """Store the data and its commit, and only then send; see `Stream.write`."""
        with self._lock:
            self._journal.store(data, commit or Commit())
        if data:
            self.send_rest()

    def send_rest(self) -> None:
        """Send what is committed and not sent, by this worker or an earlier one.

        Raises:
            OSError: the connection broke.
        """
        if self._journal.header.locks_output:
            with locked_for_worker(self._journal.descriptor):
                self._send_rest()
        else:
            self._send_rest()

    def _send_rest(self) -> None:
        journal = self._journal
        unsent = journal.unsent
        while unsent:
            try:
                unsent -= journal.send(unsent)
            except BlockingIOError:
                journal.header.waits_for_peer = 1
                self._wait_for_room()
                journal.header.waits_for_peer = 0

    def close(self) -> int:
        """Close the socket and the journal."""
        unread = super().close()
        with self._lock:
            self._journal.close()
        return unread

    def _close(self) -> None:
        # No shutdown: another worker may go on with the connection.
        self._socket.close()

    def _receive(self, limit: int) -> bytes:
        with self._lock:
            self._agent_records = False
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
        header.record_waiting()
        try:
            self._wait()
        finally:
            header.busy_since_ns = time.monotonic_ns()

    # --- as the agent's checkpoints ---

    def is_due(self, now_s: float, *, stateless: bool, snapshot_requested: bool) -> bool:
        """Return whether the journal should be compacted; see `Checkpoints.is_due`."""
        journal = self._journal
        if self.input.ahead_bytes:
            return False  # The journal ends with unhandled input.
        if stateless:
            # Once, to keep Init. From then on, each write forgets the handled input.
            return not journal.record.prefix_bytes or journal.kept_bytes > _KEPT_BYTES
        if snapshot_requested:
            return True
        if now_s >= self._due_s:
            return journal.kept_bytes > 0
        overdue = journal.kept_bytes > self._journal_bytes or not journal.record.complete
        urgent = journal.kept_bytes > _URGENT * self._journal_bytes and not self._failed
        return overdue and (urgent or now_s >= self._compacted_s + _RETRY_S)

    def compact(self, prefix: bytes, remainder: bytes) -> bool:
        """Replace the stored input by a checkpoint; see `Checkpoints.compact`."""
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
        """Delay the next compaction; see `Checkpoints.postpone`."""
        self._record_attempt(failed=True)

    def _record_attempt(self, *, failed: bool) -> None:
        self._compacted_s = time.monotonic()
        self._due_s = self._compacted_s + self._snapshot_interval_s
        self._failed = failed

    def resume_point(self) -> ResumePoint:
        """Return how far the last agent has got; see `Checkpoints.resume_point`."""
        record = self._journal.record
        return ResumePoint(record.sent, bool(record.in_batch), record.stats, self.task)

    def history(self, until: int) -> bytes:
        """Return the history up to an offset; see `Checkpoints.history`."""
        complete = self._journal.record.complete
        return self._journal.history(until if complete else self._journal.record.input_start)

    def record_given(self, offset: int) -> None:
        """Record which frames an async handler is given; see `Checkpoints.record_given`."""
        self._journal.header.given = offset

    def record_current_frame(self, offset: int | None) -> None:
        """Record the frame that the handler gets next; see `Checkpoints.record_current_frame`."""
        self._agent_records = True
        self._journal.header.current_frame = REPLAYING_HISTORY if offset is None else offset
