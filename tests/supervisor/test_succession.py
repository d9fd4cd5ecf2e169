"""A supervisor that dies: the next one goes on, and nothing is lost or repeated."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.conftest import plugin
from tests.serve_process import PATIENCE_S, ServeProcess
from tests.supervisor.ongoing import Code, OngoingTask, check_count, status_of, write_config
from tests.supervisor.succession import await_status, kill_supervisor, kill_worker
from tests.supervisor.tasks import play_until, started_task

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: How many supervisors and workers the long test kills at random; `make soak` kills more.
KILLS = int(os.environ.get("KAPUDF_SOAK_KILLS", "20"))
#: How long each kill may take on average.
MOST_S_A_KILL = 4.0

MORTAL = (sys.executable, "-m", "tests.peers.mortal_supervisor")
#: Where a supervisor dies, from the first connection to its end.
STEPS = [
    "acceptance.begin.before",
    "journal.create.after",
    "SupervisedConnection.save.after",
    "SupervisedConnection.prepare.after",
    "WorkerProcess.hand_over.after",
    "WorkerProcess.keep.before",
    "WorkerProcess.keep.after",
    "DescriptorStore.put:worker-2.before",
    "adoption.decide.before",
    "Pool.adopt.after",
    "Router.on_paused.before",
    "Router.on_paused.after",
    "Router.on_taken_over.before",
    "WorkerProcess.send:Pause.after",
    "WorkerProcess.send:Release.before",
    "WorkerProcess.send:Release.after",
    "WorkerProcess.send:Resume.before",
    "WorkerProcess.send:Resume.after",
    "SupervisedConnection.note_death.before",
    "SupervisedConnection.note_death.after",
    "Dispatch.on_exit.before",
    "Dispatch.add_ended.before",
    "Dispatch.add_ended.after",
    "SupervisedConnection.close.before",
    "DescriptorStore.remove:connection-1.before",
    "DescriptorStore.remove:journal-1.after",
]
FIRST_STEPS = {"WorkerProcess.send:Release.after", "Dispatch.add_ended.before"}


def test_a_task_outlives_supervisors_and_the_keeper_ends_with_the_last_one(
    serve_kept: Callable[..., ServeProcess], socket_path: str, tmp_path: Path
) -> None:
    code = Code(tmp_path)
    process = serve_kept(code.handler)
    assert process.rss_bytes() < 12e6
    with OngoingTask(socket_path) as task:
        task.await_more()
        with started_task(socket_path, "ended"):
            pass
        process.event("connection finished", connection=2)
        code.change()
        kill_supervisor(socket_path)
        task.await_version(2)
        # The counters go on, too.
        status = await_status(socket_path, lambda _: True)
        assert (status["ended_connections"]["closed"], status["worker_starts"]) == (1, 2)
        goes_on = process.event("goes on with the tasks of the last supervisor")
        assert (goes_on["last_end"], goes_on["connections"]) == ("SIGKILL", 1)
        # Another one can connect, and gets a number of its own.
        with started_task(socket_path, "another"):
            await_status(
                socket_path,
                lambda status: [each["connection"] for each in status["connections"]] == [1, 3],
            )
        process.event("connection finished", connection=3)
        kill_worker(socket_path)
        task.await_more()
        assert check_count(task) == [1, 2]
    (finished,) = process.await_events("connection finished", 1, task_id="task")
    assert (finished["reason"], finished["connection"]) == ("closed", 1)
    assert process.stop() == 0
    finished_ones = [
        (each["connection"], each["reason"]) for each in process.matching("connection finished")
    ]
    assert sorted(finished_ones) == [(1, "closed"), (2, "closed"), (3, "closed")]
    assert not os.path.exists(socket_path)


def test_tasks_go_on_without_a_supervisor_while_the_settings_are_wrong(
    socket_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAPUDF_KEEPER", "1")
    monkeypatch.setenv("KAPUDF_TESTS_EXEC", "1")
    code, config = Code(tmp_path), tmp_path / "kapudf.yaml"
    functions = {"count": {"handler": code.handler, "socket": socket_path}}
    write_config(config, functions)
    with (
        ServeProcess("--config", str(config)) as process,
        contextlib.nullcontext(process.ready()),
        OngoingTask(socket_path) as task,
    ):
        task.await_more()
        write_config(config, functions, workerz=1)
        os.kill(status_of(socket_path)["supervisor"]["pid"], signal.SIGKILL)
        process.await_line("The tasks go on in their workers until kapudf can start.")
        task.await_more()
        write_config(config, functions)
        # systemd starts a service again after this exit status, unlike after 2.
        goes_on = process.event("goes on with the tasks of the last supervisor")
        assert (goes_on["last_end"], goes_on["connections"]) == ("exit status 1", 1)
        check_count(task)


@pytest.mark.parametrize(
    "step",
    [pytest.param(each, marks=[] if each in FIRST_STEPS else pytest.mark.long) for each in STEPS],
)
def test_a_death_at_any_step_loses_and_repeats_nothing(
    serve_kept: Callable[..., ServeProcess],
    socket_path: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    deaths = tmp_path / "deaths"
    monkeypatch.setenv("DEATHS", str(deaths))
    monkeypatch.setenv("DIE_AT", step)
    code = Code(tmp_path)
    process = serve_kept(code.handler, kapudf=MORTAL)
    deaths.touch()
    with OngoingTask(socket_path) as task:
        task.await_more()
        kill_supervisor(socket_path)
        task.await_more()
        kill_worker(socket_path)
        task.await_more()
        check_count(task)
    process.event("connection finished")
    await_status(socket_path, lambda status: not status["connections"])
    assert deaths.stat().st_size >= 1
    deaths.unlink()
    # The last one may be dying.
    status = await_status(
        socket_path, lambda status: {"serving"} == {w["state"] for w in status["workers"]}
    )
    # Counted once, with all of its points.
    assert status["ended_connections"]["closed"] == 1
    assert status["totals"]["points_in"] == task.sent
    assert process.stop() == 0
    assert len(list(process.matching("connection finished"))) == 1


@pytest.mark.parametrize("kills", [pytest.param(KILLS, marks=pytest.mark.long)])
def test_supervisors_and_workers_killed_at_random_change_nothing_for_eight_tasks(
    serve_kept: Callable[..., ServeProcess], socket_path: str, kills: int
) -> None:
    process = serve_kept(plugin("mortal.py:Count"), "--workers", "2", "--snapshot-interval", "0.3")
    chance = random.Random(7)  # noqa: S311 - the same choices in every run
    pause = threading.Event()
    killed = threading.Event()

    with ThreadPoolExecutor(8) as threads:
        run = partial(play_until, socket_path, killed, timeout_s=kills * MOST_S_A_KILL + 60)
        tasks = [threads.submit(run, task=f"task-{number}") for number in range(8)]
        enough_s = time.monotonic() + kills * MOST_S_A_KILL
        supervisors = 0
        while supervisors < kills and time.monotonic() < enough_s:
            status = await_status(socket_path, lambda status: bool(status["workers"]))
            pause.wait(chance.uniform(0.0, 0.5))
            pids = [status["supervisor"]["pid"]]
            if chance.random() < 0.5:
                pids += [each["pid"] for each in status["workers"]]
            for pid in chance.sample(pids, min(len(pids), 2)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    supervisors += pid == pids[0]
            if any(task.done() for task in tasks):
                break
        killed.set()
        counts = [task.result(PATIENCE_S * 4) for task in tasks]
    finished = process.await_events("connection finished", 8, reason="closed")
    assert sorted(event["points_out"] for event in finished) == sorted(counts)
    assert supervisors
