"""New code and settings while tasks run: no point is lost or repeated, and no state is reset."""

from __future__ import annotations

import os
import signal
import stat
import threading
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.client.driver import probe
from kapudf_cli.protocol.udf_pb2 import Point
from tests.serve_process import PATIENCE_S, ServeProcess
from tests.supervisor.ongoing import (
    Code,
    OngoingTask,
    await_status,
    check_count,
    kapudf,
    status_of,
    write_config,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Serve = Callable[..., ServeProcess]

#: The number of reloads of the long test; `make soak` does more.
RELOADS = int(os.environ.get("KAPUDF_SOAK_RELOADS", "8"))


@pytest.fixture
def code(tmp_path: Path) -> Code:
    """Give the file of a handler's first version."""
    return Code(tmp_path)


class Configured:
    """A configuration file with two functions, and the server that uses it."""

    def __init__(self, folder: Path, code: Code) -> None:
        """Start a server: function `first` with the handler of `code`, `second` with mirror."""
        self.folder = folder
        self.file = folder / "kapudf.yaml"
        self.functions: dict[str, dict[str, object]] = {
            "first": {"handler": code.handler, "socket": self.path("first")},
            "second": {"handler": "mirror", "socket": self.path("second")},
        }
        self.write()
        self.process = ServeProcess("--config", str(self.file))

    def path(self, name: str) -> str:
        """Return the path of a function's socket."""
        return str(self.folder / f"{name}.sock")

    def write(self, **top: object) -> None:
        """Write the configuration file with the current `functions`."""
        write_config(self.file, self.functions, **top)


@pytest.fixture
def configured(short_folder: Path, code: Code) -> Iterator[Configured]:
    """Give a server of two functions."""
    server = Configured(short_folder, code)
    with server.process:
        server.process.await_events("listening", 2)
        yield server


# --- new code ---


@pytest.mark.parametrize("how", ["SIGHUP", "--socket", "--config"])
def test_new_code_goes_on_with_the_state_of_the_old(
    configured: Configured, code: Code, how: str
) -> None:
    path = configured.path("first")
    with OngoingTask(path) as task:
        task.await_version(1)
        code.change()
        match how:
            case "SIGHUP":
                configured.process.signal(signal.SIGHUP)
                configured.process.event("connection handed over")
            case "--socket":
                said = kapudf("reload", "--socket", path)
                assert said.startswith(
                    "first: reloaded, 1 connection handed over\n"
                    f"  Count of {code.file}, saved 1970-01-01 "
                )
            case _:
                said = kapudf("reload", "--config", str(configured.file))
                assert said.splitlines()[::2] == [
                    "first: reloaded, 1 connection handed over",
                    "second: reloaded, 0 connections handed over",
                ]
        task.await_version(2)
        assert check_count(task) == [1, 2]
    assert not list(configured.process.matching("worker died"))


@pytest.mark.parametrize("reloads", [3, pytest.param(RELOADS, marks=pytest.mark.long)])
def test_many_reloads_under_load_lose_and_repeat_nothing(
    serve: Serve, code: Code, socket_path: str, reloads: int
) -> None:
    process = serve(code.handler, "--workers", "2", "--snapshot-interval", "0.2")
    tasks = [OngoingTask(socket_path, f"task-{number}") for number in range(3)]
    for version in range(2, reloads + 2):
        assert code.change() == version
        kapudf("reload", "--socket", socket_path)
        for task in tasks:
            task.await_version(version)
    for task in tasks:
        with task:
            assert check_count(task) == list(range(1, reloads + 2))
    assert process.stop() == 0
    assert not list(process.matching("worker died"))
    finished = process.await_events("connection finished", len(tasks), reason="closed")
    assert {event["takeovers"] for event in finished} == {reloads}


def test_a_worker_of_old_code_ends_once_it_serves_no_connection(
    serve: Serve, code: Code, socket_path: str
) -> None:
    serve(code.handler)
    before = status_of(socket_path)["workers"][0]["pid"]
    with OngoingTask(socket_path) as task:
        kapudf("reload", "--socket", socket_path)
        after = await_status(socket_path, lambda status: len(status["workers"]) == 1)
        assert after["workers"][0]["pid"] != before
        assert after["worker_deaths"] == 0
        assert not os.path.exists(f"/proc/{before}")
        check_count(task)


def test_a_working_folder_that_is_a_link_is_followed_again(
    short_folder: Path, socket_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    current = short_folder / "current"
    for name in ("1", "2"):
        (short_folder / name).mkdir()
        code = Code(short_folder / name)
        if name == "2":
            code.change()
        function = {"handler": "count.py:Count", "socket": socket_path}
        write_config(short_folder / name / "kapudf.yaml", {f"f{name}": function})
    current.symlink_to("1")
    monkeypatch.chdir(current)
    with ServeProcess("--config", "kapudf.yaml", env={"PWD": str(current)}) as process:
        process.ready()
        with OngoingTask(socket_path) as task:
            task.await_version(1)
            current.unlink()
            current.symlink_to("2")
            process.signal(signal.SIGHUP)
            task.await_version(2)
            assert check_count(task) == [1, 2]
        serve = process.event("new workers serve", function="f2", handler="Count")
        assert serve["code"].startswith(f"{short_folder}/2/count.py, saved ")
        status = status_of(socket_path)
        assert (status["function"], status["code"]["path"]) == ("f2", f"{short_folder}/2/count.py")


# --- new code that fails ---

FAILS_AT_INIT = """
    def init(self, request):
        raise RuntimeError("no init any more")
"""
REFUSES_INIT = """
    def init(self, request):
        from kapudf_cli.protocol import InitResponse
        return InitResponse(error="not in this version")
"""
FAILS_AT_RESTORE = """
    def restore(self, request):
        raise RuntimeError("what is this?")
"""
REFUSES_RESTORE = """
    def restore(self, request):
        from kapudf_cli.protocol import RestoreResponse
        return RestoreResponse(error="a snapshot of another version")
"""


@pytest.mark.parametrize(
    ("more", "cause"),
    [
        ("import no_such_module_anywhere\n", "No module named 'no_such_module_anywhere'"),
        ("def point(self, point) return\n", "SyntaxError"),
        ("del Count\n", "has no 'Count'"),
        ("import os\nos.abort()\n", "a new worker died: SIGABRT"),
    ],
)
def test_the_old_code_goes_on_if_the_new_code_cannot_be_loaded(
    serve: Serve, code: Code, socket_path: str, more: str, cause: str
) -> None:
    process = serve(code.handler)
    with OngoingTask(socket_path) as task:
        code.change(more)
        said = kapudf("reload", "--socket", socket_path, status=1)
        assert said.startswith(f"Error: {socket_path}: the old code goes on: ")
        assert cause in said
        assert said.count("\n") == 1
        assert "--" not in said  # No flag that only `serve` has is recommended.
        logged = process.event("reload failed, the old code goes on")
        assert cause.removeprefix("a new ") in logged["error"]
        task.await_more()

        code.change()
        kapudf("reload", "--socket", socket_path)
        task.await_version(3)
        assert check_count(task) == [1, 3]


@pytest.mark.parametrize(
    ("more", "cause"),
    [
        (FAILS_AT_INIT, "Count.init raised RuntimeError: no init any more"),
        (REFUSES_INIT, "init was refused: not in this version"),
        (FAILS_AT_RESTORE, "Count.restore raised RuntimeError: what is this?"),
        (REFUSES_RESTORE, "restore was refused: a snapshot of another version"),
    ],
)
def test_the_old_code_goes_on_if_the_new_code_cannot_restore_the_state(
    serve: Serve, code: Code, socket_path: str, more: str, cause: str
) -> None:
    process = serve(code.handler)
    with OngoingTask(socket_path) as task:
        task.await_version(1)
        code.change(more)
        said = kapudf("reload", "--socket", socket_path, status=1)
        assert said.startswith(
            "udf: reloaded, 0 connections handed over, 1 kept by the old code; the log says why\n"
        )
        assert process.event("handover failed, the old worker goes on")["error"] == cause
        task.await_more()

        code.change()
        said = kapudf("reload", "--socket", socket_path)
        assert said.startswith("udf: reloaded, 1 connection handed over\n")
        task.await_version(3)
        assert check_count(task) == [1, 3]
        await_status(socket_path, lambda status: len(status["workers"]) == 1)


# --- at the same time as something else ---


@pytest.mark.parametrize("held_up", ["import", "restore"])
def test_sigterm_in_the_middle_of_a_reload_ends_it_well(
    serve: Serve,
    code: Code,
    socket_path: str,
    tmp_path: Path,
    held_up: str,
) -> None:
    reached, gate = tmp_path / "reached", tmp_path / "gate"
    os.mkfifo(reached)
    os.mkfifo(gate)
    process = serve(code.handler)
    with OngoingTask(socket_path) as task:
        task.await_version(1)
        wait = f"open({str(reached)!r}, 'w').close(); open({str(gate)!r}).read()\n"
        if held_up == "restore":
            head = "    def restore(self, request):\n"
            wait = f"{head}        {wait}        return super().restore(request)\n"
        code.change(wait)
        process.signal(signal.SIGHUP)
        reached.read_bytes()
        process.signal(signal.SIGTERM)
        process.event("stopping")
        opener = threading.Thread(target=lambda: gate.write_bytes(b""), daemon=True)
        opener.start()
        assert process.wait() == 0
        finished = process.event("connection finished")
        assert finished["reason"] == "stopped"
        back = [each for each in task.finish() if isinstance(each, Point)]
    assert finished["points_out"] == finished["points_in"]
    assert [each.time for each in back] == list(range(finished["points_in"]))
    assert [each.fieldsInt["count"] for each in back] == list(range(1, len(back) + 1))


def test_the_last_of_several_reloads_counts(
    serve: Serve, code: Code, socket_path: str, tmp_path: Path
) -> None:
    reached = tmp_path / "reached"
    os.mkfifo(reached)
    process = serve(code.handler)
    with OngoingTask(socket_path) as task:
        code.change(f"open({str(reached)!r}, 'w').close()\nimport time\ntime.sleep(600)\n")
        process.signal(signal.SIGHUP)
        reached.read_bytes()
        code.change()
        kapudf("reload", "--socket", socket_path)
        task.await_version(3)
        assert check_count(task) == [1, 3]
    assert not list(process.matching("worker died"))
    assert not list(process.matching("reload failed, the old code goes on"))


# --- functions and settings ---


def test_functions_are_added_and_removed_without_effect_on_others(
    configured: Configured, short_folder: Path
) -> None:
    process = configured.process
    with (
        OngoingTask(configured.path("first")) as task,
        OngoingTask(configured.path("second")) as leaving,
    ):
        leaving.await_more()
        del configured.functions["second"]
        configured.functions["third"] = {"handler": "mirror", "socket": configured.path("third")}
        configured.write()
        process.signal(signal.SIGHUP)
        process.event("listening", function="third")
        assert probe(configured.path("third"), timeout_s=PATIENCE_S).info.options
        process.event("function removed", function="second")
        assert process.event("connection finished", function="second", task_id="task")[
            "reason"
        ] == "stopped"  # fmt: skip
        process.event("connection handed over", function="first")
        task.await_more()
        check_count(task)
    assert process.stop() == 0
    assert sorted(os.listdir(short_folder)) == ["kapudf.yaml"]


def test_functions_change_names_and_sockets_while_tasks_run(
    configured: Configured, code: Code
) -> None:
    first, second, moved = (configured.path(name) for name in ("first", "second", "moved"))
    with OngoingTask(first) as task:
        task.await_version(1)
        code.change()
        configured.functions["third"] = {"handler": "mirror", "socket": moved}
        configured.functions["first"]["socket"] = second
        configured.functions["second"]["socket"] = first
        configured.write()
        said = kapudf("reload", "--socket", first, status=1)
        assert "the socket of first is another one now; SIGHUP moves it" in said
        configured.process.signal(signal.SIGHUP)
        configured.process.event("listening", socket=moved)
        task.await_version(2)
        assert status_of(first)["function"] == "second"
        status = status_of(second)
        assert (status["function"], len(status["connections"])) == ("first", 1)

        code.change()
        configured.functions["count"] = configured.functions.pop("first")
        configured.write()
        configured.process.signal(signal.SIGHUP)
        task.await_version(3)
        assert status_of(second)["function"] == "count"
        assert check_count(task) == [1, 2, 3]
    assert not list(configured.process.matching("worker died"))


def test_a_function_that_is_gone_from_the_file_is_not_reloaded_by_its_socket(
    configured: Configured,
) -> None:
    del configured.functions["second"]
    configured.write()
    said = kapudf("reload", "--socket", configured.path("second"), status=1)
    assert "second is no longer in the configuration; SIGHUP removes or renames it" in said
    assert probe(configured.path("second"), timeout_s=PATIENCE_S).info.options


def test_changed_settings_count_from_then_on(configured: Configured, code: Code) -> None:
    path = configured.path("first")
    with OngoingTask(path) as task:
        task.await_version(1)
        configured.functions["first"] |= {
            "workers": 2,
            "socket_mode": "0600",
            "on_error": "skip",
        }
        configured.write()
        code.change("    def begin_batch(self, begin): raise RuntimeError('no batches')\n")
        configured.process.signal(signal.SIGHUP)
        task.await_version(2)
        status = await_status(path, lambda status: len(status["workers"]) == 2)
        assert [worker["state"] for worker in status["workers"]] == ["serving"] * 2
        for each in (path, f"{path}.control"):
            assert stat.S_IMODE(os.stat(each).st_mode) == 0o600
        assert check_count(task) == [1, 2]


def test_one_worker_of_two_takes_the_connections_of_both(
    serve: Serve, code: Code, short_folder: Path, socket_path: str
) -> None:
    del serve
    file = short_folder / "kapudf.yaml"
    function = {"handler": code.handler, "socket": socket_path, "workers": 2}
    write_config(file, {"udf": function})
    with ServeProcess("--config", str(file)) as process:
        process.ready()
        with OngoingTask(socket_path, "a") as first, OngoingTask(socket_path, "b") as second:
            write_config(file, {"udf": {**function, "workers": 1}})
            kapudf("reload", "--config", str(file))
            status = await_status(socket_path, lambda status: len(status["workers"]) == 1)
            assert status["workers"][0]["connections"] == 2
            check_count(first)
            check_count(second)
        assert process.stop() == 0


@pytest.mark.parametrize(
    ("change", "event", "cause"),
    [
        (
            {"on_error": "ignore"},
            "reload failed, everything goes on as it was",
            "functions.first.on_error: expected fail, skip or restart",
        ),
        (
            {"workers": 0},
            "reload failed, everything goes on as it was",
            "functions.first.workers: 0 serves everything in one process",
        ),
        (
            {"socket_group": "no-such-group"},
            "reload failed, everything goes on as it was",
            "there is no group 'no-such-group'",
        ),
    ],
)
def test_settings_that_cannot_be_change_nothing(
    configured: Configured, change: dict[str, object], event: str, cause: str
) -> None:
    path = configured.path("first")
    with OngoingTask(path) as task:
        configured.functions["first"] |= change
        configured.write()
        assert cause in kapudf("reload", "--socket", path, status=1)
        told = len(list(configured.process.matching(event)))
        configured.process.signal(signal.SIGHUP)
        assert cause in configured.process.await_events(event, told + 1)[-1]["error"]
        task.await_more()
        for name in change:
            del configured.functions["first"][name]
        configured.write()
        said = kapudf("reload", "--socket", path)
        assert said.startswith("first: reloaded, 1 connection handed over\n")
        check_count(task)


def test_workers_cannot_be_turned_off_while_they_serve(configured: Configured, code: Code) -> None:
    with OngoingTask(configured.path("first")) as task:
        for function in configured.functions.values():
            function["workers"] = 0
        configured.write()
        configured.process.signal(signal.SIGHUP)
        failed = configured.process.event("reload failed, everything goes on as it was")
        assert "workers: 0 needs a restart" in failed["error"]
        code.change()
        task.await_more()
        assert check_count(task) == [1]
