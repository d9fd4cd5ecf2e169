"""Logging of a server process: kapudf's own events, and what handlers log or print.

All of it goes to stderr: as readable lines on a terminal, otherwise as JSON, one object per line.
kapudf's own events do not depend on anything that a handler can configure; see `loggers`.
"""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import functools
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
    from collections.abc import Iterator, Sequence

    from structlog.typing import EventDict, Processor

LogFormat: TypeAlias = Literal["auto", "console", "json"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]

#: The longest text in an event, and the longest traceback, in characters.
_TEXT_CHARACTERS: Final = 16 * 1024
#: What people look for in a line; `ConsoleRenderer` writes the time, level and event before it.
_FIRST_FOR_PEOPLE: Final = ("error", "reason", "how", "function", "task_id", "node_id")
#: People read JSON, too.
_FIRST_IN_JSON: Final = ("timestamp", "level", "event")
#: The fields that `ConsoleRenderer` prints on separate lines.
_BLOCKS: Final = ("stack", "exception")

_STAMP: Final = structlog.processors.TimeStamper(fmt="iso", utc=True)
_STDERR: Final = 2
#: A longer printed line becomes several events.
_LONGEST_PRINTED_BYTES: Final = 16 * 1024

#: Facts about the connection that the current thread serves. Not in structlog's own context,
#: which a handler may clear.
_facts: contextvars.ContextVar[dict[str, Any] | None] = contextvars.ContextVar(
    "kapudf_facts", default=None
)
_configured: _Configured | None = None


class _Configured:
    """The logging that `configure` has set up.

    Attributes:
        writer: where every line goes.
        logger: the logger of kapudf's own events.
        output: writes the events. A record passed directly is written at any level.
    """

    def __init__(self, writer: LogWriter, output: LineHandler, processors: list[Processor]) -> None:
        """Create a logger that does not depend on structlog's global configuration."""
        self.writer = writer
        self.output = output
        self.logger: structlog.stdlib.BoundLogger = structlog.wrap_logger(
            loggers.get("kapudf"),
            processors=processors,
            wrapper_class=structlog.stdlib.BoundLogger,
            context_class=dict,
            cache_logger_on_first_use=True,
        )


def resolved_format(log_format: LogFormat, descriptor: int = _STDERR) -> LogFormat:
    """Return the format for a descriptor: `console` or `json`."""
    if log_format == "auto":
        return "console" if os.isatty(descriptor) else "json"
    return log_format


def configure(log_format: LogFormat, level: LogLevel, *, descriptor: int = _STDERR) -> None:
    """Set up logging to a descriptor for the whole process.

    `auto` is `console` if the descriptor is a terminal.
    """
    global _configured  # noqa: PLW0603 - as logging itself, there is one for a process
    on_terminal = os.isatty(descriptor)
    for_people = resolved_format(log_format, descriptor) == "console"
    # Processors for both kapudf's events and records of the standard library.
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
            functools.partial(_put_first, names=_FIRST_FOR_PEOPLE),
            _make_printable,
            structlog.dev.ConsoleRenderer(
                colors=on_terminal,
                sort_keys=False,
                exception_formatter=structlog.dev.plain_traceback,
                pad_event_to=24,
            ),
        ]
    else:
        render += [
            functools.partial(_put_first, names=_FIRST_IN_JSON),
            structlog.processors.JSONRenderer(default=repr, ensure_ascii=False),
        ]
    processors: list[Processor] = [
        structlog.stdlib.filter_by_level,
        *shared,
        structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
    ]

    writer = LogWriter(descriptor, _log_lost)

    def output() -> LineHandler:
        formatter = structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=render)
        return LineHandler(writer, formatter)

    # Two outputs, because a handler may change or close the one that `logging` has.
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


def to_logging() -> structlog.stdlib.BoundLogger:
    """Return a logger of kapudf's own events that writes them to `logging`, as lines of text.

    For a process that configures `logging` itself.
    """
    logger: structlog.stdlib.BoundLogger = structlog.wrap_logger(
        loggers.get("kapudf"),
        processors=[_as_line],
        wrapper_class=structlog.stdlib.BoundLogger,
        context_class=dict,
    )
    return logger


def _as_line(logger: object, method: str, event: EventDict) -> tuple[tuple[str], dict[str, Any]]:
    """Return the arguments for `logging`: the event and its facts in one line."""
    del logger, method
    exc_info = event.pop("exc_info", None)
    text = str(event.pop("event"))
    facts = "".join(f" {name}={_Shown(value)!r}" for name, value in event.items())
    return (printable(text + facts).replace("%", "%%"),), {"exc_info": exc_info}


def write_lines(lines: str) -> None:
    """Write lines that another process has logged, as they are."""
    if _configured is not None and lines:
        for line in lines.removesuffix("\n").split("\n"):
            _configured.writer.write(line)


