"""The requests of a control socket, and their answers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

import pytest

from kapudf_cli.config import FunctionSettings, Settings
from kapudf_cli.supervisor.control_commands import ControlCommands
from kapudf_cli.supervisor.reload import Reloader
from kapudf_cli.supervisor.upgrade import Upgrade
from kapudf_cli.system import logs
from tests.supervisor.loops import Loop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kapudf_cli.supervisor.control import ControlClient
    from kapudf_cli.supervisor.functions import Functions


class Asked:
    """A function that gets requests, and its answers."""

    def __init__(self, loop: Loop, socket_path: str) -> None:
        self.loop = loop
        self.settings = self.with_handler("mirror", socket_path)
        self.functions: Functions = loop.bind_functions(self.settings)
        self._reloader: Reloader[ControlClient] = Reloader(
            self.functions, lambda: self.settings, logs.get_logger()
        )
        upgrade = Upgrade(
            loop.selector, loop.store, logs.get_logger(), formats=self.functions.formats
        )
        self._commands = ControlCommands(self.functions, self._reloader, upgrade)
        self.answers: list[dict[str, Any]] = []
        function = self.functions.get("f")
        assert function is not None
        assert function.sockets is not None
        self._sockets = function.sockets

    def with_handler(self, handler: str, socket_path: str) -> Settings:
        function = FunctionSettings(handler=handler, socket=socket_path)
        return Settings(functions={"f": function}, log_format="json")

    def ask(self, command: str) -> None:
        self._commands.handle(self._sockets, cast("Any", self), command)

    def reply(self, answer: dict[str, Any]) -> None:
        self.answers.append(answer)

    def turn_until_answered(self) -> None:
        """Run the supervisor's loop until a reload is answered."""

        def is_answered() -> bool:
            self._reloader.step()
            self._commands.answer_reloads()
            return bool(self.answers)

        self.loop.turn_until(is_answered)

    def start(self) -> None:
        self.functions.start()
        (pool,) = self.functions.pools()
        self.loop.turn_until(lambda: pool.is_ready)


@pytest.fixture
def asked(socket_path: str) -> Iterator[Asked]:
    """Give a function that gets requests."""
    with Loop() as loop:
        yield Asked(loop, socket_path)


def test_the_status_is_answered_at_once(asked: Asked, socket_path: str) -> None:
    asked.start()
    asked.ask("status")
    (status,) = asked.answers
    assert (status["function"], status["socket"]) == ("f", socket_path)
    assert status["supervisor"]["pid"] == os.getpid()
    assert [worker["state"] for worker in status["workers"]] == ["serving"]


def test_a_reload_is_answered_when_its_result_is_known(asked: Asked) -> None:
    asked.start()
    asked.ask("reload")
    assert not asked.answers
    asked.turn_until_answered()
    (answer,) = asked.answers
    assert answer.pop("code").startswith("Mirror of /")
    assert answer == {"function": "f", "connections": 0, "stay": 0}


def test_a_reload_that_fails_is_answered_with_why(asked: Asked, socket_path: str) -> None:
    asked.start()
    asked.settings = asked.with_handler("no-such-handler", socket_path)
    asked.ask("reload")
    asked.turn_until_answered()
    (answer,) = asked.answers
    assert list(answer) == ["error"]
    assert answer["error"].startswith("the old code goes on: ")
    assert "no-such-handler" in answer["error"]


def test_a_reload_that_cannot_begin_is_answered_at_once(asked: Asked, socket_path: str) -> None:
    asked.settings = asked.with_handler("mirror", socket_path + "2")
    asked.ask("reload")
    assert asked.answers == [{"error": "the socket of f is another one now; SIGHUP moves it"}]


def test_a_function_that_is_served_no_more_says_so(asked: Asked) -> None:
    asked.start()
    nothing = Settings(functions={}, log_format="json")
    asked.functions.change(asked.functions.prepare(nothing))
    asked.functions.listen_where_ready()
    asked.ask("status")
    asked.ask("reload")
    assert asked.answers == [{"error": "f is no longer served"}] * 2


@pytest.mark.parametrize("command", ["", "stop", "STATUS"])
def test_an_unknown_request_is_answered_with_the_known_ones(asked: Asked, command: str) -> None:
    asked.ask(command)
    assert asked.answers == [{"error": "unknown command; there are status, reload and upgrade"}]
