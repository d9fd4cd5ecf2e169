"""Input repeated, so that a new handler has the state of the one before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapudf_cli.agent.dispatch import RepeatAgainError
from kapudf_cli.wire.framing import MAX_VARINT
from kapudf_cli.wire.requests import RequestReader

if TYPE_CHECKING:
    from collections.abc import Collection

    from kapudf_cli.agent.callee import Callee
    from kapudf_cli.agent.dispatch import Dispatcher
    from kapudf_cli.agent.outbox import Outbox


class Repetition:
    """Makes a handler anew and gives it what the old one was given, with the outbox muted."""

    def __init__(self, callee: Callee, dispatcher: Dispatcher, outbox: Outbox) -> None:
        """Repeat for the handler of `callee`."""
        self._callee = callee
        self._dispatcher = dispatcher
        self._outbox = outbox
        # The offsets of frames that failed or killed, of what may still be repeated.
        self._failed: set[int] = set()

    def leave_out(self, offset: int) -> None:
        """Leave the frame at this offset out of every repetition."""
        self._failed.add(offset)

    def forget(self) -> None:
        """Forget what failed: from now on, the history begins after it."""
        self._failed.clear()

    def repeat(self, history: bytes, until: int, poison: Collection[int] = ()) -> None:
        """Give a new handler a history, and leave the outbox muted.

        Args:
            history: requests, as frames: Init, perhaps a Restore, and data.
            until: the offset in the input at which it ends.
            poison: the offsets of frames that are left out.

        Raises:
            HandlerError: the handler raised where the old one did not.
            ProtocolError: the history is not made of requests in an order that may be.
            RefusedError: the handler refused Init or Restore.
        """
        # Whatever is repeated later shall not kill another worker with it.
        self._failed |= set(poison)
        self._dispatcher.repeats = True
        try:
            while True:
                self._callee.stop_quietly()
                with self._outbox.changing() as output:
                    output.suppress()
                self._dispatcher.begin()
                self._callee.make()
                try:
                    self._take(history, until)
                except RepeatAgainError as again:
                    self._failed.add(again.offset)
                else:
                    return
        finally:
            self._dispatcher.repeats = False
            self._outbox.in_hand = None

    def _take(self, history: bytes, until: int) -> None:
        # A limit on frames is for those that the peer sends. Here the longest is a snapshot that
        # never leaves this machine.
        requests = RequestReader(MAX_VARINT)
        requests.resume_at(until - len(history))
        for message in requests.feed(history):
            if requests.offset in self._failed:
                self._dispatcher.drop(message)
            else:
                self._dispatcher.dispatch(message, requests.offset)
            requests.raw = self._callee.handler.raw_point is not None
