"""Preloaded handlers: a template loads the handler once and forks the workers."""

from __future__ import annotations

import os
import random
import re
import signal
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from structlog.testing import capture_logs

from kapudf_cli.protocol.udf_pb2 import Point
from kapudf_cli.supervisor.routes import WorkerState
from kapudf_cli.supervisor.templates import TemplateRoles
from kapudf_cli.worker import template
from tests.processes import await_end, is_alive
from tests.run_kapudf import run_kapudf
from tests.supervisor.ongoing import (
    Code,
    OngoingTask,
    await_status,
    check_count,
    kapudf,
    serving_pid,
    status_of,
    write_config,
)
from tests.supervisor.tasks import play
from tests.supervisor.workers import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kapudf_cli.supervisor.pool import Pool
    from tests.serve_process import ServeProcess
    from tests.supervisor.loops import Loop

    Serve = Callable[..., ServeProcess]

PRELOADED = msgspec.structs.replace(SETTINGS, preload=True)

#: Code that makes a process which must not be forked.
UNSAFE = {
    "thread": """
import threading
threading.Thread(target=threading.Event().wait, name="ticker", daemon=True).start()
""",
    "thread of a library": """
import concurrent.futures
pool = concurrent.futures.ThreadPoolExecutor()
pool.submit(print)
""",
    "event loop": """
import asyncio
loop = asyncio.new_event_loop()
""",
    "connection": """
import socket
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
""",
}
REASONS = {
    "thread": "the thread 'ticker' runs",
    "thread of a library": "runs in module concurrent.futures.thread",
    "event loop": "an event loop (asyncio.unix_events._UnixSelectorEventLoop) is open",
    "connection": "a connection to 127.0.0.1:",
}


def parent_of(pid: int) -> int:
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        return int(stat.read().rpartition(")")[2].split()[1])


def serves(pool: Pool) -> bool:
    return [pool.state_of(each) for each in pool.all_workers()] == [WorkerState.SERVING]


def test_each_killed_worker_has_a_successor_that_goes_on_exactly(
    serve: Serve, socket_path: str, tmp_path: Path
) -> None:
    code = Code(tmp_path)
    process = serve(code.handler, "--preload")
    (forker,) = status_of(socket_path)["templates"]
    with OngoingTask(socket_path) as task:
        task.await_version(1)
        for _ in range(5):
            pid = serving_pid(socket_path)
            assert (parent_of(pid), parent_of(forker["pid"])) == (process.pid, process.pid)
            os.kill(pid, signal.SIGKILL)
            task.await_more()
        assert check_count(task) == [1]
    assert [each["how"] for each in process.matching("worker died")] == ["SIGKILL"] * 5
    assert [each["pid"] for each in status_of(socket_path)["templates"]] == [forker["pid"]]
    shown = kapudf("status", "--socket", socket_path)
    assert re.search(
        rf"^template    pid {forker['pid']}, [\d.]+ MB, .*, ready$", shown, re.MULTILINE
    )
    assert process.stop() == 0
    assert not is_alive(forker["pid"])


def test_after_the_end_of_the_supervisor_the_template_ends_and_its_workers_go_on(
    serve: Serve, socket_path: str, tmp_path: Path
) -> None:
    process = serve(Code(tmp_path).handler, "--preload")
    (forker,) = status_of(socket_path)["templates"]
    worker = serving_pid(socket_path)
    with OngoingTask(socket_path) as task:
        task.await_version(1)
        process.signal(signal.SIGKILL)
        await_end(forker["pid"])
        task.await_more()
        assert check_count(task) == [1]
    await_end(worker)


def test_a_reload_makes_a_new_template(serve: Serve, socket_path: str, tmp_path: Path) -> None:
    code = Code(tmp_path)
    process = serve(code.handler, "--preload", "--workers", "2")
    (old,) = status_of(socket_path)["templates"]
    with OngoingTask(socket_path) as task:
        task.await_version(1)
        code.change()
        kapudf("reload", "--socket", socket_path)
        task.await_version(2)
        await_end(old["pid"])
        # Not the template, but what it has forked, is replaced by the one that has the new code.
        os.kill(serving_pid(socket_path), signal.SIGKILL)
        task.await_more()
        assert check_count(task) == [1, 2]
    assert [each["pid"] for each in status_of(socket_path)["templates"]] != [old["pid"]]
    assert process.stop() == 0


