"""Heartbeats from within the process that runs the handlers.

They need the interpreter, which a handler may hold for long; the supervisor's do not.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from kapudf_cli.worker.busy_watchdog import HEARTBEAT_INTERVAL_S, BusyWatchdog
from kapudf_cli.worker.connection_log import where

if TYPE_CHECKING:
    from collections.abc import Callable

    from kapudf_cli.worker.connections import Connection, Connections


class Heartbeats:
    """Tells Kapacitor, while a handler is busy, that its connection is alive.

    With that, what the handler has written meanwhile leaves too.
    """

    def __init__(self, connections: Connections, limit_s: Callable[[Connection], float]) -> None:
        """Beat for `connections`, each while it is busy with one frame for `limit_s` at most."""
        self._connections = connections
        self._limit_s = limit_s
        self._watches: dict[int, BusyWatchdog] = {}
        self._ended = threading.Event()

    def start(self) -> None:
        """Begin, in a thread of its own: a heartbeat may have to wait for a peer."""
        threading.Thread(target=self._beat, name="heart", daemon=True).start()

    def stop(self) -> None:
        """End; does not wait for it."""
        self._ended.set()

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_INTERVAL_S):
            current = self._connections.current()
            watches = self._watches
            self._watches = {
                each.number: watches.get(each.number) or BusyWatchdog(self._limit_s(each))
                for each in current
            }
            for connection in current:
                # Of all of them first: a heartbeat may take its time.
                connection.checkpoints.record_seen_frame(connection.agent.current_frame)
            for connection in current:
                self._tick(connection, self._watches[connection.number])

    def _tick(self, connection: Connection, watch: BusyWatchdog) -> None:
        agent = connection.agent
        watch.tick(time.monotonic(), current_frame=agent.current_frame, sent=agent.bytes_sent)
        if watch.beats:
            agent.heartbeat()
        if watch.has_just_passed_limit:
            connection.log.error(
                "handler hangs, no more heartbeats",
                busy_s=round(watch.busy_s, 1),
                where=where(connection.thread),
            )
