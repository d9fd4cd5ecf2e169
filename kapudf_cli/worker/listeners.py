"""Listening sockets of a loop, which accept connections only as fast as they can be served."""

from __future__ import annotations

import contextlib
import math
import selectors
import time
from typing import TYPE_CHECKING, Generic, TypeVar

from kapudf_cli.system import processes
from kapudf_cli.system.socket_file import BACKLOG

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from structlog.stdlib import BoundLogger

    from kapudf_cli.system.socket_file import SocketFile

#: The pause after a connection could not be accepted, because descriptors, memory, threads or
#: processes are short. Connections wait in the kernel's queue meanwhile.
_PAUSE_S = 0.5
#: How often a failure that goes on is logged.
_SAME_PROBLEM_S = 30.0
#: How many connections are accepted at once, so that signals and workers get their turn.
_AT_ONCE = 64

K = TypeVar("K")


class Listeners(Generic[K]):
    """Listening sockets, each with a key; for use with a selector."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        serve: Callable[[K, SocketFile], bool],
        log: BoundLogger,
        *,
        may_accept: Callable[[K], bool] = lambda _: True,
    ) -> None:
        """Begin without sockets.

        Args:
            selector: sockets are registered with it, with a callable as data, which the loop
                calls when the socket is ready.
            serve: accepts one connection and serves it; returns False if none waits. It raises
                OSError, RuntimeError or MemoryError if it cannot.
            log: where failures go.
            may_accept: whether more connections should be accepted; otherwise they wait in the
                kernel's queue.
        """
        self._selector = selector
        self._serve = serve
        self._log = log
        self._may_accept = may_accept
        self._sockets: dict[K, SocketFile] = {}
        self._listening: set[K] = set()
        self._resume_at: float | None = None
        self._logged_s = -math.inf

    def add(self, key: K, socket_file: SocketFile) -> None:
        """Listen on a socket, for `key`."""
        self._sockets[key] = socket_file
        self._update(key)

    def remove(self, key: K) -> None:
        """Accept the connections in a socket's queue, and then stop listening on it."""
        socket_file = self._sockets.pop(key)
        self._update(key, socket_file)
        with self._pausing_on_failure(key):
            for _ in range(BACKLOG):
                if not self._serve(key, socket_file):
                    break
        socket_file.close()

    def wait_s(self, now_s: float) -> float | None:
        """Update the selector; return how long the loop may wait, None without a limit.

        To be called before each wait. Only sockets whose connections may be accepted are
        registered: others would stay readable, and the loop would spin.
        """
        if self._resume_at is not None and now_s >= self._resume_at:
            self._resume_at = None
        for key in self._sockets:
            self._update(key)
        return None if self._resume_at is None else self._resume_at - now_s

    def _update(self, key: K, gone: SocketFile | None = None) -> None:
        """Register or unregister a socket, as `may_accept` says."""
        wanted = gone is None and self._resume_at is None and self._may_accept(key)
        if wanted and key not in self._listening:
            self._listening.add(key)
            self._selector.register(
                self._sockets[key].listener, selectors.EVENT_READ, lambda: self._accept(key)
            )
        elif not wanted and key in self._listening:
            self._listening.remove(key)
            self._selector.unregister((gone or self._sockets[key]).listener)

    def _accept(self, key: K) -> None:
        """Serve some of the connections in a socket's queue."""
        with self._pausing_on_failure(key):
            for _ in range(_AT_ONCE):
                if not self._may_accept(key) or not self._serve(key, self._sockets[key]):
                    return

    @contextlib.contextmanager
    def _pausing_on_failure(self, key: K) -> Iterator[None]:
        """Stop listening for a while if the system has no room for a connection."""
        try:
            yield
        except (OSError, RuntimeError, MemoryError) as error:
            # Thread.start raises RuntimeError if the system refuses another thread.
            now_s = time.monotonic()
            if now_s - self._logged_s >= _SAME_PROBLEM_S:
                self._logged_s = now_s
                self._log.error(
                    "cannot accept connections",
                    function=str(key),
                    error=processes.explain_limit(error),
                    retry_s=_PAUSE_S,
                )
            self._resume_at = now_s + _PAUSE_S
            for each in self._sockets:
                self._update(each)
