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

#: How many lines of a child's stderr are kept, and the length of each.
_LAST_LINES = 20
_LINE_BYTES = 2000
#: How long a child may take to exit after its pipes are closed, and after SIGTERM.
_EXIT_S = 2.0
#: How long descendants of a child may keep its stderr open.
_STDERR_S = 0.5


class Lines(Protocol):
    """The file that a child's stderr is copied to: a binary file, or an object like it."""

    def write(self, line: bytes, /) -> Any:
        """Write a line, or a part of a long one."""

    def flush(self) -> None:
        """Flush what was written."""


@dataclass(frozen=True)
class CommandTarget:
    """A command with its arguments, run without a shell; see `Target`.

    Attributes:
        name: the command as the user wrote it.
        arguments: the program and its arguments.
        stderr: where to copy the child's stderr, line by line; None for nowhere.
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
        """Start the command; see `Target.open`. It has ended at the end of the block."""
        child, pipes = self._start()
        stderr = _Stderr(child, self.stderr)
        try:
            with KapacitorSide(pipes, timeout_s=timeout_s) as side:
                yield Connection(side, child.pid, lambda wait_s: _ending(child, stderr, wait_s))
        finally:
            end_group(child)
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
                    # A new process group, so that its child processes end with it.
                    process_group=0,
                )
            except (OSError, ValueError) as error:
                raise TargetError(self.name, _why_not_started(self.arguments[0], error)) from error
            ours.pop_all()
            return child, PipePair(to_child, from_child)


class _Stderr:
    """Reads a child's stderr to its end, copies it, and keeps the last lines."""

    def __init__(self, child: subprocess.Popen[bytes], passed_to: Lines | None) -> None:
        self._child = child
        self._passed_to = passed_to
        self._lines: collections.deque[str] = collections.deque(maxlen=_LAST_LINES)
        #: An earlier line in which the runtime says why it ends the process.
        self._fatal: tuple[str, ...] = ()
        self._reader = threading.Thread(target=self._read, name="stderr", daemon=True)
        self._reader.start()

    def last_lines(self) -> tuple[str, ...]:
        """Return the last lines of a child that has ended."""
        self._reader.join(_STDERR_S)
        return (*self._fatal, *tuple(self._lines))

    def finish(self) -> None:
        """Close stderr, once the child has ended."""
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
    return Ending(status == 0, how_it_ended(status), stderr.last_lines())


def how_it_ended(status: int) -> str:
    """Return in words how a child with this status ended."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


def end_group(child: subprocess.Popen[bytes], *, first_wait_s: float = _EXIT_S) -> None:
    """Wait for the exit of a child that leads a process group; end the group if it does not exit.

    Args:
        child: the child.
        first_wait_s: how long it may take before SIGTERM; SIGKILL follows after 2 s more.
    """
    for number, wait_s in ((signal.SIGTERM, first_wait_s), (signal.SIGKILL, _EXIT_S)):
        try:
            child.wait(wait_s)
            break
        except subprocess.TimeoutExpired:
            _signal_group(child, number)
        except BaseException:
            # Ctrl-C while waiting: leave no process behind.
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

    Kapacitor uses pipes for a process UDF. With a socket pair, a program could not open
    /dev/stdin, or close its stdout before it exits.
    """

    def __init__(self, to_child: int, from_child: int) -> None:
        """Take ownership of a descriptor to write to and one to read from."""
        os.set_blocking(to_child, False)
        self._to_child: int | None = to_child
        self._from_child: int | None = from_child

    def send(self, data: bytes | memoryview, flags: int = 0, /) -> int:
        """Write as much as fits into the pipe.

        Raises:
            BlockingIOError: the pipe is full.
            BrokenPipeError: the child has closed its stdin, or this end is closed.
        """
        del flags
        return os.write(self.write_descriptor(), data)

    def recv(self, bufsize: int, /) -> bytes:
        """Wait for bytes and return up to `bufsize`; b"" if the child has closed its stdout."""
        return os.read(self.fileno(), bufsize)

    def fileno(self) -> int:
        """Return the descriptor to read from."""
        return _open_end(self._from_child)

    def write_descriptor(self) -> int:
        """Return the descriptor to write to."""
        return _open_end(self._to_child)

    def shutdown(self, how: int, /) -> None:
        """Close the child's stdin. Its stdout cannot be shut down."""
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
