"""Workers that die at any step: their connections go on, and nothing is lost."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.protocol.udf_pb2 import (
    BeginBatch,
    EndBatch,
    ErrorResponse,
    KeepaliveResponse,
    Point,
    SnapshotResponse,
)
from kapudf_cli.supervisor import control
from tests.conftest import plugin
from tests.plugins.mortal import ENOUGH_DEATHS
from tests.serve_process import PATIENCE_S
from tests.supervisor.ongoing import await_status
from tests.supervisor.tasks import batches, interspersed, of_type, play, play_until, points, tallied

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from kapudf_cli.protocol.codec import RequestMessage
    from tests.serve_process import ServeProcess

    Serve = Callable[..., ServeProcess]

#: How many workers the long test kills at random; `make soak` kills more.
KILLS = int(os.environ.get("KAPUDF_SOAK_KILLS", "20"))
#: How long each kill may take on average.
MOST_S_A_KILL = 2.0

#: Every step of the journal, before and after.
STEPS = [
    "receive.before",
    "receive.received.before",
    "receive.received.after",
    "receive.after",
    "store.before",
    "store.commit.before",
    "store.commit.after",
    "store.after",
    "send.before",
    "send.half",
    "compact.before",
    "compact.commit.before",
    "compact.commit.after",
    "compact.after",
    "other.busy.before",
    "other.busy.after",
]
#: Before and after a commit, and in the middle of writing output.
FIRST_STEPS = {
    "receive.received.after", "store.commit.before", "store.commit.after", "send.half",
    "compact.commit.after",
}  # fmt: skip


@pytest.fixture
def deaths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the file where workers record their deaths."""
    file = tmp_path / "deaths"
    file.touch()
    monkeypatch.setenv("DEATHS", str(file))
    return file


def deaths_of(process: ServeProcess) -> list[tuple[int, str]]:
    """Return the deaths in the log: how each worker died."""
    return [
        (event["pid"], event["how"]) for event in process.events if event["event"] == "worker died"
    ]


def with_rests(data: Iterable[RequestMessage], path: str, every: int) -> Iterator[RequestMessage]:
    """Yield data, with pauses in which the worker handles all of it."""
    for number, message in enumerate(data, 1):
        yield message
        if number % every == 0:
            await_status(path, lambda status: status["connections"][0]["state"] == "idle")


