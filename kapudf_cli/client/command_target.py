"""A process UDF: a command that is started for each connection, as Kapacitor starts it."""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import shlex
import signal
import subprocess
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from kapudf_cli.client.driver import KapacitorSide
from kapudf_cli.client.errors import TargetError
from kapudf_cli.client.target import Connection, Ending, is_fatal

if TYPE_CHECKING:
    from collections.abc import Iterator

#: How much of what a child wrote to stderr is kept to be told with its end.
_LAST_LINES = 20
_LINE_BYTES = 2000
#: How long a child may take to exit once both pipes are closed, and once it was asked to.
_EXIT_S = 2.0
#: How long whatever a child left behind may keep its stderr open.
_STDERR_S = 0.5


class Lines(Protocol):
    """Where a child's stderr is passed on to: a binary file, or what has its calls."""

    def write(self, line: bytes, /) -> Any:
        """Write a line, or a part of a long one."""

    def flush(self) -> None:
        """Hand on what was written."""


@dataclass(frozen=True)
class CommandTarget:
    """A command with its arguments, run without a shell; see `Target`.

    Attributes:
        name: the command as the user wrote it.
        arguments: the program and its arguments.
        stderr: where the child's stderr is passed on to as it comes, None for nowhere.
    """

    name: str
    arguments: tuple[str, ...]
    stderr: Lines | None = None

    @classmethod
    def parse(cls, command: str, *, stderr: Lines | None = None) -> CommandTarget:
        """Return a command as a shell would split it.

        Raises:
            TargetError: it is empty, or a quote is not closed.
        """
        try:
            arguments = tuple(shlex.split(command))
        except ValueError as error:
            problem = f"cannot be split into arguments: {error}"
            raise TargetError(command, problem) from error
        if not arguments or not arguments[0]:
            raise TargetError(repr(command), "names no program")
        return cls(command, arguments, stderr)

    @contextlib.contextmanager
    def open(self, *, timeout_s: float) -> Iterator[Connection]:
        """Start it; see `Target.open`. It has ended when the block is left."""
        child, pipes = self._start()
        stderr = _Stderr(child, self.stderr)
        try:
            with KapacitorSide(pipes, timeout_s=timeout_s) as side:
                yield Connection(side, child.pid, lambda wait_s: _ending(child, stderr, wait_s))
        finally:
            _end(child)
            stderr.finish()

    def _start(self) -> tuple[subprocess.Popen[bytes], PipePair]:
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            child_in, to_child = os.pipe()
            theirs.callback(os.close, child_in)
            ours.callback(os.close, to_child)
            from_child, child_out = os.pipe()
            theirs.callback(os.close, child_out)
            ours.callback(os.close, from_child)
            try:
                child = subprocess.Popen(  # noqa: S603 - the user's own command
                    self.arguments,
                    stdin=child_in,
                    stdout=child_out,
                    stderr=subprocess.PIPE,
                    # A group of its own, so that what it starts ends with it.
                    process_group=0,
                )
            except (OSError, ValueError) as error:
                raise TargetError(self.name, _why_not_started(self.arguments[0], error)) from error
            ours.pop_all()
            return child, PipePair(to_child, from_child)


class _Stderr:
    """Reads a child's stderr to its end, passes it on, and keeps the last lines."""

    def __init__(self, child: subprocess.Popen[bytes], passed_to: Lines | None) -> None:
        self._child = child
        self._passed_to = passed_to
        self._lines: collections.deque[str] = collections.deque(maxlen=_LAST_LINES)
        #: The line of those that are no longer kept that says why the process ends.
        self._fatal: tuple[str, ...] = ()
        self._reader = threading.Thread(target=self._read, name="stderr", daemon=True)
        self._reader.start()

    def last_lines(self) -> tuple[str, ...]:
        """Return the last lines of a child that has ended, as text of one line each."""
        self._reader.join(_STDERR_S)
        return (*self._fatal, *tuple(self._lines))

    def finish(self) -> None:
        """Let it go, once the child has ended."""
        self._reader.join(_STDERR_S)
        if not self._reader.is_alive() and self._child.stderr is not None:
            self._child.stderr.close()

    def _read(self) -> None:
        stderr = self._child.stderr
        while stderr is not None and (line := stderr.readline(_LINE_BYTES)):
            if stripped := line.decode("utf-8", "backslashreplace").rstrip():
                if len(self._lines) == _LAST_LINES and is_fatal(self._lines[0]):
                    self._fatal = (self._lines[0],)
                self._lines.append(stripped)
            if self._passed_to is not None:
                with contextlib.suppress(OSError, ValueError):
                    self._passed_to.write(line)
                    self._passed_to.flush()


def _ending(child: subprocess.Popen[bytes], stderr: _Stderr, wait_s: float) -> Ending | None:
    try:
        status = child.wait(wait_s)
    except subprocess.TimeoutExpired:
        return None
    return Ending(status == 0, _told(status), stderr.last_lines())


def _told(status: int) -> str:
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


def _end(child: subprocess.Popen[bytes]) -> None:
    """Wait until a child whose pipes are closed has exited; make it, if it does not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            child.wait(_EXIT_S)
            break
        except subprocess.TimeoutExpired:
            _signal_group(child, number)
        except BaseException:
            # Ctrl-C while waiting: nothing that was started here is left behind.
            _signal_group(child, signal.SIGKILL)
            raise
    child.wait()


def _signal_group(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)


def _why_not_started(program: str, error: Exception) -> str:
    match error:
        case FileNotFoundError():
            return f"there is no program '{program}' here or on the PATH"
        case PermissionError():
            return f"'{program}' may not be executed; is its mode right, and is it a program?"
        case OSError():
            return f"'{program}' cannot be started: {error.strerror or error}"
    return f"'{program}' cannot be started: {error}"


class PipePair:
    """Our ends of the pipes to a child's stdin and from its stdout; see `Duplex`.

    Kapacitor uses pipes for a process UDF. A pair of sockets would not do for a program that
    opens /dev/stdin, or that closes its stdout before it exits.
    """

    def __init__(self, to_child: int, from_child: int) -> None:
        """Take over a descriptor to write to and one to read from."""
        os.set_blocking(to_child, False)
        self._to_child: int | None = to_child
        self._from_child: int | None = from_child

    def send(self, data: bytes | memoryview, flags: int = 0, /) -> int:
        """Write as much as there is room for.

        Raises:
            BlockingIOError: there is no room.
            BrokenPipeError: the child has closed its stdin, or this end was closed.
        """
        del flags
        return os.write(self.write_descriptor(), data)

    def recv(self, bufsize: int, /) -> bytes:
        """Wait for bytes and return up to so many; b"" once the child has closed its stdout."""
        return os.read(self.fileno(), bufsize)

    def fileno(self) -> int:
        """Return the descriptor to read from."""
        return _open_end(self._from_child)

    def write_descriptor(self) -> int:
        """Return the descriptor to write to."""
        return _open_end(self._to_child)

    def shutdown(self, how: int, /) -> None:
        """Close the child's stdin; there is no other direction to shut down."""
        del how
        if self._to_child is not None:
            os.close(self._to_child)
            self._to_child = None

    def close(self) -> None:
        """Close both pipes."""
        self.shutdown(0)
        if self._from_child is not None:
            os.close(self._from_child)
            self._from_child = None


def _open_end(descriptor: int | None) -> int:
    if descriptor is None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
    return descriptor
