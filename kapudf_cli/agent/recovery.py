"""Recovery: keep what rebuilds the handler's state, and replace the handler with it.

A handler's state follows from Init, the last checkpoint and the input since. Compaction
replaces the input kept so far by a new checkpoint. A new handler gets the checkpoint and
then the input since ("replay"): in this process after an exception (`restart`), or in
another worker that takes the connection over (`resume`). Output of a replay is suppressed.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from kapudf_cli.agent.dispatcher import ReplayAgainError
from kapudf_cli.agent.errors import HandlerError
from kapudf_cli.protocol.codec import REQUESTS
from kapudf_cli.protocol.framing import MAX_VARINT
from kapudf_cli.protocol.order import Incoming
from kapudf_cli.protocol.request_reader import RequestReader
from kapudf_cli.protocol.udf_pb2 import RestoreRequest
from kapudf_cli.system import loggers
from kapudf_cli.transport.stream import ConnectionStats

if TYPE_CHECKING:
    from collections.abc import Collection

    from kapudf_cli.agent.checkpoints import Checkpoints, ResumePoint
    from kapudf_cli.agent.dispatcher import Dispatcher

_log = loggers.get(__name__)

#: What the frame of a Restore adds to its snapshot at most: three lengths and two tags.
_RESTORE_BYTES: Final = 17


class Input(Protocol):
    """The connection's input, as far as recovery needs it.

    Attributes:
        offset: where the first frame starts that is not handled, in bytes.
    """

    offset: int

    @property
    def rest(self) -> bytes:
        """The input from `offset` on."""

    def resume_at(self, offset: int) -> None:
        """Set the offset of the first byte; called before anything is read."""


InputT = TypeVar("InputT", bound=Input)


class Recovery(Generic[InputT]):
    """Keeps the replay of one connection short, and replays.

    Attributes:
        requests: the connection's input; its offset is that of the current frame.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        requests: InputT,
        checkpoints: Checkpoints,
    ) -> None:
        """Make the handler of `dispatcher` replaceable.

        Args:
            dispatcher: gives the handler its requests.
            requests: the connection's input.
            checkpoints: keeps the input since the last checkpoint.
        """
        self.requests = requests
        self._dispatcher = dispatcher
        self._caller = dispatcher.caller
        self._outbox = dispatcher.outbox
        self._checkpoints = checkpoints
        # Offsets of frames that raised or killed a worker, as far as they may be replayed.
        self._skipped: set[int] = set()
        # Compact at the next opportunity; and: Kapacitor has requested a snapshot.
        self._wants_compaction = self._snapshot_requested = False
        self._has_warned = False
        self._restarts = self._takeovers = 0

    def stats(self) -> ConnectionStats:
        """Return what the connection has done; only between two requests."""
        dispatcher = self._dispatcher
        points, batches, size = self._outbox.written
        return ConnectionStats(
            self.requests.offset,
            dispatcher.points_in,
            points,
            dispatcher.batches_in,
            batches,
            size,
            dispatcher.failures,
            self._restarts,
            self._takeovers,
            dispatcher.dropped_points,
            dispatcher.done,
        )

    def skip_in_replays(self, offset: int) -> None:
        """Skip the frame at this offset of the input in every replay."""
        self._skipped.add(offset)

    def record_current_frame(self, offset: int) -> None:
        """Record which frame the handler is given next, for the case that it kills the worker."""
        self._checkpoints.record_current_frame(offset)

    def record_given(self, offset: int) -> None:
        """Record that the handler is given frames before this offset, and none after it."""
        self._checkpoints.record_given(offset)

    # --- compaction ---

    def request_compaction(self) -> None:
        """Compact soon, because Kapacitor has asked for a snapshot."""
        self._snapshot_requested = True

    def compact_if_due(self, now_s: float) -> None:
        """Compact if what is kept is long or old; `now_s` is the monotonic clock's time."""
        if self.is_compaction_due(now_s):
            self.compact()

    def compact_before_batch(self) -> None:
        """Compact between two batches, if that is due.

        Where batches follow each other without a pause, each read ends inside a batch, and
        there is no other opportunity.
        """
        if self.is_compaction_due(time.monotonic()):
            self._outbox.flush(self.stats())
            self.compact()

    def compact(self) -> None:
        """Replace the input handled so far by a checkpoint of the handler's state.

        Does nothing inside a batch, where the handler's snapshot is not its whole state, or
        while calls are in flight.
        """
        dispatcher = self._dispatcher
        if dispatcher.order.state is not Incoming.READY or self._outbox.in_batch:
            return
        if not dispatcher.allows_checkpoint:
            return
        prefix = dispatcher.init_frame
        if not dispatcher.stateless:
            try:
                snapshot = dispatcher.snapshot()
            except HandlerError as error:
                # Kapacitor has not asked for it, so the task goes on with a longer replay.
                _log.error("snapshot failed: %s", error, exc_info=error.cause)
                self._checkpoints.postpone()
                self._snapshot_requested = False
                return
            # Another worker could not know of what the handler wrote in `snapshot`.
            self._outbox.flush(self.stats())
            if not self._has_room_for(snapshot):
                return
            if snapshot:
                prefix += REQUESTS.encode(RestoreRequest(snapshot=snapshot))
        self._wants_compaction = self._snapshot_requested = False
        if self._checkpoints.compact(prefix, self.requests.rest):
            self._skipped.clear()

    def _has_room_for(self, snapshot: bytes) -> bool:
        """Return whether a snapshot can be kept; log once that it cannot."""
        size = len(self._dispatcher.init_frame) + len(snapshot) + _RESTORE_BYTES
        most = self._checkpoints.max_prefix_bytes
        if size <= most:
            return True
        if not self._has_warned:
            self._has_warned = True
            _log.error(
                "snapshot is too long to be kept",
                extra={
                    "snapshot_bytes": len(snapshot),
                    "most_bytes": most,
                    "advice": "raise journal_mb, or keep less state: once the input outgrows the "
                    "journal, a worker's death ends the connection",
                },
            )
        self._checkpoints.postpone()
        self._wants_compaction = self._snapshot_requested = False
        return False

    def is_compaction_due(self, now_s: float) -> bool:
        """Return whether what is kept is long or old; `now_s` is the monotonic clock's time."""
        return self._wants_compaction or self._checkpoints.is_due(
            now_s, stateless=self._dispatcher.stateless, snapshot_requested=self._snapshot_requested
        )

    # --- another handler ---

    def restart(self) -> None:
        """Replace the handler by a new one with the state before the current frame.

        Raises:
            HandlerError, ProtocolError, RefusedError: as `_replay` does.
        """
        dispatcher = self._dispatcher
        self._restarts += 1
        offset = self.requests.offset
        state = dispatcher.order.state
        counted = (dispatcher.points_in, dispatcher.batches_in)
        with self._outbox.changing() as output:
            output.suppress()
        # Before the first checkpoint, there is only Init.
        history = self._checkpoints.history(offset) or dispatcher.init_frame
        try:
            self._replay(history, offset)
            # What was written before there was data to answer is suppressed as well.
            self._outbox.send_data()
            begun = dispatcher.order.state is Incoming.IN_BATCH
            if begun and state is not Incoming.IN_BATCH:
                # The batch's end failed, so the new handler does not get it either.
                with self._outbox.changing() as output:
                    output.abandon_batch()
        finally:
            # Also to tell Kapacitor that the new handler failed.
            with self._outbox.changing() as output:
                output.stop_suppressing()
        dispatcher.resume_counts(*counted)
        dispatcher.order.state = state
        if state is Incoming.IN_BATCH and not begun:
            # The history does not reach back to the batch's begin.
            dispatcher.skip_batch()
        # Keep the next replay short. Inside a batch, where that must wait, it at least
        # does not need to find out again which frame fails.
        self._wants_compaction = True
        self.skip_in_replays(offset)

    def resume(self, point: ResumePoint, poison: Collection[int] = ()) -> None:
        """Create a handler with the state of another agent's handler.

        Args:
            point: how far that agent had got.
            poison: offsets of frames that are not given to the handler.

        Raises:
            HandlerError, ProtocolError, RefusedError: as `_replay` does.
            WorkerLostError: the state depends on a frame that kills workers.
        """
        stats = point.stats
        self._checkpoints.record_current_frame(None)
        # A later replay must not kill another worker with these frames.
        self._skipped |= set(poison)
        self._replay(self._checkpoints.history(stats.offset), stats.offset)
        if stats.points_in or stats.batches_in:
            # What was written before there was data to answer is suppressed as well.
            self._outbox.send_data()
        self._go_on_from(point)

    def resume_without_handler(self, point: ResumePoint) -> None:
        """Go on from where another agent stopped, only to report why the connection ends."""
        self._go_on_from(point._replace(sent=0))

    def _go_on_from(self, point: ResumePoint) -> None:
        """Continue the counters, and suppress what was sent beyond them."""
        dispatcher, stats = self._dispatcher, point.stats
        dispatcher.resume_counts(stats.points_in, stats.batches_in)
        dispatcher.failures, dispatcher.dropped_points = stats.failures, stats.dropped_points
        self._restarts = stats.restarts
        self._takeovers = stats.takeovers + 1
        self.requests.resume_at(stats.offset)
        dispatcher.resume_done(stats.done)
        with self._outbox.changing() as output:
            output.suppress_next(point.sent, in_batch=point.in_batch, stats=stats)

    def _replay(self, history: bytes, until: int) -> None:
        """Create a handler, give it a history, and leave its output suppressed.

        Args:
            history: requests, as frames: Init, perhaps a Restore, and data.
            until: the offset in the input at which the history ends.

        Raises:
            HandlerError: the handler raised where the previous one did not.
            ProtocolError: the history is not a valid sequence of requests.
            RefusedError: the handler refused Init or Restore.
        """
        try:
            while True:
                self._caller.stop_quietly()
                with self._outbox.changing() as output:
                    output.suppress()
                self._caller.create()
                try:
                    with self._dispatcher.replaying():
                        self._give(history, until)
                except ReplayAgainError as again:
                    self._skipped.add(again.offset)
                else:
                    return
        finally:
            self._outbox.current_frame = None

    def _give(self, history: bytes, until: int) -> None:
        # A limit on frames applies to the peer's. Here the longest is a snapshot that never
        # leaves this machine.
        requests = RequestReader(MAX_VARINT)
        requests.resume_at(until - len(history))
        for message in requests.feed(history):
            if requests.offset in self._skipped:
                self._dispatcher.drop(message)
            else:
                self._dispatcher.dispatch(message, requests.offset)
            requests.raw = self._caller.reads_raw
        self._dispatcher.drain()
