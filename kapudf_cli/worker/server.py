"""Servers without worker processes: on Unix sockets, and on stdin and stdout.

A handler that crashes the interpreter ends every connection; with workers, none.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import selectors
import signal
import sys
import time
from typing import TYPE_CHECKING

from kapudf_cli.system import systemd
from kapudf_cli.system.peers import peer_credentials
from kapudf_cli.system.signals import SignalQueue
from kapudf_cli.transport import SocketStream, StdioStream
from kapudf_cli.worker.connections import Connections, Heartbeats, checkpoints_for, where
from kapudf_cli.worker.listeners import Listeners

if TYPE_CHECKING:
    from collections.abc import Sequence

    from structlog.stdlib import BoundLogger

    from kapudf_cli.agent.agent import ConnectionSummary
    from kapudf_cli.system.socket_file import SocketFile
    from kapudf_cli.worker.connections import Connection, Function

#: These have an effect only with workers.
_NO_ENDS = {signal.SIGHUP, signal.SIGUSR2}
#: How long a thread may take to end after its connection is aborted.
_ABORT_WAIT_S = 1.0


class Server:
    """Serves functions on Unix sockets until a signal stops it."""

    def __init__(
        self,
        functions: Sequence[tuple[Function, SocketFile]],
        *,
        grace_period_s: float,
        log: BoundLogger,
    ) -> None:
        """Serve functions, whose sockets become the server's to release."""
        self._functions = {function.name: function for function, _ in functions}
        self._sockets = {function.name: socket_file for function, socket_file in functions}
        self._grace_period_s = grace_period_s
        self._log = log
        self._numbers = itertools.count(1)
        self._connections = Connections(log, self._on_end)
        self._heartbeats = Heartbeats(self._connections, self._busy_limit_s)

    def run(self, signals: SignalQueue) -> int:
        """Serve until a signal of `signals` comes; return the exit status: 0, or 1 if hurried."""
        self._signals = signals
        try:
            for name, function in self._functions.items():
                self._log.info(
                    "listening",
                    function=name,
                    handler=function.handler.__name__,
                    socket=self._sockets[name].path,
                )
            systemd.notify("READY=1")
            self._heartbeats.start()
            first = self._accept_until_signal()
            systemd.notify("STOPPING=1")
            hurried = self._drain(first)
        finally:
            self._heartbeats.stop()
            for socket_file in self._sockets.values():
                socket_file.release()
        self._log.info("stopped", abandoned_connections=len(self._connections.current()))
        return 1 if hurried else 0

    def _accept_until_signal(self) -> signal.Signals:
        with selectors.DefaultSelector() as selector:
            selector.register(self._signals, selectors.EVENT_READ)
            listeners = Listeners(selector, self._start, self._log)
            for name, socket_file in self._sockets.items():
                listeners.add(name, socket_file)
            while True:
                ready = selector.select(listeners.wait_s(time.monotonic()))
                number = _take_end(self._signals, self._log)
                if number is not None:
                    # Connections that wait in a queue came before the signal: accept them.
                    for name in self._sockets:
                        listeners.remove(name)
                    return number
                for key, _ in ready:
                    if key.data is not None and key.fileobj in selector.get_map():
                        key.data()

    def _start(self, name: str, socket_file: SocketFile) -> bool:
        """Serve the next connection of a function, if there is one; see `Listeners`."""
        # Reserve what the connection needs before it is taken from the queue. In the queue it
        # waits; accepted and not served, it would fail.
        with contextlib.ExitStack() as undo:
            wake = os.pipe()
            undo.callback(os.close, wake[0])
            undo.callback(os.close, wake[1])
            connection = socket_file.accept()
            if connection is None:
                return False
            undo.pop_all()
        function = self._functions[name]
        self._connections.start(
            next(self._numbers),
            function,
            SocketStream(connection, wake),
            peer_credentials(connection),
            checkpoints=checkpoints_for(function.settings),
        )
        return True

    def _on_end(self, number: int, summary: ConnectionSummary) -> None:
        del number, summary
        self._signals.wake()

    def _busy_limit_s(self, connection: Connection) -> float:
        return self._functions[connection.function].settings.busy_limit_s

    def _drain(self, first: signal.Signals) -> bool:
        """Let every connection finish; return whether a second signal cut that short."""
        self._log.info(
            "stopping",
            signal=first.name,
            connections=len(self._connections.current()),
            grace_period_s=self._grace_period_s,
        )
        return drain(
            self._connections, self._signals, grace_period_s=self._grace_period_s, log=self._log
        )


