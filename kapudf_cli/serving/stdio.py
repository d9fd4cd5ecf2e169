"""A handler as a process UDF: one connection, on this process's stdin and stdout."""

from __future__ import annotations

import os
import selectors
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

from kapudf_cli.checkpoints import LastSnapshot, NothingKept
from kapudf_cli.serving.connections import Connections, where
from kapudf_cli.serving.signals import SignalQueue
from kapudf_cli.stdio_stream import StdioStream

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger

    from kapudf_cli.account import Account
    from kapudf_cli.serving.connections import Function

#: How long the thread may take to end after its connection was aborted.
_ABORT_WAIT_S = 1.0


def take_over_stdio() -> StdioStream:
    """Move stdin and stdout away, so that nothing but frames goes over them.

    From then on descriptor 0 is /dev/null and descriptor 1 is stderr, for code in C
    and for child processes too. To be called before a handler is imported.
    """
    requests, responses = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.stdout.flush()
    os.dup2(2, 1)
    # As stderr does: a line that a handler prints is wanted in the log when it happens.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # it is a TextIOWrapper
    return StdioStream(requests, responses)


class StdioServer:
    """Serves the one connection of a process UDF until it ends or a signal comes."""

    def __init__(self, function: Function, *, grace_period_s: float, log: BoundLogger) -> None:
        """Serve a function, whose settings of sockets and workers do not matter here."""
        self._function = function
        self._grace_period_s = grace_period_s
        self._log = log
        self._account: Account | None = None
        self._ended = threading.Event()

    def run(self, stream: StdioStream) -> int:
        """Serve `stream`, that of `take_over_stdio`, to the end and return the exit status.

        0 where the input ended or SIGINT or SIGTERM came; 1 where the handler failed, the
        input was no protocol, or a second signal or the grace period cut it short. Only for
        the main thread, which is where signals go.
        """
        settings = self._function.settings
        checkpoints = NothingKept()
        if settings.on_error == "restart":
            checkpoints = LastSnapshot(settings.snapshot_interval_s)
        with SignalQueue((signal.SIGINT, signal.SIGTERM)) as self._signals:
            connections = Connections(self._log, self._end)
            connections.start(1, self._function, stream, None, checkpoints=checkpoints)
            first = self._wait(None)
            if first is not None:
                self._log.info("stopping", signal=first.name, grace_period_s=self._grace_period_s)
                self._stop(connections)
        if self._account is None:
            return 1
        failed = self._account.error is not None or self._account.stop_error is not None
        return 1 if failed else 0

    def _stop(self, connections: Connections) -> None:
        """Let the connection finish what has arrived, within the grace period."""
        for connection in connections.current():
            connection.agent.stop()
        if self._wait(self._grace_period_s) is not None:
            self._log.warning("second signal, ending at once")
            return
        for connection in connections.current():
            connection.log.error(
                "grace period is over, connection aborted", where=where(connection.thread)
            )
            connection.agent.abort()
        self._wait(_ABORT_WAIT_S)

    def _end(self, number: int, account: Account) -> None:
        """Note that the connection has ended; called in its thread."""
        del number
        self._account = account
        self._ended.set()
        self._signals.wake()

    def _wait(self, timeout_s: float | None) -> signal.Signals | None:
        """Wait until the connection has ended, a signal comes, which is returned, or time is up."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._signals, selectors.EVENT_READ)
            while not self._ended.is_set():
                left_s = None if deadline is None else deadline - time.monotonic()
                if left_s is not None and left_s <= 0:
                    return None
                selector.select(left_s)
                taken = self._signals.take()
                if taken:
                    return taken[0]
        return None
