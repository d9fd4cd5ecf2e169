"""Listening sockets in a loop: connections taken as they come, and a rest when they cannot be."""

from __future__ import annotations

import selectors
import time
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.stdlib import BoundLogger

    from kapudf_cli.serving.socket_file import SocketFile

#: How long no connection is accepted after one could not be, for want of
#: descriptors, memory, threads or processes. They wait in the kernel's queue meanwhile.
_PAUSE_S = 0.5
#: So that a flood of connections keeps no signal waiting.
_AT_ONCE = 1024

K = TypeVar("K")


class Listeners(Generic[K]):
    """Sockets that are listened on, each for somebody; for use with a selector."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        serve: Callable[[K, SocketFile], bool],
        log: BoundLogger,
    ) -> None:
        """Register with `selector`, with a callable as data, and have connections served.

        Args:
            selector: whoever runs the loop calls each ready key's data.
            serve: takes one connection off a socket and serves it; returns False if none
                waits. It raises OSError, RuntimeError or MemoryError if it cannot.
            log: where it is said that none could be taken.
        """
        self._selector = selector
        self._serve = serve
        self._log = log
        self._sockets: dict[K, SocketFile] = {}
        self._resume_at: float | None = None

    def add(self, key: K, socket_file: SocketFile) -> None:
        """Listen on a socket, for `key`."""
        self._sockets[key] = socket_file
        if self._resume_at is None:
            self._register(key)

    def remove(self, key: K) -> None:
        """Take who is in a socket's queue, and then listen on it no more."""
        socket_file = self._sockets.pop(key)
        if self._resume_at is None:
            self._selector.unregister(socket_file.listener)
        self._accept(key, socket_file)
        socket_file.close()

    def _accept(self, key: K, socket_file: SocketFile) -> None:
        """Serve the connections that wait on a socket."""
        try:
            for _ in range(_AT_ONCE):
                if not self._serve(key, socket_file):
                    return
        except (OSError, RuntimeError, MemoryError) as error:
            # No descriptors, no memory, no threads. RuntimeError is what
            # Thread.start raises where the system refuses another thread.
            self._log.error(
                "cannot accept connections", function=str(key), error=str(error), retry_s=_PAUSE_S
            )
            self._rest()

    def wait_s(self, now_s: float) -> float | None:
        """Return how long the loop may wait, None for ever; resume after a rest that is over."""
        if self._resume_at is None:
            return None
        if now_s >= self._resume_at:
            self._resume_at = None
            for key in self._sockets:
                self._register(key)
            return None
        return self._resume_at - now_s

    def _register(self, key: K) -> None:
        socket_file = self._sockets[key]
        self._selector.register(
            socket_file.listener, selectors.EVENT_READ, lambda: self._accept(key, socket_file)
        )

    def _rest(self) -> None:
        """Listen on nothing for a while: a listener stays readable, and the loop would spin."""
        if self._resume_at is None:
            for socket_file in self._sockets.values():
                self._selector.unregister(socket_file.listener)
        self._resume_at = time.monotonic() + _PAUSE_S
