"""What becomes of an exception that a handler raises while it deals with data."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from kapudf_cli.system import loggers

if TYPE_CHECKING:
    from kapudf_cli.agent.errors import HandlerError
    from kapudf_cli.protocol.errors import UndecodableMessageError

_log = loggers.get(__name__)

#: fail: the task fails with it, as the protocol foresees. skip: the point or batch is
#: dropped. restart: the point or batch is dropped, and the handler is made anew.
OnError: TypeAlias = Literal["fail", "skip", "restart"]
DEFAULT_ON_ERROR: Final[OnError] = "fail"

#: A handler that raises at every point would fill a disk with its tracebacks.
_LOG_INTERVAL_S: Final = 1.0
#: How much of a frame is shown: enough to tell which point it is.
EXCERPT_CHARACTERS: Final = 256


class DropLog:
    """Logs what was dropped for an exception, at most once a second, and how many there were."""

    def __init__(self) -> None:
        """Begin with nothing dropped."""
        self._unlogged = 0
        self._not_before_s = 0.0

    def note(
        self,
        error: HandlerError | UndecodableMessageError,
        *,
        what: str,
        offset: int,
        on_error: OnError,
    ) -> None:
        """Note that something was dropped.

        Args:
            error: what the handler did, or why it was given nothing.
            what: what was dropped, "point" or "batch".
            offset: where its frame starts in the input, in bytes.
            on_error: what else is done about it.
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
            # The trace of what cannot be decoded leads into kapudf, and tells nothing.
            exc_info=getattr(error, "cause", None),
            extra={"offset": offset, "on_error": on_error, "dropped_since_last_event": since},
        )
