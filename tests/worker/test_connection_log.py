"""The log event of a finished connection."""

from __future__ import annotations

import pytest
from structlog.testing import CapturingLogger

from kapudf_cli.agent.agent import ConnectionSummary as Summary
from kapudf_cli.agent.agent import Reason
from kapudf_cli.worker.connections import log_finish


@pytest.mark.parametrize(
    ("summary", "recover"),
    [
        (
            Summary(task_id="cpu alert", reason=Reason.HANDLER_ERROR),
            "kapacitor reload 'cpu alert'",
        ),
        (Summary(task_id="cpu", reason=Reason.PROTOCOL_ERROR), "kapacitor reload cpu"),
        (Summary(task_id="cpu", reason=Reason.STOPPED), "kapacitor reload cpu"),
        (Summary(task_id="cpu", refusal="no such field"), "kapacitor reload cpu"),
        (Summary(task_id="cpu", reason=Reason.CLOSED), None),
        (Summary(task_id="cpu", reason=Reason.HANDED_OVER), None),
        (Summary(reason=Reason.PROTOCOL_ERROR), None),
    ],
    ids=lambda value: str(getattr(value, "reason", "")),
)
def test_a_task_that_has_failed_is_logged_with_the_command_that_starts_it_again(
    summary: Summary, recover: str | None
) -> None:
    log = CapturingLogger()
    log_finish(log, summary)  # type: ignore[arg-type]
    (call,) = log.calls
    assert call.kwargs.get("recover") == recover
