"""Runs the checks, one after the other."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from kapudf_cli.client.errors import TargetError
from kapudf_cli.tools.check import (
    asking,
    batch_data,
    endings,
    keepalives,
    snapshots,
    starting,
    stream_data,
)
from kapudf_cli.tools.check.errors import NotApplicableError, RuleBrokenError
from kapudf_cli.tools.check.model import Check, Outcome, Result

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kapudf_cli.tools.check.trial import Trial

#: All checks, in the order in which they build on each other.
CHECKS: Final[Sequence[Check]] = (
    *asking.CHECKS,
    *starting.CHECKS,
    *keepalives.CHECKS,
    *snapshots.CHECKS,
    *stream_data.CHECKS,
    *batch_data.CHECKS,
    *endings.CHECKS,
)

_NOT_CUT: Final = "it cuts connections, which may end the UDF and its tasks; --cut runs it"


def run(trial: Trial, checks: Sequence[Check] = CHECKS) -> Iterator[Result]:
    """Run checks, and yield what comes of each as it comes.

    Raises:
        TargetError: there is nothing to connect to.
    """
    gone = ""
    for number, check in enumerate(checks):
        started = time.monotonic()
        outcome, reason = Outcome.PASSED, ""
        try:
            if gone:
                raise NotApplicableError(gone)
            if check.cuts and not trial.may_cut:
                raise NotApplicableError(_NOT_CUT)
            check.run(trial)
        except RuleBrokenError as error:
            outcome, reason = Outcome.FAILED, str(error)
        except NotApplicableError as error:
            outcome, reason = Outcome.NOT_APPLICABLE, str(error)
        except TargetError as error:
            if number == 0:
                raise
            outcome, reason = Outcome.FAILED, f"cannot be connected to: {error.problem}"
        if not gone and outcome is not Outcome.NOT_APPLICABLE and trial.is_gone():
            # The next check would be blamed for what this one found.
            outcome, gone = Outcome.FAILED, f"the UDF is gone; see {check.name}"
            reason = f"{reason}; " if reason else ""
            reason += "the UDF no longer serves its socket, and all of its tasks have ended"
        yield Result(check, outcome, reason, time.monotonic() - started)
