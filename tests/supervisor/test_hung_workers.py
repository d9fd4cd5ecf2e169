"""Workers that hang write their stacks, and are then killed; the clock is simulated."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from kapudf_cli.supervisor.routes import ConnectionState
from kapudf_cli.supervisor.worker_death import HungWorkers
from kapudf_cli.system import logs
from kapudf_cli.system.processes import is_stopped
from tests.serve_process import PATIENCE_S
from tests.supervisor.connections import two_supervised
from tests.supervisor.workers import Workers
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kapudf_cli.supervisor.connection import SupervisedConnection
    from kapudf_cli.supervisor.worker_process import WorkerProcess

LOG = logs.get_logger()


@pytest.fixture
def worker() -> Iterator[WorkerProcess]:
    """Give a worker that can write its stacks."""
    with Workers() as workers:
        yield workers.start_ready()


@pytest.fixture
def served() -> Iterator[Sequence[SupervisedConnection]]:
    """Give connections 1 and 2, with busy handlers."""
    with two_supervised() as both:
        for each in both:
            each.header.busy_since_ns = 1
            each.route.state = ConnectionState.SERVED
        yield both


def await_stacks(worker: WorkerProcess) -> str:
    """Return the stacks that a worker writes; a killed worker writes none."""
    deadline = time.monotonic() + PATIENCE_S
    while not (stacks := worker.stacks()) and time.monotonic() < deadline:
        time.sleep(0.001)
    return stacks


def test_a_hanging_worker_writes_its_stacks_before_it_is_killed(
    worker: WorkerProcess, served: Sequence[SupervisedConnection]
) -> None:
    hanging = HungWorkers()
    hanging.note(served[0], worker, 100.0, LOG)
    assert "worker/main.py" in await_stacks(worker)
    hanging.kill_due(100.25)
    worker.ask_for_stacks()
    assert await_stacks(worker)
    assert not hanging.is_empty
    hanging.kill_due(100.5)
    assert worker.reap() == "SIGKILL"
    assert hanging.is_empty


def test_each_hanging_handler_is_reported_once(
    worker: WorkerProcess, served: Sequence[SupervisedConnection]
) -> None:
    hanging = HungWorkers()
    with capture_logs() as events:
        for now_s in (100.0, 100.25):
            for each in served:
                hanging.note(each, worker, now_s, LOG)
    assert [
        (each["event"], each["log_level"], each["connection"], each["worker"], each["pid"])
        for each in events
    ] == [
        ("handler hangs, its worker is replaced", "error", number, worker.number, worker.pid)
        for number in (1, 2)
    ]
    assert all(each.is_hanging for each in served)
    hanging.kill_due(100.35)
    assert worker.reap() == "SIGKILL"


def test_a_worker_that_dies_meanwhile_is_forgotten(
    worker: WorkerProcess, served: Sequence[SupervisedConnection]
) -> None:
    hanging = HungWorkers()
    hanging.forget(worker)
    hanging.note(served[0], worker, 100.0, LOG)
    hanging.forget(worker)
    assert hanging.is_empty
    hanging.kill_due(200.0)
    assert await_stacks(worker)
    worker.ask_for_stacks()
    assert await_stacks(worker)


def test_a_worker_that_is_frozen_is_killed_and_no_connection_is_blamed(
    worker: WorkerProcess, served: Sequence[SupervisedConnection]
) -> None:
    hanging = HungWorkers()
    with capture_logs() as events:
        for each in served:
            each.header.busy_since_ns = 0
            hanging.note(each, worker, 100.0, LOG)
            hanging.note_frozen(each, worker, 100.1, LOG)
    assert [each["event"] for each in events] == ["worker is frozen, it is replaced"]
    assert not any(each.is_hanging for each in served)
    hanging.kill_due(100.5)
    assert worker.reap() == "SIGKILL"


def test_a_worker_that_is_stopped_with_a_frame_is_frozen_and_its_handler_does_not_hang(
    worker: WorkerProcess, served: Sequence[SupervisedConnection]
) -> None:
    os.kill(worker.pid, signal.SIGSTOP)
    wait_until(lambda: is_stopped(worker.pid))
    hanging = HungWorkers()
    with capture_logs() as events:
        hanging.note(served[0], worker, 100.0, LOG)
    assert [each["event"] for each in events] == ["worker is frozen, it is replaced"]
    assert not served[0].is_hanging
    hanging.kill_due(100.5)
    assert worker.reap() == "SIGKILL"
