"""Runs the checks, one after the other."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from kapudf_cli.conformance import (
    asking,
    batch_data,
    endings,
    keepalives,
    snapshots,
    starting,
    stream_data,
)
from kapudf_cli.conformance.check import (
    Check,
    NotApplicableError,
    Outcome,
    Result,
    RuleBrokenError,
)
from kapudf_cli.errors import TargetError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kapudf_cli.conformance.trial import Trial

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
            check.run(trial)
        except RuleBrokenError as error:
            outcome, reason = Outcome.FAILED, str(error)
        except NotApplicableError as error:
            outcome, reason = Outcome.NOT_APPLICABLE, str(error)
        except TargetError as error:
            if number == 0:
                raise
            before = checks[number - 1].name
            reason = f"is gone since the last connection of {before} ended: {error.problem}"
            outcome, gone = Outcome.FAILED, f"it is gone; see {check.name}"
        yield Result(check, outcome, reason, time.monotonic() - started)
