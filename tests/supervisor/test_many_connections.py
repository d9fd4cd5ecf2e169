"""Hundreds of connections at once: no worker dies of them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from typing import TYPE_CHECKING

from kapudf_cli.client.driver import KapacitorSide
from kapudf_cli.protocol.udf_pb2 import InitRequest, InitResponse, Point
from kapudf_cli.system.processes import raise_descriptor_limit
from tests.serve_process import PATIENCE_S, ServeProcess
from tests.supervisor.ongoing import await_status

if TYPE_CHECKING:
    from collections.abc import Callable

    Serve = Callable[..., ServeProcess]

#: More than fit into the channel to a worker at once.
MANY = int(os.environ.get("KAPUDF_SOAK_CONNECTIONS", "400"))


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_connections_that_come_and_go_in_a_burst_leave_nothing_behind(
    serve: Serve, socket_path: str
) -> None:
    process = serve("mirror")
    before = descriptors(process.pid)
    for _ in range(MANY):
        with socket.socket(socket.AF_UNIX) as passing:
            passing.settimeout(PATIENCE_S)
            passing.connect(socket_path)
    process.await_events("connection finished", MANY)
    await_status(socket_path, lambda status: not status["connections"])
    assert descriptors(process.pid) == before
    assert not list(process.matching("worker died"))
    assert process.stop() == 0


def test_many_tasks_survive_the_deaths_of_their_workers_and_are_spread_again(
    serve: Serve, socket_path: str
) -> None:
    raise_descriptor_limit()
    process = serve("mirror", "--workers", "2")
    with contextlib.ExitStack() as ends:
        sides = [
            ends.enter_context(KapacitorSide.connect(socket_path, timeout_s=PATIENCE_S))
            for _ in range(MANY)
        ]
        for side in sides:
            side.send(InitRequest(taskID="task", nodeID="node"))
        for side in sides:
            assert side.receive() == InitResponse(success=True)
        for worker in await_status(socket_path, lambda status: len(status["workers"]) == 2)[
            "workers"
        ]:
            os.kill(worker["pid"], signal.SIGKILL)
        for side in sides:
            side.send(Point(time=1))
        for side in sides:
            assert side.receive() == Point(time=1)
        status = await_status(
            socket_path,
            lambda status: (
                [each["connections"] for each in status["workers"]] == [MANY // 2, MANY // 2]
            ),
        )
        assert status["worker_deaths"] == 2
        for side in sides:
            side.send(Point(time=2))
        for side in sides:
            assert side.receive() == Point(time=2)
    assert process.stop() == 0
