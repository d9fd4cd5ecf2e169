"""Scripts for InfluxData's agent that `kapudf serve` runs in workers."""

from __future__ import annotations

import os
import shutil
import signal
import stat
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.client.driver import KapacitorSide
from kapudf_cli.plugin_errors import NotAHandlerError
from kapudf_cli.plugins import find
from kapudf_cli.protocol.udf_pb2 import (
    KeepaliveResponse,
    Point,
    RestoreRequest,
    RestoreResponse,
    SnapshotRequest,
    SnapshotResponse,
)
from tests.influx_scripts.test_habits import SCRIPTS, answers_to
from tests.peers import INIT, INITIALIZED, responses_to
from tests.processes import await_end
from tests.run_kapudf import run_kapudf
from tests.serve_process import PATIENCE_S
from tests.supervisor.ongoing import kapudf, serving_pid
from tests.supervisor.tasks import started_task
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kapudf_cli.protocol.codec import ResponseMessage
    from tests.serve_process import ServeProcess

    Serve = Callable[..., ServeProcess]


def received(side: KapacitorSide) -> ResponseMessage | None:
    """Return the next response that is not sent because the handler is busy."""
    while isinstance(response := side.receive(), KeepaliveResponse):
        pass
    return response


def answer(side: KapacitorSide, point: Point) -> Point:
    """Return what comes back for a point."""
    side.send(point)
    response = received(side)
    assert isinstance(response, Point)
    return response


def count(side: KapacitorSide, time: int, field: str = "count") -> int:
    """Return the count that counting.py adds to a point."""
    return answer(side, Point(time=time, group="g")).fieldsInt[field]


@pytest.mark.parametrize("options", [(), ("--preload",)])
def test_the_state_of_a_snapshot_survives_the_death_of_a_worker(
    serve: Serve, socket_path: str, options: tuple[str, ...]
) -> None:
    process = serve(str(SCRIPTS / "counting.py"), *options)
    with started_task(socket_path) as side, started_task(socket_path, "other") as other:
        assert [count(side, time) for time in (1, 2)] == [1, 2]
        assert count(other, 1) == 1
        pid = serving_pid(socket_path)
        os.kill(pid, signal.SIGKILL)
        await_end(pid)
        assert [count(side, time) for time in (3, 4)] == [3, 4]
        assert count(other, 2) == 2
    loaded = process.event("script loaded", script="counting.py")
    assert "what its snapshot() does not return is lost" in loaded["advice"]


def test_new_code_of_a_script_is_loaded_while_its_task_goes_on(
    tmp_path: Path, serve: Serve, socket_path: str
) -> None:
    script = tmp_path / "counting.py"
    shutil.copy(SCRIPTS / "counting.py", script)
    serve(str(script))
    with started_task(socket_path) as side:
        assert count(side, 1) == 1
        script.write_text(script.read_text().replace("count += 1", "count += 10"))
        kapudf("reload", "--socket", socket_path)
        assert count(side, 2) == 11


