"""The log of writes that come after a connection has ended, or was handed over."""

from __future__ import annotations

import contextvars
import time
from typing import Final

from kapudf_cli.system import loggers

_log = loggers.get(__name__)

#: A thread that goes on writing is logged so often, with how much there was.
_LOG_INTERVAL_S: Final = 10.0


class RefusedLog:
    """Counts refused writes of one connection, and logs their number at most once in a while."""

    def __init__(self, cause: str) -> None:
        """Begin, in the connection's own thread, whose facts the events have.

        Args:
            cause: why writes are refused.
        """
        self._cause = cause
        self._context = contextvars.copy_context()
        self._refused = 0
        self._not_before_s = 0.0

    def note(self) -> None:
        """Count a write that was refused. For one thread at a time."""
        self._refused += 1
        now_s = time.monotonic()
        # A number that grows tenfold is told at once: nothing may come after it.
        grown = str(self._refused).strip("0") == "1"
        if now_s < self._not_before_s and not grown:
            return
        self._not_before_s = now_s + _LOG_INTERVAL_S
        self._context.run(
            _log.error,
            "writes refused",
            extra={
                "refused_writes": self._refused,
                "cause": self._cause,
                "advice": "end the handler's threads in stop; keep unwritten output in the state",
            },
        )
