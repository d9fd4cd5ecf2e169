"""Failing steps of the supervisor's loop: all other steps go on."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from kapudf_cli.client.driver import probe
from kapudf_cli.config import FunctionSettings, Settings
from kapudf_cli.supervisor import control
from kapudf_cli.supervisor.errors import ControlError, WorkerStartError
from kapudf_cli.supervisor.supervisor import Supervisor
from kapudf_cli.system import logs
from kapudf_cli.system.signals import SignalQueue
from tests.serve_process import PATIENCE_S
from tests.supervisor.connections import unkept
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from structlog.typing import EventDict

#: How long a step fails; it is tried ten times a second meanwhile.
_FAILING_S = 0.5


class Watch:
    """A code watch that fails on demand."""

    def __init__(self) -> None:
        self.failures = 0
        self.fails = False

    def follow(self, files: Iterable[str], *, new_files: bool) -> None:
        del files, new_files
        if self.fails:
            self.failures += 1
            message = "can't start new thread"
            raise RuntimeError(message)


def serve(
    socket_path: str,
    meanwhile: Callable[[], None],
    *,
    watch: Any = None,
    read_settings: Callable[[], Settings] | None = None,
) -> tuple[int, list[EventDict]]:
    """Serve, and run `meanwhile` in another thread; return the exit status and the log."""
    settings = Settings(
        functions={"f": FunctionSettings(handler="mirror", socket=socket_path)}, log_format="json"
    )
    signals = SignalQueue((signal.SIGTERM, signal.SIGHUP))

    def act() -> None:
        try:
            wait_until(lambda: any(each["event"] == "listening" for each in events))
            meanwhile()
        finally:
            signals.put(signal.SIGTERM)

    actor = threading.Thread(target=act)
    with signals, capture_logs() as events:
        supervisor = Supervisor(
            settings,
            read_settings or (lambda: settings),
            store=unkept(),
            log=logs.get_logger(),
            code_watch=watch,
        )
        actor.start()
        status = supervisor.run(signals)
        actor.join(PATIENCE_S)
    return status, list(events)


def test_a_step_that_keeps_failing_is_logged_once_and_delays_nothing(
    socket_path: str,
) -> None:
    watch = Watch()

    def fail() -> None:
        watch.fails = True
        deadline = time.monotonic() + _FAILING_S
        while time.monotonic() < deadline:
            control.ask(socket_path, "status", timeout_s=PATIENCE_S)
        assert probe(socket_path, timeout_s=PATIENCE_S).info.options is not None

    status, events = serve(socket_path, fail, watch=watch)
    assert status == 0
    assert 1 < watch.failures < 50
    (event,) = [each for each in events if each["log_level"] == "error"]
    assert event["event"] == "unexpected failure, everything else goes on"
    assert str(event["exc_info"]) == "can't start new thread"


@pytest.mark.parametrize("error", [RecursionError("too deep"), MemoryError(), KeyError("x")])
def test_a_reload_that_cannot_be_prepared_changes_nothing(
    socket_path: str, error: Exception
) -> None:
    reads = []

    def read_settings() -> Settings:
        reads.append(1)
        raise error

    def pids() -> list[int]:
        status = control.ask(socket_path, "status", timeout_s=PATIENCE_S)
        return [worker["pid"] for worker in status["workers"]]

    def reload() -> None:
        before = pids()
        with pytest.raises(ControlError, match=type(error).__name__):
            control.ask(socket_path, "reload", timeout_s=PATIENCE_S)
        signal.raise_signal(signal.SIGHUP)
        wait_until(lambda: len(reads) == 2)
        assert pids() == before

    status, events = serve(socket_path, reload, read_settings=read_settings)
    assert status == 0
    failed = [each["event"] for each in events if each["log_level"] == "error"]
    assert failed == ["reload failed, everything goes on as it was"]


def test_nothing_is_left_if_several_functions_cannot_be_started(short_folder: Path) -> None:
    functions = {
        name: FunctionSettings(handler="no-such-handler", socket=str(short_folder / name))
        for name in ("a", "b", "c")
    }
    settings = Settings(functions=functions, log_format="json")
    with SignalQueue((signal.SIGTERM, signal.SIGHUP)) as signals:
        supervisor = Supervisor(settings, lambda: settings, store=unkept(), log=logs.get_logger())
        with pytest.raises(
            WorkerStartError, match="no installed handler has the name 'no-such-handler'"
        ):
            supervisor.run(signals)
    assert os.listdir(short_folder) == []
