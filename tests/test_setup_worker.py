"""`setup_worker`: called once in each process, before any connection; its result is shared."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kapudf_cli import Handler, plugins
from kapudf_cli.client.command_target import CommandTarget
from kapudf_cli.plugin_errors import NotAHandlerError, WorkerSetupError
from kapudf_cli.protocol.udf_pb2 import InitRequest, InitResponse, Point
from kapudf_cli.testing import StartTask, lines
from tests.peers import responses_to
from tests.run_kapudf import run_kapudf
from tests.serve_process import KAPUDF, PATIENCE_S, ServeProcess
from tests.supervisor.ongoing import kapudf
from tests.supervisor.tasks import play

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import ClassVar

#: Writes a line to the file beside it for each call, and the number of the process and of its
#: calls on each point.
SHARED = """
import os
from pathlib import Path
from kapudf_cli import Handler, set_field

CALLS = Path(__file__).with_suffix(".calls")


class Shared(Handler):
    @classmethod
    def setup_worker(cls):
        cls.process = os.getpid()
        with CALLS.open("a") as calls:
            calls.write("called\\n")
        {more}
        return {{"model": 7}}

    def point(self, point):
        set_field(point, "model", self.shared["model"])
        set_field(point, "here", self.process == os.getpid())
        self.agent.write_point(point)
"""
FAILS = 'raise FileNotFoundError("no model at /models/7")'


class SharedHandler:
    """A handler's file, and the calls of its `setup_worker`."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "shared.py"
        self.name = f"{self.file}:Shared"
        self.write()

    def write(self, more: str = "") -> None:
        self.file.write_text(SHARED.format(more=more), encoding="utf-8")

    @property
    def calls(self) -> int:
        return len(self.file.with_suffix(".calls").read_text(encoding="utf-8").splitlines())


@pytest.fixture
def shared(tmp_path: Path) -> SharedHandler:
    """Give one that does not fail."""
    return SharedHandler(tmp_path)


EXPECTED = Point(time=1, fieldsInt={"model": 7}, fieldsBool={"here": True})


@pytest.mark.parametrize("workers", ["1", "0"])
def test_connections_of_a_process_share_its_result(
    serve: Callable[..., ServeProcess], socket_path: str, shared: SharedHandler, workers: str
) -> None:
    serve(shared.name, "--workers", workers)
    for _ in range(2):
        assert play(socket_path, [Point(time=1)]) == [EXPECTED]
    assert shared.calls == 1


def test_a_process_udf_calls_it_before_its_connection(shared: SharedHandler) -> None:
    command = (*KAPUDF, "exec", "--handler", shared.name)
    with CommandTarget("kapudf exec", command).open(timeout_s=PATIENCE_S) as connection:
        connection.side.send(InitRequest(taskID="task", nodeID="node"))
        assert connection.side.receive() == InitResponse(success=True)
        assert list(responses_to(connection.side, [Point(time=1)])) == [EXPECTED]
    assert shared.calls == 1


def test_the_tools_call_it_for_a_handler_in_their_process(
    shared: SharedHandler, tmp_path: Path
) -> None:
    recording = tmp_path / "recording.lp"
    recording.write_text("m value=1.0 10\n", encoding="utf-8")
    output = kapudf("replay", "--handler", shared.name, str(recording))
    assert "model=7i" in output
    assert shared.calls == 1


class Counted(Handler):
    """Counts the calls."""

    calls: ClassVar[int] = 0

    @classmethod
    def setup_worker(cls) -> None:
        """Set an attribute, and return nothing."""
        cls.calls += 1

    def point(self, point: Point, /) -> None:
        """Set a field to the number of calls."""
        point.fieldsInt["calls"] = self.calls
        self.agent.write_point(point)


def test_the_fixture_calls_it_once_for_all_tests(udf: StartTask) -> None:
    for _ in range(2):
        (point,) = udf(Counted).send(*lines("m value=1.0 10")).points
        assert point.fieldsInt["calls"] == 1
    assert Counted.shared is None


