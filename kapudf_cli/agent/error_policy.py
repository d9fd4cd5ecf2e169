"""`on_error`: what happens when a handler raises an exception over data."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from kapudf_cli.system import loggers

if TYPE_CHECKING:
    from kapudf_cli.agent.errors import HandlerError
    from kapudf_cli.protocol.errors import UndecodableMessageError

_log = loggers.get(__name__)

#: fail: the task fails with the exception, as the protocol intends. skip: the point or
#: batch is dropped. restart: the point or batch is dropped, and a new handler is created.
OnError: TypeAlias = Literal["fail", "skip", "restart"]
DEFAULT_ON_ERROR: Final[OnError] = "fail"

#: A handler that raises for every point would fill the disk with tracebacks.
_LOG_INTERVAL_S: Final = 1.0
#: How much of a frame is shown: enough to tell which point it is.
EXCERPT_CHARACTERS: Final = 256


class DropLog:
    """Logs dropped points and batches, at most once a second, with their number."""

    def __init__(self) -> None:
        """Start with nothing dropped."""
        self._unlogged = 0
        self._not_before_s = 0.0

    def record(
        self,
        error: HandlerError | UndecodableMessageError,
        *,
        what: str,
        offset: int,
        on_error: OnError,
    ) -> None:
        """Record that something was dropped.

        Args:
            error: the exception of the handler, or why the frame cannot be decoded.
            what: what was dropped, "point" or "batch".
            offset: where its frame starts in the input, in bytes.
            on_error: the policy in use, for the log.
        """
        self._unlogged += 1
        now_s = time.monotonic()
        if now_s < self._not_before_s:
            return
        self._not_before_s = now_s + _LOG_INTERVAL_S
        since, self._unlogged = self._unlogged, 0
        _log.error(
            "%s dropped: %s",
            what,
            error,
            # A decoding error has no `cause`: its traceback would only show kapudf's code.
            exc_info=getattr(error, "cause", None),
            extra={"offset": offset, "on_error": on_error, "dropped_since_last_event": since},
        )
