"""Loggers for kapudf's own events, in a tree that handlers do not change.

A handler may configure Python's `logging` as it likes: replace every handler of the root
logger, disable existing loggers, or disable a level for the whole process. Under
`on_error: skip`, kapudf's log is the only record of lost points, so it must not depend on that.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


class _OwnLogger(logging.Logger):
    """A logger whose records do not depend on `logging.setLogRecordFactory`."""

    def makeRecord(  # noqa: N802, PLR0917 - overrides logging's method
        self,
        name: str,
        level: int,
        fn: str,
        lno: int,
        msg: object,
        args: Any,
        exc_info: Any,
        func: str | None = None,
        extra: Mapping[str, object] | None = None,
        sinfo: str | None = None,
    ) -> logging.LogRecord:
        """Return a record with the facts in `extra` as attributes."""
        record = logging.LogRecord(name, level, fn, lno, msg, args, exc_info, func, sinfo)
        vars(record).update(extra or {})
        return record


class _ToLogging(logging.Handler):
    """Passes events on to `logging`, for programs that use kapudf as a library."""

    def emit(self, record: logging.LogRecord) -> None:
        """Have the logger of the same name in `logging` deal with an event."""
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)


_root = logging.RootLogger(logging.NOTSET)
_manager = logging.Manager(_root)
_manager.loggerClass = _OwnLogger
_root.manager = _manager
_root.addHandler(_ToLogging())


def get(name: str) -> logging.Logger:
    """Return the logger of a module of kapudf's."""
    return _manager.getLogger(name)


def set_output(output: logging.Handler, level: int) -> None:
    """Send all events from `level` on to `output`, and no longer to `logging`."""
    _root.handlers[:] = [output]
    _root.setLevel(level)
