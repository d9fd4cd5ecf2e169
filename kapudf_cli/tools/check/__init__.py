"""`kapudf check`: whether a UDF, in any language, follows the protocol.

Each check states the rule that it tests, and the rule's source. `run` runs them one after the
other.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from kapudf_cli.client.errors import TargetError, UdfFaultError
from kapudf_cli.tools.check import connection_checks, data_checks
from kapudf_cli.tools.check.trial import Check, NotApplicableError, Outcome, Result

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kapudf_cli.tools.check.trial import Trial

#: All checks. Some need the results of earlier ones.
CHECKS: Final[Sequence[Check]] = (
    *connection_checks.INFO_CHECKS,
    *connection_checks.INIT_CHECKS,
    *connection_checks.KEEPALIVE_CHECKS,
    *data_checks.SNAPSHOT_CHECKS,
    *data_checks.STREAM_CHECKS,
    *data_checks.BATCH_CHECKS,
    *data_checks.WRITING_CHECKS,
    *connection_checks.END_CHECKS,
)

_NOT_CUT: Final = "it cuts connections, which may end the UDF and its tasks; --cut runs it"


def run(trial: Trial, checks: Sequence[Check] = CHECKS) -> Iterator[Result]:
    """Run checks, and yield each result as soon as it is known.

    Raises:
        TargetError: there is nothing to connect to.
    """
    gone = ""
    with trial:
        for number, check in enumerate(checks):
            started = time.monotonic()
            outcome, reason = Outcome.PASSED, ""
            fault: UdfFaultError | None = None
            try:
                if gone:
                    raise NotApplicableError(gone)
                if check.cuts and not trial.may_cut:
                    raise NotApplicableError(_NOT_CUT)
                trial.run(check)
            except UdfFaultError as error:
                outcome, reason, fault = Outcome.FAILED, error.problem, error
            except NotApplicableError as error:
                outcome, reason = Outcome.NOT_APPLICABLE, str(error)
            except TargetError as error:
                if number == 0:
                    raise
                outcome, reason = Outcome.FAILED, f"cannot be connected to: {error.problem}"
            if not gone and outcome is not Outcome.NOT_APPLICABLE and trial.is_gone():
                # Otherwise the next check would be blamed.
                outcome, gone = Outcome.FAILED, f"the UDF is gone; see {check.name}"
                reason = f"{reason}; " if reason else ""
                reason += "the UDF no longer serves its socket, and all of its tasks have ended"
            yield Result(check, outcome, reason, time.monotonic() - started, fault)
