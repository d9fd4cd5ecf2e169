"""Input on its way to the handler: taken piece by piece, with what makes the handler replaceable.

All that is done for each point is here, and all that is done so that another handler can
have the state of this one: how far the connection has got, what need not be kept any more,
and a handler made anew over an exception.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from kapudf_cli.agent.dispatch import excerpt
from kapudf_cli.errors import HandlerError
from kapudf_cli.streams.progress import Progress
from kapudf_cli.wire.codec import REQUESTS
from kapudf_cli.wire.conversation import Incoming
from kapudf_cli.wire.requests import RequestReader
from kapudf_cli.wire.udf_pb2 import BeginBatch, Point, RestoreRequest

if TYPE_CHECKING:
    from collections.abc import Collection

    from kapudf_cli.agent.account import Account
    from kapudf_cli.agent.callee import Callee
    from kapudf_cli.agent.checkpoints import Checkpoints
    from kapudf_cli.agent.dispatch import Dispatcher
    from kapudf_cli.agent.outbox import Outbox
    from kapudf_cli.agent.repetition import Repetition

_log = logging.getLogger(__name__)


class Intake:
    """Deals with the input of one connection.

    Attributes:
        requests: cuts it into requests; its offset is that of the frame in hand.
        wants_cut: whether what is kept for a new handler should be cut short in any case.
    """

    def __init__(
        self,
        callee: Callee,
        dispatcher: Dispatcher,
        outbox: Outbox,
        account: Account,
        *,
        checkpoints: Checkpoints,
        repetition: Repetition,
        max_frame_bytes: int,
    ) -> None:
        """Give input to the handler of `callee`, and count it in `account`."""
        self._callee = callee
        self._dispatcher = dispatcher
        self._outbox = outbox
        self._account = account
        self._checkpoints = checkpoints
        self._repetition = repetition
        self._run_points = 0
        self.requests = RequestReader(max_frame_bytes)
        self.wants_cut = False

    def take(self, data: bytes) -> int:
        """Deal with the requests that `data` completes; return how many.

        The hot path: what is done here for a point is done for every point. Nothing
        is looked up, allocated or called that can be had once for the piece.

        Raises:
            ProtocolError: the bytes are no requests, or not in an order that may be.
            HandlerError: the handler raised, and that is not to be passed over.
            ConnectionClosedError: the connection broke.
            RefusedError: the handler refused Init or Restore.
        """
        dispatcher = self._dispatcher
        order = dispatcher.order
        outbox = self._outbox
        requests = self.requests
        handler = self._callee.handler
        point = handler.point
        raw_point = handler.raw_point or dispatcher.decode_raw
        account = self._account
        points = others = counted = 0
        self._run_points = 0
        try:
            for message in requests.feed(data):
                kind = type(message)
                try:
                    if kind is bytes and order.takes_points:
                        points += 1
                        outbox.in_hand = message  # type: ignore[assignment]  # bytes it is
                        raw_point(message)  # type: ignore[arg-type]
                        continue
                    if kind is Point and order.takes_points:
                        points += 1
                        point(message)  # type: ignore[arg-type]  # a Point it is
                        continue
                except BaseException as error:  # noqa: BLE001 - a plugin's sys.exit() included
                    method = "raw_point" if kind is bytes else "point"
                    dispatcher.failed(method, error, requests.offset)
                else:
                    others += 1
                    if kind is BeginBatch:
                        account.points_in += points + self._run_points - counted
                        counted = points + self._run_points
                        self._cut_before_batch()
                    dispatcher.dispatch(message, requests.offset)
                if dispatcher.wants_restart:
                    self._restart()
                    order = dispatcher.order
                # A handler may choose how it takes points, in setup say.
                handler = self._callee.handler
                point = handler.point
                raw_point = handler.raw_point or dispatcher.decode_raw
                self.choose_form()
        finally:
            outbox.in_hand = None
            account.points_in += points + self._run_points - counted
        return points + self._run_points + others

    def choose_form(self) -> None:
        """Have points read in the form in which the handler takes them."""
        raw_point = self._callee.handler.raw_point
        self.requests.raw = raw_point is not None
        # Points that a handler would forward one by one can go in one piece.
        forwards = raw_point == self._outbox.forward and self._dispatcher.order.takes_points
        self.requests.take_run = self._forward_run if forwards else None

    def _forward_run(self, frames: bytes, count: int) -> bool:
        """Send points on as they came, if they may leave just so; return whether they did."""
        if not self._outbox.forward_run(frames, count):
            return False
        self._run_points += count
        return True

    def take_carefully(self, data: bytes, poison: Collection[int]) -> int:
        """Deal with requests one at a time, each noted before and after; return how many.

        The last agent died over one of them, and the one may do it again: what is before
        it shall be done with, and it shall be known.

        Args:
            data: input, as for `take`.
            poison: the offsets of frames that are not given to the handler.

        Raises:
            as `take` does.
        """
        dispatcher = self._dispatcher
        count = 0
        self.requests.take_run = None
        try:
            for message in self.requests.feed(data):
                offset = self.requests.offset
                self._outbox.flush(self.progress())
                self._checkpoints.note_in_hand(offset)
                if offset in poison:
                    _log.error(
                        "dropped what killed the worker",
                        extra={"offset": offset, "frame": excerpt(message)},
                    )
                    self._account.failures += 1
                    dispatcher.drop(message)
                    self._repetition.leave_out(offset)
                else:
                    dispatcher.dispatch(message, offset)
                    if dispatcher.wants_restart:
                        self._restart()
                self.requests.raw = self._callee.handler.raw_point is not None
                count += 1
        finally:
            self._outbox.in_hand = None
        self.choose_form()
        return count

    def progress(self) -> Progress:
        """Return how far the connection has got; only between two requests."""
        account, outbox = self._account, self._outbox
        return Progress(
            self.requests.offset,
            account.points_in,
            outbox.points,
            account.batches_in,
            outbox.batches,
            outbox.bytes_written,
            account.failures,
            account.restarts,
            account.takeovers,
        )

    def cut_if_due(self, now_s: float) -> None:
        """Cut, if what is kept has become long or old; `now_s` is the monotonic clock's time."""
        if self._is_cut_due(now_s):
            self.cut()

    def _cut_before_batch(self) -> None:
        """Cut between two batches, if a cut is due.

        Where batches follow each other without a pause, reads end in the midst of one each
        time, and this is the only chance there is.
        """
        if self._is_cut_due(time.monotonic()):
            self._outbox.flush(self.progress())
            self.cut()

    def _is_cut_due(self, now_s: float) -> bool:
        dispatcher = self._dispatcher
        return self.wants_cut or self._checkpoints.is_due(
            now_s, stateless=dispatcher.stateless, asked=dispatcher.snapshot_asked
        )

    def cut(self) -> None:
        """Have the input that has been dealt with forgotten, for the state that came of it."""
        dispatcher = self._dispatcher
        # In the midst of a batch, the state is not all there is.
        whole = dispatcher.order.state is Incoming.READY and not self._outbox.in_batch
        if not whole:
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
            if snapshot:
                prefix += REQUESTS.encode(RestoreRequest(snapshot=snapshot))
        self.wants_cut = dispatcher.snapshot_asked = False
        if self._checkpoints.cut(prefix, self.requests.rest):
            self._repetition.forget()

    def _restart(self) -> None:
        """Make the handler anew, with the state that it had before the frame in hand."""
        dispatcher, account = self._dispatcher, self._account
        dispatcher.wants_restart = False
        account.restarts += 1
        offset = self.requests.offset
        state = dispatcher.order.state
        counted = (account.points_in, account.batches_in, self._run_points)
        self._outbox.mute()
        # Where there was no cut yet, there is only Init to go by.
        history = self._checkpoints.history(offset) or dispatcher.init_frame
        try:
            self._repetition.repeat(history, offset)
            # Muted as well: what is written before there are data to answer.
            self._outbox.send_data()
            begun = dispatcher.order.state is Incoming.IN_BATCH
            if begun and state is not Incoming.IN_BATCH:
                # The new handler is given no end of it either: that is what failed.
                self._outbox.abandon_batch()
        finally:
            # Also to tell Kapacitor that the new handler failed.
            self._outbox.unmute()
        account.points_in, account.batches_in, self._run_points = counted
        dispatcher.order.state = state
        if state is Incoming.IN_BATCH and not begun:
            # The history does not go so far back as the batch's begin.
            dispatcher.leave_batch_out()
        # So that the next repetition is short. Where there can be no cut soon, as in the
        # midst of a batch, it at least need not find out again what fails.
        self.wants_cut = True
        self._repetition.leave_out(offset)
