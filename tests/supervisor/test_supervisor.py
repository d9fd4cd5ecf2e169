"""The supervisor and its workers as processes: what each imports, and what each survives."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.client.driver import KapacitorSide, probe
from kapudf_cli.protocol.udf_pb2 import InitRequest, InitResponse, Point
from tests.conftest import plugin
from tests.processes import await_end
from tests.serve_process import PATIENCE_S, ServeProcess
from tests.supervisor.ongoing import Code, OngoingTask, await_status, check_count, kapudf, status_of
from tests.supervisor.tasks import started_task

if TYPE_CHECKING:
    from collections.abc import Callable

    Serve = Callable[..., ServeProcess]

#: Three quarters of it are the interpreter and the libraries for settings and the log. It has
#: 28 to 30 MiB; a first start, which compiles the modules, takes a little more.
MOST_RSS_BYTES = 33 * 2**20

#: The first worker that loads it leaves a child process that inherits all its descriptors.
FORKING = """
import os, time
from kapudf_cli import Handler

if not os.path.exists({file!r}):
    if not (child := os.fork()):
        time.sleep(600)
        os._exit(0)
    open({file!r}, "w").write(str(child))


class Forking(Handler):
    def point(self, point):
        self.agent.write_point(point)
"""

#: Each end is reported a little later than the previous one, as if the thread waited for the
#: GIL.
LATE = """
import sys, time
from kapudf_cli import Handler

Worker = getattr(sys.modules["__main__"], "Worker", None)
if Worker is not None:
    report = Worker._on_end

    def report_late(self, number, summary):
        time.sleep(0.1 * number)
        report(self, number, summary)

    Worker._on_end = report_late


class Late(Handler):
    def point(self, point):
        self.agent.write_point(point)
"""


@pytest.fixture
def code(tmp_path: Path) -> Code:
    """Give the file of a handler's first version."""
    return Code(tmp_path)


def loaded(pid: int) -> str:
    """Return the files that a process has mapped into memory."""
    return Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")


@pytest.mark.usefixtures("_processes_start_by_exec")
def test_the_supervisor_loads_neither_protobuf_nor_a_handler(
    serve: Serve, socket_path: str, tmp_path: Path
) -> None:
    trace = tmp_path / "imported"
    code = Code(tmp_path)
    code.change(f"import os\nopen({str(trace)!r}, 'a').write(f'{{os.getpid()}}\\n')\n")
    process = serve(code.handler)
    with OngoingTask(socket_path) as task:
        task.await_more()
        kapudf("reload", "--socket", socket_path)
        (worker,) = await_status(socket_path, lambda status: len(status["workers"]) == 1)["workers"]
        os.kill(worker["pid"], signal.SIGKILL)
        process.event("connection taken over")
        check_count(task)
    (worker,) = status_of(socket_path)["workers"]
    protobuf = "google/_upb/_message"
    assert protobuf in loaded(worker["pid"])
    assert protobuf not in loaded(process.pid)
    importers = {int(line) for line in trace.read_text(encoding="utf-8").split()}
    assert len(importers) == 3
    assert process.pid not in importers


def test_a_worker_and_its_child_that_end_at_once_are_one_death(
    serve: Serve, socket_path: str, tmp_path: Path
) -> None:
    file, child_file = tmp_path / "forking.py", tmp_path / "child"
    file.write_text(FORKING.format(file=str(child_file)), encoding="utf-8")
    process = serve(f"{file}:Forking")
    child = int(child_file.read_text(encoding="utf-8"))
    (worker,) = status_of(socket_path)["workers"]
    process.signal(signal.SIGSTOP)
    for pid in (worker["pid"], child):
        os.kill(pid, signal.SIGKILL)
        await_end(pid)
    process.signal(signal.SIGCONT)
    await_status(socket_path, lambda status: worker not in status["workers"])
    assert process.stop() == 0
    assert len(list(process.matching("worker died"))) == 1


def test_the_supervisor_is_small(socket_path: str) -> None:
    # Coverage measures this in the other tests.
    uncovered = {"COVERAGE_PROCESS_START": "", "COVERAGE_PROCESS_CONFIG": ""}
    with ServeProcess("--socket", socket_path, "--handler", "mirror", env=uncovered) as process:
        process.ready()
        sides = [started_task(socket_path) for _ in range(8)]
        for side in sides:
            side.queue(Point(time=number) for number in range(500))
            assert [side.receive() for _ in range(500)]
        status = status_of(socket_path)
        assert len(status["connections"]) == 8
        assert process.rss_bytes() < MOST_RSS_BYTES
        for side in sides:
            side.__exit__(None, None, None)


def test_connections_go_to_the_worker_with_the_fewest(serve: Serve, socket_path: str) -> None:
    serve("mirror", "--workers", "2")
    tasks = [OngoingTask(socket_path, f"task-{number}") for number in range(4)]
    status = status_of(socket_path)
    assert [worker["connections"] for worker in status["workers"]] == [2, 2]
    for task in tasks:
        with task:
            task.await_more()


