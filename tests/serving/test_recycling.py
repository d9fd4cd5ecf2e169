"""Workers that are replaced for what they have done or grown to; no task notices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kapudf_cli.kapacitor import KapacitorSide
from tests.conftest import plugin
from tests.serve_process import PATIENCE_S
from tests.serving.ongoing import Code, OngoingTask, await_status, check_count
from tests.serving.tasks import play, points

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.serve_process import ServeProcess

    Serve = Callable[..., ServeProcess]


@pytest.mark.parametrize("limit", [("--max-points", "3000"), ("--max-rss-mb", "90")])
def test_a_worker_that_has_had_its_time_is_replaced_under_load(
    serve: Serve, socket_path: str, limit: tuple[str, str]
) -> None:
    """Again and again, without a point lost; what it had leaked is gone."""
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
    """Many short tasks wear a worker out as one long one does, once it is looked at."""
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
    """The log says why, once and not at every look; the task goes on."""
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
