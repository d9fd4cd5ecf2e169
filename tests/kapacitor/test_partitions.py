"""A task whose groups are shared by partitions, in a real kapacitord."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import plugin
from tests.kapacitor.daemon import TaskStatus
from tests.kapacitor.lines import BY_HOST, line
from tests.serve_process import ServeProcess
from tests.supervisor.ongoing import await_status, write_config

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.kapacitor.daemon import KapacitorDaemon

    Kapacitor = Callable[..., KapacitorDaemon]

HOSTS = "abcde"
#: How many points of each host are written around each step.
ROUND = 200
#: After so many requests, a snapshot of all points is stored; one may be a keepalive.
ENOUGH_REQUESTS = 4


@pytest.mark.parametrize("engine", ["processes", pytest.param("ray", marks=pytest.mark.ray)])
def test_a_task_with_partitions_survives_deaths_and_another_number(
    kapacitor: Kapacitor,
    socket_path: str,
    tmp_path: Path,
    engine: str,
    request: pytest.FixtureRequest,
) -> None:
    """Kapacitor gets every point once, each with the count of its group."""
    file = tmp_path / "kapudf.yaml"
    where: dict[str, object] = {"preload": True}
    if engine == "ray":
        where = {"engine": "ray", "ray_address": request.getfixturevalue("cluster").address}

    def configure(partitions: int) -> None:
        function = {"handler": plugin("mortal.py:Count"), "socket": socket_path}
        write_config(file, {"udf": {**function, "partitions": partitions, **where}})

    def await_partitions(count: int) -> list[int]:
        """Wait until the only worker has so many partitions; return their process ids."""
        status = await_status(
            socket_path,
            lambda found: [len(each["partitions"]) for each in found["workers"]] == [count],
        )
        return [each["pid"] for each in status["workers"][0]["partitions"]]

    configure(2)
    with ServeProcess("--config", str(file)) as process:
        process.ready()
        daemon = kapacitor(snapshot_interval="200ms")
        daemon.start_task("counted", BY_HOST)
        written = 0

        def write() -> None:
            nonlocal written
            numbers = range(written, written + ROUND)
            daemon.write(*(line(number, host=host) for number in numbers for host in HOSTS))
            written += ROUND

        write()
        os.kill(await_partitions(2)[1], signal.SIGKILL)
        process.event("connection taken over")
        write()
        configure(3)
        process.signal(signal.SIGHUP)
        process.event("connection handed over")
        await_partitions(3)
        write()
        daemon.await_point("counted", n=written - 1, count=written)
        daemon.wait_for(
            lambda: daemon.taken("counted", "http_out3") == written * len(HOSTS) or None,
            "all points",
        )
        counts = {series.last["count"] for series in daemon.await_groups("counted", len(HOSTS))}
        assert counts == {written}

        # Snapshots are all that Kapacitor sends now; one is stored before the next is requested.
        received: set[int] = set()

        def is_stored(status: dict[str, Any]) -> bool:
            received.add(status["connections"][0]["bytes_in"])
            return len(received) > ENOUGH_REQUESTS

        await_status(socket_path, is_stored)
        # The last one goes to a handler without partitions.
        configure(1)
        process.signal(signal.SIGHUP)
        process.await_events("connection handed over", 2)
        daemon.restart()
        process.await_events("task connected", 2, task_id="counted")
        write()
        daemon.await_point("counted", n=written - 1, count=written)
        assert daemon.status("counted") == TaskStatus(enabled=True, executing=True, error="")