def test_after_a_failed_reload_the_old_template_forks_the_old_code(
    serve: Serve, socket_path: str, tmp_path: Path
) -> None:
    code = Code(tmp_path)
    process = serve(code.handler, "--preload")
    with OngoingTask(socket_path) as task:
        task.await_version(1)
        code.change(UNSAFE["thread"])
        answer = kapudf("reload", "--socket", socket_path, status=1)
        assert "Count cannot be preloaded: " in answer
        assert REASONS["thread"] in answer
        os.kill(serving_pid(socket_path), signal.SIGKILL)
        task.await_more()
        assert check_count(task) == [1]
    assert process.stop() == 0


@pytest.mark.parametrize("kind", UNSAFE)
def test_what_a_fork_would_break_is_refused(socket_path: str, tmp_path: Path, kind: str) -> None:
    code = Code(tmp_path)
    code.change(UNSAFE[kind])
    arguments = ("serve", "--preload", "--socket", socket_path, "--handler", code.handler)
    result = run_kapudf(*arguments)
    assert result.returncode == 2
    assert "Count cannot be preloaded: after its import and setup_worker, " in result.stderr
    assert REASONS[kind] in result.stderr
    assert "create it in setup instead" in result.stderr


def test_what_a_fork_would_break_is_a_fault_of_a_preloaded_function_alone(tmp_path: Path) -> None:
    code = Code(tmp_path)
    code.change(UNSAFE["thread"])
    config = tmp_path / "kapudf.yaml"
    function = {"handler": code.handler, "socket": f"{tmp_path}/f.sock"}
    write_config(config, {"f": function})
    kapudf("check-config", str(config))
    write_config(config, {"f": {**function, "preload": True}})
    told = kapudf("check-config", str(config), status=2)
    assert "functions.f.handler: Count cannot be preloaded: " in told
    assert REASONS["thread"] in told


def test_a_reload_says_how_its_template_died(loop: Loop, tmp_path: Path) -> None:
    code = Code(tmp_path)
    code.change("import os\nos.abort()\n")
    pool = loop.start_pool(PRELOADED)
    pool.reload(msgspec.structs.replace(PRELOADED, handler=code.handler))
    problem = loop.reload_result(pool).problem
    assert problem == "a new worker died: SIGABRT of its template"
    loop.turn_until(lambda: serves(pool) and len(pool.templates) == 1)


def test_a_handler_that_cannot_be_loaded_is_named(socket_path: str) -> None:
    arguments = ("serve", "--preload", "--socket", socket_path, "--handler", "no-such-handler")
    result = run_kapudf(*arguments)
    assert result.returncode == 2
    assert "no installed handler has the name 'no-such-handler'" in result.stderr


@pytest.mark.parametrize("also", ["", "its worker", "a worker to come"])
def test_a_template_that_dies_is_replaced(loop: Loop, also: str) -> None:
    pool = loop.start_pool(PRELOADED)
    (dead,), (worker,) = pool.templates, pool.all_workers()
    with capture_logs() as events:
        if also == "a worker to come":
            os.kill(dead.pid, signal.SIGSTOP)
            worker.kill()
            loop.turn_until(lambda: worker not in pool.all_workers())
        dead.kill()
        if also == "its worker":
            worker.kill()
        loop.turn_until(lambda: dead not in pool.templates)
        loop.turn_until(lambda: bool(pool.templates) and serves(pool))
        loop.turn_until(lambda: pool.templates[0].loaded is not None)
    assert (worker in pool.all_workers()) == (not also)
    (died,) = (each for each in events if each["event"] == "template died")
    assert (died["pid"], died["how"]) == (dead.pid, "SIGKILL")
    assert pool.deaths == (1 if also else 0)


