"""What a user sees of partitions on a cluster: code, log, errors, status, and problems."""

from __future__ import annotations

import itertools
import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from kapudf_cli.protocol.udf_pb2 import ErrorResponse, Point
from tests.conftest import plugin
from tests.run_kapudf import run_kapudf
from tests.serve_process import PATIENCE_S, ServeProcess
from tests.supervisor.ongoing import kapudf, status_of
from tests.supervisor.succession import await_status
from tests.supervisor.tasks import play, points, started_task, tallied
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kapudf_cli.client.driver import KapacitorSide
    from tests.ray_engine.cluster import RayCluster

    Serve = Callable[..., ServeProcess]

COUNT = plugin("mortal.py:Count")

#: A handler with a module beside it.
HANDLER = """
import logging, threading
from kapudf_cli import Handler, set_field
from parts import version

print("imported")

class Shown(Handler):
    def point(self, point):
        set_field(point, "file", __file__)
        set_field(point, "version", version.NUMBER)
        print("printed", point.time)
        logging.getLogger("shown").warning("logged")
        self.agent.write_point(point)

    def teardown(self):
        last = Point(name="last", time=1)
        thread = threading.Thread(target=self.agent.write_point, args=(last,))
        thread.start()
        thread.join()
"""


def test_the_code_beside_a_file_is_sent_and_what_it_logs_comes_back(
    serve_on: Serve, cluster: RayCluster, socket_path: str, tmp_path: Path
) -> None:
    file = tmp_path / "shown.py"
    file.write_text(HANDLER.replace("import Handler", "import Handler, Point"), encoding="utf-8")
    version = tmp_path / "parts" / "version.py"
    version.parent.mkdir()
    (version.parent / "__init__.py").touch()
    version.write_text("NUMBER = 1", encoding="utf-8")
    process = serve_on(cluster, f"{file}:Shown")
    sent = list(points(6))
    back = play(socket_path, sent)
    shown = [each for each in back if isinstance(each, Point) and each.name == "m"]
    assert [each.time for each in shown] == [each.time for each in sent]
    (place,) = {each.fieldsString["file"] for each in shown}
    assert place.endswith("/shown.py")
    assert place != str(file)
    assert {each.fieldsInt["version"] for each in shown} == {1}
    # One from each partition.
    assert [each.name for each in back[6:]] == ["last", "last"]  # type: ignore[union-attr]
    nodes = {each["node"] for each in partitions_of(socket_path)}
    process.event("imported", function=process.event("listening")["function"])
    for event in ("printed 0", "logged"):
        logged = process.event(event)
        assert logged["task_id"] == "task"
        assert logged["partition"] in {0, 1}
        assert logged["node"] in nodes
    # A reload sends the new code, also that of the module beside it.
    version.write_text("NUMBER = 2", encoding="utf-8")
    kapudf("reload", "--socket", socket_path)
    (again, *_) = play(socket_path, sent)
    assert isinstance(again, Point)
    assert again.fieldsInt["version"] == 2


def partitions_of(path: str) -> list[dict[str, Any]]:
    return [each for worker in status_of(path)["workers"] for each in worker["partitions"]]


def back_of(side: KapacitorSide, sent: list[Point]) -> list[Any]:
    """Send points, and return the points that come back."""
    for point in sent:
        side.send(point)
    came = (side.receive() for _ in itertools.count())
    return list(itertools.islice((each for each in came if isinstance(each, Point)), len(sent)))


