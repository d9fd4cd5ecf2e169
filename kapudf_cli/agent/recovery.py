"""What makes a handler replaceable: how far it has got, what is kept, and another one in its place.

The input since the last cut is kept by the checkpoints. A cut forgets it, for the state
that came of it. A handler that is made anew is given the state and then that input again,
after an exception (`restart`) or where another worker takes over (`resume`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from kapudf_cli import loggers
from kapudf_cli.agent.repetition import Repetition
from kapudf_cli.errors import HandlerError
from kapudf_cli.streams.commit import Progress
from kapudf_cli.wire.codec import REQUESTS
from kapudf_cli.wire.conversation import Incoming
from kapudf_cli.wire.udf_pb2 import RestoreRequest

if TYPE_CHECKING:
    from kapudf_cli.agent.account import Account
    from kapudf_cli.agent.callee import Callee
    from kapudf_cli.agent.checkpoints import Checkpoints, Resumption
    from kapudf_cli.agent.dispatch import Dispatcher
    from kapudf_cli.agent.outbox import Outbox
    from kapudf_cli.wire.requests import RequestReader

_log = loggers.get(__name__)

#: What the frame of a Restore adds to the snapshot in it at most: three lengths, two tags.
_RESTORE_BYTES: Final = 17


class Recovery:
    """Keeps short what a new handler would be given, and gives it that."""

    def __init__(
        self,
        callee: Callee,
        dispatcher: Dispatcher,
        outbox: Outbox,
        account: Account,
        requests: RequestReader,
        *,
        checkpoints: Checkpoints,
    ) -> None:
        """Have the handler of `callee` replaceable.

        Args:
            callee: the handler.
            dispatcher: what gives it requests.
            outbox: where it writes to.
            account: what its connection did, which goes on over a replacement.
            requests: the input; its offset is that of the frame in hand.
            checkpoints: what keeps the input since the last cut.
        """
        self._dispatcher = dispatcher
        self._outbox = outbox
        self._account = account
        self._requests = requests
        self._checkpoints = checkpoints
        self._repetition = Repetition(callee, dispatcher, outbox)
        # Whether a cut is wanted, whatever the checkpoints say.
        self._wants_cut = False
        self._has_warned = False

    def progress(self) -> Progress:
        """Return how far the connection has got; only between two requests."""
        account, outbox = self._account, self._outbox
        return Progress(
            self._requests.offset,
            account.points_in,
            outbox.points,
            account.batches_in,
            outbox.batches,
            outbox.bytes_written,
            account.failures,
            account.restarts,
            account.takeovers,
        )

    def leave_out(self, offset: int) -> None:
        """Leave the frame at this offset in the input out of every repetition."""
        self._repetition.leave_out(offset)

    # --- cuts ---

    def cut_if_due(self, now_s: float) -> None:
        """Cut, if what is kept has become long or old; `now_s` is the monotonic clock's time."""
        if self._is_cut_due(now_s):
            self.cut()

    def cut_before_batch(self) -> None:
        """Cut between two batches, if a cut is due.

        Where batches follow each other without a pause, reads end in the midst of one each
        time, and this is the only chance there is.
        """
        if self._is_cut_due(time.monotonic()):
            self._outbox.flush(self.progress())
            self.cut()

    def cut(self) -> None:
        """Have the input that has been dealt with forgotten, for the state that came of it.

        Nothing is cut inside a batch: there, the handler's state is not all there is.
        """
        dispatcher = self._dispatcher
        if dispatcher.order.state is not Incoming.READY or self._outbox.in_batch:
            return
        prefix = dispatcher.init_frame
        if not dispatcher.stateless:
            try:
                snapshot = dispatcher.snapshot()
            except HandlerError as error:
                # Nobody has asked for it. What is kept is longer for that, and no worse.
                _log.error("snapshot failed: %s", error, exc_info=error.cause)
                self._checkpoints.postpone()
                dispatcher.snapshot_asked = False
                return
            # What it has written meanwhile does not wait for the next input, and is not
            # left to another agent, which could not know of it.
            self._outbox.flush(self.progress())
            if not self._has_room_for(snapshot):
                return
            if snapshot:
                prefix += REQUESTS.encode(RestoreRequest(snapshot=snapshot))
        self._wants_cut = dispatcher.snapshot_asked = False
        if self._checkpoints.cut(prefix, self._requests.rest):
            self._repetition.forget()

    def _has_room_for(self, snapshot: bytes) -> bool:
        """Return whether a snapshot can be kept, and say once that it cannot."""
        size = len(self._dispatcher.init_frame) + len(snapshot) + _RESTORE_BYTES
        most = self._checkpoints.most_prefix_bytes
        if size <= most:
            return True
        if not self._has_warned:
            self._has_warned = True
            _log.error(
                "snapshot is too long to be kept; a death of the worker will end the connection "
                "once the input since the last kept one outgrows the journal: raise journal_mb, "
                "or keep less state",
                extra={"snapshot_bytes": len(snapshot), "most_bytes": most},
            )
        self._checkpoints.postpone()
        self._wants_cut = self._dispatcher.snapshot_asked = False
        return False

    def _is_cut_due(self, now_s: float) -> bool:
        dispatcher = self._dispatcher
        return self._wants_cut or self._checkpoints.is_due(
            now_s, stateless=dispatcher.stateless, asked=dispatcher.snapshot_asked
        )

    # --- another handler ---

    def restart(self) -> None:
        """Make the handler anew, with the state that it had before the frame in hand.

        Raises:
            HandlerError, ProtocolError, RefusedError: as `Repetition.repeat` does.
        """
        dispatcher, account = self._dispatcher, self._account
        dispatcher.wants_restart = False
        account.restarts += 1
        offset = self._requests.offset
        state = dispatcher.order.state
        counted = (account.points_in, account.batches_in)
        with self._outbox.changing() as output:
            output.suppress()
        # Where there was no cut yet, there is only Init to go by.
        history = self._checkpoints.history(offset) or dispatcher.init_frame
        try:
            self._repetition.repeat(history, offset)
            # Muted as well: what is written before there are data to answer.
            self._outbox.send_data()
            begun = dispatcher.order.state is Incoming.IN_BATCH
            if begun and state is not Incoming.IN_BATCH:
                # The new handler is given no end of it either: that is what failed.
                with self._outbox.changing() as output:
                    output.abandon_batch()
        finally:
            # Also to tell Kapacitor that the new handler failed.
            with self._outbox.changing() as output:
                output.stop_suppressing()
        account.points_in, account.batches_in = counted
        dispatcher.order.state = state
        if state is Incoming.IN_BATCH and not begun:
            # The history does not go so far back as the batch's begin.
            dispatcher.leave_batch_out()
        # So that the next repetition is short. Where there can be no cut soon, as in the
        # midst of a batch, it at least need not find out again what fails.
        self._wants_cut = True
        self._repetition.leave_out(offset)

    def resume(self, resumption: Resumption) -> None:
        """Make a handler with the state that another agent's handler had.

        Raises:
            HandlerError, ProtocolError, RefusedError: as `Repetition.repeat` does.
            WorkerLostError: the state cannot be had without a frame that kills.
        """
        progress = resumption.progress
        self._checkpoints.note_in_hand(None)
        self._repetition.repeat(resumption.history, progress.offset, resumption.poison)
        if progress.points_in or progress.batches_in:
            # Muted as well: what is written before there are data to answer.
            self._outbox.send_data()
        self._go_on_from(resumption, sent=resumption.sent)

    def resume_without_handler(self, resumption: Resumption) -> None:
        """Go on from where another agent left the connection, only to tell why it ends."""
        self._go_on_from(resumption, sent=0)

    def _go_on_from(self, resumption: Resumption, *, sent: int) -> None:
        """Count on from what the connection has done, and mute what was sent beyond that."""
        account, progress = self._account, resumption.progress
        account.points_in, account.batches_in = progress.points_in, progress.batches_in
        account.failures, account.restarts = progress.failures, progress.restarts
        account.takeovers = progress.takeovers + 1
        account.bytes_in = progress.offset
        self._requests.resume_at(progress.offset)
        with self._outbox.changing() as output:
            output.suppress_next(sent, in_batch=resumption.in_batch, progress=progress)
