"""Partitions of a handler in processes of their own: deaths, reloads, poison and status."""

from __future__ import annotations

import os
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import plugin
from tests.run_kapudf import run_kapudf
from tests.serve_process import PATIENCE_S
from tests.supervisor.ongoing import kapudf, status_of
from tests.supervisor.succession import await_status, kill_supervisor, kill_worker
from tests.supervisor.tasks import play, play_until, points, started_task, tallied
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kapudf_cli.protocol.udf_pb2 import Point
    from tests.serve_process import ServeProcess

    Serve = Callable[..., ServeProcess]

#: `make soak` sets more.
KILLS = int(os.environ.get("KAPUDF_SOAK_KILLS", "8"))
COUNT = plugin("mortal.py:Count")


def partitions_of(status: dict[str, Any]) -> list[int]:
    """Return the process ids of all partitions."""
    return [each["pid"] for worker in status["workers"] for each in worker["partitions"]]


def kill_partition(path: str, chance: random.Random) -> None:
    """Kill a partition, and wait until another worker serves the connections."""
    before = partitions_of(await_status(path, lambda status: bool(partitions_of(status))))
    killed = chance.choice(before)
    os.kill(killed, chance.choice([signal.SIGKILL, signal.SIGSEGV]))
    await_status(path, lambda status: partitions_of(status) not in ([], before))


def reload(path: str, chance: random.Random) -> None:
    """Replace the workers while tasks run."""
    del chance
    kapudf("reload", "--socket", path)


STEPS: dict[str, Callable[[str, random.Random], None]] = {
    "partition": kill_partition,
    "worker": lambda path, _: kill_worker(path),
    "supervisor": lambda path, _: kill_supervisor(path),
    "reload": reload,
}


