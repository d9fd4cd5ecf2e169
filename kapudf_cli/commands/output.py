"""What commands print: escaped text for people, and results on stdout.

Names, errors and values come from UDFs, recordings and tasks. None of them may control the
terminal or forge a line, so all text for people is escaped here; see `terminal_text`.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import select
import shutil
import sys
import textwrap
import threading
import traceback
from typing import TYPE_CHECKING, Any, Final

import click

from kapudf_cli.errors import OutputError
from kapudf_cli.system.terminal_text import printable, printable_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import IO

    from click._termui_impl import ProgressBar

    from kapudf_cli.client.target import Counts
    from kapudf_cli.tools.recordings.recording import Recording

_STREAM_MODES: Final = {"stdin": "r", "stdout": "w", "stderr": "w"}
#: The errors of a file that takes no more data.
_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
#: Tables fit into a terminal of this width.
COLUMNS: Final = 80
#: How much output is collected before it is written.
_BUFFER_BYTES: Final = 32 * 1024
#: How often `Stdout.while_blocked` is called.
_BLOCKED_MS: Final = 50
#: Erase the terminal, and what has scrolled out of it; write from its top.
_CLEAR: Final = "\x1b[H\x1b[2J\x1b[3J"
#: A column of a table that is cut is not shorter than this.
_SHORTEST_CUT: Final = 6
#: When a progress bar appears, and how often it changes.
_PROGRESS_DELAY_S: Final = 1.0
_PROGRESS_EVERY_S: Final = 0.2


def say(line: str = "", *, err: bool = False) -> None:
    """Print one line of text to stdout or stderr."""
    click.echo(printable(line), err=err)


def warn(problem: str) -> None:
    """Print a warning to stderr."""
    say(f"warning: {problem}", err=True)


#: Where --traceback is kept, in the `meta` of the click context.
WHOLE_TRACEBACKS: Final = "kapudf.whole_tracebacks"


def show_traceback(error: BaseException) -> bool:
    """Print to stderr where the code of a handler in this process raised an exception.

    These are the frames of the handler's code, for a message of the caller with the exception;
    with --traceback, the whole traceback. Nothing is printed, and False returned, for other
    errors, and in commands without --traceback.
    """
    from kapudf_cli.agent.errors import HandlerError
    from kapudf_cli.plugin_errors import HandlerImportError, WorkerSetupError
    from kapudf_cli.system.stacks import plugin_traceback

    whole = click.get_current_context().meta.get(WHOLE_TRACEBACKS)
    # An import and `setup_worker` fail in the command itself, `point` in the agent's thread.
    in_command = isinstance(error, HandlerImportError | WorkerSetupError)
    raised = error if in_command else error.__cause__
    kinds = HandlerError, HandlerImportError, WorkerSetupError
    if whole is None or not isinstance(raised, kinds):
        return False
    if whole:
        text = "".join(traceback.format_exception(raised.cause))
    else:
        text = plugin_traceback(raised.cause)
    for line in text.splitlines():
        say(line, err=True)
    return bool(text)


def say_styled(lines: Iterable[str], *, clears: bool = False) -> None:
    """Print lines that are escaped already, and may have colors for a terminal.

    Args:
        lines: the lines.
        clears: whether to clear the terminal first, if stdout is one.
    """
    if clears and sys.stdout.isatty():
        click.echo(_CLEAR, nl=False)
    for line in lines:
        click.echo(line)


def say_json(content: object, *, indent: int | None = None) -> None:
    """Print a value as JSON."""
    click.echo(json_text(content, indent=indent))


def json_text(content: object, *, indent: int | None = None) -> str:
    """Return a value as JSON that is safe to print; text that is not ASCII stays readable."""
    return printable_json(json.dumps(content, indent=indent, ensure_ascii=False))


def aligned(
    rows: Iterable[Sequence[str]], *, width: int | None = None, cut: Sequence[int] = ()
) -> Iterator[str]:
    """Yield rows as lines of aligned columns; all rows have the same number of cells.

    Cells are escaped, so that a newline in a cell does not start a row.

    Args:
        rows: the cells.
        width: the longest line that is wanted.
        cut: the columns that are shortened for that, as far as their text stays recognizable.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    while width is not None and sum(widths) + 2 * len(widths) - 2 > width:
        longest = max(cut, key=lambda column: widths[column])
        if widths[longest] <= _SHORTEST_CUT:
            break
        widths[longest] -= 1
    for row in rows:
        cells = (_fitted(cell, width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def labelled(label: str, text: str, *, indent: int) -> list[str]:
    """Return a label and a text to its right, as lines of 80 columns; both are escaped."""
    label = printable(label)
    first, *others = wrapped(text, indent=indent) or [""]
    if len(label) < indent:
        return [f"{label:{indent}}{first[indent:]}".rstrip(), *others]
    return [label, *filter(None, [first, *others])]


def wrapped(text: str, *, indent: int) -> list[str]:
    """Return a text as lines of 80 columns, which begin with spaces; escaped.

    A word longer than a line is not cut, so that it can be copied.
    """
    margin = " " * indent
    return textwrap.wrap(
        printable(text),
        COLUMNS,
        initial_indent=margin,
        subsequent_indent=margin,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _fitted(cell: str, width: int) -> str:
    """Return a cell that is as wide as its column; a cut one ends with an ellipsis."""
    return cell.ljust(width) if len(cell) <= width else f"{cell[: width - 1]}…"


def escaped(error: click.ClickException) -> click.ClickException:
    """Escape the message of an error of click, and return the error."""
    # click declares `message` as final, but reads it each time it shows the error.
    vars(error)["message"] = "\n".join(map(printable, error.message.split("\n")))
    return error


class PrintableLines:
    """A binary file that escapes the lines written to it, and passes them on."""

    def __init__(self, file: IO[bytes]) -> None:
        """Pass lines on to `file`."""
        self._file = file

    def write(self, line: bytes, /) -> Any:
        """Write a line, or a part of one."""
        text = line.decode("utf-8", "backslashreplace")
        body = text.rstrip("\r\n")
        end = "\n" if text.endswith("\n") else ""
        return self._file.write(f"{printable(body)}{end}".encode("utf-8", "backslashreplace"))

    def flush(self) -> None:
        """Flush the file."""
        self._file.flush()


# --- results on stdout ---


class Stdout:
    """Standard output for results, in UTF-8 whatever the locale.

    Attributes:
        live: whether to flush after each line, because a person is watching.
        while_blocked: called repeatedly while the reader of stdout reads nothing.
    """

    def __init__(self, file: IO[bytes]) -> None:
        """Write to an unbuffered file."""
        self.live = False
        self.while_blocked: Callable[[], None] = lambda: None
        self._file = file
        self._pending = bytearray()
        self._room = select.poll()
        # In a test, the file may have no descriptor. Then it never blocks.
        self._can_block = False
        with contextlib.suppress(OSError):
            self._room.register(file.fileno(), select.POLLOUT)
            self._can_block = True

    def emit(self, line: str) -> None:
        """Write a line.

        Raises:
            BrokenPipeError: the reader has closed the pipe.
            OutputError: stdout cannot be written, for example because the disk is full.
        """
        self.emit_part(f"{line}\n")
        if self.live:
            self.flush()

    def emit_part(self, text: str) -> None:
        """Write a part of a line; raises the same errors as `emit`."""
        # A name on the command line may hold a lone surrogate; text from protobuf cannot.
        self._pending += text.encode("utf-8", "backslashreplace")
        if len(self._pending) >= _BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        """Flush what was written; raises the same errors as `emit`."""
        with _output_errors():
            while self._pending:
                while self._can_block and not self._room.poll(_BLOCKED_MS):
                    self.while_blocked()
                # A pipe that is ready takes this many bytes without blocking.
                written = self._file.write(self._pending[: select.PIPE_BUF])
                del self._pending[: written or 0]
            self._file.flush()


@contextlib.contextmanager
def _output_errors() -> Iterator[None]:
    """Turn every OSError but a broken pipe into an OutputError."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"stdout cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def own_stdout() -> Iterator[Stdout]:
    """Reserve stdout for results; inside the block, a handler's `print` goes to stderr.

    Raises:
        BrokenPipeError: the reader has closed the pipe; unwritten output is dropped.
        OutputError: stdout cannot be written.
    """
    sys.stdout.flush()
    # In a test, stdout may not be a file. Then there is no descriptor to redirect.
    try:
        stdout = sys.stdout.fileno()
        descriptor = os.dup(stdout)
        os.dup2(sys.stderr.fileno(), stdout)
    except OSError:
        out = Stdout(sys.stdout.buffer)
        yield out
        out.flush()
        return
    file = os.fdopen(os.dup(descriptor), "wb", buffering=0)
    out = Stdout(file)
    try:
        yield out
        out.flush()
    finally:
        with contextlib.suppress(OSError, OutputError):
            # If this fails again, the error was raised already.
            out.flush()
        file.close()
        with contextlib.suppress(ValueError):  # The handler has closed it.
            sys.stdout.flush()
        os.dup2(descriptor, stdout)
        os.close(descriptor)


# --- progress on stderr ---


def show_live(line: str) -> None:
    """Replace the status line on stderr, cut to one line; an empty one removes it."""
    # A terminal without a size is as wide as a table.
    width = shutil.get_terminal_size((COLUMNS, 0)).columns
    click.echo(f"\r{_fitted(printable(line), width).rstrip()}\x1b[K", err=True, nl=False)


@contextlib.contextmanager
def progress(recording: Recording, counts: Counts) -> Iterator[None]:
    """Show how much of a recording has been read, while the block runs.

    Nothing is shown unless stderr is a terminal.
    """
    if not sys.stderr.isatty():
        yield
        return
    done = threading.Event()
    complete = threading.Event()
    thread = threading.Thread(
        target=_show_progress, args=(done, complete, recording, counts), daemon=True
    )
    thread.start()
    try:
        yield
        complete.set()
    finally:
        done.set()
        thread.join()


def _show_progress(
    done: threading.Event, complete: threading.Event, recording: Recording, counts: Counts
) -> None:
    if done.wait(_PROGRESS_DELAY_S):
        return
    size = recording.size_bytes
    if not size:
        # A pipe has no known size: show the counts without a bar.
        while True:
            show_live(_label(counts))
            if done.wait(_PROGRESS_EVERY_S):
                show_live("")
                return
    bar: ProgressBar[int]
    with click.progressbar(
        length=size, file=sys.stderr, show_percent=True, item_show_func=lambda _: _label(counts)
    ) as bar:
        while not done.wait(_PROGRESS_EVERY_S):
            # Input is read before it is processed: keep the bar below 100% until the end.
            bar.update(max(min(recording.read_bytes, size - 1) - bar.pos, 0))
        if complete.is_set():
            bar.update(size - bar.pos)


def _label(counts: Counts) -> str:
    return f"{counts.points_received:,} of {counts.points_sent:,} points came back"


# --- the standard streams of the process ---


def make_streams_usable() -> None:
    """Open standard streams that are closed, and escape characters that the locale lacks.

    A service may be started with a stream closed. `sys.stdout` is then None, and the next
    file or socket would get descriptor 1, to which a C library may print.
    """
    for name, mode in _STREAM_MODES.items():
        stream = getattr(sys, name)
        if stream is None:
            # The order matters: open() returns the lowest free descriptor, 0 to 2 in turn.
            null = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(null, True)  # noqa: FBT003 - its signature
            setattr(sys, name, open(null, mode, encoding="utf-8"))  # noqa: SIM115 - for good
        elif isinstance(stream, io.TextIOWrapper) and mode == "w":
            stream.reconfigure(errors="backslashreplace")


def is_full(error: OSError) -> bool:
    """Return whether an uncaught error means that stdout takes no more data.

    An error of another file has a file name.
    """
    return error.errno in _FULL and error.filename is None


def discard_stdout() -> None:
    """Drop unwritten output; the interpreter would try to write it again at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
