"""The server: accepts connections, hands each to an agent in a thread, drains them at the end."""

from __future__ import annotations

import contextlib
import itertools
import os
import selectors
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from kapudf_cli.account import Account, Reason
from kapudf_cli.agent import Agent
from kapudf_cli.serving import systemd
from kapudf_cli.serving.signals import SignalQueue
from kapudf_cli.serving.socket_file import peer_credentials
from kapudf_cli.streams import SocketStream

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from structlog.stdlib import BoundLogger

    from kapudf_cli.handler import Handler
    from kapudf_cli.serving.socket_file import SocketFile

#: How long no connection is accepted after one could not be, for want of
#: descriptors, memory or threads. They wait in the kernel's queue meanwhile.
_ACCEPT_PAUSE_S = 0.5
#: So that a flood of connections keeps no signal waiting.
_ACCEPT_AT_ONCE = 1024
#: How long a thread may take to end after its connection was aborted.
_ABORT_WAIT_S = 1.0


@dataclass(frozen=True)
class Function:
    """A handler and the socket it is served on.

    Attributes:
        name: what the log calls it.
        handler: the handler's class; each connection has an instance of its own.
        socket: where Kapacitor connects.
        max_frame_bytes: the longest frame taken or sent, in bytes.
        linger_ms: the longest pause before a read under load, in milliseconds.
    """

    name: str
    handler: type[Handler]
    socket: SocketFile
    max_frame_bytes: int
    linger_ms: float


@dataclass(frozen=True)
class Connection:
    """A connection being served."""

    number: int
    agent: Agent
    thread: threading.Thread
    log: BoundLogger


class Server:
    """Serves functions until it is told to stop."""

    def __init__(
        self, functions: Sequence[Function], *, grace_period_s: float, log: BoundLogger
    ) -> None:
        """Serve `functions`, whose sockets become the server's to release."""
        self._functions = functions
        self._grace_period_s = grace_period_s
        self._log = log
        self._numbers = itertools.count(1)
        self._connections: dict[int, Connection] = {}
        # Guards the dictionary above: threads leave it, the main thread joins them.
        self._lock = threading.Lock()

    def run(self) -> int:
        """Serve until SIGINT or SIGTERM and return the exit status: 0, or 1 if hurried.

        Only for the main thread, which is where signals go.
        """
        with SignalQueue((signal.SIGINT, signal.SIGTERM)) as self._signals:
            try:
                for function in self._functions:
                    self._log.info(
                        "listening",
                        function=function.name,
                        handler=function.handler.__name__,
                        socket=function.socket.path,
                    )
                systemd.notify("READY=1")
                first = self._accept_until_signal()
                systemd.notify("STOPPING=1")
                hurried = self._drain(first)
            finally:
                for function in self._functions:
                    function.socket.release()
        self._log.info("stopped", abandoned_connections=len(self._connections))
        return 1 if hurried else 0

    def _accept_until_signal(self) -> signal.Signals:
        with selectors.DefaultSelector() as selector:
            selector.register(self._signals, selectors.EVENT_READ)
            self._register_listeners(selector)
            resume_at: float | None = None
            while True:
                wait_s = None if resume_at is None else max(resume_at - time.monotonic(), 0)
                ready = [key for key, _ in selector.select(wait_s)]
                taken = self._signals.take()
                if taken:
                    return taken[0]
                if resume_at is not None and time.monotonic() >= resume_at:
                    self._register_listeners(selector)
                    resume_at = None
                for key in ready:
                    if key.data is not None and not self._accept(key.data):
                        # The listener stays readable, and would make this loop spin.
                        for function in self._functions:
                            selector.unregister(function.socket.listener)
                        resume_at = time.monotonic() + _ACCEPT_PAUSE_S
                        break

    def _register_listeners(self, selector: selectors.BaseSelector) -> None:
        for function in self._functions:
            selector.register(function.socket.listener, selectors.EVENT_READ, function)

    def _accept(self, function: Function) -> bool:
        """Serve the connections that wait; return False if one could not be served."""
        try:
            for _ in range(_ACCEPT_AT_ONCE):
                # What a connection needs is had before it is taken from the queue,
                # where it is safer than with a server that cannot serve it.
                with contextlib.ExitStack() as undo:
                    wake = os.pipe()
                    undo.callback(os.close, wake[0])
                    undo.callback(os.close, wake[1])
                    connection = function.socket.accept()
                    if connection is None:
                        break
                    undo.pop_all()
                self._start(function, connection, wake)
        except (OSError, RuntimeError, MemoryError) as error:
            # No descriptors, no memory, no threads. RuntimeError is what
            # Thread.start raises where the system refuses another thread.
            self._log.error(
                "cannot accept connections",
                function=function.name,
                error=str(error),
                retry_s=_ACCEPT_PAUSE_S,
                connections=len(self._connections),
            )
            return False
        return True

    def _start(self, function: Function, connection: socket.socket, wake: tuple[int, int]) -> None:
        number = next(self._numbers)
        log = self._log.bind(function=function.name, connection=number)
        peer = peer_credentials(connection)
        stream = SocketStream(connection, wake)
        if peer is not None:
            log = log.bind(peer_pid=peer.pid, peer_uid=peer.uid)
        agent = Agent(
            stream,
            function.handler,
            max_frame_bytes=function.max_frame_bytes,
            linger_ms=function.linger_ms,
            on_init=lambda account: _log_task(log, account),
        )
        thread = threading.Thread(
            target=self._serve,
            args=(number, agent, log),
            name=f"{function.name}-{number}",
            daemon=True,
        )
        with self._lock:
            self._connections[number] = Connection(number, agent, thread, log)
        try:
            log.info("connection started")
            thread.start()
        except BaseException:
            with self._lock:
                del self._connections[number]
            stream.close()
            raise

    def _serve(self, number: int, agent: Agent, log: BoundLogger) -> None:
        """Run an agent to its end; the target of a connection's thread."""
        # What the handler logs in this thread says where it comes from.
        structlog.contextvars.bind_contextvars(**structlog.get_context(log))
        try:
            _log_finish(log, agent.run())
        finally:
            with self._lock:
                del self._connections[number]
            self._signals.wake()

    # --- the end ---

    def _drain(self, first: signal.Signals) -> bool:
        """Let every connection finish; return whether a second signal cut that short."""
        for function in self._functions:
            # Whoever is in the queue was connected before the signal came.
            self._accept(function)
            function.socket.close()
        connections = self._current()
        self._log.info(
            "stopping",
            signal=first.name,
            connections=len(connections),
            grace_period_s=self._grace_period_s,
        )
        for connection in connections:
            connection.agent.stop()
        hurried = self._wait_for_connections(self._grace_period_s)
        left = self._current()
        if left and not hurried:
            for connection in left:
                connection.log.error(
                    "grace period is over, connection aborted", where=_where(connection.thread)
                )
                connection.agent.abort()
            hurried = self._wait_for_connections(_ABORT_WAIT_S)
        elif hurried:
            self._log.warning("second signal, ending at once", connections=len(left))
        return hurried

    def _wait_for_connections(self, timeout_s: float) -> bool:
        """Wait until none is left or time is over; return whether a signal came."""
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._signals, selectors.EVENT_READ)
            while self._current():
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return False
                selector.select(left_s)
                if self._signals.take():
                    return True
        return False

    def _current(self) -> list[Connection]:
        with self._lock:
            return list(self._connections.values())


