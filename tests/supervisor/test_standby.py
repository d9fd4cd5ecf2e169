"""Spare workers: ready to take the place of one that dies or is recycled."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import msgspec
import pytest

from kapudf_cli.supervisor.replacement import Missing
from kapudf_cli.supervisor.routes import WorkerState
from tests.supervisor.ongoing import (
    Code,
    OngoingTask,
    await_status,
    check_count,
    kapudf,
    serving_pid,
)
from tests.supervisor.workers import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from tests.serve_process import ServeProcess
    from tests.supervisor.loops import Loop

    Serve = Callable[..., ServeProcess]

SPARED = msgspec.structs.replace(SETTINGS, standby=1)
BOTH = [WorkerState.SERVING, WorkerState.STANDBY]


def has_spare(status: dict[str, Any]) -> bool:
    """Return whether a worker serves, another one is ready, and there is no other."""
    states = [each["state"] for each in status["workers"]]
    return sorted(states) == ["serving", "standby"]


def test_a_spare_replaces_a_killed_worker_and_another_is_started(
    serve: Serve, socket_path: str, tmp_path: Path
) -> None:
    code = Code(tmp_path)
    process = serve(code.handler, "--standby", "1")
    with OngoingTask(socket_path) as task:
        task.await_version(1)
        for _ in range(3):
            status = await_status(socket_path, has_spare)
            (spare,) = (each for each in status["workers"] if each["state"] == "standby")
            os.kill(serving_pid(socket_path), signal.SIGKILL)
            process.event("standby worker serves", worker=spare["worker"])
            task.await_more()
        code.change()
        kapudf("reload", "--socket", socket_path)
        task.await_version(2)
        # The spare has the new code, too.
        await_status(socket_path, has_spare)
        os.kill(serving_pid(socket_path), signal.SIGKILL)
        task.await_more()
        assert check_count(task) == [1, 2]
    assert process.stop() == 0


def test_a_spare_relieves_a_worker_that_is_recycled(
    serve: Serve, socket_path: str, tmp_path: Path
) -> None:
    process = serve(Code(tmp_path).handler, "--standby", "1", "--max-points", "100")
    with OngoingTask(socket_path) as task:
        task.await_version(1)
        (worker,) = process.event("new workers serve")["workers"]
        assert process.event("connection handed over")["worker"] == worker
        task.await_more()
        assert check_count(task) == [1]
    assert process.stop() == 0


def test_a_dead_spare_is_replaced_and_all_end_with_the_pool(loop: Loop) -> None:
    pool = loop.start_pool(SPARED)

    def is_complete() -> bool:
        return [pool.state_of(each) for each in pool.all_workers()] == BOTH

    loop.turn_until(is_complete)
    worker, spare = pool.all_workers()
    spare.kill()
    loop.turn_until(lambda: spare not in pool.all_workers() and is_complete())
    assert worker in pool.all_workers()
    pool.stop()
    loop.turn_until(lambda: pool.is_empty)
    assert pool.deaths == 1


@pytest.mark.parametrize(
    ("missing", "room", "now"),
    [
        (Missing(0, 0), 2, Missing(0, 0)),
        (Missing(1, 1), 2, Missing(1, 1)),
        (Missing(2, 1), 2, Missing(2, 0)),
        (Missing(3, 1), 2, Missing(2, 0)),
        (Missing(0, 3), 2, Missing(0, 2)),
        (Missing(-1, 1), 2, Missing(0, 1)),
        (Missing(1, -1), 2, Missing(1, 0)),
    ],
)
def test_workers_come_before_spares(missing: Missing, room: int, now: Missing) -> None:
    assert missing.within(room) == now
