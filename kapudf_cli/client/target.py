"""UDFs to connect to: at a Unix socket, or a handler in this process.

`command_target.py` has the third kind, a process UDF.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from kapudf_cli.agent.agent import Agent
from kapudf_cli.agent.error_policy import DEFAULT_ON_ERROR
from kapudf_cli.agent.partitions import LocalPartitions
from kapudf_cli.client.driver import KapacitorSide, ask_info, why_not_connected
from kapudf_cli.client.errors import TASK_FAILS, ProbeError, TargetError, UdfFaultError, failed
from kapudf_cli.protocol.framing import DEFAULT_MAX_FRAME_BYTES
from kapudf_cli.protocol.udf_pb2 import BeginBatch, EndBatch, Point
from kapudf_cli.system.peers import peer_credentials
from kapudf_cli.system.stacks import plugin_calls
from kapudf_cli.system.terminal_text import counted
from kapudf_cli.transport import SocketStream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from kapudf_cli.agent.agent import ConnectionSummary
    from kapudf_cli.agent.handler_caller import HandlerFactory
    from kapudf_cli.handler.handler import Handler
    from kapudf_cli.protocol.codec import DataMessage, RequestMessage
    from kapudf_cli.protocol.udf_pb2 import InfoResponse

#: How long a process may take to exit after it has closed its connection.
EXIT_S: Final = 2.0
#: A handler that takes longer to answer Info would make Kapacitor's start fail as well.
_DESCRIBE_TIMEOUT_S = 10.0
#: The beginning of the line in which the Go runtime or CPython says why it ends the process.
#: Stack traces of any length follow.
_FATAL: Final = re.compile(r"\s*(panic: |fatal error: |Fatal Python error: )")
_TRACEBACK: Final = "Traceback (most recent call last):"


@dataclass(frozen=True)
class Ending:
    """How the process or handler behind a connection ended.

    Attributes:
        clean: whether a process exited with status 0, or a handler ended without an exception.
        text: what happened, without a subject: `exited with status 1`.
        last_words: the last lines on its stderr, oldest first. The first one is the `panic:`
            line of a Go program, even if long stack traces follow it.
        error: the exception with which a handler in this process ended.
    """

    clean: bool
    text: str
    last_words: tuple[str, ...] = ()
    error: BaseException | None = None

    @property
    def cause(self) -> str:
        """The line on its stderr with the reason; "" if there is none."""
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
        ending: waits for the UDF to end, for up to this many seconds, and returns how it ended;
            None if it has not, or if this cannot be seen, as with a socket.
        drains: whether the UDF certainly answers all of its input before it closes, and a
            keepalive only after the points before it. True for kapudf's agent; other agents
            may drop answers that are not written when their input ends.
        where: returns the innermost calls of a handler in this process, while it is called.
    """

    side: KapacitorSide
    pid: int | None
    ending: Callable[[float], Ending | None]
    drains: bool = False
    where: Callable[[], str | None] = lambda: None

    def failed(self, text: str) -> UdfFaultError:
        """Return the error for an ErrorResponse; its cause is the handler's exception, if known."""
        fault = failed(text)
        if self.pid == os.getpid() and (ending := self.ending(EXIT_S)) is not None:
            fault.__cause__ = ending.error
        return fault

    def closed(self, when: str) -> UdfFaultError:
        """Return the error for a UDF that closed too early, with how its process ended."""
        ending = self.ending(EXIT_S)
        if ending is None:
            advice = f"Its log may say why. {TASK_FAILS}"
            return UdfFaultError(f"closed the connection {when}", advice=advice)
        return UdfFaultError(f"closed the connection {when}; it {ending}", advice=TASK_FAILS)


@dataclass
class Counts:
    """The number of messages sent and received on a connection so far."""

    points_sent: int = 0
    batches_sent: int = 0
    points_received: int = 0
    batches_received: int = 0
    messages_received: int = 0

    def sent(self, message: RequestMessage) -> None:
        """Count a request that is about to be sent."""
        if isinstance(message, Point):
            self.points_sent += 1
        elif isinstance(message, BeginBatch):
            self.batches_sent += 1

    def received(self, message: DataMessage) -> None:
        """Count a point, or the begin or end of a batch."""
        self.messages_received += 1
        if isinstance(message, Point):
            self.points_received += 1
        elif isinstance(message, EndBatch):
            self.batches_received += 1

    def __str__(self) -> str:
        """Return `2 points back of 5 sent`."""
        return f"{counted(self.points_received, 'point')} back of {self.points_sent:,} sent"


