"""The connections of one process: their agents, threads, heartbeats and log events."""

from __future__ import annotations

import math
import shlex
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from kapudf_cli.agent.agent import Agent, ConnectionSummary, Reason
from kapudf_cli.agent.checkpoints import LastSnapshot, NoCheckpoints
from kapudf_cli.system import logs
from kapudf_cli.system.stacks import innermost_calls
from kapudf_cli.worker.busy_watchdog import HEARTBEAT_INTERVAL_S, BusyWatchdog

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from structlog.stdlib import BoundLogger

    from kapudf_cli.agent.checkpoints import Checkpoints, ResumePlan
    from kapudf_cli.config import FunctionSettings
    from kapudf_cli.handler.handler import Handler
    from kapudf_cli.system.peers import PeerCredentials
    from kapudf_cli.transport import Stream
    from kapudf_cli.worker.partition_pool import PartitionPool


@dataclass(frozen=True)
class Function:
    """A function: its handler and settings.

    Attributes:
        name: its name in TICKscripts and in the log.
        handler: the class of the handler; each connection gets its own instance.
        settings: all other settings.
        partitions: the processes of its partitions, None without partitions.
    """

    name: str
    handler: type[Handler]
    settings: FunctionSettings
    partitions: PartitionPool | None = None


@dataclass(frozen=True)
class Connection:
    """A connection that has not ended."""

    number: int
    function: str
    agent: Agent
    checkpoints: Checkpoints
    thread: threading.Thread
    log: BoundLogger


def checkpoints_for(settings: FunctionSettings) -> Checkpoints:
    """Return the checkpoints for a process that no other process takes over from."""
    # Only a handler that may be restarted needs its state.
    if settings.on_error == "restart":
        return LastSnapshot(settings.snapshot_interval_s)
    return NoCheckpoints()


class Connections:
    """The connections that this process serves, each in its own thread."""

    def __init__(
        self,
        log: BoundLogger,
        on_end: Callable[[int, ConnectionSummary], None],
        *,
        on_logged: Callable[[int], None] | None = None,
    ) -> None:
        """Begin without connections.

        Args:
            log: where events go.
            on_end: called at the end of a connection's thread, while `current` still waits for
                it; it must not call this object.
            on_logged: called in that thread once the connection was logged as finished.
        """
        self._log = log
        self._on_logged = on_logged
        self._on_end = on_end
        self._connections: dict[int, Connection] = {}
        # Guards the dictionary: the main thread adds connections, and their threads remove them.
        self._lock = threading.Lock()

    def start(
        self,
        number: int,
        function: Function,
        stream: Stream,
        peer: PeerCredentials | None,
        *,
        checkpoints: Checkpoints,
        resume_plan: ResumePlan | None = None,
        age_s: float = 0.0,
        on_thread: Callable[[], None] | None = None,
        on_task: Callable[[str, str], None] | None = None,
        on_resumed: Callable[[str | None], None] | None = None,
        on_crash: Callable[[Exception], None] | None = None,
        on_turn: Callable[[bool], None] | None = None,
    ) -> None:
        """Serve a connection in its own thread.

        Args:
            number: its name in the log.
            function: the function that serves it.
            stream: its byte stream; it is closed at the end, and if this call fails.
            peer: the process at the other end, if the system names it.
            checkpoints: store the handler's state.
            resume_plan: how to take it over, if another agent has served it.
            age_s: its age in seconds.
            on_thread: called first in the new thread.
            on_task: called with the names of the task and the node once they are known.
            on_resumed: see `Agent`.
            on_crash: see `Agent`.
            on_turn: see `Agent`.

        Raises:
            RuntimeError: the system has no thread left.
        """
        log = self._log.bind(function=function.name, connection=number)
        if peer is not None:
            log = log.bind(peer_pid=peer.pid, peer_uid=peer.uid)

        def on_init(task_id: str, node_id: str) -> None:
            # Log events of the handler name the task, too.
            logs.bind_facts(task_id=task_id, node_id=node_id)
            if on_task is not None:
                on_task(task_id, node_id)
            log.info("task connected")

        facts = structlog.get_context(log)
        partitions = function.partitions
        agent = Agent(
            stream,
            function.handler,
            max_frame_bytes=function.settings.max_frame_bytes,
            linger_ms=function.settings.linger_ms,
            on_error=function.settings.on_error,
            concurrency=function.settings.concurrency,
            timeout_s=function.settings.timeout_s,
            partitions=None if partitions is None else partitions.open(number, facts, on_turn),
            checkpoints=checkpoints,
            resume_plan=resume_plan,
            age_s=age_s,
            on_init=on_init,
            on_resumed=on_resumed,
            on_crash=on_crash,
            on_turn=on_turn,
        )
        if resume_plan is not None:
            task_id, node_id = checkpoints.resume_point().task
            facts = {**facts, "task_id": task_id, "node_id": node_id}
        thread = threading.Thread(
            target=lambda: self._serve(connection, facts, on_thread),
            name=f"{function.name}-{number}",
            daemon=True,
        )
        connection = Connection(number, function.name, agent, checkpoints, thread, log)
        with self._lock:
            self._connections[number] = connection
        try:
            if resume_plan is None:
                log.info("connection started")
            thread.start()
        except BaseException:
            with self._lock:
                self._forget(connection)
            stream.close()
            raise

    def get(self, number: int) -> Connection | None:
        """Return a connection, None once it has ended."""
        with self._lock:
            return self._connections.get(number)

    def current(self) -> list[Connection]:
        """Return the connections that have not ended."""
        with self._lock:
            return list(self._connections.values())

    def _serve(
        self,
        connection: Connection,
        facts: Mapping[str, Any],
        on_thread: Callable[[], None] | None,
    ) -> None:
        """Run the agent of a connection; the target of its thread."""
        if on_thread is not None:
            on_thread()
        # Log events of the handler in this thread name the connection.
        logs.bind_facts(**facts)
        summary = ConnectionSummary()
        try:
            summary = connection.agent.run()
            if summary.reason is not Reason.HANDED_OVER:
                log_finish(connection.log, summary)
                if self._on_logged is not None:
                    self._on_logged(connection.number)
        finally:
            # Both under the lock: a worker exits once no connection is left, and a report that
            # came after that would be lost.
            with self._lock:
                self._forget(connection)
                self._on_end(connection.number, summary)

    def _forget(self, connection: Connection) -> None:
        """Remove a connection; the lock is held."""
        # After a release, this process may serve the same connection again with another agent.
        if self._connections.get(connection.number) is connection:
            del self._connections[connection.number]