def test_the_fixture_calls_what_a_test_has_put_in_its_place(
    udf: StartTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Scored(Handler):
        @classmethod
        def setup_worker(cls) -> str:
            return "real"

        def point(self, point: Point, /) -> None:
            point.tags["model"] = self.shared
            self.agent.write_point(point)

    def model_of_next_task() -> str:
        (point,) = udf(Scored).send(*lines("m value=1.0 10")).points
        return point.tags["model"]

    assert model_of_next_task() == "real"
    with monkeypatch.context() as patch:
        patch.setattr(Scored, "setup_worker", classmethod(lambda _: "stub"))
        assert model_of_next_task() == "stub"
    assert model_of_next_task() == "real"


def test_a_subclass_has_a_result_of_its_own() -> None:
    class Base(Handler):
        @classmethod
        def setup_worker(cls) -> str:
            return cls.__name__

        def point(self, point: Point, /) -> None:
            self.agent.write_point(point)

    class Derived(Base):
        pass

    for each in (Base, Derived):
        plugins.set_up(each)
    assert (Base.shared, Derived.shared) == ("Base", "Derived")


# --- failures ---

PROBLEM = "Shared.setup_worker raised FileNotFoundError: no model at /models/7 ("


@pytest.mark.parametrize("workers", ["1", "0"])
def test_a_failure_at_the_start_ends_it_with_the_message(
    socket_path: str, shared: SharedHandler, workers: str
) -> None:
    shared.write(FAILS)
    arguments = ("--socket", socket_path, "--handler", shared.name, "--workers", workers)
    result = run_kapudf("serve", *arguments)
    assert result.returncode == 1
    assert f"Error: {PROBLEM}{shared.file}, line " in result.stderr


def test_an_interrupt_that_it_raises_is_no_end_of_the_worker(
    socket_path: str, shared: SharedHandler
) -> None:
    shared.write("raise KeyboardInterrupt")
    result = run_kapudf("serve", "--socket", socket_path, "--handler", shared.name)
    assert result.returncode == 1
    assert "cannot be loaded: it raised KeyboardInterrupt" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_failure_is_a_fault_unless_the_file_is_for_elsewhere(
    shared: SharedHandler, tmp_path: Path
) -> None:
    shared.write(FAILS)
    config = tmp_path / "kapudf.yaml"
    socket = f"socket: {tmp_path}/shared.sock"
    config.write_text(f"functions: {{shared: {{handler: '{shared.name}', {socket}}}}}\n")
    assert f"functions.shared.handler: {PROBLEM}" in kapudf("check-config", str(config), status=2)
    assert "not checked: setup_worker, " in kapudf("check-config", "--elsewhere", str(config))


def test_after_a_failure_of_new_code_the_old_code_goes_on(
    serve: Callable[..., ServeProcess], socket_path: str, shared: SharedHandler
) -> None:
    process = serve(shared.name)
    shared.write(FAILS)
    assert PROBLEM in kapudf("reload", "--socket", socket_path, status=1)
    assert PROBLEM in process.event("reload failed, the old code goes on")["error"]
    assert play(socket_path, [Point(time=1)]) == [EXPECTED]


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_child_that_it_forks_and_that_raises_is_ended(
    shared: SharedHandler, serve: Callable[..., ServeProcess], socket_path: str, workers: str
) -> None:
    shared.write(
        "child = os.fork()\n        if not child: raise ValueError('child')\n        os.wait()"
    )
    process = serve(shared.name, "--workers", workers)
    assert play(socket_path, [Point(time=1)]) == [EXPECTED]
    process.event("forked process returned into kapudf and is ended")


@pytest.mark.parametrize("raised", ["raise SystemExit('bye')", "1 / 0"])
def test_whatever_it_raises_is_named(shared: SharedHandler, raised: str) -> None:
    shared.write(raised)
    handler = plugins.find(shared.name).load()
    with pytest.raises(WorkerSetupError, match=r"Shared\.setup_worker raised \w+: .* line \d+"):
        plugins.set_up(handler)


@pytest.mark.parametrize(
    ("definition", "problem"),
    [
        ("def setup_worker(self): pass", "must be a class method; add @classmethod"),
        ("@classmethod\n    async def setup_worker(cls): pass", "is async"),
    ],
)
def test_one_that_could_not_be_called_is_refused(
    tmp_path: Path, definition: str, problem: str
) -> None:
    file = tmp_path / "wrong.py"
    file.write_text(
        "from kapudf_cli import Handler\n\nclass Wrong(Handler):\n"
        f"    {definition}\n    def point(self, point): pass\n"
    )
    with pytest.raises(NotAHandlerError, match=problem):
        plugins.find(f"{file}:Wrong").load()
