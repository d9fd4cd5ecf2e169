"""Checkpoints: what is stored to rebuild a handler's state.

A handler's state follows from Init, the last snapshot and the input since. With these, a
new handler can replace it, after an exception or in another worker. This module has the
interface for storing them, and two implementations without input: one stores nothing, the
other the last snapshot. The journal implements the interface with input.
"""

from __future__ import annotations

import time
from typing import Final, NamedTuple, Protocol

import msgspec

from kapudf_cli.transport.stream import ConnectionStats

#: The longest message that protobuf can parse.
MAX_MESSAGE_BYTES: Final = 2**31 - 1

#: The default of snapshot_interval_s.
DEFAULT_SNAPSHOT_INTERVAL_S = 10.0


class ResumePlan(msgspec.Struct, frozen=True):
    """How an agent takes a connection over from another agent.

    The supervisor makes it, and sends it to the worker whose agent uses it.

    Attributes:
        careful_until: the last agent died while it handled a frame before this offset in the
            input. Up to there, frames are handled and recorded one at a time.
        poison: offsets of frames that killed workers and are not given to the handler.
        waits: whether the other agent is paused and could go on. Otherwise it died.
        give_up: why the connection is failed instead of resumed, None if it is not.
    """

    careful_until: int = 0
    poison: tuple[int, ...] = ()
    waits: bool = False
    give_up: str | None = None


class ResumePoint(NamedTuple):
    """How far another agent has got with a connection, as far as it was stored.

    Attributes:
        sent: how many messages that answer the input after `stats.offset` were sent already.
        in_batch: whether the last message sent belongs to a batch that has not ended.
        stats: what the connection has done.
        task: the names of the task and the node, empty before Init.
    """

    sent: int = 0
    in_batch: bool = False
    stats: ConnectionStats = ConnectionStats()
    task: tuple[str, str] = ("", "")


class Checkpoints(Protocol):
    """Stores what rebuilds a handler's state."""

    def is_due(self, now_s: float, *, stateless: bool, snapshot_requested: bool) -> bool:
        """Return whether `compact` should be called.

        Args:
            now_s: the monotonic clock's time, in seconds.
            stateless: whether the handler has no state, so that handled input need not
                be stored.
            snapshot_requested: whether Kapacitor has asked for a snapshot since then.
        """

    def compact(self, prefix: bytes, remainder: bytes) -> bool:
        """Replace the stored input by a checkpoint.

        Args:
            prefix: Init, and a Restore if there is a snapshot, as frames. They rebuild the
                current state.
            remainder: input that was received and not handled: the current frame and what
                follows it, or an incomplete frame.

        Returns:
            False if there was no room for the checkpoint; then nothing has changed.
        """

    @property
    def max_prefix_bytes(self) -> int:
        """The longest prefix that can be stored, in bytes."""

    def postpone(self) -> None:
        """Delay the next compaction, because taking a snapshot failed."""

    def resume_point(self) -> ResumePoint:
        """Return how far another agent has got with the connection."""

    def history(self, until: int) -> bytes:
        """Return the requests, as frames, that rebuild the state at offset `until` of the input."""

    def send_rest(self) -> None:
        """Send what another agent had committed and not sent.

        Raises:
            OSError: the connection broke.
        """

    def record_current_frame(self, offset: int | None) -> None:
        """Record the frame that the handler gets next; None for a frame of the history."""

    def record_given(self, offset: int) -> None:
        """Record that a handler is given frames before this offset, and none after it."""

    def record_seen_frame(self, offset: int | None) -> None:
        """Record the frame that the handler has now, None for none. From another thread.

        The worker calls it at intervals, as a heartbeat: Python code still runs in it.
        """


class NoCheckpoints:
    """Stores nothing: for handlers that are never replaced."""

    def is_due(self, now_s: float, *, stateless: bool, snapshot_requested: bool) -> bool:
        """Return False: there is nothing to compact."""
        del now_s, stateless, snapshot_requested
        return False

    def compact(self, prefix: bytes, remainder: bytes) -> bool:
        """Store nothing."""
        del prefix, remainder
        return True

    @property
    def max_prefix_bytes(self) -> int:
        """The longest prefix, which is the longest message."""
        return MAX_MESSAGE_BYTES

    def postpone(self) -> None:
        """Do nothing."""

    def resume_point(self) -> ResumePoint:
        """Return the beginning: no other agent has had the connection."""
        return ResumePoint()

    def history(self, until: int) -> bytes:
        """Return nothing."""
        del until
        return b""

    def send_rest(self) -> None:
        """Send nothing: no other agent had the connection."""

    def record_current_frame(self, offset: int | None) -> None:
        """Do nothing: the record would not survive this process."""

    def record_given(self, offset: int) -> None:
        """Do nothing: the record would not survive this process."""

    def record_seen_frame(self, offset: int | None) -> None:
        """Do nothing: the record would not survive this process."""


class LastSnapshot(NoCheckpoints):
    """Stores the last snapshot, for a handler that is replaced in the same process."""

    def __init__(self, snapshot_interval_s: float = DEFAULT_SNAPSHOT_INTERVAL_S) -> None:
        """Request a snapshot every `snapshot_interval_s` seconds."""
        self._snapshot_interval_s = snapshot_interval_s
        self._prefix = b""
        self.postpone()

    def is_due(self, now_s: float, *, stateless: bool, snapshot_requested: bool) -> bool:
        """Return whether the last snapshot is old; see `Checkpoints.is_due`."""
        return not stateless and (snapshot_requested or now_s >= self._due_s)

    def compact(self, prefix: bytes, remainder: bytes) -> bool:
        """Store Init and the snapshot; see `Checkpoints.compact`."""
        del remainder
        self.postpone()
        self._prefix = prefix
        return True

    def postpone(self) -> None:
        """Keep the last snapshot for another interval; see `Checkpoints.postpone`."""
        self._due_s = time.monotonic() + self._snapshot_interval_s

    def history(self, until: int) -> bytes:
        """Return Init and the last snapshot; later input is not stored."""
        del until
        return self._prefix