class Heartbeats:
    """Sends heartbeats to Kapacitor while handlers are busy, so that it does not time out.

    What a handler has written meanwhile is sent with them. This needs the interpreter, which a
    handler may hold for long; the heartbeats of the supervisor do not.
    """

    def __init__(
        self,
        connections: Connections,
        limit_s: Callable[[Connection], float],
        *,
        slow_s: float = math.inf,
        on_slow: Callable[[], None] | None = None,
    ) -> None:
        """Send heartbeats for each connection until it is busy with one frame for `limit_s`.

        Args:
            connections: those of this process.
            limit_s: returns the limit for a connection, in seconds.
            slow_s: from when on a call of an async handler is logged, in seconds.
            on_slow: called instead of that, for a handler with partitions.
        """
        self._connections = connections
        self._limit_s = limit_s
        self._slow_s = slow_s
        self._on_slow = on_slow
        self._slow: set[int] = set()
        self._watches: dict[int, BusyWatchdog] = {}
        self._ended = threading.Event()

    def start(self) -> None:
        """Start the thread; its own one, because a heartbeat may have to wait for a peer."""
        threading.Thread(target=self._beat, name="heartbeats", daemon=True).start()

    def stop(self) -> None:
        """Stop the thread, without waiting for its end."""
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
                # For all connections first: a heartbeat may have to wait.
                connection.checkpoints.record_seen_frame(connection.agent.current_frame)
            for connection in current:
                self._tick(connection, self._watches[connection.number])

    def _tick(self, connection: Connection, watch: BusyWatchdog) -> None:
        agent = connection.agent
        # One that waits for its turn is busy without a limit: each tick has another frame.
        frame = object() if agent.waits_for_turn else agent.current_frame
        watch.tick(time.monotonic(), current_frame=frame, sent=agent.bytes_sent)
        if watch.beats:
            agent.heartbeat()
        if watch.has_just_passed_limit:
            connection.log.error(
                "handler hangs, no more heartbeats",
                busy_s=round(watch.busy_s, 1),
                where=where(connection),
            )
        if watch.busy_s < self._slow_s:
            self._slow.discard(connection.number)
        elif connection.number in self._slow:
            return
        elif self._on_slow is not None:
            self._slow.add(connection.number)
            self._on_slow()
        elif place := agent.oldest_call:
            # The stacks that are written before the worker is killed do not show it.
            self._slow.add(connection.number)
            connection.log.warning(
                "async call takes long", busy_s=round(watch.busy_s, 1), where=place
            )


# --- the log ---


def where(connection: Connection) -> str:
    """Return where the handler of a connection is: its innermost calls, the innermost first."""
    return connection.agent.oldest_call or innermost_calls(connection.thread) or "ended"


def log_finish(log: BoundLogger, summary: ConnectionSummary) -> None:
    """Log the event that sums a connection up."""
    stats = summary.stats
    facts: dict[str, object] = {
        "reason": summary.reason.value,
        "task_id": summary.task_id,
        "node_id": summary.node_id,
        "points_in": stats.points_in,
        "points_out": stats.points_out,
        "batches_in": stats.batches_in,
        "batches_out": stats.batches_out,
        "bytes_in": summary.bytes_in,
        "bytes_out": stats.bytes_out,
        "duration_s": round(summary.duration_s, 6),
    }
    unusual = {
        "failures": stats.failures,
        "restarts": stats.restarts,
        "takeovers": stats.takeovers,
        "dropped_points": stats.dropped_points,
        "unprocessed_bytes": summary.unprocessed_bytes,
        "refusal": summary.refusal,
        "batch_unfinished": summary.batch_unfinished,
    }
    facts |= {name: value for name, value in unusual.items() if value}
    goes_on = summary.reason in {Reason.CLOSED, Reason.HANDED_OVER} and summary.refusal is None
    if summary.task_id and not goes_on:
        # Kapacitor does not connect again by itself, and enabling a failed task does nothing.
        facts["recover"] = f"kapacitor reload {shlex.quote(summary.task_id)}"
    if summary.stop_error is not None:
        log.error(
            "teardown failed", error=str(summary.stop_error), exc_info=summary.stop_error.cause
        )
    match summary.reason:
        case Reason.HANDLER_ERROR:
            cause = summary.error.__cause__ if summary.error else None
            log.error("connection finished", **facts, error=str(summary.error), exc_info=cause)
        case Reason.PROTOCOL_ERROR:
            log.warning("connection finished", **facts, error=str(summary.error))
        case _ if summary.refusal is not None:
            log.warning("connection finished", **facts)
        case _:
            log.info("connection finished", **facts)