def bind_facts(**facts: Any) -> None:
    """Add facts to every event that the current thread logs from now on."""
    _facts.set({**(_facts.get() or {}), **facts})


def merge_facts(logger: object, method: str, event: EventDict) -> EventDict:
    """Add the facts of the current thread to an event; a processor of structlog."""
    del logger, method
    return {**(_facts.get() or {}), **event}


@contextlib.contextmanager
def prints_logged() -> Iterator[None]:
    """Log each line that Python code prints as an event, instead of writing it.

    Otherwise a line that a handler prints could mix with a line of the log. Call `configure`
    first.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _log_stream("stdout", 1), _log_stream("stderr", _STDERR)
    try:
        yield
    finally:
        with contextlib.suppress(Exception):  # A handler may have replaced them.
            sys.stdout.flush()
            sys.stderr.flush()
        sys.stdout, sys.stderr = before


def exit_despite_threads(status: int) -> None:
    """Exit at once if a handler has left threads running; otherwise return.

    The interpreter would wait for these threads without a limit.
    """
    own = {threading.current_thread(), threading.main_thread()}
    if any(each not in own and each.name != THREAD_NAME for each in threading.enumerate()):
        exit_at_once(status)


def flush() -> None:
    """Write the log as far as it is queued, within a limited time."""
    if _configured is not None:
        _configured.writer.finish()


def exit_at_once(status: int) -> NoReturn:
    """Exit without waiting for any thread, after writing the log."""
    try:
        logging.shutdown()
        flush()
    finally:
        os._exit(status)


def crash_descriptor() -> int:
    """Return the descriptor for faulthandler; a write to stderr itself could block."""
    return _STDERR if _configured is None else _configured.writer.descriptor


def _put_first(logger: object, method: str, event: EventDict, *, names: Sequence[str]) -> EventDict:
    """Put some fields first, in this order; the others keep theirs."""
    del logger, method
    first = {name: event.pop(name) for name in names if name in event}
    return {**first, **event}


def _shorten_texts(logger: object, method: str, event: EventDict) -> EventDict:
    """Shorten long texts, for example of an exception that contains all of its data."""
    del logger, method
    return {
        name: shorten(value, _TEXT_CHARACTERS) if isinstance(value, str) else value
        for name, value in event.items()
    }


def _make_printable(logger: object, method: str, event: EventDict) -> EventDict:
    """Escape text that could control a terminal or look like another event.

    Only a traceback keeps its line breaks, and its lines are indented.
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
    """A value whose `repr` is its text on the console, quoted only if it is ambiguous."""

    def __init__(self, value: object) -> None:
        plain = isinstance(value, str) and not set(value) & set(" \t\r\n=\"'")
        self._text = printable(str(value) if plain else repr(value))

    def __repr__(self) -> str:
        return self._text


def _log_thread_failure(failure: threading.ExceptHookArgs) -> None:
    """Log the exception that ended a thread of a handler."""
    name = failure.thread.name if failure.thread else None
    trace = (failure.exc_type, failure.exc_value, failure.exc_traceback)
    get_logger().error("thread failed", thread=name, exc_info=trace)


def _log_lost(lost: int) -> None:
    get_logger().error("log events lost, stderr was not read", lost=lost)


def _log_stream(name: str, descriptor: int) -> io.TextIOWrapper:
    """Return a text stream whose lines are logged."""
    lines = _PrintedLines(name, descriptor)
    return io.TextIOWrapper(
        lines,  # type: ignore[arg-type]  # a raw stream works, because it accepts each write completely
        encoding="utf-8",
        errors="backslashreplace",
        write_through=True,
    )


class _PrintedLines(io.RawIOBase):
    """A stream that collects each thread's prints, and logs them line by line."""

    def __init__(self, name: str, descriptor: int) -> None:
        """Log the lines of stream `name`; child processes get `descriptor`."""
        self._name = name
        self._descriptor = descriptor
        self._thread = threading.local()

    def writable(self) -> bool:
        """Return True: see `io.RawIOBase`."""
        return True

    def fileno(self) -> int:
        """Return the descriptor for child processes that are started with this stream."""
        return self._descriptor

    def write(self, data: Any, /) -> int:
        """Log the complete lines and keep the rest."""
        *lines, rest = (self._take_pending() + bytes(data)).split(b"\n")
        if len(rest) >= _LONGEST_PRINTED_BYTES:
            lines, rest = [*lines, rest], b""
        self._thread.pending = rest
        for line in lines:
            self._log(line)
        return len(data)

    def flush(self) -> None:
        """Log the incomplete line, if there is one."""
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
                # Passed to the output directly: no level hides a print.
                record = logging.LogRecord("print", logging.INFO, "", 0, text.rstrip(), None, None)
                record.stream = self._name
                _configured.output.handle(record)