@pytest.mark.parametrize(
    "step",
    [pytest.param(each, marks=[] if each in FIRST_STEPS else pytest.mark.long) for each in STEPS],
)
def test_a_death_at_any_step_loses_and_repeats_nothing(
    serve: Serve,
    socket_path: str,
    deaths: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    monkeypatch.setenv("DIE_AT", step)
    process = serve(plugin("mortal.py:Count"), "--snapshot-interval", "0.1")
    sent = list(points(6_000))
    # How often a worker waits depends on how fast input comes.
    back = play(socket_path, with_rests(interspersed(sent, 100), socket_path, 1_500))
    assert of_type(back, Point) == tallied(sent)
    assert [each.time for each in of_type(back, KeepaliveResponse)] == [*range(100, 6_001, 100)]  # type: ignore[union-attr]
    assert len(of_type(back, SnapshotResponse)) == 60
    finished = process.event("connection finished")
    assert (finished["reason"], finished["points_in"], finished["points_out"]) == (
        "closed",
        6_000,
        6_000,
    )
    assert 1 <= len(deaths_of(process)) == deaths.stat().st_size <= ENOUGH_DEATHS


@pytest.mark.parametrize(
    "step",
    [
        pytest.param("receive.received.before", marks=pytest.mark.long),
        "store.commit.after",
        pytest.param("send.half", marks=pytest.mark.long),
    ],
)
def test_batches_stay_whole_wherever_a_worker_dies(
    serve: Serve,
    socket_path: str,
    deaths: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    monkeypatch.setenv("DIE_AT", step)
    serve(plugin("mortal.py:CountBatches"), "--snapshot-interval", "0.1")
    back = play(socket_path, batches(60, 100))
    kinds = [BeginBatch, *[Point] * 100, EndBatch]
    assert [type(each) for each in back] == kinds * 60
    counts = [each.fieldsInt["count"] for each in back if isinstance(each, Point)]
    assert counts == [number for number in range(1, 61) for _ in range(100)]
    assert deaths.stat().st_size == ENOUGH_DEATHS


@pytest.mark.parametrize("kills", [4, pytest.param(KILLS, marks=pytest.mark.long)])
def test_workers_killed_at_random_change_nothing_for_eight_tasks(
    serve: Serve, socket_path: str, kills: int
) -> None:
    process = serve(plugin("mortal.py:Count"), "--workers", "2", "--snapshot-interval", "0.3")
    chance = random.Random(7)  # noqa: S311 - the same choices in every run
    pause = threading.Event()
    killed = threading.Event()

    with ThreadPoolExecutor(8) as threads:
        run = partial(play_until, socket_path, killed)
        tasks = [threads.submit(run, task=f"task-{number}") for number in range(8)]
        dead: set[int] = set()
        # On an overloaded machine, many die before they have done anything, and are then
        # replaced more and more slowly.
        enough_s = time.monotonic() + kills * MOST_S_A_KILL
        while len(dead) < kills and time.monotonic() < enough_s:
            dead |= kill_one(socket_path, chance, pause)
            if any(task.done() for task in tasks):
                break
        killed.set()
        counts = [task.result(PATIENCE_S * 4) for task in tasks]
    finished = process.await_events("connection finished", 8, reason="closed")
    assert sorted(event["points_out"] for event in finished) == sorted(counts)
    assert sorted(deaths_of(process)) == [(pid, "SIGKILL") for pid in sorted(dead)]
    assert dead


def kill_one(path: str, chance: random.Random, pause: threading.Event) -> set[int]:
    """Kill a worker that serves a connection, after a pause; return its pid, if there is one."""
    status = control.ask(path, "status", timeout_s=PATIENCE_S)
    serving = [
        worker["pid"]
        for worker in status["workers"]
        if worker["state"] == "serving" and worker["connections"]
    ]
    pause.wait(chance.uniform(0.0, 0.1))
    if not serving:
        return set()
    pid = chance.choice(serving)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return {pid}


@pytest.mark.parametrize(
    ("poison", "how"),
    [
        ("abort", "SIGABRT"),
        pytest.param("segfault", "SIGSEGV", marks=pytest.mark.long),
        pytest.param("kill", "SIGKILL", marks=pytest.mark.long),
        ("exit", "exit status 3"),
    ],
)
def test_a_point_that_kills_workers_is_dropped_with_on_error_skip(
    serve: Serve, socket_path: str, poison: str, how: str
) -> None:
    process = serve(plugin("mortal.py:Poisoned"), "--on-error", "skip")
    sent = list(points(1_000))
    bad = Point(time=-1, name="m", group="g0", tags={"poison": poison}, fieldsDouble={"x": 1})
    back = play(socket_path, [*sent[:600], bad, *sent[600:]])
    assert back == tallied(sent)
    assert "poison" in process.event("dropped what killed the worker")["frame"]
    assert process.event("worker died")["how"] == how
    assert process.event("connection finished")["failures"] == 1


def test_a_point_that_kills_workers_fails_the_task_with_on_error_fail(
    serve: Serve, socket_path: str
) -> None:
    process = serve(plugin("mortal.py:Poisoned"))
    sent = list(points(300))
    bad = Point(time=-1, name="m", group="g0", tags={"poison": "abort"}, fieldsDouble={"x": 1})
    back = play(socket_path, [*sent, bad, Point(time=9, fieldsDouble={"x": 1})], task="bad")
    assert of_type(back, Point) == tallied(sent)
    error = back[-1]
    assert isinstance(error, ErrorResponse)
    assert "ended 2 workers" in error.error
    assert "SIGABRT" in error.error
    finished = process.event("connection finished")
    assert (finished["reason"], finished["task_id"]) == ("handler_error", "bad")
    assert play(socket_path, sent, task="good") == tallied(sent)


def test_a_handler_that_hangs_is_replaced_and_the_log_says_where(
    serve: Serve, socket_path: str
) -> None:
    process = serve(plugin("mortal.py:Poisoned"), "--on-error", "skip", "--busy-limit", "1")
    sent = list(points(100))
    bad = Point(time=-1, name="m", group="g0", tags={"poison": "hang"}, fieldsDouble={"x": 1})
    assert play(socket_path, [*sent[:50], bad, *sent[50:]]) == tallied(sent)
    process.event("handler hangs, its worker is replaced")
    assert "mortal.py" in process.event("worker died")["stacks"]