def test_the_status_and_the_metrics_have_nodes(
    serve_on: Serve, cluster: RayCluster, socket_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    serve_on(cluster, COUNT, "--ray-address", "auto")
    status = await_status(
        socket_path,
        lambda status: all(
            each["rss_mb"] > 20 for worker in status["workers"] for each in worker["partitions"]
        ),
    )
    (worker,) = status["workers"]
    rows = worker["partitions"]
    assert [each["partition"] for each in rows] == [0, 1]
    assert len({each["node"] for each in rows}) == 2
    assert worker["rss_mb"] > sum(each["rss_mb"] for each in rows)
    shown = kapudf("status", "--socket", socket_path)
    metrics = kapudf("status", "--socket", socket_path, "--format", "prometheus")
    for each in rows:
        assert each["node"] in shown
        labels = (f'node="{each["node"]}"', f'partition="{each["partition"]}"')
        for name in ("resident_memory_bytes", "cpu_seconds_total"):
            (line,) = [
                line
                for line in metrics.splitlines()
                if line.startswith(f"kapudf_worker_partition_{name}{{")
                and all(label in line for label in labels)
            ]
            assert float(line.rpartition(" ")[2]) > 0


@pytest.mark.parametrize("kind", ["segfault", "hang"])
def test_a_point_that_kills_actors_is_dropped(
    serve_on: Serve, cluster: RayCluster, socket_path: str, kind: str
) -> None:
    process = serve_on(
        cluster, plugin("mortal.py:Poisoned"), "--on-error", "skip", "--busy-limit", "2"
    )
    sent = list(points(600))
    sent[400].tags["poison"] = kind
    back = play(socket_path, sent)
    bad = sent.pop(400)
    assert back == tallied(sent)
    dropped = process.event("dropped what killed the worker")
    assert f"time: {bad.time}" in dropped["frame"]
    if kind == "hang":
        assert "mortal.py" in next(process.matching("worker died"))["stacks"]


def test_an_exception_fails_the_task_as_it_would_here(
    serve_on: Serve, cluster: RayCluster, socket_path: str, tmp_path: Path
) -> None:
    file = tmp_path / "raising.py"
    file.write_text(
        "from kapudf_cli import Handler\n"
        "class Raising(Handler):\n"
        "    def point(self, point):\n"
        "        raise ValueError('no such model')\n",
        encoding="utf-8",
    )
    process = serve_on(cluster, f"{file}:Raising")
    (answer,) = play(socket_path, points(1))
    assert isinstance(answer, ErrorResponse)
    assert "no such model" in answer.error
    finished = process.event("connection finished")
    assert finished["reason"] == "handler_error"
    assert "raise ValueError" in json.dumps(finished)


@pytest.mark.long
def test_a_machine_that_is_no_node_connects_to_the_client_server(
    cluster: RayCluster, config_file: Callable[..., str], socket_path: str
) -> None:
    """Ray's client may need more than one attempt of half a minute."""
    file = config_file(cluster, COUNT, ray_address=cluster.client_address)
    with ServeProcess("--config", file) as process:
        wait_until(lambda: list(process.matching("listening")), 4 * PATIENCE_S)
        sent = list(points(3000))
        assert play(socket_path, sent) == tallied(sent)


@pytest.mark.parametrize(
    ("beginning", "problem"),
    [
        ("import kapudf_cli; kapudf_cli.__version__ = '0.0.1'", "has kapudf 0.0.1, and this "),
        ("import sys; sys.modules['kapudf_cli'] = None", "Error: No module named 'kapudf_cli"),
    ],
)
def test_a_node_without_this_version_of_kapudf_is_named(
    cluster: RayCluster,
    config_file: Callable[..., str],
    tmp_path: Path,
    beginning: str,
    problem: str,
) -> None:
    (tmp_path / "sitecustomize.py").write_text(beginning, encoding="utf-8")
    file = config_file(cluster, COUNT, ray_actor={"resources": {"odd": 1}})
    odd = ("--resources", json.dumps({"odd": 2}))
    with cluster.another_node(*odd, env={"PYTHONPATH": str(tmp_path)}):
        result = run_kapudf("serve", "--config", file)
    assert result.returncode == 1
    assert problem in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_cluster_without_room_is_waited_for(
    cluster: RayCluster, config_file: Callable[..., str], socket_path: str
) -> None:
    """The task gets heartbeats, and goes on once a node with room is there."""
    file = config_file(cluster, COUNT, ray_actor={"resources": {"model": 1}})
    with ServeProcess("--config", file) as process:
        waiting = process.event("partitions wait for Ray")
        assert 'need {"resources":{"model":1.0}} each' in waiting["reason"]
        with cluster.another_node("--resources", json.dumps({"model": 2})):
            process.ready()
            sent = list(points(300))
            assert play(socket_path, sent) == tallied(sent)


def test_ray_that_is_not_installed_is_named(tmp_path: Path, socket_path: str) -> None:
    """Also if the handler takes longer to import than this takes to find out."""
    (tmp_path / "ray.py").write_text("raise ImportError('no ray')", encoding="utf-8")
    (tmp_path / "slow.py").write_text(
        "import time\n"
        "from kapudf_cli import Handler\n"
        "time.sleep(2)\n"
        "class Slow(Handler):\n"
        "    def point(self, point):\n"
        "        return point\n",
        encoding="utf-8",
    )
    arguments = ("--handler", f"{tmp_path}/slow.py:Slow", "--socket", socket_path)
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "KAPUDF_TESTS_EXEC": "1"}
    result = run_kapudf("serve", *arguments, "--engine", "ray", env=env)
    assert result.returncode == 2
    assert "engine: ray needs ray: pip install 'kapudf[ray]'" in result.stderr


def test_a_need_that_ray_refuses_is_a_usage_error(
    cluster: RayCluster, config_file: Callable[..., str]
) -> None:
    file = config_file(cluster, COUNT, ray_actor={"runtime_env": {"working_dir": "/no/such"}})
    result = run_kapudf("serve", "--config", file)
    assert result.returncode == 2
    assert "ray_actor: " in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_an_actor_that_does_not_answer_is_replaced_and_no_point_is_blamed(
    serve_on: Serve, cluster: RayCluster, socket_path: str
) -> None:
    """As if the network to its node had stopped."""
    process = serve_on(cluster, COUNT, "--on-error", "skip", "--busy-limit", "3")
    sent = list(points(3000))
    with started_task(socket_path) as side:
        assert back_of(side, sent[:1000]) == tallied(sent)[:1000]
        stopped = partitions_of(socket_path)[0]["pid"]
        os.kill(stopped, signal.SIGSTOP)
        assert back_of(side, sent[1000:]) == tallied(sent)[1000:]
    died = process.event("partition died")
    assert f"pid {stopped}, has not answered for 4.5 s" in died["how"]
    assert list(process.matching("dropped what killed the worker")) == []
