"""Connections being served: an agent each, in a thread each, with what the log says of them."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from kapudf_cli.agent.agent import Agent
from kapudf_cli.agent.checkpoints import LastSnapshot, NoCheckpoints
from kapudf_cli.agent.summary import ConnectionSummary, Reason
from kapudf_cli.system import logs
from kapudf_cli.worker.connection_log import log_finish

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from structlog.stdlib import BoundLogger

    from kapudf_cli.agent.checkpoints import Checkpoints, ResumePlan
    from kapudf_cli.config import FunctionSettings
    from kapudf_cli.handler.handler import Handler
    from kapudf_cli.system.socket_file import PeerCredentials
    from kapudf_cli.transport import Stream


@dataclass(frozen=True)
class Function:
    """A handler, and how it is served.

    Attributes:
        name: what the log calls it.
        handler: the handler's class; each connection has an instance of its own.
        settings: the rest.
    """

    name: str
    handler: type[Handler]
    settings: FunctionSettings


@dataclass(frozen=True)
class Connection:
    """A connection being served."""

    number: int
    function: str
    agent: Agent
    checkpoints: Checkpoints
    thread: threading.Thread
    log: BoundLogger


def checkpoints_for(settings: FunctionSettings) -> Checkpoints:
    """Return what keeps a handler's state in a process that no other takes over from."""
    # Only a handler that may be made anew needs it.
    if settings.on_error == "restart":
        return LastSnapshot(settings.snapshot_interval_s)
    return NoCheckpoints()


class Connections:
    """The connections that this process serves."""

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
        # Guards the dictionary above: threads leave it, the main thread joins them.
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
    ) -> None:
        """Serve a connection in a thread of its own.

        Args:
            number: what the log calls it.
            function: what serves it.
            stream: its bytes; they are the connection's to close, whatever happens.
            peer: who is at the other end, if the system says so.
            checkpoints: what keeps the handler's state.
            resume_plan: where it is taken over from another agent, if it is.
            age_s: how long ago it began, in seconds.
            on_thread: called in that thread, as its first deed.
            on_task: called with the task's and the node's name once they are known.
            on_resumed: see `Agent`.
            on_crash: see `Agent`.

        Raises:
            RuntimeError: the system has no thread left.
        """
        log = self._log.bind(function=function.name, connection=number)
        if peer is not None:
            log = log.bind(peer_pid=peer.pid, peer_uid=peer.uid)

        def on_init(task_id: str, node_id: str) -> None:
            # What the handler logs names its task, too.
            logs.bind_facts(task_id=task_id, node_id=node_id)
            if on_task is not None:
                on_task(task_id, node_id)
            log.info("task connected")

        agent = Agent(
            stream,
            function.handler,
            max_frame_bytes=function.settings.max_frame_bytes,
            linger_ms=function.settings.linger_ms,
            on_error=function.settings.on_error,
            checkpoints=checkpoints,
            resume_plan=resume_plan,
            age_s=age_s,
            on_init=on_init,
            on_resumed=on_resumed,
            on_crash=on_crash,
        )
        facts = structlog.get_context(log)
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
        """Return those that have not ended."""
        with self._lock:
            return list(self._connections.values())

    def _serve(
        self,
        connection: Connection,
        facts: Mapping[str, Any],
        on_thread: Callable[[], None] | None,
    ) -> None:
        """Run an agent to its end; the target of a connection's thread."""
        if on_thread is not None:
            on_thread()
        # What the handler logs in this thread names its connection.
        logs.bind_facts(**facts)
        summary = ConnectionSummary()
        try:
            summary = connection.agent.run()
            if summary.reason is not Reason.HANDED_OVER:
                log_finish(connection.log, summary)
                if self._on_logged is not None:
                    self._on_logged(connection.number)
        finally:
            # Both at once: a worker ends when it finds none left, and what it is told after
            # that, it tells nobody.
            with self._lock:
                self._forget(connection)
                self._on_end(connection.number, summary)

    def _forget(self, connection: Connection) -> None:
        """Let go of a connection; the lock is held."""
        # Another agent may have the number by now, where this one let go of it.
        if self._connections.get(connection.number) is connection:
            del self._connections[connection.number]
