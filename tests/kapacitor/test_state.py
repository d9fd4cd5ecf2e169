"""What a handler keeps and says around the start of a task, in a real kapacitord."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.conftest import plugin
from tests.kapacitor.lines import BY_HOST, line

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.kapacitor.daemon import KapacitorDaemon
    from tests.serve_process import ServeProcess

    Kapacitor = Callable[..., KapacitorDaemon]
    Serve = Callable[..., ServeProcess]


def test_a_count_goes_on_after_kapacitor_was_restarted(
    serve: Serve, kapacitor: Kapacitor, record: Path
) -> None:
    """The snapshot that kapacitord stored comes back to a new handler, which counts on from it."""
    process = serve(plugin("against_kapacitor.py:Counter"))
    daemon = kapacitor(snapshot_interval="100ms")
    daemon.start_task("counted", BY_HOST)
    daemon.write(*(line(n) for n in range(5)))
    daemon.await_point("counted", n=4, count=5)
    daemon.await_snapshot(record, "5")

    daemon.restart()
    process.await_events("task connected", 2, task_id="counted")
    daemon.write(line(5))
    assert daemon.await_point("counted", n=5).last["count"] == 6


def test_points_written_before_kapacitor_takes_data_arrive(
    serve: Serve, kapacitor: Kapacitor, record: Path
) -> None:
    """A point out of `init` and one out of `restore` hold nothing up, and are not lost."""
    serve(plugin("against_kapacitor.py:Eager"))
    daemon = kapacitor(snapshot_interval="100ms")
    daemon.start_task("early", BY_HOST)
    daemon.await_point("early", method="init")
    daemon.write(line(1))
    daemon.await_point("early", n=1)
    daemon.await_snapshot(record, "snapshot")

    daemon.restart()
    assert [group.last["method"] for group in daemon.await_groups("early", 2)] == [
        "init", "restore",
    ]  # fmt: skip
    daemon.write(line(2))
    daemon.await_point("early", n=2)
    assert daemon.status("early").executing