def test_a_template_that_does_not_fork_is_replaced(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kapudf_cli.supervisor.templates._FORK_PATIENCE_S", 0.2)
    pool = loop.start_pool(PRELOADED)
    (frozen,), (worker,) = pool.templates, pool.all_workers()
    os.kill(frozen.pid, signal.SIGSTOP)
    with capture_logs() as events:
        worker.kill()
        loop.turn_until(lambda: worker not in pool.all_workers() and serves(pool))
    assert frozen not in pool.templates
    (died,) = (each for each in events if each["event"] == "template died")
    assert "it forked no worker for" in died["reason"]


def test_a_template_ends_if_the_reload_is_cancelled(loop: Loop) -> None:
    pool = loop.start_pool(PRELOADED)
    (current,) = pool.templates
    pool.reload(PRELOADED)
    (coming,) = (each for each in pool.templates if each is not current)
    os.kill(coming.pid, signal.SIGSTOP)
    pool.stop()
    loop.turn_until(lambda: pool.is_empty)
    assert pool.deaths == 0


def test_preload_can_be_switched_off_and_on_by_a_reload(loop: Loop) -> None:
    pool = loop.start_pool(PRELOADED)
    for settings in (SETTINGS, PRELOADED):
        pool.reload(settings)
        assert loop.reload_result(pool).problem is None
        loop.turn_until(lambda: serves(pool))
        loop.turn_until(lambda: len(pool.templates) == int(pool.settings.preload))
        (worker,) = pool.all_workers()
        assert (worker.template in pool.templates) == settings.preload


CRASHING = """
import faulthandler
from kapudf_cli import Handler


class Crashing(Handler):
    def point(self, point):
        faulthandler._sigsegv()
"""


def test_a_crash_of_a_forked_worker_is_told_with_its_stack(
    serve: Serve, socket_path: str, tmp_path: Path
) -> None:
    file = tmp_path / "crashing.py"
    file.write_text(CRASHING, encoding="utf-8")
    process = serve(f"{file}:Crashing", "--preload", "--on-error", "skip")
    assert play(socket_path, [Point(time=1)]) == []
    for died in process.await_events("worker died", 2):
        assert died["how"] == "SIGSEGV"
        assert "in point" in died["stacks"]
    (dropped,) = process.await_events("dropped what killed the worker", 1)
    assert dropped["function"] == "udf"
    assert process.stop() == 0


def test_a_worker_is_recycled_for_one_of_the_same_template(
    serve: Serve, socket_path: str, tmp_path: Path
) -> None:
    code = Code(tmp_path)
    process = serve(code.handler, "--preload", "--max-points", "500")
    (forker,) = status_of(socket_path)["templates"]
    with OngoingTask(socket_path) as task:
        process.event("connection handed over")
        task.await_more()
        assert check_count(task) == [1]
    await_status(socket_path, lambda status: status["templates"][0]["pid"] == forker["pid"])
    assert process.stop() == 0


def test_random_generators_get_other_seeds() -> None:
    numbers: set[float] = set()
    for _ in range(2):
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002 - the generator that handlers share
        template.reseed()
        numbers |= {random.random(), np.random.random()}  # noqa: NPY002, S311 - as above
    assert len(numbers) == 4


# --- which template forks which workers ---


@pytest.mark.parametrize(
    ("events", "current", "coming", "ended"),
    [
        ([], "old", None, []),
        (["come"], "old", "new", []),
        (["come", "switch"], "new", None, ["old"]),
        (["come", "cancel"], "old", None, ["new"]),
        (["switch"], None, None, ["old"]),
        (["cancel"], "old", None, [None]),
        (["come", "new dies", "switch"], None, None, ["old"]),
        (["come", "old dies", "switch"], "new", None, [None]),
        (["come", "old dies", "cancel"], None, None, ["new"]),
    ],
)
def test_the_template_of_a_reload_becomes_the_current_one(
    events: list[str], current: str | None, coming: str | None, ended: list[str | None]
) -> None:
    roles: TemplateRoles[str] = TemplateRoles()
    roles.current = "old"
    told = []
    for event in events:
        match event:
            case "come":
                roles.coming = "new"
            case "switch":
                told.append(roles.switch())
            case "cancel":
                told.append(roles.cancel())
            case _:
                assert roles.remove(event.split()[0])
    assert (roles.current, roles.coming, told) == (current, coming, ended)
    assert not roles.remove("ended before")
