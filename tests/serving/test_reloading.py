"""Settings read anew, and what becomes of the functions that are served; no worker is started."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec
import pytest
from structlog.testing import capture_logs

from kapudf_cli import logs
from kapudf_cli.config import FunctionSettings, Settings
from kapudf_cli.errors import ConfigError, ControlError, SocketPathError
from kapudf_cli.serving.reloading import Reloading
from tests.serving.loops import Loop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kapudf_cli.serving.functions import Functions


class File:
    """A configuration that is changed, and the functions that are served by it."""

    def __init__(self, folder: Path, loop: Loop) -> None:
        self._folder = folder
        self.settings = Settings(functions={"a": self.function("a"), "b": self.function("b")})
        self.functions: Functions = loop.bind_functions(self.settings)
        self.reloading = Reloading(self.functions, lambda: self.settings, logs.get_logger())

    def function(self, name: str, **changes: object) -> FunctionSettings:
        settings = FunctionSettings(handler="mirror", socket=str(self._folder / name))
        return msgspec.structs.replace(settings, **changes)

    def write(self, **functions: FunctionSettings) -> None:
        self.settings = Settings(functions=functions, grace_period_s=3.0)

    def sockets(self) -> set[str]:
        """Return which functions' sockets are there, those for control aside."""
        return {name for name in os.listdir(self._folder) if "." not in name}

    def is_refused(self, name: str, kind: type[Exception], message: str) -> bool:
        """Return whether the reload of one cannot begin, and changes nothing."""
        before = self.functions.pools()
        with pytest.raises(kind, match=message):
            self.reloading.reload_one(name, unwanted)
        return self.functions.pools() == before and not any(pool.all_workers() for pool in before)


def unwanted(_: object) -> None:
    pytest.fail("told of a reload that never began")


@pytest.fixture
def file(short_folder: Path) -> Iterator[File]:
    """Give a configuration with two functions."""
    with Loop() as loop:
        yield File(short_folder, loop)


def test_functions_are_added_and_removed_and_moved(file: File) -> None:
    """What is gone leaves its path once nobody needs it; what comes has one."""
    file.write(b=file.function("moved"), c=file.function("c"))
    old = file.functions.get("b")
    file.reloading.reload_all()
    assert file.functions.names() == {"b", "c"}
    assert file.functions.get("b") is not old
    assert file.sockets() == {"a", "b", "moved", "c"}
    with capture_logs() as events:
        file.functions.forget_ended()
    assert [(each["event"], each["function"]) for each in events] == [
        ("function removed", "a"),
        ("function removed", "b"),
    ]
    assert file.sockets() == {"moved", "c"}
    assert file.functions.settings.grace_period_s == 3.0


def test_a_function_that_stays_gets_new_workers(file: File) -> None:
    """And the access rights that it is to have now, for both of its sockets."""
    file.write(a=file.function("a", workers=2, socket_mode="0600"), b=file.function("b", workers=1))
    file.reloading.reload_all()
    assert [len(pool.all_workers()) for pool in file.functions.pools()] == [2, 1]
    function = file.functions.get("a")
    assert function is not None
    assert function.control_file is not None
    for each in (function.socket_file, function.control_file):
        assert os.stat(each.path).st_mode & 0o777 == 0o600


def test_one_that_cannot_be_reloaded_hinders_no_other(file: File) -> None:
    """The log says which, and why."""
    file.write(a=file.function("a", socket_group="no-such-group"), b=file.function("b"))
    with capture_logs() as events:
        file.reloading.reload_all()
    assert [len(pool.all_workers()) for pool in file.functions.pools()] == [0, 1]
    (event,) = [each for each in events if each["event"] == "reload failed"]
    assert event["function"] == "a"
    assert "no-such-group" in event["error"]


def test_one_that_cannot_be_added_hinders_no_other(file: File) -> None:
    """It is not served, and the next reload tries it again."""
    lost = file.function("b", socket="/no/such/folder/c")
    file.write(a=file.function("a"), b=file.function("b"), c=lost)
    with capture_logs() as events:
        file.reloading.reload_all()
    assert file.functions.names() == {"a", "b"}
    (event,) = [each for each in events if each["event"] == "function cannot be served"]
    assert event["function"] == "c"
    assert "/no/such/folder" in event["error"]


def wrong() -> Settings:
    raise ConfigError("the file", ["what a thing to write"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda _: wrong, "what a thing to write"),
        (
            lambda file: lambda: Settings(functions={"a": file.function("a", workers=0)}),
            "workers: 0 needs a restart",
        ),
    ],
    ids=["wrong settings", "no workers"],
)
def test_settings_that_cannot_be_change_nothing_at_all(
    file: File, change: Callable[[File], Callable[[], Settings]], said: str
) -> None:
    """Whether one function is asked for or all."""
    file.reloading = Reloading(file.functions, change(file), logs.get_logger())
    before = file.functions.settings
    assert file.is_refused("a", ConfigError, said)
    with capture_logs() as events:
        file.reloading.reload_all()
    assert [each["event"] for each in events] == ["reload failed, everything goes on as it was"]
    assert said in events[0]["error"]
    assert file.functions.names() == {"a", "b"}
    assert file.functions.settings is before


def test_one_alone_neither_goes_nor_moves(file: File) -> None:
    """That is for all, by a signal."""
    file.write(b=file.function("moved"))
    gone = "a is no longer in the configuration; SIGHUP removes it"
    assert file.is_refused("a", ControlError, gone)
    assert file.is_refused("b", ControlError, "the socket of b is another one now; SIGHUP moves it")
    assert file.sockets() == {"a", "b"}


def test_nothing_is_reloaded_during_the_drain(file: File) -> None:
    """New workers would only hold up the end, and whoever waits for them is told nothing."""
    file.functions.stop_listening()
    assert file.is_refused("a", ControlError, "told to stop")


def test_one_alone_that_cannot_begin_is_logged_and_told(file: File) -> None:
    """The others are not touched in any case."""
    file.write(a=file.function("a", socket_group="no-such-group"))
    with capture_logs() as events:
        assert file.is_refused("a", SocketPathError, "no-such-group")
    assert [(each["event"], each["function"]) for each in events] == [("reload failed", "a")]
