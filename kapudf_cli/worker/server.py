"""The server of one process: accepts, hands each connection to a thread, drains them at the end.

It is what serves without worker processes. A handler that crashes the interpreter takes
every connection with it; see `supervisor` for what does not.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import selectors
import signal
import time
from typing import TYPE_CHECKING

from kapudf_cli.system import systemd
from kapudf_cli.system.socket_file import peer_credentials
from kapudf_cli.transport import SocketStream
from kapudf_cli.worker.connection_log import where
from kapudf_cli.worker.connections import Connections, Function, checkpoints_for
from kapudf_cli.worker.heartbeat import Heartbeats
from kapudf_cli.worker.listeners import Listeners

if TYPE_CHECKING:
    from collections.abc import Sequence

    from structlog.stdlib import BoundLogger

    from kapudf_cli.agent.summary import ConnectionSummary
    from kapudf_cli.system.signals import SignalQueue
    from kapudf_cli.system.socket_file import SocketFile
    from kapudf_cli.worker.connections import Connection

#: How long a thread may take to end after its connection was aborted.
_ABORT_WAIT_S = 1.0


class Server:
    """Serves functions until it is told to stop."""

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
        self._heart = Heartbeats(self._connections, self._busy_limit_s)

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
            self._heart.start()
            first = self._accept_until_signal()
            systemd.notify("STOPPING=1")
            hurried = self._drain(first)
        finally:
            self._heart.stop()
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
                taken = self._take_ends()
                if taken:
                    # Whoever is in a queue was connected before the signal came.
                    for name in self._sockets:
                        listeners.remove(name)
                    return taken[0]
                for key, _ in ready:
                    if key.data is not None and key.fileobj in selector.get_map():
                        key.data()

    def _take_ends(self) -> list[signal.Signals]:
        """Return the signals that end it; SIGHUP must not, whose default is to kill."""
        taken = self._signals.take()
        if signal.SIGHUP in taken:
            self._log.warning("no reload without workers, everything goes on as it was")
        return [number for number in taken if number is not signal.SIGHUP]

    def _start(self, name: str, socket_file: SocketFile) -> bool:
        """Serve the next connection of a function, if there is one; see `Listeners`."""
        # What a connection needs is had before it is taken from the queue,
        # where it is safer than with a server that cannot serve it.
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

    # --- the end ---

    def _drain(self, first: signal.Signals) -> bool:
        """Let every connection finish; return whether a second signal cut that short."""
        connections = self._connections.current()
        self._log.info(
            "stopping",
            signal=first.name,
            connections=len(connections),
            grace_period_s=self._grace_period_s,
        )
        for connection in connections:
            connection.agent.stop()
        hurried = self._wait_for_connections(self._grace_period_s)
        left: list[Connection] = self._connections.current()
        if left and not hurried:
            for connection in left:
                connection.log.error(
                    "grace period is over, connection aborted", where=where(connection.thread)
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
            while self._connections.current():
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return False
                selector.select(left_s)
                if self._take_ends():
                    return True
        return False
