"""The sockets of functions: bound, listened on once the function is ready, and released."""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from kapudf_cli.config import FunctionSettings, Settings
from kapudf_cli.supervisor.errors import WorkerStartError
from kapudf_cli.system.errors import SocketPathError
from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tests.supervisor.loops import Loop


#: A handler whose import waits for a file.
SLOW = """
import os, time
from kapudf_handlers.mirror import Mirror

while not os.path.exists({gate!r}):
    time.sleep(0.01)


class Slow(Mirror):
    pass
"""


def settings(folder: Path, **handlers: str) -> Settings:
    """Return settings with one function for each handler."""
    functions = {
        name: FunctionSettings(handler=handler, socket=str(folder / name))
        for name, handler in handlers.items()
    }
    return Settings(functions=functions, log_format="json")


def listening(events: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return the functions that listen, and their handlers."""
    found = [each for each in events if each["event"] == "listening"]
    return [(each["function"], each["handler"]) for each in found]


def test_if_one_cannot_be_bound_none_is(short_folder: Path, loop: Loop) -> None:
    wanted = settings(short_folder, a="mirror", b="mirror")
    os.mkdir(short_folder / "b")
    with pytest.raises(SocketPathError):
        loop.bind_functions(wanted)
    assert os.listdir(short_folder) == ["b"]


def test_none_is_listened_on_while_one_may_be_impossible_to_serve(
    short_folder: Path, tmp_path: Path, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    notice, gate, slow = str(short_folder / "notify"), tmp_path / "gate", tmp_path / "slow.py"
    slow.write_text(SLOW.format(gate=str(gate)), encoding="utf-8")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd, capture_logs() as events:
        systemd.bind(notice)
        systemd.settimeout(PATIENCE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", notice)
        functions = loop.bind_functions(settings(short_folder, a="mirror", b=f"{slow}:Slow"))
        functions.start()
        first, second = functions.pools()
        loop.turn_until(lambda: first.is_ready)
        functions.listen_where_ready()
        assert not listening(events)
        gate.touch()
        loop.turn_until(lambda: second.is_ready)
        for _ in range(2):
            functions.listen_where_ready()
        assert functions.is_up
        assert systemd.recv(100) == b"READY=1"
        systemd.settimeout(0)
        with pytest.raises(BlockingIOError):
            systemd.recv(100)
    assert listening(events) == [("a", "Mirror"), ("b", "Slow")]


def test_connections_that_wait_when_listening_ends_are_served(
    short_folder: Path, loop: Loop
) -> None:
    functions = loop.bind_functions(settings(short_folder, a="mirror"))
    functions.start()
    (pool,) = functions.pools()
    loop.turn_until(lambda: pool.is_ready)
    functions.listen_where_ready()
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(PATIENCE_S)
        peer.connect(str(short_folder / "a"))
        assert not pool.connections
        functions.stop_listening()
        assert len(pool.connections) == 1
        with socket.socket(socket.AF_UNIX) as late, pytest.raises(ConnectionRefusedError):
            late.connect(str(short_folder / "a"))
    loop.turn_until(lambda: not pool.connections)


def test_one_that_is_ready_only_then_is_listened_on_no_more(short_folder: Path, loop: Loop) -> None:
    functions = loop.bind_functions(settings(short_folder, a="mirror"))
    functions.start()
    with capture_logs() as events:
        functions.stop_listening()
        (pool,) = functions.pools()
        loop.turn_until(lambda: pool.is_ready)
        functions.listen_where_ready()
    assert not listening(events)
    assert not functions.is_up


def test_a_worker_that_the_system_cannot_start_is_reported_with_the_reason(
    short_folder: Path, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    functions = loop.bind_functions(settings(short_folder, a="mirror"))
    python = str(short_folder / "no-python")
    monkeypatch.setattr(sys, "executable", python)
    with pytest.raises(WorkerStartError) as caught:
        functions.start()
    assert str(caught.value) == (
        f"no worker of a can be started: [Errno 2] No such file or directory: '{python}'"
    )
    assert (caught.value.function, caught.value.is_usage_error) == ("a", False)


def test_a_function_without_a_control_socket_is_served_all_the_same(
    short_folder: Path, loop: Loop
) -> None:
    os.mkdir(short_folder / "a.control")
    with capture_logs() as events:
        functions = loop.bind_functions(settings(short_folder, a="mirror"))
    function = functions.get("a")
    assert function is not None
    assert function.sockets is not None
    assert function.sockets.control_file is None
    assert [(each["event"], each["log_level"], each["function"]) for each in events] == [
        ("no status and reload by socket", "warning", "a")
    ]
    functions.change(functions.prepare(Settings(functions={}, log_format="json")))
    functions.listen_where_ready()
    assert os.listdir(short_folder) == ["a.control"]
