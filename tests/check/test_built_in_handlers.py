"""Every built-in handler follows the protocol: in this process, as a process, and at a socket."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kapudf_cli import plugins
from kapudf_cli.client.command_target import CommandTarget
from kapudf_cli.client.target import HandlerTarget, SocketTarget
from kapudf_cli.tickscript.calls import read_calls
from kapudf_cli.tools.check import CHECKS, connection_checks, run
from kapudf_cli.tools.check.trial import Outcome, Trial
from tests.serve_process import KAPUDF, PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kapudf_cli.client.target import Target
    from kapudf_cli.tools.check.trial import Check
    from tests.serve_process import ServeProcess

#: The options of handlers that accept none that `check` generates. Nothing serves the URL.
OPTIONS = {"enrich": ".by('host').url('http://127.0.0.1:9/{}').tag('owner')"}
HANDLERS = [plugin.name for plugin in plugins.discover() if plugin.distribution == "kapudf"]


#: The checks for which a process differs from an agent in this process. Each starts processes,
#: so they run only for two handlers, one that wants a stream and one that wants batches.
OF_A_PROCESS = (
    *connection_checks.INFO_CHECKS, *connection_checks.KEEPALIVE_CHECKS,
    *connection_checks.END_CHECKS,
    *(check for check in connection_checks.INIT_CHECKS if check.name == "init"),
)  # fmt: skip


def failures(target: Target, checks: Iterable[Check] = CHECKS, calls: str = "") -> list[str]:
    chosen = set(checks)
    options = [call.option for call in read_calls(calls)] if calls else None
    trial = Trial(target, PATIENCE_S, options)
    results = list(run(trial, [each for each in CHECKS if each in chosen]))
    passed = [result for result in results if result.outcome is Outcome.PASSED]
    # At least one check must apply.
    assert len(passed) > len(results) / 2
    return [
        f"{result.check.name}: {result.reason}"
        for result in results
        if result.outcome is Outcome.FAILED
    ]


def test_there_are_handlers_to_check() -> None:
    assert {"mirror", "batch-mirror", "default"} <= set(HANDLERS)


@pytest.mark.parametrize("name", HANDLERS)
def test_a_built_in_handler_conforms_in_this_process(name: str) -> None:
    target = HandlerTarget(name, plugins.find(name).load())
    assert failures(target, calls=OPTIONS.get(name, "")) == []


@pytest.mark.parametrize("name", ["mirror", pytest.param("outliers", marks=pytest.mark.long)])
def test_a_built_in_handler_conforms_as_a_process(name: str) -> None:
    command = (*KAPUDF, "exec", "--handler", name, "--log-level", "error")
    assert failures(CommandTarget(name, command), OF_A_PROCESS) == []


@pytest.mark.long
@pytest.mark.parametrize("name", ["default", "batch-mirror"])
def test_a_built_in_handler_conforms_at_a_socket(
    name: str, serve: Callable[..., ServeProcess], socket_path: str
) -> None:
    process = serve(name)
    assert failures(SocketTarget(socket_path)) == []
    assert process.stop() == 0
    assert [event for event in process.events if event["level"] == "error"] == []
