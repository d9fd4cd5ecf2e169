"""The kinds of UDF that can be tested, but for commands: at a socket, or in this process."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from kapudf_cli.agent.agent import Agent
from kapudf_cli.client.driver import KapacitorSide, ask_info, why_not_connected
from kapudf_cli.client.errors import ProbeError, TargetError
from kapudf_cli.system.socket_file import peer_credentials
from kapudf_cli.transport import SocketStream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from kapudf_cli.agent.agent import ConnectionSummary
    from kapudf_cli.agent.handler_caller import HandlerFactory
    from kapudf_cli.handler.handler import Handler
    from kapudf_cli.protocol.udf_pb2 import InfoResponse

#: A handler that takes longer to answer Info would make Kapacitor's start fail as well.
_DESCRIBE_TIMEOUT_S = 10.0
#: How the Go runtime and CPython begin the line that says why they end the process. Stack
#: traces of any length follow it.
_FATAL: Final = re.compile(r"\s*(panic: |fatal error: |Fatal Python error: )")
_TRACEBACK: Final = "Traceback (most recent call last):"


@dataclass(frozen=True)
class Ending:
    """How the process or handler behind a connection ended.

    Attributes:
        clean: nothing went wrong: a process exited with status 0, a handler raised nothing.
        text: what happened, to be put after the UDF's name: `exited with status 1`.
        last_words: the last lines that it wrote to stderr, oldest first. The `panic:` line
            of a Go program comes first, however long the stack traces after it are.
    """

    clean: bool
    text: str
    last_words: tuple[str, ...] = ()

    @property
    def cause(self) -> str:
        """The line on its stderr that says why it ended; "" if there is none."""
        return cause_line(self.last_words)

    def __str__(self) -> str:
        """Return the text with the cause: `exited with status 1, after saying: no model`."""
        return f"{self.text}, after saying: {self.cause:.200}" if self.cause else self.text


@dataclass(frozen=True)
class Connection:
    """One connection to the UDF under test.

    Attributes:
        side: Kapacitor's end of it.
        pid: the process at the other end, None if the system does not tell.
        ending: waits up to so many seconds for the UDF to end, and returns how it ended; None
            if it has not, or if that cannot be seen from here, as with a socket.
        drains: whether the UDF is known to answer all of its input before it closes, and a
            keepalive only after the points before it. True for kapudf's own agent; other
            agents may drop answers that are not written when their input ends.
    """

    side: KapacitorSide
    pid: int | None
    ending: Callable[[float], Ending | None]
    drains: bool = False


class Target(Protocol):
    """A UDF that can be connected to any number of times."""

    @property
    def name(self) -> str:
        """What messages call it: a path, a command, a handler's name."""

    def open(self, *, timeout_s: float) -> AbstractContextManager[Connection]:
        """Connect; leaving the block closes the connection, and ends what was started for it.

        Args:
            timeout_s: how long connecting may take, and then every wait on the connection
                until `side.extend`.

        Raises:
            TargetError: there is nothing to connect to, or it cannot be started.
        """


@dataclass(frozen=True)
class SocketTarget:
    """A UDF that another process serves on a Unix socket; see `Target`."""

    path: str

    @property
    def name(self) -> str:
        """The path."""
        return self.path

    @contextlib.contextmanager
    def open(self, *, timeout_s: float) -> Iterator[Connection]:
        """Connect; see `Target.open`."""
        try:
            side = KapacitorSide.connect(self.path, timeout_s=timeout_s)
        except OSError as error:
            raise TargetError(self.path, why_not_connected(self.path, error)) from error
        with side:
            peer = None
            if isinstance(side.connection, socket.socket):
                peer = peer_credentials(side.connection)
            # How the process of another user or service ends cannot be seen from here.
            yield Connection(side, None if peer is None else peer.pid, lambda _: None)


