"""Every built-in handler holds to the protocol: in this process, as a process, and at a socket."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kapudf_cli import plugins
from kapudf_cli.conformance.check import Outcome
from kapudf_cli.conformance.runner import run
from kapudf_cli.conformance.trial import Trial
from kapudf_cli.targets import CommandTarget, HandlerTarget, SocketTarget
from tests.serve_process import KAPUDF, PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from kapudf_cli.targets import Target
    from tests.serve_process import ServeProcess

HANDLERS = [plugin.name for plugin in plugins.discover() if plugin.distribution == "kapudf"]


def failures(target: Target) -> list[str]:
    results = list(run(Trial(target, PATIENCE_S)))
    passed = [result for result in results if result.outcome is Outcome.PASSED]
    # A run that has found nothing to test has shown nothing.
    assert len(passed) > len(results) / 2
    return [
        f"{result.check.name}: {result.reason}"
        for result in results
        if result.outcome is Outcome.FAILED
    ]


def test_there_are_handlers_to_check() -> None:
    """The list is that of the distribution."""
    assert {"mirror", "batch-mirror", "default"} <= set(HANDLERS)


@pytest.mark.parametrize("name", HANDLERS)
def test_a_built_in_handler_conforms_in_this_process(name: str) -> None:
    """Served by the agent over a socket pair."""
    assert failures(HandlerTarget(name, plugins.find(name).load())) == []


@pytest.mark.parametrize("name", HANDLERS)
def test_a_built_in_handler_conforms_as_a_process(name: str) -> None:
    """As Kapacitor starts it, over pipes."""
    command = (*KAPUDF, "exec", "--handler", name, "--log-level", "error")
    assert failures(CommandTarget(name, command)) == []


@pytest.mark.parametrize("name", HANDLERS)
def test_a_built_in_handler_conforms_at_a_socket(
    name: str, serve: Callable[..., ServeProcess], socket_path: str
) -> None:
    """As `kapudf serve` serves it; nothing of what was cut off was an error to it."""
    process = serve(name)
    assert failures(SocketTarget(socket_path)) == []
    assert process.stop() == 0
    assert [event for event in process.events if event["level"] == "error"] == []
