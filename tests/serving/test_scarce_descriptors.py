"""No descriptor left, in the supervisor or in a worker: what is served goes on."""

from __future__ import annotations

import contextlib
import os
import resource
from functools import partial
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.kapacitor import KapacitorSide
from kapudf_cli.serving import control
from kapudf_cli.wire.udf_pb2 import InitRequest, InitResponse, Point
from tests.conftest import plugin
from tests.peers import in_thread
from tests.serve_process import PATIENCE_S, ServeProcess
from tests.serving.ongoing import status_of
from tests.serving.tasks import play, points, tallied

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Serve = Callable[..., ServeProcess]


@contextlib.contextmanager
def few_descriptors(pid: int, spare: int) -> Iterator[None]:
    """Leave a process so many descriptors; only the soft limit, so that it can be undone."""
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


def started_task(path: str) -> KapacitorSide:
    """Connect and get through Init."""
    side = KapacitorSide.connect(path, timeout_s=PATIENCE_S)
    side.send(InitRequest(taskID="task", nodeID="node"))
    assert side.receive() == InitResponse(success=True)
    return side


def echo(side: KapacitorSide) -> None:
    """Send a point and see that it comes back."""
    side.send(Point(time=1))
    assert isinstance(side.receive(), Point)


def test_a_supervisor_without_descriptors_ends_nothing_for_who_asks(
    serve: Serve, socket_path: str
) -> None:
    """Whoever asks how it does, or connects, waits until there are some again."""
    process = serve(plugin("mortal.py:Count"))
    with started_task(socket_path) as task:
        with few_descriptors(process.pid, 0):
            status = in_thread(partial(control.ask, socket_path, "status", timeout_s=PATIENCE_S))
            failed = process.event("cannot accept connections")
            assert "Too many open files" in failed["error"]
            newcomer = in_thread(partial(play, socket_path, points(30)))
            process.await_events("cannot accept connections", 3)
            echo(task)
            assert not status.done()
        assert status.result(PATIENCE_S)["workers"]
        assert newcomer.result(PATIENCE_S) == tallied(points(30))
        echo(task)
    assert not list(process.matching("worker died"))
    assert process.stop() == 0


@pytest.mark.parametrize("spare", [1, 2, 3, 4])
def test_a_supervisor_with_too_few_descriptors_answers_in_the_end(
    serve: Serve, socket_path: str, spare: int
) -> None:
    """Whoever could be accepted, and no more, is not turned away for it."""
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
def test_a_worker_without_descriptors_serves_on_and_takes_others_later(
    serve: Serve, socket_path: str, spare: int
) -> None:
    """A connection takes it four: two that it is handed, and two of its own."""
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


def test_limits_are_raised_as_far_as_they_may_be(serve: Serve) -> None:
    """The supervisor's and those of its workers; the usual soft limit is for other programs."""
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
