"""Actors, nodes and heads that die while tasks run: every point is answered once, exactly."""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from kapudf_cli.protocol.udf_pb2 import (
    RestoreRequest,
    RestoreResponse,
    SnapshotRequest,
    SnapshotResponse,
)
from kapudf_cli.system import processes
from tests.conftest import plugin
from tests.serve_process import PATIENCE_S, ServeProcess
from tests.supervisor.ongoing import status_of
from tests.supervisor.succession import await_status
from tests.supervisor.tasks import play_until, points, points_in, started_task, tallied
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.ray_engine.cluster import RayCluster

    Serve = Callable[..., ServeProcess]

COUNT = plugin("mortal.py:Count")
KILLS = int(os.environ.get("KAPUDF_SOAK_RAY_KILLS", "20"))
POINTS = 200_000


def partitions_of(status: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for worker in status["workers"] for each in worker["partitions"]]


def served(status: dict[str, Any]) -> set[int]:
    """Return the workers that serve connections, if their partitions are on a cluster."""
    numbers = {each["worker"] for each in status["connections"]}
    return {
        worker["worker"]
        for worker in status["workers"]
        if worker["worker"] in numbers and all(each["node"] for each in worker["partitions"])
    }


def kill_actor(path: str, chance: random.Random) -> None:
    """Kill an actor of the worker that serves, and wait until the task goes on."""
    before = await_status(path, lambda status: bool(served(status)))
    killed = chance.choice(actors_of(before))
    os.kill(killed, chance.choice([signal.SIGKILL, signal.SIGSEGV]))
    await_progress(path, before)


def kill_node(path: str, cluster: RayCluster) -> None:
    """Kill a node with an actor of the worker that serves, and wait until the task goes on."""
    cluster.add_node()
    before = await_status(path, lambda status: bool(served(status)))
    hosts = {cluster.host_of(each) for each in actors_of(before)}
    cluster.kill_node(next(node for node in cluster.nodes if node in hosts))
    await_progress(path, before)


def actors_of(status: dict[str, Any]) -> list[int]:
    """Return the process ids of the actors of the worker that serves."""
    workers = [each for each in status["workers"] if each["worker"] in served(status)]
    return [each["pid"] for each in partitions_of({"workers": workers})]


def await_progress(path: str, before: dict[str, Any]) -> None:
    """Wait until another worker has handled points.

    A connection whose workers die without that is failed in the end: one of its points may be the
    cause.
    """
    await_status(
        path,
        lambda status: (
            bool(served(status) - served(before)) and points_in(status) > points_in(before)
        ),
    )


def test_actors_and_nodes_may_die(
    config_file: Callable[..., str], own_cluster: RayCluster, socket_path: str
) -> None:
    own_cluster.start_head()
    own_cluster.add_node()
    # No two partitions on one node, so that each node that is killed has one.
    where = {"standby": 1, "ray_actor": {"strategy": "STRICT_SPREAD"}}
    file = config_file(own_cluster, COUNT, snapshot_interval_s=1, **where)
    with ServeProcess("--config", file) as process:
        process.ready()
        kill_under_load(process, socket_path, own_cluster)


