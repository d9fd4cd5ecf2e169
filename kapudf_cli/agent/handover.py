"""Handover of a connection: wait until another thread decides which agent serves it."""

from __future__ import annotations

import enum
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable


#: How long a handover waits for calls in flight, which the next worker then makes again, and
#: for the handler's `drain`.
DRAIN_LIMIT_S: Final = 5.0


class HandoverState(enum.Enum):
    """Which part an agent has in a handover."""

    #: It serves the connection.
    SERVING = enum.auto()
    #: It is paused, and can go on.
    PAUSED = enum.auto()
    #: It is to take the connection over from an agent that is paused.
    WAITING = enum.auto()
    #: It is about to forget the connection.
    RELEASED = enum.auto()


class HandedOver(Exception):  # noqa: N818 - it is no error
    """Another agent serves the connection from here on."""


class Handover:
    """Pauses one agent until it is told to go on or to release the connection.

    During a handover, the old and the new agent are both paused. Exactly one of them is
    then told to go on.
    """

    def __init__(self, *, takes_over: bool) -> None:
        """Create the handover of one agent.

        Args:
            takes_over: whether the agent takes the connection over from another agent.
        """
        self._takes_over = takes_over
        self._released = self._paused = False
        # True if no decision will follow, so that waiting would never end.
        self._canceled = False
        self._decided = threading.Event()
        self._on_paused: Callable[[], None] | None = None

    # --- from any thread ---

    @property
    def state(self) -> HandoverState:
        """What was decided, and whether the agent is paused."""
        if self._released:
            return HandoverState.RELEASED
        if self._takes_over:
            return HandoverState.WAITING
        return HandoverState.PAUSED if self._paused else HandoverState.SERVING

    def request(self, on_paused: Callable[[], None]) -> None:
        """Ask the agent to pause; it calls `on_paused` once it has."""
        self._on_paused = on_paused

    def go(self) -> None:
        """Let the agent go on: it serves the connection."""
        self._takes_over = self._paused = False
        self._decided.set()

    def release(self) -> None:
        """Let the agent release the connection: another agent serves it."""
        self._released = True
        self._decided.set()

    def cancel(self) -> None:
        """Cancel the handover: the agent that has the connection keeps it."""
        self._released = self._released or self._takes_over
        self.stop_waiting()

    def stop_waiting(self) -> None:
        """End the current wait and all later ones."""
        self._canceled = True
        self._decided.set()

    # --- the connection's thread ---

    def pause(self) -> None:
        """Call `on_paused` if a pause was requested, and wait as `wait` does."""
        if self._on_paused is None:
            return
        # Drop an earlier decision: it does not answer this request.
        self._decided.clear()
        if self._canceled:
            self._decided.set()
        self._paused = True
        self._on_paused()
        self.wait()

    def wait(self) -> None:
        """Wait for the decision.

        Raises:
            HandedOver: another agent serves the connection.
        """
        self._decided.wait()
        self._decided.clear()
        if self._released:
            raise HandedOver
