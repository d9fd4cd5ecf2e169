"""Input on its way to the handler, piece by piece: all that is done for each point is here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapudf_cli import loggers
from kapudf_cli.agent.dispatch import excerpt
from kapudf_cli.wire.udf_pb2 import BeginBatch, Point

if TYPE_CHECKING:
    from collections.abc import Collection

    from kapudf_cli.agent.account import Account
    from kapudf_cli.agent.callee import Callee
    from kapudf_cli.agent.checkpoints import Checkpoints
    from kapudf_cli.agent.dispatch import Dispatcher
    from kapudf_cli.agent.outbox import Outbox
    from kapudf_cli.agent.recovery import Recovery
    from kapudf_cli.wire.requests import RequestReader

_log = loggers.get(__name__)


class Intake:
    """Gives the input of one connection to its handler: points itself, the rest by dispatch."""

    def __init__(
        self,
        callee: Callee,
        dispatcher: Dispatcher,
        outbox: Outbox,
        account: Account,
        requests: RequestReader,
        *,
        checkpoints: Checkpoints,
        recovery: Recovery,
    ) -> None:
        """Give input to the handler of `callee`.

        Args:
            callee: the handler.
            dispatcher: what gives it whatever is no point.
            outbox: where it writes to.
            account: what is to be counted in.
            requests: cuts the input into requests; its offset is that of the frame in hand.
            checkpoints: what notes the frame in hand, where that might kill.
            recovery: what makes the handler anew.
        """
        self._callee = callee
        self._dispatcher = dispatcher
        self._outbox = outbox
        self._account = account
        self._checkpoints = checkpoints
        self._recovery = recovery
        self._requests = requests
        # Points of the piece in hand that were sent on in runs.
        self._run_points = 0
        self._has_warned = False

    def take(self, data: bytes) -> int:
        """Deal with the requests that `data` completes; return how many.

        The hot path: what is done here for a point is done for every point. Nothing
        is looked up, allocated or called that can be had once for the piece.

        Raises:
            ProtocolError: the bytes are no requests, or not in an order that may be.
            HandlerError: the handler raised, and `on_error` is to fail.
            ConnectionClosedError: the connection broke.
            RefusedError: the handler refused Init or Restore.
        """
        dispatcher = self._dispatcher
        order = dispatcher.order
        outbox = self._outbox
        requests = self._requests
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
                        # In place of a point that is written, one may be returned by mistake.
                        returned: object = point(message)  # type: ignore[arg-type]
                        if returned is not None:
                            self._warn_of(returned)
                        continue
                except BaseException as error:  # noqa: BLE001 - a plugin's sys.exit() included
                    method = "raw_point" if kind is bytes else "point"
                    dispatcher.failed(method, error, requests.offset)
                else:
                    others += 1
                    if kind is BeginBatch:
                        account.points_in += points + self._run_points - counted
                        counted = points + self._run_points
                        self._recovery.cut_before_batch()
                    dispatcher.dispatch(message, requests.offset)
                if dispatcher.wants_restart:
                    self._recovery.restart()
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

    def _warn_of(self, returned: object) -> None:
        if not self._has_warned:
            self._has_warned = True
            _log.warning(
                "point returned a value, which nobody takes; write it with self.agent",
                extra={"returned": type(returned).__name__},
            )

    def choose_form(self) -> None:
        """Have points read in the form in which the handler takes them."""
        raw_point = self._callee.handler.raw_point
        self._requests.raw = raw_point is not None
        # Points that a handler would forward one by one can go in one piece.
        forwards = raw_point == self._outbox.forward and self._dispatcher.order.takes_points
        self._requests.take_run = self._forward_run if forwards else None

    def _forward_run(self, frames: bytes, count: int) -> bool:
        """Send points on as they came, if they may leave just so; return whether they did."""
        if not self._outbox.forward_run(frames, count):
            return False
        self._run_points += count
        return True

    def take_carefully(self, data: bytes, poison: Collection[int]) -> int:
        """Deal with requests one at a time, each noted before and after; return how many.

        The last agent died over one of them, which may kill this one too. Then what came
        before it must be done with, and it must be known which one it was.

        Args:
            data: input, as for `take`.
            poison: the offsets of frames that are not given to the handler.

        Raises:
            as `take` does.
        """
        dispatcher = self._dispatcher
        count = 0
        self._requests.take_run = None
        try:
            for message in self._requests.feed(data):
                offset = self._requests.offset
                self._outbox.flush(self._recovery.progress())
                self._checkpoints.note_in_hand(offset)
                if offset in poison:
                    _log.error(
                        "dropped what killed the worker",
                        extra={"offset": offset, "frame": excerpt(message)},
                    )
                    self._account.failures += 1
                    dispatcher.drop(message)
                    self._recovery.leave_out(offset)
                else:
                    dispatcher.dispatch(message, offset)
                    if dispatcher.wants_restart:
                        self._recovery.restart()
                self._requests.raw = self._callee.handler.raw_point is not None
                count += 1
        finally:
            self._outbox.in_hand = None
        self.choose_form()
        return count
