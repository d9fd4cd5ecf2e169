"""Turns: connections of one process whose handlers are called one at a time.

For handlers with `serialize = True`, whose model is not safe for threads. A connection has the
turn while it handles what it has read. It gives it up where it waits for Kapacitor, and for
others that have waited long enough.
"""

from __future__ import annotations

import collections
import contextlib
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

R = TypeVar("R")

#: A connection that has had the turn for this time gives it to one that waits, between two calls
#: of its handler. Switching takes about 0.1 ms.
_SLICE_S: Final = 0.005


class Turns:
    """A lock that is handed to those that wait for it in their order.

    Attributes:
        is_taken: whether one of them has it.
    """

    def __init__(self) -> None:
        """Begin with a free lock."""
        self._lock = threading.Lock()
        self.is_taken = False
        self._waiting: collections.deque[threading.Lock] = collections.deque()

    @property
    def has_waiting(self) -> bool:
        """Whether others wait."""
        return bool(self._waiting)

    def take(self) -> threading.Lock | None:
        """Take the lock; None if it was free, otherwise a lock to acquire, to wait for it."""
        with self._lock:
            if not self.is_taken:
                self.is_taken = True
                return None
            gate = threading.Lock()
            gate.acquire()
            self._waiting.append(gate)
            return gate

    def give(self) -> None:
        """Give the lock to the one that has waited longest, or free it."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self.is_taken = False


class Turn:
    """The turn of one connection: a context manager, which may be entered again inside.

    Only the thread of the connection has a turn; for others, nothing happens.

    Attributes:
        waits: whether the connection waits for its turn.
    """

    def __init__(self, turns: Turns, on_wait: Callable[[bool], None] | None = None) -> None:
        """Take turns with other connections.

        Args:
            turns: shared with them.
            on_wait: called with True when the connection has to wait, and then with False.
        """
        self.waits = False
        self._turns = turns
        self._on_wait = on_wait
        self._thread: int | None = None
        self._depth = 0
        self._has_turn = False
        self._since_s = 0.0

    def __enter__(self) -> None:
        """Wait for the turn, and take it."""
        if self._depth == 0:
            self._thread = threading.get_ident()
            self._take()
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        """Give the turn up, if it was entered no further time."""
        self._depth -= 1
        if self._depth == 0 and self._has_turn:
            self._give()

    def suspend(self) -> None:
        """Give the turn up, because this connection waits for its peer."""
        if self._has_turn and threading.get_ident() == self._thread:
            self._give()

    def regain(self) -> None:
        """Take the turn again after `suspend`."""
        if self._depth and not self._has_turn and threading.get_ident() == self._thread:
            self._take()

    def guard(self, call: Callable[[Any], R]) -> Callable[[Any], R]:
        """Return a call that first lets others have their turn, if it is time to."""

        def in_turn(message: Any) -> R:
            turns = self._turns
            if turns.has_waiting and time.monotonic() - self._since_s >= _SLICE_S:
                self.suspend()
            if not self._has_turn:
                self._take()
            return call(message)

        return in_turn

    def _take(self) -> None:
        gate = self._turns.take()
        if gate is not None:
            self._note(waits=True)
            gate.acquire()
            self._note(waits=False)
        self._has_turn = True
        self._since_s = time.monotonic()

    def _give(self) -> None:
        self._has_turn = False
        self._turns.give()

    def _note(self, *, waits: bool) -> None:
        self.waits = waits
        if self._on_wait is not None:
            self._on_wait(waits)


class NoTurn(contextlib.nullcontext[None]):
    """The turn of a connection that waits for no other."""

    waits = False

    def suspend(self) -> None:
        """Do nothing."""

    def regain(self) -> None:
        """Do nothing."""

    def guard(self, call: Callable[[Any], R]) -> Callable[[Any], R]:
        """Return the call itself."""
        return call


_turns_of: weakref.WeakKeyDictionary[type, Turns] = weakref.WeakKeyDictionary()
_guard: Final = threading.Lock()


def turn_of(handler: object, on_wait: Callable[[bool], None] | None = None) -> Turn | NoTurn:
    """Return the turn of a new connection to a handler.

    Args:
        handler: its class. Classes that inherit `serialize` from one share its turns, because
            they share its attributes.
        on_wait: see `Turn`.
    """
    if not getattr(handler, "serialize", False) or not isinstance(handler, type):
        return NoTurn()
    owner = next(each for each in handler.__mro__ if "serialize" in vars(each))
    with _guard:
        turns = _turns_of.setdefault(owner, Turns())
    return Turn(turns, on_wait)
