"""Logging of a server process: kapudf's own events, and what handlers log or print.

All of it goes to stderr: as lines for people on a terminal, as JSON objects, one a line, elsewhere.
kapudf's own events do not depend on anything that a handler can configure; see `loggers`.
"""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import io
import logging
import os
import sys
import threading
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, TypeAlias

import structlog

from kapudf_cli.errors import shorten
from kapudf_cli.system import loggers
from kapudf_cli.system.log_writer import THREAD_NAME, LineHandler, LogWriter
from kapudf_cli.system.terminal_text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from structlog.typing import EventDict, Processor

LogFormat: TypeAlias = Literal["auto", "console", "json"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]

#: The longest text in an event, and the longest traceback, in characters.
_TEXT_CHARACTERS: Final = 16 * 1024
#: What `ConsoleRenderer` puts on lines of their own.
_BLOCKS: Final = ("stack", "exception")

_STAMP: Final = structlog.processors.TimeStamper(fmt="iso", utc=True)
_STDERR: Final = 2
#: A printed line that is longer becomes several events.
_LONGEST_PRINTED_BYTES: Final = 16 * 1024

#: Which connection the current thread serves. A handler may clear the context of structlog.
_facts: contextvars.ContextVar[dict[str, Any] | None] = contextvars.ContextVar(
    "kapudf_facts", default=None
)
_configured: _Configured | None = None


class _Configured:
    """What `configure` has set up.

    Attributes:
        writer: where every line goes.
        logger: the logger of kapudf's own events.
        output: writes them; given a record directly, it writes that whatever its level.
    """

    def __init__(self, writer: LogWriter, output: LineHandler, processors: list[Processor]) -> None:
        """Have a logger that takes nothing from structlog's global configuration."""
        self.writer = writer
        self.output = output
        self.logger: structlog.stdlib.BoundLogger = structlog.wrap_logger(
            loggers.get("kapudf"),
            processors=processors,
            wrapper_class=structlog.stdlib.BoundLogger,
            context_class=dict,
            cache_logger_on_first_use=True,
        )


def configure(log_format: LogFormat, level: LogLevel) -> None:
    """Set logging up for the whole process; `auto` asks whether stderr is a terminal."""
    global _configured  # noqa: PLW0603 - as logging itself, there is one for a process
    on_terminal = os.isatty(_STDERR)
    for_people = on_terminal if log_format == "auto" else log_format == "console"
    # What an event of ours and a record of the standard library have in common.
    shared: list[Processor] = [
        merge_facts,
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
                colors=on_terminal,
                exception_formatter=structlog.dev.plain_traceback,
                pad_event_to=24,
            ),
        ]
    else:
        render += [
            _put_first,
            structlog.processors.JSONRenderer(default=repr, ensure_ascii=False),
        ]
    processors: list[Processor] = [
        structlog.stdlib.filter_by_level,
        *shared,
        structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
    ]

    writer = LogWriter(_STDERR, _log_lost)

    def output() -> LineHandler:
        formatter = structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=render)
        return LineHandler(writer, formatter)

    # Two outputs, for a handler may change or close the one that `logging` has.
    own = output()
    loggers.set_output(own, logging.getLevelNamesMapping()[level.upper()])
    # A full disk or a closed pipe behind stderr must not end a connection.
    logging.raiseExceptions = False
    logging.basicConfig(handlers=[output()], level=level.upper(), force=True)
    logging.captureWarnings(capture=True)
    # For handlers that use structlog themselves.
    structlog.configure(
        processors=processors,
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    threading.excepthook = _log_thread_failure
    _configured = _Configured(writer, own, processors)
    atexit.register(writer.finish)


def get_logger() -> structlog.stdlib.BoundLogger:
    """Return the logger of kapudf's own events."""
    if _configured is not None:
        return _configured.logger
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger("kapudf")
    return logger


def bind_facts(**facts: Any) -> None:
    """Add facts to every event that the current thread logs from now on."""
    _facts.set({**(_facts.get() or {}), **facts})


def merge_facts(logger: object, method: str, event: EventDict) -> EventDict:
    """Add the facts of the current thread to an event; a processor of structlog."""
    del logger, method
    return {**(_facts.get() or {}), **event}


@contextlib.contextmanager
def prints_logged() -> Iterator[None]:
    """Log what Python code prints, an event for each line, in place of writing it as it is.

    A line that a handler prints to stdout or stderr could otherwise begin or end within a
    line of the log. Only after `configure`.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _log_stream("stdout", 1), _log_stream("stderr", _STDERR)
    try:
        yield
    finally:
        with contextlib.suppress(Exception):  # A handler may have put anything in their place.
            sys.stdout.flush()
            sys.stderr.flush()
        sys.stdout, sys.stderr = before


def exit_despite_threads(status: int) -> None:
    """End the process at once if a handler has left threads; return otherwise.

    The interpreter would wait for them, without end.
    """
    own = {threading.current_thread(), threading.main_thread()}
    if any(each not in own and each.name != THREAD_NAME for each in threading.enumerate()):
        exit_at_once(status)


def exit_at_once(status: int) -> NoReturn:
    """End the process without waiting for any thread; what was logged is written."""
    try:
        logging.shutdown()
        if _configured is not None:
            _configured.writer.finish()
    finally:
        os._exit(status)


def crash_descriptor() -> int:
    """Return where faulthandler may write: a write to stderr itself could wait for its reader."""
    return _STDERR if _configured is None else _configured.writer.descriptor


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


def _log_lost(lost: int) -> None:
    get_logger().error("log events lost, nobody read them", lost=lost)


def _log_stream(name: str, descriptor: int) -> io.TextIOWrapper:
    """Return a text stream whose lines are logged."""
    lines = _PrintedLines(name, descriptor)
    return io.TextIOWrapper(
        lines,  # type: ignore[arg-type]  # a raw stream will do, for it takes all of each write
        encoding="utf-8",
        errors="backslashreplace",
        write_through=True,
    )


class _PrintedLines(io.RawIOBase):
    """Collects what each thread prints, and logs it line by line."""

    def __init__(self, name: str, descriptor: int) -> None:
        """Log the lines of stream `name`, which programs that are started know by `descriptor`."""
        self._name = name
        self._descriptor = descriptor
        self._thread = threading.local()

    def writable(self) -> bool:
        """Return True: see `io.RawIOBase`."""
        return True

    def fileno(self) -> int:
        """Return the descriptor, for programs that are started with this stream."""
        return self._descriptor

    def write(self, data: Any, /) -> int:
        """Log the lines that are complete and keep the rest."""
        *lines, rest = (self._take_pending() + bytes(data)).split(b"\n")
        if len(rest) >= _LONGEST_PRINTED_BYTES:
            lines, rest = [*lines, rest], b""
        self._thread.pending = rest
        for line in lines:
            self._log(line)
        return len(data)

    def flush(self) -> None:
        """Log the line that is not complete, if there is one."""
        if not self.closed:
            self._log(self._take_pending())

    def _take_pending(self) -> bytes:
        pending: bytes = getattr(self._thread, "pending", b"")
        self._thread.pending = b""
        return pending

    def _log(self, line: bytes) -> None:
        for start in range(0, len(line), _LONGEST_PRINTED_BYTES):
            text = line[start : start + _LONGEST_PRINTED_BYTES].decode("utf-8", "replace")
            if text.strip() and _configured is not None:
                # Handed to the output itself: a print has no level.
                record = logging.LogRecord("print", logging.INFO, "", 0, text.rstrip(), None, None)
                record.stream = self._name
                _configured.output.handle(record)
