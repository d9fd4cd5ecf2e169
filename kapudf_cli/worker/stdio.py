"""A handler as a process UDF: one connection, on this process's stdin and stdout."""

from __future__ import annotations

import os
import selectors
import signal
import sys
import time
from typing import TYPE_CHECKING

from kapudf_cli.system.signals import SignalQueue
from kapudf_cli.transport import StdioStream
from kapudf_cli.worker.connection_log import where
from kapudf_cli.worker.connections import Connections, checkpoints_for
from kapudf_cli.worker.heartbeat import Heartbeats

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger

    from kapudf_cli.agent.summary import ConnectionSummary
    from kapudf_cli.worker.connections import Function

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
        heart = Heartbeats(self._connections, lambda _: settings.busy_limit_s)
        with SignalQueue((signal.SIGINT, signal.SIGTERM)) as self._signals:
            self._connections.start(
                1, self._function, self._stream, None, checkpoints=checkpoints_for(settings)
            )
            heart.start()
            first = self._wait(None)
            if first is not None:
                self._log.info("stopping", signal=first.name, grace_period_s=self._grace_period_s)
                self._end()
            heart.stop()
        if self._summary is None:
            return 1
        failed = self._summary.error is not None or self._summary.stop_error is not None
        return 1 if failed else 0

    def _end(self) -> None:
        """Let the connection finish, or break it when time is over."""
        for connection in self._connections.current():
            connection.agent.stop()
        if self._wait(self._grace_period_s) is not None:
            self._log.warning("second signal, ending at once")
            return
        left = self._connections.current()
        for connection in left:
            connection.log.error(
                "grace period is over, connection aborted", where=where(connection.thread)
            )
            connection.agent.abort()
        if left:
            self._wait(_ABORT_WAIT_S)

    def _on_end(self, number: int, summary: ConnectionSummary) -> None:
        del number
        self._summary = summary
        self._signals.wake()

    def _wait(self, timeout_s: float | None) -> signal.Signals | None:
        """Wait until the connection has ended, a signal comes, which is returned, or time is up."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._signals, selectors.EVENT_READ)
            while self._connections.current():
                left_s = None if deadline is None else deadline - time.monotonic()
                if left_s is not None and left_s <= 0:
                    return None
                selector.select(left_s)
                taken = self._signals.take()
                if taken:
                    return taken[0]
        return None
