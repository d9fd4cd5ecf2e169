"""How a function does, as plain data: what `kapudf status` shows."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import msgspec

from kapudf_cli.system.processes import rss_bytes

if TYPE_CHECKING:
    from kapudf_cli.supervisor.connection import SupervisedConnection
    from kapudf_cli.supervisor.pool import Pool


def of_pool(pool: Pool, *, socket_path: str, started_s: float) -> dict[str, Any]:
    """Return the state of a function, its workers and its connections.

    Args:
        pool: the function's workers.
        socket_path: where Kapacitor connects.
        started_s: when the supervisor started, of the monotonic clock.
    """
    return {
        "function": pool.name,
        "handler": pool.handler,
        "code": None if pool.code is None else msgspec.structs.asdict(pool.code),
        "socket": socket_path,
        "supervisor": {
            "pid": os.getpid(),
            "rss_mb": _megabytes(rss_bytes(os.getpid())),
            "age_s": _seconds(time.monotonic() - started_s),
        },
        "worker_deaths": pool.deaths,
        "workers": [
            {
                "worker": worker.number,
                "pid": worker.pid,
                "state": worker.state.value,
                "connections": len(worker.connections),
                "rss_mb": _megabytes(worker.rss_bytes()),
                "age_s": _seconds(worker.age_s),
            }
            for worker in pool.all_workers()
        ],
        "connections": [_of_connection(served) for served in pool.connections.values()],
    }


def _of_connection(served: SupervisedConnection) -> dict[str, Any]:
    stats = served.header.record.stats
    task_id, node_id = served.header.task
    return {
        "connection": served.number,
        "task_id": task_id,
        "node_id": node_id,
        "worker": None if served.worker is None else served.worker.number,
        "state": served.state,
        "busy_s": _seconds(served.watch.busy_s),
        "points_in": stats.points_in,
        "points_out": stats.points_out,
        "batches_in": stats.batches_in,
        "batches_out": stats.batches_out,
        "points_per_s": round(served.points_per_s, 1),
        "failures": stats.failures,
        "restarts": stats.restarts,
        "takeovers": served.takeovers,
        "age_s": _seconds(time.monotonic() - served.started_s),
    }


def _megabytes(count: int) -> float:
    return round(count / 1e6, 1)


def _seconds(duration_s: float) -> float:
    return round(duration_s, 3)