def kill_under_load(process: ServeProcess, socket_path: str, own_cluster: RayCluster) -> None:
    """Kill actors and nodes while points are sent, and check that each comes back exactly."""
    chance = random.Random(3)  # noqa: S311 - the same choices in every run
    ended = threading.Event()
    patience_s = 30 * PATIENCE_S
    with ThreadPoolExecutor(1) as threads:
        task = threads.submit(
            partial(
                play_until,
                socket_path,
                ended,
                task="task",
                timeout_s=patience_s,
                at_least=POINTS,
                pause_s=0.1,
            )
        )
        try:
            for number in range(KILLS):
                kill_actor(socket_path, chance)
                if number in {KILLS // 3, 2 * KILLS // 3}:
                    kill_node(socket_path, own_cluster)
        finally:
            ended.set()
        sent = task.result(patience_s)
    assert sent >= POINTS
    finished = process.event("connection finished")
    assert (finished["points_in"], finished["points_out"]) == (sent, sent)
    deaths = list(process.matching("partition died"))
    assert len(deaths) >= KILLS
    # Each death has a cause that names the partition and its node.
    for died in deaths:
        assert "on Ray's node " in died["how"], died


@pytest.mark.parametrize("way", ["address", pytest.param("client_address", marks=pytest.mark.long)])
def test_a_task_waits_for_a_lost_head(
    serve_on: Serve, own_cluster: RayCluster, socket_path: str, way: str
) -> None:
    own_cluster.start_head()
    address = getattr(own_cluster, way)
    process = serve_on(own_cluster, COUNT, "--snapshot-interval", "1", "--ray-address", address)
    ended = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        run = partial(play_until, socket_path, ended, task="task", timeout_s=10 * PATIENCE_S)
        task = threads.submit(run, pause_s=0.2)
        try:
            before = await_status(socket_path, lambda status: bool(served(status)))
            own_cluster.kill_head()
            # Ray's client tries for half a minute to connect again.
            wait_until(lambda: list(process.matching("worker died")), 3 * PATIENCE_S)
            process.event("partitions wait for Ray")
            own_cluster.start_head()
            await_status(socket_path, lambda status: bool(served(status) - served(before)))
        finally:
            ended.set()
        sent = task.result(10 * PATIENCE_S)
    finished = process.event("connection finished")
    assert (finished["points_in"], finished["points_out"]) == (sent, sent)


def test_partitions_do_without_a_lost_head_and_return(
    serve_on: Serve, own_cluster: RayCluster, socket_path: str
) -> None:
    """The task goes on in local partitions, and on the cluster once it is back."""
    process = serve_on(own_cluster, COUNT, "--ray-fallback")
    process.event("partitions run without Ray")
    assert {each["node"] for each in partitions_of(status_of(socket_path))} == {None}
    ended = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        run = partial(play_until, socket_path, ended, task="task", timeout_s=10 * PATIENCE_S)
        task = threads.submit(run, pause_s=0.2)
        try:
            own_cluster.start_head()
            recycled = process.event("worker is recycled", reason="Ray can be reached again")
            await_status(socket_path, lambda status: bool(served(status)))
            assert recycled["worker"] == 1
        finally:
            ended.set()
        sent = task.result(10 * PATIENCE_S)
    finished = process.event("connection finished")
    assert (finished["points_in"], finished["takeovers"]) == (sent, 1)


def test_a_worker_that_waits_for_a_cluster_ends_with_its_supervisor(
    own_cluster: RayCluster, config_file: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAPUDF_TESTS_EXEC", "1")
    with ServeProcess("--config", config_file(own_cluster, COUNT)) as process:
        process.event("partitions wait for Ray")
        started = processes.tree([process.pid]) - {process.pid}
        assert len(started) == 2
        process.signal(signal.SIGKILL)
        # One that has ended has no memory, also before it is reaped.
        wait_until(lambda: not any(map(processes.rss_bytes, started)))


def test_a_snapshot_is_restored_into_any_number_of_partitions(
    serve: Serve, serve_on: Serve, cluster: RayCluster, socket_path: str
) -> None:
    sent = [*points(6000)]
    expected = tallied(sent)
    snapshot = b""
    starts: list[Callable[[], ServeProcess]] = [
        lambda: serve_on(cluster, COUNT),
        lambda: serve_on(cluster, COUNT, "--partitions", "3"),
        lambda: serve(COUNT, "--partitions", "2"),
        lambda: serve(COUNT),
        lambda: serve_on(cluster, COUNT, "--partitions", "1"),
    ]
    share = len(sent) // len(starts)
    for start, first in zip(starts, itertools.count(step=share)):
        process = start()
        with started_task(socket_path) as side:
            if snapshot:
                side.send(RestoreRequest(snapshot=snapshot))
                assert side.receive() == RestoreResponse(success=True)
            for point in sent[first : first + share]:
                side.send(point)
            came = [side.receive() for _ in range(share)]
            assert came == expected[first : first + share]
            side.send(SnapshotRequest())
            answer = side.receive()
            assert isinstance(answer, SnapshotResponse)
            snapshot = answer.snapshot
        assert process.stop() == 0
