"""A queue of signals that an event loop can wait for, like a socket."""

from __future__ import annotations

import collections
import contextlib
import signal
import socket
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType


class SignalQueue:
    """Queues signals, and makes `fileno` readable while there are any.

    A signal handler can run between any two instructions of the main thread, so it only queues.
    Only the main thread may enter and leave the queue.
    """

    def __init__(self, signals: Iterable[signal.Signals]) -> None:
        """Queue these signals from `__enter__` to `__exit__`."""
        self._signals = tuple(signals)
        self._queue: collections.deque[signal.Signals] = collections.deque()
        self._previous: dict[signal.Signals, object] = {}
        self._receiver, self._sender = socket.socketpair()
        self._receiver.settimeout(0)
        self._sender.settimeout(0)

    def __enter__(self) -> Self:
        """Install the signal handlers."""
        # The interpreter writes a byte for each signal that has a handler. The bytes are only
        # a wake-up: some are dropped if many signals arrive at once.
        self._wakeup = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        for number in self._signals:
            self._previous[number] = signal.signal(number, self._enqueue)
        # The program that has become this one by exec has blocked them until now.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._signals)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Restore the previous signal handlers."""
        for number, previous in self._previous.items():
            signal.signal(number, previous)  # type: ignore[arg-type]  # what signal() returned
        signal.set_wakeup_fd(self._wakeup)
        self._receiver.close()
        self._sender.close()

    def fileno(self) -> int:
        """Return a descriptor that is readable when signals are queued."""
        return self._receiver.fileno()

    def put(self, number: signal.Signals) -> None:
        """Queue a signal as if it had arrived, from any thread."""
        self._queue.append(number)
        self.wake()

    def wake(self) -> None:
        """Make `fileno` readable without a signal, from any thread."""
        # The buffer is full: the reader is already awake. It is closed: ignore.
        with contextlib.suppress(OSError):
            self._sender.send(b"\0")

    def take(self) -> list[signal.Signals]:
        """Remove and return the queued signals, in their order."""
        with contextlib.suppress(BlockingIOError):
            while self._receiver.recv(4096):
                pass
        taken = []
        while self._queue:
            taken.append(self._queue.popleft())
        return taken

    def _enqueue(self, number: int, frame: object) -> None:
        del frame
        self._queue.append(signal.Signals(number))