def take_over_stdio() -> StdioStream:
    """Move stdin and stdout to other descriptors, so that only frames are sent over them.

    Afterwards, descriptor 0 is /dev/null and descriptor 1 is stderr, also for C code and child
    processes. Call it before a handler is imported.
    """
    requests, responses = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.stdout.flush()
    os.dup2(2, 1)
    # Like stderr: what a handler prints is logged at once.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    return StdioStream(requests, responses)


class StdioServer:
    """Serves the one connection of a process UDF until it ends or a signal comes."""

    def __init__(
        self, function: Function, stream: StdioStream, *, grace_period_s: float, log: BoundLogger
    ) -> None:
        """Serve `function` on a stream of `take_over_stdio`."""
        self._function = function
        self._stream = stream
        self._grace_period_s = grace_period_s
        self._log = log
        self._connections = Connections(log, self._on_end)
        self._summary: ConnectionSummary | None = None

    def run(self) -> int:
        """Serve to the end and return the exit status.

        0 where the input ended or SIGINT or SIGTERM came; 1 where the handler failed, the
        input was no protocol, or a second signal or the grace period cut it short. Only for
        the main thread, which is where signals go.
        """
        settings = self._function.settings
        heartbeats = Heartbeats(self._connections, lambda _: settings.busy_limit_s)
        with SignalQueue((signal.SIGINT, signal.SIGTERM)) as self._signals:
            self._connections.start(
                1, self._function, self._stream, None, checkpoints=checkpoints_for(settings)
            )
            heartbeats.start()
            first = _wait(self._connections, self._signals, None, self._log)
            if first is not None:
                self._log.info("stopping", signal=first.name, grace_period_s=self._grace_period_s)
                drain(
                    self._connections,
                    self._signals,
                    grace_period_s=self._grace_period_s,
                    log=self._log,
                )
            heartbeats.stop()
        if self._summary is None:
            return 1
        failed = self._summary.error is not None or self._summary.stop_error is not None
        return 1 if failed else 0

    def _on_end(self, number: int, summary: ConnectionSummary) -> None:
        del number
        self._summary = summary
        self._signals.wake()


# --- the end ---


def drain(
    connections: Connections, signals: SignalQueue, *, grace_period_s: float, log: BoundLogger
) -> bool:
    """Let every connection finish, and abort those that take too long.

    Args:
        connections: those of this process.
        signals: a signal that comes meanwhile ends the waiting.
        grace_period_s: how long they may take.
        log: where events go.

    Returns:
        Whether a second signal cut it short.
    """
    for connection in connections.current():
        connection.agent.stop()
    if _wait(connections, signals, grace_period_s, log) is not None:
        log.warning("second signal, ending at once", connections=len(connections.current()))
        return True
    left = connections.current()
    for connection in left:
        connection.log.error("grace period is over, connection aborted", where=where(connection))
        connection.agent.abort()
    return bool(left) and _wait(connections, signals, _ABORT_WAIT_S, log) is not None


def _wait(
    connections: Connections, signals: SignalQueue, timeout_s: float | None, log: BoundLogger
) -> signal.Signals | None:
    """Wait until no connection is left, a signal comes, which is returned, or time is over."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    with selectors.DefaultSelector() as selector:
        selector.register(signals, selectors.EVENT_READ)
        while connections.current():
            left_s = None if deadline is None else deadline - time.monotonic()
            if left_s is not None and left_s <= 0:
                return None
            selector.select(left_s)
            if (number := _take_end(signals, log)) is not None:
                return number
    return None


def _take_end(signals: SignalQueue, log: BoundLogger) -> signal.Signals | None:
    """Return a signal that ends the server, if one came; SIGHUP and SIGUSR2 do not."""
    taken = signals.take()
    if _NO_ENDS & set(taken):
        log.warning("no reload without workers, everything goes on as it was")
    return next((number for number in taken if number not in _NO_ENDS), None)
