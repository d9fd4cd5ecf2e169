"""Recycling: which workers are replaced for their age or size, and that no task notices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kapudf_cli.client.driver import KapacitorSide
from kapudf_cli.config import FunctionSettings
from kapudf_cli.supervisor.replacement import Recycling, WorkerUsage
from tests.conftest import plugin
from tests.serve_process import PATIENCE_S
from tests.supervisor.ongoing import Code, OngoingTask, await_status, check_count
from tests.supervisor.tasks import play, points

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.serve_process import ServeProcess

    Serve = Callable[..., ServeProcess]


@pytest.mark.parametrize("limit", [("--max-points", "3000"), ("--max-rss-mb", "90")])
def test_a_worker_that_reaches_a_limit_is_replaced_under_load(
    serve: Serve, socket_path: str, limit: tuple[str, str]
) -> None:
    process = serve(plugin("laden.py:Leaking"), *limit)
    with OngoingTask(socket_path) as task:
        recycled = process.await_events("worker is recycled", 2)
        process.await_events("connection handed over", 2)
        task.await_more()
        check_count(task)
    if limit[0] == "--max-points":
        assert all(event["points"] >= 3000 for event in recycled)
    else:
        assert all(90 <= event["rss_mb"] < 500 for event in recycled)
    status = await_status(socket_path, lambda status: len(status["workers"]) == 1)
    assert status["worker_deaths"] == 0
    assert process.stop() == 0


def test_points_of_connections_that_have_ended_count_too(serve: Serve, socket_path: str) -> None:
    process = serve("mirror", "--max-points", "1000")
    with KapacitorSide.connect(socket_path, timeout_s=PATIENCE_S):
        for _ in range(4):
            play(socket_path, points(300))
        assert process.event("worker is recycled")["points"] == 1200
        play(socket_path, points(300))
    assert process.stop() == 0


def test_a_worker_that_cannot_be_replaced_goes_on(
    serve: Serve, socket_path: str, tmp_path: Path
) -> None:
    code = Code(tmp_path)
    process = serve(code.handler, "--max-points", "100")
    with OngoingTask(socket_path) as task:
        task.await_version(1)
        code.change("import no_such_module_anywhere\n")
        failed = process.event("worker cannot be recycled")
        assert "no_such_module_anywhere" in failed["error"]
        for _ in range(3):
            task.await_more()
        assert check_count(task) == [1]
    assert len(list(process.matching("worker is recycled"))) == 1
    assert process.stop() == 0


def limits(*, max_points: int = 0, max_rss_mb: int = 0) -> FunctionSettings:
    """Return settings with these limits."""
    return FunctionSettings(
        handler="mirror", socket="/m", max_points=max_points, max_rss_mb=max_rss_mb
    )


def wear(
    worker: str, *, age_s: float = 60.0, points: int = 0, rss_mb: float = 30.0
) -> WorkerUsage[str]:
    return WorkerUsage(worker, age_s, points, rss_mb)


@pytest.mark.parametrize(
    ("settings", "chosen"),
    [
        (limits(), None),
        (limits(max_points=1000), "busy"),
        (limits(max_points=1001), None),
        (limits(max_rss_mb=90), "large"),
        (limits(max_rss_mb=91), None),
        (limits(max_points=1001, max_rss_mb=90), "large"),
        (limits(max_points=1000, max_rss_mb=90), "busy"),
    ],
)
def test_the_first_that_has_reached_a_limit_is_chosen(
    settings: FunctionSettings, chosen: str | None
) -> None:
    workers = [wear("new"), wear("busy", points=1000), wear("large", rss_mb=90.0)]
    worn = Recycling().choose(workers, settings, 100.0)
    assert (None if worn is None else worn.worker) == chosen


def test_a_young_worker_is_let_live() -> None:
    recycling, settings = Recycling(), limits(max_rss_mb=90)
    assert recycling.choose([wear("young", age_s=1.9, rss_mb=500.0)], settings, 100.0) is None
    grown = wear("grown", age_s=2.0, rss_mb=500.0)
    young = wear("young", age_s=1.9, rss_mb=500.0)
    assert recycling.choose([young, grown], settings, 100.0) is grown


def test_none_is_chosen_for_a_while_after_one_could_not_be_replaced() -> None:
    recycling, settings, worn = Recycling(), limits(max_points=1), wear("worn", points=1)
    recycling.pause(100.0)
    assert recycling.choose([worn], settings, 129.9) is None
    assert recycling.choose([worn], settings, 130.0) is worn


def test_without_limits_workers_are_not_measured() -> None:
    measured = (wear(pytest.fail(f"{name} was measured")) for name in ["any"])
    assert Recycling().choose(measured, limits(), 100.0) is None
