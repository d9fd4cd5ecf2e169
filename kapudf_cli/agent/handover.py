"""Which agent serves a connection: decided by other threads, awaited by the connection's own."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class HandedOver(Exception):  # noqa: N818 - it is no error
    """Another agent serves the connection from here on."""


class Handover:
    """One agent's part in a handover: it stands still until it is told to go on or let go.

    Where one agent hands over to another, both stand still at once, and one of them is
    told to go.
    """

    def __init__(self, *, takes_over: bool) -> None:
        """Begin as the agent that takes a connection over, or as the one that has it."""
        self._takes_over = takes_over
        self._released = False
        # Whether nothing will be decided any more, for nobody is left who would.
        self._undecidable = False
        # Set when the agent need not stand still any longer, one way or the other.
        self._decided = threading.Event()
        self._on_paused: Callable[[], None] | None = None

    # --- from any thread ---

    def propose(self, on_paused: Callable[[], None]) -> None:
        """Have the agent call `on_paused` once it stands still."""
        self._on_paused = on_paused

    def go(self) -> None:
        """Have the agent go on: the connection is its own."""
        self._takes_over = False
        self._decided.set()

    def release(self) -> None:
        """Have the agent let go of the connection: another one has it."""
        self._released = True
        self._decided.set()

    def cancel_handover(self) -> None:
        """Have whoever has the connection keep it: nobody is left who would decide."""
        self._released = self._released or self._takes_over
        self.stop_waiting()

    def stop_waiting(self) -> None:
        """Have the agent wait for nobody, now or later."""
        self._undecidable = True
        self._decided.set()

    # --- the connection's thread ---

    def stand_still(self) -> None:
        """Say that the agent stands still, to whoever proposed it, and wait as `wait` does."""
        if self._on_paused is None:
            return
        # What was decided before is no answer to what is asked now.
        self._decided.clear()
        if self._undecidable:
            self._decided.set()
        self._on_paused()
        self.wait()

    def wait(self) -> None:
        """Wait for a decision.

        Raises:
            HandedOver: another agent has the connection.
        """
        self._decided.wait()
        self._decided.clear()
        if self._released:
            raise HandedOver
