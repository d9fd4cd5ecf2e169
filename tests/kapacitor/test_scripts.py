"""Scripts for InfluxData's agent in a real kapacitord: as a process, at a socket, supervised."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.influx_scripts.test_habits import SCRIPTS
from tests.influx_scripts.test_processes import await_served
from tests.kapacitor.lines import BY_HOST, line
from tests.processes import await_end
from tests.supervisor.ongoing import serving_pid

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.kapacitor.daemon import KapacitorDaemon
    from tests.serve_process import ServeProcess

    Kapacitor = Callable[..., KapacitorDaemon]
    Serve = Callable[..., ServeProcess]


def process_udf(script: str, record: Path) -> str:
    """Return the section of kapacitor.conf for a script, as InfluxData documents it."""
    arguments = json.dumps(["-u", str(SCRIPTS / script)])
    return (
        f'[udf]\n[udf.functions.udf]\nprog = "{sys.executable}"\nargs = {arguments}\n'
        f'timeout = "60s"\n[udf.functions.udf.env]\nRECORD = "{record}"\n'
    )


def test_a_process_counts_on_after_a_restart(kapacitor: Kapacitor, record: Path) -> None:
    section = process_udf("counting.py", record)
    daemon = kapacitor(udf_section=section, snapshot_interval="100ms")
    daemon.start_task("counted", BY_HOST)
    daemon.write(*(line(n) for n in range(5)))
    daemon.await_point("counted", n=4, count=5)
    daemon.await_snapshot(record, "5")
    daemon.restart()
    daemon.write(line(5))
    daemon.await_point("counted", n=5, count=6)
    assert daemon.status("counted").executing


def test_a_worker_counts_on_after_a_restart_and_a_death(
    serve: Serve, kapacitor: Kapacitor, record: Path, socket_path: str
) -> None:
    process = serve(str(SCRIPTS / "counting.py"))
    daemon = kapacitor(snapshot_interval="100ms")
    daemon.start_task("counted", BY_HOST)
    daemon.write(*(line(n) for n in range(5)))
    daemon.await_point("counted", n=4, count=5)
    daemon.await_snapshot(record, "5")
    daemon.restart()
    process.await_events("task connected", 2, task_id="counted")
    daemon.write(line(5))
    daemon.await_point("counted", n=5, count=6)
    pid = serving_pid(socket_path)
    os.kill(pid, signal.SIGKILL)
    await_end(pid)
    daemon.write(line(6))
    daemon.await_point("counted", n=6, count=7)
    assert daemon.status("counted").executing


NATIVE = """
import json

from kapudf_cli import Handler, PerGroup, Snapshot, State, set_field


class Total(State):
    count: int = 0


class Count(Handler):
    state = PerGroup(Total)

    def migrate(self, snapshot: Snapshot):
        for group, count in json.loads(snapshot.raw).items():
            self.state.at(group, 0).count = count
        return self.state

    def point(self, point):
        total = self.state.of(point)
        total.count += 1
        set_field(point, "count", total.count)
        return point
"""


def test_a_native_handler_goes_on_with_the_snapshot_of_a_script(
    serve: Serve, kapacitor: Kapacitor, record: Path, socket_path: str, tmp_path: Path
) -> None:
    (tmp_path / "native.py").write_text(NATIVE, encoding="utf-8")
    process = serve(f"{tmp_path}/native.py:Count")
    section = process_udf("counting.py", record)
    daemon = kapacitor(udf_section=section, snapshot_interval="100ms")
    daemon.start_task("counted", BY_HOST)
    daemon.write(*(line(n) for n in range(5)))
    daemon.await_point("counted", n=4, count=5)
    daemon.await_snapshot(record, "5")
    daemon.restart(f'[udf]\n[udf.functions.udf]\nsocket = "{socket_path}"\ntimeout = "60s"\n')
    daemon.write(line(5))
    daemon.await_point("counted", n=5, count=6)
    assert any(each["event"].startswith("snapshot migrated") for each in process.events)


def test_a_script_with_a_socket_outlives_restarts_of_kapacitord(
    kapacitor: Kapacitor, socket_path: str
) -> None:
    """Its snapshot is '', so that no Restore comes, which it would refuse."""
    command = [sys.executable, "-u", str(SCRIPTS / "served.py"), socket_path]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        try:
            await_served(socket_path)
            daemon = kapacitor(snapshot_interval="50ms")
            daemon.start_task("mirrored", BY_HOST)
            for start in range(3):
                daemon.write(line(start))
                daemon.await_point("mirrored", n=start)
                time.sleep(0.2)  # Some snapshots are taken.
                daemon.restart()
            daemon.write(line(9))
            daemon.await_point("mirrored", n=9)
        finally:
            process.terminate()
        assert process.stderr is not None
        assert process.stderr.read().count(b"a snapshot is a str") == 1
        assert process.wait() == 0
    assert not os.path.exists(socket_path)


@pytest.mark.parametrize(
    ("script", "window"),
    [("bare_points.py", "|window().periodCount(2).everyCount(2)"), ("batches_of_stream.py", "")],
)
def test_kapacitord_takes_data_of_another_edge_than_the_declared_one(
    serve: Serve, kapacitor: Kapacitor, script: str, window: str
) -> None:
    process = serve(str(SCRIPTS / script))
    daemon = kapacitor()
    daemon.start_task("mixed", f"stream\n|from()\n{window}\n@udf()\n|httpOut('out')")
    daemon.write(line(1), line(2))
    daemon.await_point("mixed", n=2)
    assert process.event("task connected", task_id="mixed")
    warned = [each["event"] for each in process.events if "script warning" in each["event"]]
    assert warned[0].startswith(f"script warning: {script}: ")
    assert daemon.status("mixed").executing
