"""No descriptor is left, in the supervisor or in a worker: existing connections go on."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from functools import partial
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.protocol.udf_pb2 import Point
from kapudf_cli.supervisor import control
from tests.conftest import plugin
from tests.peers import in_thread
from tests.serve_process import PATIENCE_S, ServeProcess
from tests.supervisor.ongoing import status_of
from tests.supervisor.tasks import play, points, started_task, tallied

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kapudf_cli.client.driver import KapacitorSide

    Serve = Callable[..., ServeProcess]


@contextlib.contextmanager
def few_descriptors(pid: int, spare: int) -> Iterator[None]:
    """Leave a process `spare` descriptors. Sets only the soft limit, which can be raised again."""
    taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    free = (number for number in range(1_000) if number not in taken)
    limit = [next(free) for _ in range(spare + 1)][-1]
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def echo(side: KapacitorSide) -> None:
    """Send a point, and check that it comes back."""
    side.send(Point(time=1))
    assert isinstance(side.receive(), Point)


def test_a_supervisor_without_descriptors_replaces_workers_and_answers_who_asks(
    serve: Serve, socket_path: str
) -> None:
    process = serve(plugin("mortal.py:Count"))
    with started_task(socket_path) as task:
        with few_descriptors(process.pid, 0):
            newcomer = in_thread(partial(play, socket_path, points(30)))
            failed = process.event("cannot accept connections")
            assert "Too many open files" in failed["error"]
            (worker,) = status_of(socket_path)["workers"]
            os.kill(worker["pid"], signal.SIGKILL)
            process.event("connection taken over")
            echo(task)
            assert status_of(socket_path)["worker_deaths"] == 1
            assert not newcomer.done()
        assert newcomer.result(PATIENCE_S) == tallied(points(30))
        echo(task)
    assert len(list(process.matching("worker died"))) == 1
    assert not list(process.matching("worker cannot start"))
    assert process.stop() == 0


@pytest.mark.parametrize("spare", [1, 2, 3, 4])
def test_a_supervisor_with_too_few_descriptors_answers_in_the_end(
    serve: Serve, socket_path: str, spare: int
) -> None:
    process = serve(plugin("mortal.py:Count"))
    with started_task(socket_path) as task:
        with few_descriptors(process.pid, spare):
            newcomer = in_thread(partial(play, socket_path, points(30)))
            others = [
                in_thread(partial(control.ask, socket_path, "status", timeout_s=PATIENCE_S))
                for _ in range(6)
            ]
            echo(task)
        assert newcomer.result(PATIENCE_S) == tallied(points(30))
        for other in others:
            assert other.result(PATIENCE_S)["workers"]
        echo(task)
    assert process.stop() == 0


@pytest.mark.parametrize("spare", [0, 1, 2, 3])
def test_a_worker_without_descriptors_goes_on_and_takes_connections_later(
    serve: Serve, socket_path: str, spare: int
) -> None:
    process = serve(plugin("mortal.py:Count"))
    with started_task(socket_path) as task:
        (worker,) = status_of(socket_path)["workers"]
        with few_descriptors(worker["pid"], spare):
            newcomers = [in_thread(partial(play, socket_path, points(30))) for _ in range(2)]
            process.await_events("worker cannot serve a connection", 3)
            echo(task)
        for newcomer in newcomers:
            assert newcomer.result(PATIENCE_S) == tallied(points(30))
        echo(task)
    assert not list(process.matching("worker died"))
    assert process.stop() == 0


@pytest.mark.usefixtures("_processes_start_by_exec")
def test_limits_are_raised_as_far_as_they_may_be(serve: Serve) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lower = min(soft, 256)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lower, hard))
    try:
        process = serve("mirror")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    children = f"/proc/{process.pid}/task/{process.pid}/children"
    with open(children, encoding="ascii") as file:
        pids = [process.pid, *map(int, file.read().split())]
    assert [resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in pids] == [(hard, hard)] * 2