@dataclass(frozen=True)
class HandlerTarget:
    """A handler's class, with an instance for each connection; see `Target`.

    The handler prints where this process prints.
    """

    name: str
    handler: type[Handler]

    @contextlib.contextmanager
    def open(self, *, timeout_s: float) -> Iterator[Connection]:
        """Serve it in a thread; see `Target.open`."""
        summaries: list[ConnectionSummary] = []
        ended = threading.Event()

        def on_end(summary: ConnectionSummary) -> None:
            summaries.append(summary)
            ended.set()

        def ending(timeout_s: float) -> Ending | None:
            return _ending(summaries[0]) if ended.wait(timeout_s) else None

        with served(self.handler, timeout_s=timeout_s, on_end=on_end) as side:
            yield Connection(side, os.getpid(), ending, drains=True)


def _ending(summary: ConnectionSummary) -> Ending:
    error = summary.error or summary.stop_error
    if error is not None:
        return Ending(clean=False, text=f"ended: {error}")
    if summary.refusal is not None:
        return Ending(clean=True, text=f"ended: {summary.refusal}")
    return Ending(clean=True, text="ended by itself")


@contextlib.contextmanager
def served(
    handler: HandlerFactory,
    *,
    timeout_s: float,
    on_end: Callable[[ConnectionSummary], None] = lambda _: None,
) -> Iterator[KapacitorSide]:
    """Serve a handler on a socket pair, with the agent of `kapudf serve`; give Kapacitor's end.

    Args:
        handler: makes the handler; usually its class.
        timeout_s: how long each wait may take, including the one for its end.
        on_end: called in another thread with the summary of the connection.
    """
    ours, theirs = socket.socketpair()
    agent = Agent(SocketStream(theirs), handler)
    thread = threading.Thread(target=lambda: on_end(agent.run()), name="in-process", daemon=True)
    thread.start()
    try:
        with KapacitorSide(ours, timeout_s=timeout_s) as side:
            yield side
    finally:
        thread.join(timeout_s)


def describe(handler: HandlerFactory) -> InfoResponse:
    """Return a handler's answer to Info.

    Raises:
        ProbeError: it failed.
        OSError: it did not answer in time.
    """
    with served(handler, timeout_s=_DESCRIBE_TIMEOUT_S) as side:
        return ask_info(side)


def info_of(target: Target, *, timeout_s: float) -> InfoResponse:
    """Return a UDF's answer to Info, on a connection of its own, as Kapacitor asks at its start.

    Raises:
        TargetError: it cannot be connected to or started.
        ProbeError: it did not answer as it should.
    """
    with target.open(timeout_s=timeout_s) as connection:
        try:
            return ask_info(connection.side)
        except TimeoutError as error:
            problem = f"{target.name}: no answer to Info within {timeout_s:g} s; is the UDF stuck?"
            raise ProbeError(problem) from error
        except (ProbeError, OSError) as error:
            ending = connection.ending(0.5)
            how = "" if ending is None or ending.clean else f" ({ending.text})"
            if ending is not None and ending.text.removeprefix("ended: ") in str(error):
                how = ""  # A handler's exception is what the UDF has answered with.
            last = f": {ending.cause}" if ending and how and ending.cause else ""
            raise ProbeError(f"{target.name}: {error}{how}{last}") from error


def is_fatal(line: str) -> bool:
    """Return whether a line says why a runtime ends its process, with stack traces to follow."""
    return _FATAL.match(line) is not None


def cause_line(lines: Sequence[str]) -> str:
    """Return the line of a dead process's stderr that says why it died; "" if there are none.

    That is the `panic:` line of Go or the line with the exception of a Python traceback,
    whichever comes last, or else the last line.
    """
    for number, line in reversed(tuple(enumerate(lines))):
        if is_fatal(line):
            return line.strip()
        if line.startswith(_TRACEBACK):
            # Stack frames are indented; the exception is the first line that is not.
            below = (each for each in lines[number + 1 :] if not each[:1].isspace())
            if exception := next(below, ""):
                return exception
    return lines[-1].strip() if lines else ""