def _log_task(log: BoundLogger, account: Account) -> None:
    """Log which task a connection is for, and let what its handler logs say so too."""
    structlog.contextvars.bind_contextvars(task_id=account.task_id, node_id=account.node_id)
    log.info("task connected")


def _log_finish(log: BoundLogger, account: Account) -> None:
    """Log the one event that says how a connection went."""
    facts = {
        "reason": account.reason.value,
        "task_id": account.task_id,
        "node_id": account.node_id,
        "points_in": account.points_in,
        "points_out": account.points_out,
        "batches_in": account.batches_in,
        "batches_out": account.batches_out,
        "bytes_in": account.bytes_in,
        "bytes_out": account.bytes_out,
        "duration_s": round(account.duration_s, 6),
    }
    if account.unprocessed_bytes:
        facts["unprocessed_bytes"] = account.unprocessed_bytes
    if account.batch_unfinished:
        facts["batch_unfinished"] = True
    if account.refusal is not None:
        facts["refusal"] = account.refusal
    if account.stop_error is not None:
        log.error("stop failed", error=str(account.stop_error), exc_info=account.stop_error.cause)
    match account.reason:
        case Reason.HANDLER_ERROR:
            cause = account.error.__cause__ if account.error else None
            log.error("connection finished", **facts, error=str(account.error), exc_info=cause)
        case Reason.PROTOCOL_ERROR:
            log.warning("connection finished", **facts, error=str(account.error))
        case _ if account.refusal is not None:
            log.warning("connection finished", **facts)
        case _:
            log.info("connection finished", **facts)


def _where(thread: threading.Thread) -> str:
    """Return the line that a thread is at, innermost first."""
    frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001 - the documented way
    if frame is None:
        return "ended"
    calls = reversed(traceback.extract_stack(frame))
    return " < ".join(
        f"{call.name} ({call.filename}:{call.lineno})" for call in itertools.islice(calls, 5)
    )
