"""Checks of keepalives: a UDF that misses them loses its task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kapudf_cli.tools.check.errors import RuleBrokenError
from kapudf_cli.tools.check.model import Check

if TYPE_CHECKING:
    from kapudf_cli.tools.check.trial import Trial

_TIMEOUT: Final = (
    "Kapacitor sends one each half of the timeout, and ends the task when nothing came for a "
    "whole one: watchKeepalive in udf/server.go"
)
#: Points enough that they are more than a moment's work.
_MANY: Final = 2_000
#: A UDF that has nothing to do for so long has dealt with the few points that it was sent.
_QUIET_S: Final = 0.5
_FEW: Final = 8


def _answers_before_init(trial: Trial) -> None:
    trial.known()
    with trial.connected() as conversation:
        conversation.keepalive()


def _answers_at_rest(trial: Trial) -> None:
    with trial.started() as conversation:
        for _ in range(3):
            conversation.keepalive()


def _answers_behind_data(trial: Trial) -> None:
    with trial.started() as conversation:
        conversation.exchange(trial.data(_MANY), f"a keepalive behind {_MANY} points")


def _holds_nothing_back(trial: Trial) -> None:
    with trial.started() as conversation:
        conversation.send(*trial.data(_FEW))
        conversation.quiet(min(_QUIET_S, trial.timeout_s))
        before = conversation.messages
        conversation.keepalive()
    held = conversation.messages - before
    if held:
        problem = (
            f"held {held} messages back until a keepalive came, though it had been at rest; "
            "flush once there is nothing more to read"
        )
        raise RuleBrokenError(problem)


CHECKS: Final = (
    Check(
        "keepalive-before-init",
        "A keepalive before Init is answered in time.",
        "Kapacitor's timer runs from the connection's first moment: Start in udf/server.go",
        _answers_before_init,
    ),
    Check("keepalive", "Keepalives are answered in time.", _TIMEOUT, _answers_at_rest),
    Check(
        "keepalive-busy",
        f"A keepalive behind {_MANY} points is answered, and something comes in time while they "
        "are dealt with.",
        _TIMEOUT,
        _answers_behind_data,
    ),
    Check(
        "flush",
        "What is to be sent is sent when it is there, and not only with the next keepalive.",
        "Alerts wait for it, half of the timeout long; a buffer that is not flushed is the usual "
        "cause: Agent in udf/agent/py",
        _holds_nothing_back,
    ),
)