class Target(Protocol):
    """A UDF that can be connected to any number of times."""

    @property
    def name(self) -> str:
        """The name in messages: a path, a command, or a handler's name."""

    def open(self, *, timeout_s: float) -> AbstractContextManager[Connection]:
        """Connect. At the end of the block, close the connection and end the started process.

        Args:
            timeout_s: how long connecting may take, and each wait on the connection until
                `side.extend`.

        Raises:
            TargetError: there is nothing to connect to, or the command cannot be started.
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
            # The process is not a child of this one: how it ends cannot be seen.
            yield Connection(side, None if peer is None else peer.pid, lambda _: None)


@dataclass(frozen=True)
class HandlerTarget:
    """A handler's class, with an instance for each connection; see `Target`.

    Attributes:
        name: the name in messages.
        handler: the class.
        partitions: how many instances share the groups of a connection.
    """

    name: str
    handler: type[Handler]
    partitions: int = 1

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

        with served(
            self.handler, timeout_s=timeout_s, on_end=on_end, partitions=self.partitions
        ) as handler:
            yield Connection(handler.side, os.getpid(), ending, drains=True, where=handler.where)


def _ending(summary: ConnectionSummary) -> Ending:
    error = summary.error or summary.stop_error
    if error is not None:
        return Ending(clean=False, text=f"ended: {error}", error=error)
    if summary.refusal is not None:
        return Ending(clean=True, text=f"ended: {summary.refusal}")
    return Ending(clean=True, text="ended by itself")


@dataclass(frozen=True)
class ServedHandler:
    """A handler that is served in this process.

    Attributes:
        side: Kapacitor's side of its connection.
        agent: serves it.
        thread: runs the agent.
    """

    side: KapacitorSide
    agent: Agent
    thread: threading.Thread

    def where(self) -> str | None:
        """Return the innermost calls of the handler; None if it is not called now."""
        return self.agent.oldest_call or plugin_calls(self.thread)


@contextlib.contextmanager
def served(
    handler: HandlerFactory,
    *,
    timeout_s: float,
    on_end: Callable[[ConnectionSummary], None] = lambda _: None,
    partitions: int = 1,
) -> Iterator[ServedHandler]:
    """Serve a handler on a socket pair, with the agent of `kapudf serve`.

    Args:
        handler: makes the handler; usually its class.
        timeout_s: how long each wait may take, including the wait for the agent's end.
        on_end: called in another thread with the summary of the connection.
        partitions: how many instances of the handler's class share the groups. They are called
            one after the other.
    """
    ours, theirs = socket.socketpair()
    agent = Agent(SocketStream(theirs), handler, partitions=_partitions(handler, partitions))
    thread = threading.Thread(target=lambda: on_end(agent.run()), name="in-process", daemon=True)
    thread.start()
    try:
        with KapacitorSide(ours, timeout_s=timeout_s) as side:
            yield ServedHandler(side, agent, thread)
    finally:
        thread.join(timeout_s)


def _partitions(handler: HandlerFactory, count: int) -> LocalPartitions | None:
    if count == 1 or not isinstance(handler, type):
        return None
    return LocalPartitions(
        handler, count, max_frame_bytes=DEFAULT_MAX_FRAME_BYTES, on_error=DEFAULT_ON_ERROR
    )


def describe(handler: HandlerFactory) -> InfoResponse:
    """Return a handler's answer to Info.

    Raises:
        ProbeError: it failed.
        OSError: it did not answer in time.
    """
    with served(handler, timeout_s=_DESCRIBE_TIMEOUT_S) as one:
        return ask_info(one.side)


def info_of(target: Target, *, timeout_s: float) -> InfoResponse:
    """Ask a UDF for Info on a separate connection, as Kapacitor does at its start.

    Raises:
        TargetError: the UDF cannot be connected to or started.
        ProbeError: its answer is missing or invalid.
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
                how = ""  # The answer was the handler's exception: do not repeat it.
            last = f": {ending.cause}" if ending and how and ending.cause else ""
            raise ProbeError(f"{target.name}: {error}{how}{last}") from error


def is_fatal(line: str) -> bool:
    """Return whether a runtime ends its process with this line, and stack traces follow."""
    return _FATAL.match(line) is not None


def cause_line(lines: Sequence[str]) -> str:
    """Return the line of a dead process's stderr that gives the reason; "" if there are no lines.

    It is the last `panic:` line of Go or exception of a Python traceback, or else the last line.
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
