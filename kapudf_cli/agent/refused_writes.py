"""Writes that came too late: counts the points that they lost, and logs the number once."""

from __future__ import annotations

import contextvars
import threading
from typing import Final

from kapudf_cli.system import loggers

_log = loggers.get(__name__)

#: How long further writes are counted after the first one that comes after `teardown`.
_COUNTED_S: Final = 1.0

#: Those with writes that were counted and not logged yet.
_unlogged: Final[set[RefusedWrites]] = set()


class RefusedWrites:
    """The refused writes of one connection, by threads and tasks of its handler."""

    def __init__(self, cause: str) -> None:
        """Log with the context of the calling thread, which is the connection's own.

        Args:
            cause: why writes are refused.
        """
        self._cause = cause
        self._context = contextvars.copy_context()
        self._lock = threading.Lock()
        self._points = 0
        self._is_settled = self._is_logged = False

    def record(self, points: int) -> None:
        """Count a write that was refused. From any thread.

        Args:
            points: how many points it has lost.
        """
        with self._lock:
            self._points += points
            is_first = self not in _unlogged
            if self._is_logged or not is_first:
                return
            _unlogged.add(self)
            if self._is_settled:
                timer = threading.Timer(_COUNTED_S, self.log)
                timer.daemon = True
                timer.start()

    def settle(self) -> None:
        """Log the number now: the handler was torn down, so that no more writes should come."""
        self._is_settled = True
        self.log()

    def log(self) -> None:
        """Log the number of lost points, if any write was refused; at most once."""
        with self._lock:
            if self not in _unlogged:
                return
            _unlogged.discard(self)
            self._is_logged = True
        self._context.copy().run(
            _log.error,
            "writes refused",
            extra={
                "lost_points": self._points,
                "cause": self._cause,
                "advice": "finish the work of the handler's threads in drain, and end them in "
                "teardown",
            },
        )


def log_all() -> None:
    """Log what was not logged yet, at the end of the process."""
    for each in list(_unlogged):
        each.log()
