"""The commands of the control socket: a function's status, and its reload."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import msgspec

from kapudf_cli.errors import KapudfError
from kapudf_cli.system import processes

if TYPE_CHECKING:
    from kapudf_cli.supervisor.connection import SupervisedConnection
    from kapudf_cli.supervisor.control import ControlClient
    from kapudf_cli.supervisor.functions import Functions, FunctionSockets
    from kapudf_cli.supervisor.pool import Pool
    from kapudf_cli.supervisor.reload import Reloader
    from kapudf_cli.supervisor.replacement import Reloaded


class ControlCommands:
    """Answers control clients: at once, or once a reload is done."""

    def __init__(self, functions: Functions, reloader: Reloader[ControlClient]) -> None:
        """Answer for functions, from now on.

        Args:
            functions: those that are connection.
            reloader: reloads one of them.
        """
        self._functions = functions
        self._reloader = reloader
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
                )
            )
        elif command == "reload":
            try:
                self._reloader.reload_one(name, client)
            except KapudfError as error:
                client.reply({"error": str(error)})
            self.answer_reloads()
        else:
            client.reply({"error": "unknown command; there are status and reload"})

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


def status_of(pool: Pool, *, socket_path: str, started_s: float) -> dict[str, Any]:
    """Return the state of a function, its workers and its connections as a JSON object.

    Args:
        pool: the function's workers.
        socket_path: where Kapacitor connects.
        started_s: when the supervisor started, of the monotonic clock.
    """
    loaded = pool.loaded
    return {
        "function": pool.name,
        "handler": "" if loaded is None else loaded.handler,
        "code": None if loaded is None else msgspec.structs.asdict(loaded.code),
        "socket": socket_path,
        "supervisor": {
            "pid": os.getpid(),
            "rss_mb": _megabytes(processes.rss_bytes(os.getpid())),
            "age_s": _seconds(time.monotonic() - started_s),
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
        "worker_deaths": pool.deaths,
        "workers": [
            {
                "worker": worker.number,
                "pid": worker.pid,
                "state": pool.state_of(worker).value,
                "connections": pool.connections_of(worker),
                "rss_mb": _megabytes(worker.rss_bytes()),
                "age_s": _seconds(worker.age_s),
            }
            for worker in pool.all_workers()
        ],
        "connections": [_of_connection(each) for each in pool.connections.values()],
    }


def _of_connection(connection: SupervisedConnection) -> dict[str, Any]:
    stats = connection.header.record.stats
    task_id, node_id = connection.header.task
    return {
        "connection": connection.number,
        "task_id": task_id,
        "node_id": node_id,
        "worker": connection.route.worker,
        "state": connection.state,
        "busy_s": _seconds(connection.watch.busy_s),
        "points_in": stats.points_in,
        "points_out": stats.points_out,
        "batches_in": stats.batches_in,
        "batches_out": stats.batches_out,
        "points_per_s": round(connection.points_per_s, 1),
        "failures": stats.failures,
        "restarts": stats.restarts,
        "takeovers": connection.takeovers,
        "age_s": _seconds(time.monotonic() - connection.started_s),
    }


def _megabytes(count: int) -> float:
    return round(count / 1e6, 1)


def _seconds(duration_s: float) -> float:
    return round(duration_s, 3)