@pytest.mark.usefixtures("_processes_start_by_exec")
def test_without_workers_there_is_one_process(serve: Serve, socket_path: str) -> None:
    process = serve("mirror", "--workers", "0")
    assert probe(socket_path, timeout_s=PATIENCE_S).info.options
    assert not Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8")
    for command in ("status", "reload"):
        said = kapudf(command, "--socket", socket_path, status=1)
        assert said == (
            f"Error: {socket_path}: there is no {socket_path}.control to ask; "
            "is `kapudf serve` running here, with workers?\n"
        )


def test_a_worker_that_is_killed_while_idle_is_replaced(
    serve: Serve, code: Code, socket_path: str
) -> None:
    process = serve(code.handler)
    with started_task(socket_path) as side:
        for number in range(1, 4):
            side.send(Point(time=number))
            answer = side.receive()
            assert isinstance(answer, Point)
            assert answer.fieldsInt["count"] == number
            (worker,) = await_status(
                socket_path, lambda status: status["connections"][0]["state"] == "idle"
            )["workers"]
            os.kill(worker["pid"], signal.SIGKILL)
            process.await_events("connection taken over", number)
    died = process.await_events("worker died", 3)
    assert {(event["how"], event["connections"]) for event in died} == {("SIGKILL", 1)}
    assert process.event("connection finished")["takeovers"] == 3


def test_tasks_outlive_a_killed_supervisor(serve: Serve, code: Code, socket_path: str) -> None:
    first = serve(code.handler, "--workers", "2")
    with OngoingTask(socket_path, "old") as old:
        old.await_version(1)
        first.signal(signal.SIGKILL)
        first.event("supervisor is gone, serving connections to their end", connections=1)
        old.await_more()

        code.change()
        serve(code.handler, "--remove-stale")
        with OngoingTask(socket_path, "new") as new:
            new.await_version(2)
            old.await_more()
            assert check_count(new) == [2]
        old.await_more()
        assert check_count(old) == [1]
    # Its log ends when its last worker has ended.
    assert first.wait() == -signal.SIGKILL
    assert first.event("connection finished", task_id="old")["reason"] == "closed"


def test_orphans_end_at_a_signal_as_a_supervisor_does(
    serve: Serve, code: Code, socket_path: str
) -> None:
    process = serve(code.handler)
    (worker,) = status_of(socket_path)["workers"]
    with OngoingTask(socket_path) as task:
        task.await_version(1)
        process.signal(signal.SIGKILL)
        process.event("supervisor is gone, serving connections to their end")
        os.kill(worker["pid"], signal.SIGTERM)
        process.wait()
        finished = process.event("connection finished")
    assert finished["reason"] == "stopped"
    assert finished["points_out"] == finished["points_in"]


def test_workers_that_die_at_their_start_are_started_more_and_more_rarely(
    code: Code, socket_path: str
) -> None:
    code.change("import os\nos.abort()\n")
    with ServeProcess("--socket", socket_path, "--handler", code.handler) as process:
        died = process.await_events("worker died", 3)
        assert {event["how"] for event in died} == {"SIGABRT"}
        assert "count.py" in died[0]["stacks"]
        assert not list(process.matching("listening"))
        code.change()
        process.ready()
        with OngoingTask(socket_path) as task:
            task.await_version(3)
            assert check_count(task) == [3]
        assert process.stop() == 0


def test_connections_that_end_together_at_a_stop_end_once(socket_path: str, tmp_path: Path) -> None:
    file = tmp_path / "late.py"
    file.write_text(LATE, encoding="utf-8")
    with (
        ServeProcess("--socket", socket_path, "--handler", f"{file}:Late") as process,
        contextlib.ExitStack() as sides,
    ):
        process.ready()
        for number in range(3):
            side = sides.enter_context(KapacitorSide.connect(socket_path, timeout_s=PATIENCE_S))
            side.send(InitRequest(taskID=f"task-{number}", nodeID="node"))
            assert side.receive() == InitResponse(success=True)
        assert process.stop() == 0
    finished = [event["task_id"] for event in process.matching("connection finished")]
    assert sorted(finished) == ["task-0", "task-1", "task-2"]


def test_a_second_signal_ends_the_workers_too(serve: Serve, socket_path: str) -> None:
    process = serve(plugin("laden.py:Busy"))
    (worker,) = status_of(socket_path)["workers"]
    with started_task(socket_path) as side:
        side.send(Point(fieldsInt={"s": 600}, tags={"how": "holding the interpreter"}))
        await_status(socket_path, lambda status: status["connections"][0]["state"] == "busy")
        process.signal(signal.SIGTERM)
        process.event("stopping")
        process.signal(signal.SIGTERM)
        assert process.wait() == 1
    assert not os.path.exists(f"/proc/{worker['pid']}")
