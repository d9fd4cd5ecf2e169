"""Checks of Init, with options that are right and others that are not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kapudf_cli.protocol.udf_pb2 import Option
from kapudf_cli.tickscript.calls import write_calls
from kapudf_cli.tools.check.errors import NotApplicableError, RuleBrokenError
from kapudf_cli.tools.check.model import Check
from kapudf_cli.tools.check.options import mistyped, without_values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kapudf_cli.tools.check.trial import Trial

#: A second answer to Init would follow the first at once.
_QUIET_S: Final = 0.2

_STALE: Final = (
    "Kapacitor checks options by what the UDF said at Kapacitor's start; one that was replaced "
    "since then gets options that it no longer has: services/udf/service.go"
)


def _takes_good_options(trial: Trial) -> None:
    refusals = []
    for options in trial.candidates():
        with trial.connected() as conversation:
            response = conversation.init(options)
            if response.success:
                # What comes now is no answer to Init.
                conversation.quiet(min(_QUIET_S, trial.timeout_s))
                trial.options = options
                return
        reason = " ".join(response.error.split()) or "no reason given"
        refusals.append(f"refused {write_calls(options) or 'no options'}: {reason:.300}")
    others = " (and other values, and none)" if len(refusals) > 1 else ""
    hint = "" if trial.given_options is not None else "; say good ones with --options"
    raise RuleBrokenError(f"{refusals[0]}{others}{hint}")


def _answers_without_options(trial: Trial) -> None:
    _answers(trial, ())


def _answers_repeated_options(trial: Trial) -> None:
    trial.needs_task()
    options = trial.options or ()
    if not options:
        raise NotApplicableError("it was started without options")
    _answers(trial, [*options, *options])


def _answers_unknown_options(trial: Trial) -> None:
    _answers(trial, [*(trial.options or ()), Option(name="no_such_option")])


def _answers_mistyped_options(trial: Trial) -> None:
    options = mistyped(trial.known())
    if not options:
        raise NotApplicableError("it declares no options")
    _answers(trial, options)


def _answers_options_without_values(trial: Trial) -> None:
    options = without_values(trial.known())
    if not options:
        raise NotApplicableError("it declares no options that take values")
    _answers(trial, options)


def _answers(trial: Trial, options: Sequence[Option]) -> None:
    """Test that Init is answered, be it with a yes, or with a no and a reason."""
    trial.known()
    with trial.connected() as conversation:
        response = conversation.init(options)
    if not response.success and not response.error.strip():
        raise RuleBrokenError("refused the options without a reason; the task fails with no word")


CHECKS: Final = (
    Check(
        "init",
        "Init with the right options is answered with success.",
        "A task begins with it; without success the task fails: Init in udf/server.go",
        _takes_good_options,
    ),
    Check(
        "init-without-options",
        "Init without options is answered, with success or with a reason why not.",
        "A TICKscript need not call any option: UDFNode in pipeline/udf.go",
        _answers_without_options,
    ),
    Check(
        "init-repeated-options",
        "Init with every option called twice is answered, with success or with a reason.",
        "A TICKscript may call an option again, and each call is sent: pipeline/udf.go",
        _answers_repeated_options,
    ),
    Check(
        "init-unknown-option",
        "Init with an option that the UDF does not declare is answered, with success or with a "
        "reason.",
        _STALE,
        _answers_unknown_options,
    ),
    Check(
        "init-mistyped-options",
        "Init with values of other types and of another number is answered, with success or "
        "with a reason.",
        _STALE,
        _answers_mistyped_options,
    ),
    Check(
        "init-no-values",
        "Init with options that lack their values is answered, with success or with a reason.",
        _STALE,
        _answers_options_without_values,
    ),
)