@pytest.mark.parametrize(
    ("handler", "steps", "start"),
    [
        ("Count", ["partition", "worker", "reload", "partition"], ["--preload"]),
        ("Unordered", ["partition", "worker", "reload"], ["--preload"]),
        pytest.param("Count", [*STEPS] * (KILLS // 4), ["--preload"], marks=pytest.mark.long),
        pytest.param("Unordered", [*STEPS] * (KILLS // 4), ["--preload"], marks=pytest.mark.long),
        pytest.param(
            "Count",
            [*STEPS] * (KILLS // 4),
            ["--preload", "--workers", "2"],
            marks=pytest.mark.long,
        ),
    ],
)
def test_deaths_and_reloads_change_nothing_for_two_tasks(
    serve_kept: Serve, socket_path: str, handler: str, steps: list[str], start: list[str]
) -> None:
    served = plugin(f"mortal.py:{handler}")
    process = serve_kept(served, "--partitions", "2", "--snapshot-interval", "0.3", *start)
    chance = random.Random(5)  # noqa: S311 - the same choices in every run
    ended = threading.Event()
    patience_s = 4 * PATIENCE_S + 3 * len(steps)
    with ThreadPoolExecutor(2) as threads:
        is_ordered = handler == "Count"
        run = partial(play_until, socket_path, ended, timeout_s=patience_s, ordered=is_ordered)
        tasks = [threads.submit(run, task=f"task-{number}") for number in range(2)]
        try:
            for step in steps:
                STEPS[step](socket_path, chance)
        finally:
            ended.set()
        sent = [task.result(patience_s) for task in tasks]
    finished = process.await_events("connection finished", 2)
    assert sorted(each["points_in"] for each in finished) == sorted(sent)
    assert len(list(process.matching("partition died"))) >= steps.count("partition")


def test_a_slow_group_does_not_delay_other_partitions(
    serve: Serve, socket_path: str, tmp_path: Path
) -> None:
    """What they have answered meanwhile is not repeated after a death."""
    serve(plugin("mortal.py:Unordered"), "--partitions", "2", "--preload")
    sent = list(points(60))
    end = tmp_path / "end"
    sent[1].tags["file"] = str(end)
    wanted = tallied(sent)
    slow = [point for point in wanted if point.group == "g1"]
    with started_task(socket_path) as side:
        side.queue(sent)
        fast = [side.receive() for _ in range(40)]
        assert fast == [point for point in wanted if point.group != "g1"]
        kill_worker(socket_path)
        end.touch()
        assert [side.receive() for _ in slow] == slow
        (again,) = tallied([*sent, *points(1)])[60:]
        side.send(*points(1))
        assert side.receive() == again


def poisoned(kind: str) -> list[Point]:
    """Return points; one of them makes the process of its handler die."""
    sent = list(points(600))
    sent[400].tags["poison"] = kind
    return sent


@pytest.mark.parametrize("kind", ["segfault", pytest.param("hang", marks=pytest.mark.long)])
def test_a_point_that_kills_a_partition_is_dropped(
    serve: Serve, socket_path: str, kind: str
) -> None:
    arguments = ["--partitions", "2", "--preload", "--on-error", "skip", "--busy-limit", "3"]
    process = serve(plugin("mortal.py:Poisoned"), *arguments)
    sent = poisoned(kind)
    back = play(socket_path, sent)
    bad = sent.pop(400)
    assert back == tallied(sent)
    dropped = process.event("dropped what killed the worker")
    assert f"time: {bad.time}" in dropped["frame"]
    deaths = list(process.matching("worker died"))
    # In the first one, several points were handled at once.
    assert len(deaths) == 2
    # The stacks are those of the partition, and name the handler's line.
    assert "mortal.py" in deaths[-1]["stacks"]


@pytest.mark.long
def test_points_that_take_long_are_no_hang(serve: Serve, socket_path: str) -> None:
    """Several in a row take longer than the limit for one of them."""
    process = serve(plugin("mortal.py:Slow"), "--partitions", "2", "--busy-limit", "2")
    sent = list(points(24))
    for each in sent:
        each.fieldsInt["ms"] = 400
    assert play(socket_path, sent) == tallied(sent)
    assert list(process.matching("worker died")) == []


def test_a_partition_that_is_killed_ends_its_worker_and_its_siblings(
    serve: Serve, socket_path: str
) -> None:
    process = serve(COUNT, "--partitions", "2", "--preload")
    status = status_of(socket_path)
    first, second = partitions_of(status)
    os.kill(first, signal.SIGKILL)
    died = process.event("partition died")
    assert (died["partition"], died["how"], died["pid"]) == (0, "SIGKILL", first)
    assert process.event("worker died")["how"] == "SIGKILL"
    wait_until(lambda: not os.path.exists(f"/proc/{second}"))
    assert process.stop() == 0
    wait_until(lambda: not any(map(is_alive, partitions_of(status))))


def is_alive(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def test_partitions_have_their_rows_in_the_status(serve: Serve, socket_path: str) -> None:
    serve(COUNT, "--partitions", "3", "--preload")
    (worker,) = status_of(socket_path)["workers"]
    assert [each["partition"] for each in worker["partitions"]] == [0, 1, 2]
    assert all(each["rss_mb"] > 1 for each in worker["partitions"])
    # `max_rss_mb` counts them too.
    assert worker["rss_mb"] > sum(each["rss_mb"] for each in worker["partitions"])
    rows = kapudf("status", "--socket", socket_path).splitlines()
    for each in worker["partitions"]:
        name = f"{worker['worker']}/{each['partition']}"
        assert any(row.split()[:3] == [name, str(each["pid"]), "partition"] for row in rows)
    metrics = kapudf("status", "--socket", socket_path, "--format", "prometheus")
    assert "kapudf_worker_partition_cpu_seconds_total{" in metrics


def test_output_of_partitions_is_theirs_by_group(serve: Serve, socket_path: str) -> None:
    """Started by exec, as without `preload`."""
    process = serve(COUNT, "--partitions", "2")
    sent = list(points(3_000))
    assert play(socket_path, sent) == tallied(sent)
    assert process.event("connection finished")["points_out"] == 3_000
    assert process.stop() == 0


def test_a_handler_that_cannot_be_partitioned_is_refused(socket_path: str) -> None:
    handler = plugin("mortal.py:CountBatches")
    result = run_kapudf("serve", "--socket", socket_path, "--handler", handler, "--partitions", "2")
    assert result.returncode == 2
    assert "CountBatches has one state for all groups" in result.stderr
    assert "Traceback" not in result.stderr
