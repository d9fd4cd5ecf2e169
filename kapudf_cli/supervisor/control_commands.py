"""The commands of the control socket: a function's status, and its reload."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import msgspec

from kapudf_cli import __version__
from kapudf_cli.errors import KapudfError
from kapudf_cli.supervisor.counters import Counters
from kapudf_cli.supervisor.worker_death import USUAL_CAUSES
from kapudf_cli.system import processes
from kapudf_cli.transport.meter import END_REASONS

if TYPE_CHECKING:
    from kapudf_cli.supervisor.connection import SupervisedConnection
    from kapudf_cli.supervisor.control import ControlClient
    from kapudf_cli.supervisor.functions import Functions, FunctionSockets
    from kapudf_cli.supervisor.pool import Pool
    from kapudf_cli.supervisor.reload import Reloader
    from kapudf_cli.supervisor.replacement import Reloaded
    from kapudf_cli.supervisor.upgrade import Upgrade


class ControlCommands:
    """Answers control clients: at once, or once a reload is done."""

    def __init__(
        self, functions: Functions, reloader: Reloader[ControlClient], upgrade: Upgrade
    ) -> None:
        """Answer for functions, from now on.

        Args:
            functions: those that are connection.
            reloader: reloads one of them.
            upgrade: replaces this program.
        """
        self._functions = functions
        self._reloader = reloader
        self._upgrade = upgrade
        self._started_s = time.monotonic()

    def handle(self, sockets: FunctionSockets, client: ControlClient, command: str) -> None:
        """Execute a command.

        Args:
            sockets: those of the function; the command came over their control socket.
            client: gets the answer, a JSON object, which has `error` if the command fails.
            command: its name.
        """
        # Which function it is, is known only now: another one may use the sockets since.
        function = sockets.user
        name = str(sockets)
        if function is None or self._functions.get(name) is not function:
            client.reply({"error": f"{name} is no longer served"})
        elif command == "status":
            client.reply(
                status_of(
                    function.pool,
                    socket_path=sockets.socket_file.path,
                    started_s=self._started_s,
                    starts=self._functions.starts,
                )
            )
        elif command == "reload":
            try:
                self._reloader.reload_one(name, client)
            except KapudfError as error:
                client.reply({"error": str(error)})
            self.answer_reloads()
        elif command == "upgrade":
            self._upgrade.begin(client)
        else:
            client.reply({"error": "unknown command; there are status, reload and upgrade"})

    def statuses(self) -> list[dict[str, Any]]:
        """Return the status of each function, for metrics."""
        return [
            status_of(pool, socket_path="", started_s=self._started_s)
            for pool in self._functions.pools()
        ]

    def answer_reloads(self) -> None:
        """Answer the clients whose reloads are done."""
        for result in self._reloader.take_results():
            answer = _answer(result.function, result.reloaded)
            for client in result.clients:
                client.reply(answer)


def _answer(name: str, reloaded: Reloaded) -> dict[str, Any]:
    """Return the result of a reload as a JSON object."""
    if reloaded.problem is not None:
        return {"error": f"the old code goes on: {reloaded.problem}"}
    return {
        "function": name,
        "connections": reloaded.connections,
        "stay": reloaded.stay,
        "code": reloaded.code,
    }


def status_of(pool: Pool, *, socket_path: str, started_s: float, starts: int = 1) -> dict[str, Any]:
    """Return the state of a function, its workers and its connections as a JSON object.

    Args:
        pool: the function's workers.
        socket_path: where Kapacitor connects.
        started_s: when the supervisor started, of the monotonic clock.
        starts: how many supervisors have served the tasks, one after the other.
    """
    loaded = pool.loaded
    history = pool.history
    totals = Counters()
    totals.add(history.ended)
    connections = []
    for connection in pool.connections.values():
        counters = Counters.of(connection)
        totals.add(counters)
        connections.append(_of_connection(connection, counters))
    return {
        "version": __version__,
        "function": pool.name,
        "handler": "" if loaded is None else loaded.handler,
        "code": None if loaded is None else msgspec.structs.asdict(loaded.code),
        "socket": socket_path,
        "supervisor": {
            "pid": os.getpid(),
            "rss_mb": _megabytes(processes.rss_bytes(os.getpid())),
            "age_s": _seconds(time.monotonic() - started_s),
            "starts": starts,
            "version": __version__,
        },
        "templates": [
            {
                "pid": each.pid,
                "state": "starting" if each.loaded is None else "ready",
                "rss_mb": _megabytes(each.rss_bytes()),
                "age_s": _seconds(each.age_s),
            }
            for each in pool.templates
        ],
        "worker_starts": history.worker_starts,
        "worker_deaths": pool.deaths,
        "worker_deaths_by_cause": dict.fromkeys(USUAL_CAUSES, 0) | history.worker_deaths,
        "busy_limit_s": pool.settings.busy_limit_s,
        "snapshot_interval_s": pool.settings.snapshot_interval_s,
        "totals": totals.as_dict(),
        "ended_connections": dict.fromkeys(END_REASONS, 0) | history.ends,
        "workers": [
            {
                "worker": worker.number,
                "pid": worker.pid,
                "state": pool.state_of(worker).value,
                "is_adopted": worker.is_adopted,
                "connections": pool.connections_of(worker),
                "rss_mb": _megabytes(worker.rss_bytes()),
                "age_s": _seconds(worker.age_s),
                "partitions": [
                    {
                        "partition": number,
                        "node": each.node or None,
                        "pid": each.pid,
                        "rss_mb": _megabytes(each.rss_bytes),
                        "cpu_s": each.cpu_s,
                    }
                    for number, each in enumerate(worker.partitions())
                ],
            }
            for worker in pool.all_workers()
        ],
        "connections": connections,
    }


def _of_connection(connection: SupervisedConnection, counters: Counters) -> dict[str, Any]:
    task_id, node_id = connection.header.task
    return {
        "connection": connection.number,
        "task_id": task_id,
        "node_id": node_id,
        "worker": connection.route.worker,
        "state": connection.state,
        "busy_s": _seconds(connection.watch.busy_s),
        **counters.as_dict(),
        "points_per_s": round(connection.points_per_s, 1),
        "points_in_flight": connection.points_in_flight,
        "waiting_bytes": connection.waiting_bytes,
        "queue_delay_s": _seconds(connection.queue_delay_s),
        "checkpoint_age_s": _seconds(connection.checkpoint_age_s),
        "journal_bytes": connection.journal_bytes,
        "kept_bytes": connection.kept_bytes,
        "kept_limit_bytes": connection.kept_limit_bytes,
        "age_s": _seconds(connection.age_s),
    }


def _megabytes(count: int) -> float:
    return round(count / 1e6, 1)


def _seconds(duration_s: float) -> float:
    return round(duration_s, 3)
