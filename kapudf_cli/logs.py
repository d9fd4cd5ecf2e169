"""Logging: structlog for kapudf's own events and for what handlers log with the standard library.

Always to stderr. For people on a terminal, as JSON objects, one a line, elsewhere.
"""

from __future__ import annotations

import logging
import sys
import threading
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import structlog

from kapudf_cli.errors import shorten
from kapudf_cli.terminal_text import printable

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor

LogFormat: TypeAlias = Literal["auto", "console", "json"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]

#: The longest text in an event, and the longest traceback, in characters.
_TEXT_CHARACTERS: Final = 16 * 1024
#: What `ConsoleRenderer` puts on lines of their own.
_BLOCKS: Final = ("stack", "exception")

_STAMP: Final = structlog.processors.TimeStamper(fmt="iso", utc=True)


def configure(log_format: LogFormat, level: LogLevel) -> None:
    """Set logging up for the whole process; `auto` asks whether stderr is a terminal."""
    for_people = sys.stderr.isatty() if log_format == "auto" else log_format == "console"
    # What an event of ours and a record of the standard library have in common.
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        _STAMP,
    ]
    render: list[Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.format_exc_info,
        _shorten_texts,
    ]
    if for_people:
        render += [
            _make_printable,
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                exception_formatter=structlog.dev.plain_traceback,
                pad_event_to=24,
            ),
        ]
    else:
        render += [
            _put_first,
            structlog.processors.JSONRenderer(default=repr, ensure_ascii=False),
        ]
    output = logging.StreamHandler(sys.stderr)
    output.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=render)
    )
    # A full disk or a closed pipe behind stderr must not end a connection.
    logging.raiseExceptions = False
    logging.basicConfig(handlers=[output], level=level.upper(), force=True)
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    threading.excepthook = _log_thread_failure


def get_logger() -> structlog.stdlib.BoundLogger:
    """Return the logger of kapudf's own events."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger("kapudf")
    return logger


def _put_first(logger: object, method: str, event: EventDict) -> EventDict:
    """Have each line begin with when, how bad and what: people read JSON, too."""
    del logger, method
    first = {name: event.pop(name) for name in ("timestamp", "level", "event") if name in event}
    return {**first, **event}


def _shorten_texts(logger: object, method: str, event: EventDict) -> EventDict:
    """Cut long texts, such as those of exceptions that hold all of their data."""
    del logger, method
    return {
        name: shorten(value, _TEXT_CHARACTERS) if isinstance(value, str) else value
        for name, value in event.items()
    }


def _make_printable(logger: object, method: str, event: EventDict) -> EventDict:
    """Escape what could change a terminal or look like another event.

    Only a traceback keeps its line breaks. Its lines are indented; those of events are not.
    """
    del logger, method
    shown: EventDict = {}
    for name, value in event.items():
        if name in _BLOCKS:
            lines = str(value).split("\n")
            shown[name] = "\n".join(f"    {printable(line)}".rstrip() for line in lines)
        elif name in {"event", "level", "timestamp", "logger", "logger_name"}:
            shown[name] = printable(str(value))
        else:
            shown[printable(str(name))] = _Shown(value)
    return shown


class _Shown:
    """A value whose `repr` is how the console shows it: in quotes where that tells its end."""

    def __init__(self, value: object) -> None:
        plain = isinstance(value, str) and not set(value) & set(" \t\r\n=\"'")
        self._text = printable(str(value) if plain else repr(value))

    def __repr__(self) -> str:
        return self._text


def _log_thread_failure(failure: threading.ExceptHookArgs) -> None:
    """Log what ended a thread that a handler had started."""
    name = failure.thread.name if failure.thread else None
    trace = (failure.exc_type, failure.exc_value, failure.exc_traceback)
    get_logger().error("thread failed", thread=name, exc_info=trace)