@pytest.mark.parametrize("options", [(), ("--preload",)])
def test_a_script_with_a_server_keeps_kapudfs_socket(
    serve: Serve,
    socket_path: str,
    options: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As scripts do that would find their own old socket there.
    monkeypatch.setenv("REMOVES", "1")
    process = serve(f"{SCRIPTS / 'served.py'} {socket_path}", *options)
    kapudf("reload", "--socket", socket_path)
    with started_task(socket_path) as side:
        assert answer(side, Point(time=1)) == Point(time=1)
        pid = serving_pid(socket_path)
        os.kill(pid, signal.SIGKILL)
        await_end(pid)
        assert answer(side, Point(time=2)) == Point(time=2)
    assert stat.S_IMODE(os.stat(socket_path).st_mode) == 0o660
    assert process.stop() == 0
    assert not os.path.exists(socket_path)


def test_each_connection_has_module_variables_of_its_own(serve: Serve, socket_path: str) -> None:
    serve(str(SCRIPTS / "module_state.py"))
    with started_task(socket_path) as first, started_task(socket_path, "second") as second:
        assert [count(first, time, "seen") for time in (1, 2)] == [1, 2]
        assert count(second, 1, "seen") == 1
        # Both classes are called __main__.Entry.
        for side in (first, second):
            side.send(SnapshotRequest())
            assert isinstance(received(side), SnapshotResponse)


def test_a_script_that_restores_nothing_goes_on_after_a_death(
    serve: Serve, socket_path: str
) -> None:
    process = serve(str(SCRIPTS / "restores_nothing.py"))
    with started_task(socket_path) as side:
        assert answer(side, Point(time=1)) == Point(time=1)
        side.send(SnapshotRequest())
        assert isinstance(received(side), SnapshotResponse)
        assert answer(side, Point(time=2)) == Point(time=2)  # The snapshot is in the journal now.
        pid = serving_pid(socket_path)
        os.kill(pid, signal.SIGKILL)
        await_end(pid)
        assert answer(side, Point(time=3)) == Point(time=3)
    goes_on = "(not implemented): the task goes on"
    wait_until(lambda: any(goes_on in each["event"] for each in process.events))
    with KapacitorSide.connect(socket_path, timeout_s=PATIENCE_S) as side:
        refused = answers_to(side, [INIT, RestoreRequest(snapshot=b"later")])
    assert refused == [INITIALIZED, RestoreResponse(error="not implemented")]


def test_code_after_the_end_is_run_before_a_worker_ends(
    tmp_path: Path, serve: Serve, socket_path: str
) -> None:
    record = tmp_path / "record"
    process = serve(f"{SCRIPTS / 'main_part.py'} --tag t --record {record}")
    with started_task(socket_path) as side:
        assert answer(side, Point(time=1)).tags["tag"] == "t"
        assert answers_to(side, []) == []
    assert record.read_text(encoding="utf-8") == "after the end\n"
    assert process.stop() == 0
    warned = [event for event in process.events if "sets signal handlers" in event["event"]]
    assert len(warned) == 1


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_script_that_cannot_be_run_is_told_at_the_start(workers: str, socket_path: str) -> None:
    run = run_kapudf(
        "serve",
        *("--socket", socket_path, "--workers", workers),
        *("--handler", str(SCRIPTS / "exits_early.py")),
    )
    assert run.returncode == 2
    assert "it exits (usage: exits_early.py MODEL) before it starts an agent" in run.stderr
    assert "Traceback" not in run.stderr


def test_another_package_of_the_name_is_told(
    tmp_path: Path, serve: Serve, socket_path: str
) -> None:
    shutil.copy(SCRIPTS / "flat.py", tmp_path / "flat.py")
    (tmp_path / "kapacitor" / "udf").mkdir(parents=True)
    (tmp_path / "kapacitor" / "__init__.py").touch()
    process = serve(str(tmp_path / "flat.py"))
    told = "another package kapacitor comes first, kapudf does not use it"
    process.event(f"{told}: {tmp_path / 'kapacitor'}")
    with started_task(socket_path) as side:
        assert answer(side, Point(time=1)) == Point(time=1)


def test_a_class_of_a_script_is_refused_with_a_hint() -> None:
    script = SCRIPTS / "same_name.py"
    with pytest.raises(NotAHandlerError, match=f"so name just {script}"):
        find(f"{script}:Handler").load()


def test_the_end_of_a_connection_ends_its_threads(serve: Serve, socket_path: str) -> None:
    process = serve(str(SCRIPTS / "counting.py"), "--workers", "0")

    def threads() -> int:
        return len(os.listdir(f"/proc/{process.pid}/task"))

    before = threads()
    for number in range(6):
        with started_task(socket_path, f"task-{number}") as side:
            assert count(side, 1) == 1
            list(responses_to(side, []))
    wait_until(lambda: threads() <= before)
