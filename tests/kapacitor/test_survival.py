"""What a task survives: a worker's death, new code, failing points and slow ones."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING

import pytest

from tests.conftest import plugin
from tests.kapacitor.daemon import TaskStatus
from tests.kapacitor.lines import BY_HOST, line
from tests.serve_process import ServeProcess
from tests.supervisor.ongoing import (
    ASYNC_COUNT,
    COUNT,
    Code,
    await_status,
    kapudf,
    serving_pid,
    status_of,
    write_config,
)
from tests.supervisor.slow_import import SlowImport
from tests.supervisor.succession import kill_supervisor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.kapacitor.daemon import KapacitorDaemon

    Kapacitor = Callable[..., KapacitorDaemon]
    Serve = Callable[..., ServeProcess]

EXECUTES = TaskStatus(enabled=True, executing=True, error="")
#: How many points are written around each mishap.
ROUND = 1_000
#: More than twice the timeout with which a kapacitord asks.
SLOW_S = 5.0


@pytest.mark.parametrize("template", [COUNT, ASYNC_COUNT], ids=["plain", "async"])
def test_a_task_survives_deaths_and_new_code(
    serve: Serve, kapacitor: Kapacitor, socket_path: str, tmp_path: Path, template: str
) -> None:
    """Kapacitor gets every point once, each with the count of an undisturbed run."""
    code = Code(tmp_path, template)
    process = serve(code.handler)
    daemon = kapacitor(snapshot_interval="200ms")
    daemon.start_task("counted", BY_HOST)
    rounds = 6
    for number in range(rounds):
        # The points are on their way to the handler, and back, when it happens.
        daemon.write(*(line(number * ROUND + n) for n in range(ROUND)))
        if number % 2:
            os.kill(serving_pid(socket_path), signal.SIGKILL)
            process.await_events("connection taken over", number // 2 + 1)
        else:
            code.change()
            kapudf("reload", "--socket", socket_path)
        assert daemon.status("counted") == EXECUTES
    total = rounds * ROUND
    daemon.await_point("counted", n=total - 1, count=total)
    assert daemon.taken("counted", "http_out3") == total
    assert daemon.status("counted") == EXECUTES
    (connection,) = [each for each in status_of(socket_path)["connections"] if each["task_id"]]
    assert (connection["points_in"], connection["points_out"]) == (total, total)
    assert (connection["task_id"], connection["takeovers"]) == ("counted", rounds // 2)
    assert len(list(process.matching("worker died", how="SIGKILL"))) == rounds // 2


@pytest.mark.parametrize("rounds", [2, pytest.param(10, marks=pytest.mark.long)])
def test_a_task_survives_deaths_of_the_supervisor_and_upgrades(
    serve_kept: Serve, kapacitor: Kapacitor, socket_path: str, tmp_path: Path, rounds: int
) -> None:
    code = Code(tmp_path)
    serve_kept(code.handler)
    daemon = kapacitor(snapshot_interval="200ms")
    daemon.start_task("counted", BY_HOST)
    for number in range(rounds):
        daemon.write(*(line(2 * number * ROUND + n) for n in range(ROUND)))
        kill_supervisor(socket_path)
        daemon.write(*(line((2 * number + 1) * ROUND + n) for n in range(ROUND)))
        code.change()
        kapudf("upgrade", "--socket", socket_path)
        assert daemon.status("counted") == EXECUTES
    total = 2 * rounds * ROUND
    daemon.await_point("counted", n=total - 1, count=total)
    assert daemon.taken("counted", "http_out3") == total
    assert daemon.status("counted") == EXECUTES
    assert status_of(socket_path)["supervisor"]["starts"] == 2 * rounds + 1


def test_a_task_goes_on_while_its_function_is_renamed_and_moved(
    kapacitor: Kapacitor, short_folder: Path, socket_path: str, tmp_path: Path
) -> None:
    """Its points are counted on: the connection belongs to the function, not to the path."""
    code, file, moved = Code(tmp_path), short_folder / "kapudf.yaml", str(short_folder / "moved")
    write_config(file, {"udf": {"handler": code.handler, "socket": socket_path}})
    with ServeProcess("--config", str(file)) as process:
        process.ready()
        daemon = kapacitor()
        daemon.start_task("counted", BY_HOST)
        daemon.write(*(line(n) for n in range(ROUND)))
        for name, path, event in (
            ("renamed", socket_path, "function renamed"),
            ("renamed", moved, "listening"),
        ):
            code.change()
            write_config(file, {name: {"handler": code.handler, "socket": path}})
            process.signal(signal.SIGHUP)
            process.event(event, function="renamed")
        daemon.write(*(line(n) for n in range(ROUND, 2 * ROUND)))
        daemon.await_point("counted", n=2 * ROUND - 1, count=2 * ROUND)
        assert daemon.status("counted") == EXECUTES
        assert status_of(moved)["function"] == "renamed"


def test_a_task_goes_on_without_the_points_at_which_its_handler_raises(
    serve: Serve, kapacitor: Kapacitor, socket_path: str
) -> None:
    """With on_error skip: all others come back, and the failures are counted."""
    serve(plugin("lifecycle.py:Fragile"), "--on-error", "skip")
    daemon = kapacitor()
    daemon.start_task("skipping", BY_HOST)
    daemon.write(*(line(n, name="bad" if n % 100 == 37 else "cpu") for n in range(ROUND)))
    daemon.await_point("skipping", n=ROUND - 1)
    good = ROUND - ROUND // 100
    daemon.wait_for(lambda: daemon.taken("skipping", "http_out3") == good, "all other points")
    assert daemon.status("skipping") == EXECUTES
    status = await_status(
        socket_path, lambda status: status["connections"][-1]["points_out"] == good
    )
    assert status["connections"][-1]["failures"] == ROUND // 100


def test_a_task_waits_for_a_handler_longer_than_its_time_out(
    serve: Serve, kapacitor: Kapacitor, socket_path: str
) -> None:
    """Twice as long, in C that keeps the interpreter; heartbeats tell Kapacitor to wait."""
    serve(plugin("laden.py:Busy"))
    daemon = kapacitor(udf_section=udf_section(socket_path, timeout="2s"))
    daemon.start_task("slow", BY_HOST)
    daemon.write("cpu,host=a,how=c s=4i,n=1i 1700000001000000000")
    daemon.await_point("slow", n=1)
    daemon.write("cpu,host=a,how=c s=0i,n=2i 1700000002000000000")
    daemon.await_point("slow", n=2)
    assert daemon.status("slow") == EXECUTES


def test_a_handler_that_hangs_loses_its_point_and_the_task_goes_on(
    serve: Serve, kapacitor: Kapacitor, socket_path: str
) -> None:
    """With on_error skip: its worker is replaced twice, and then the point is left out."""
    process = serve(plugin("laden.py:Busy"), "--on-error", "skip", "--busy-limit", "1")
    daemon = kapacitor(udf_section=udf_section(socket_path, timeout="2s"))
    daemon.start_task("hanging", BY_HOST)
    daemon.write("cpu,host=a,how=c s=600i,n=1i 1700000001000000000")
    daemon.write("cpu,host=a,how=c s=0i,n=2i 1700000002000000000")
    daemon.await_point("hanging", n=2)
    assert daemon.status("hanging") == EXECUTES
    assert "s" in process.event("dropped what killed the worker")["frame"]
    assert process.event("handler hangs, its worker is replaced")["task_id"] == "hanging"


@pytest.mark.parametrize("part", ["import", "setup_worker"])
def test_a_kapacitord_that_starts_while_a_handler_is_loaded_waits_for_it(
    short_folder: Path, kapacitor: Kapacitor, socket_path: str, part: str
) -> None:
    """Longer than its timeout, at the start of kapudf and after a death. No task fails."""
    slow = SlowImport(short_folder, part)
    section = udf_section(socket_path, timeout="2s")
    slow.hold_up()
    with ServeProcess("--socket", socket_path, "--handler", slow.handler) as process:
        threading.Timer(SLOW_S, slow.let_go).start()
        first = kapacitor(udf_section=section)
        first.start_task("running", BY_HOST)
        first.write(line(1))
        first.await_point("running", n=1)
        slow.hold_up()
        os.kill(serving_pid(socket_path), signal.SIGKILL)
        process.event("worker died")
        first.write(line(2))
        threading.Timer(SLOW_S, slow.let_go).start()
        second = kapacitor(udf_section=section)
        first.await_point("running", n=2)
        assert first.status("running") == EXECUTES
        second.start_task("started", BY_HOST)
        second.write(line(3))
        second.await_point("started", n=3)


def udf_section(socket_path: str, *, timeout: str) -> str:
    """Return the part of kapacitor.conf that names the function `udf`, with a time-out."""
    return f'[udf]\n[udf.functions.udf]\nsocket = "{socket_path}"\ntimeout = "{timeout}"\n'
