"""Loggers for kapudf's own events, in a tree that handlers cannot change.

A handler may configure Python's `logging` in any way: replace the root logger's handlers, disable
existing loggers, or disable a level for the whole process. With `on_error: skip`, kapudf's log is
the only record of dropped points, so it must not depend on that configuration.

Apart from `logs`, because authors' imports must not load structlog.
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
        """Return a record that has the items of `extra` as attributes."""
        record = logging.LogRecord(name, level, fn, lno, msg, args, exc_info, func, sinfo)
        vars(record).update(extra or {})
        return record


class _ToLogging(logging.Handler):
    """Passes events on to `logging`, for programs that use kapudf as a library."""

    def emit(self, record: logging.LogRecord) -> None:
        """Pass an event to the logger of the same name in `logging`."""
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)


_root = logging.RootLogger(logging.NOTSET)
_manager = logging.Manager(_root)
_manager.loggerClass = _OwnLogger
_root.manager = _manager
_root.addHandler(_ToLogging())


def get(name: str) -> logging.Logger:
    """Return the logger of one of kapudf's modules."""
    return _manager.getLogger(name)


def set_output(output: logging.Handler, level: int) -> None:
    """Send events of at least `level` to `output`, and no longer to `logging`."""
    _root.handlers[:] = [output]
    _root.setLevel(level)
