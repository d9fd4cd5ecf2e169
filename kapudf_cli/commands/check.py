"""`kapudf check`: check that a UDF follows the protocol."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

import click

from kapudf_cli.commands import EXIT_FAILURE, options
from kapudf_cli.commands.options import silenced, target_options
from kapudf_cli.commands.output import (
    json_text,
    labelled,
    own_stdout,
    say,
    show_traceback,
    wrapped,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kapudf_cli.client.target import Target
    from kapudf_cli.commands.output import Stdout
    from kapudf_cli.protocol.udf_pb2 import Option
    from kapudf_cli.tools.check.trial import Result

_COLOURS = {"passed": "green", "failed": "red", "not applicable": "bright_black"}
_MARKS = {"passed": "passed", "failed": "FAILED", "not applicable": "-"}
_INDENT = 8
#: Names of checks have 26 characters at most.
_REASON_COLUMN = _INDENT + 26 + 2


@click.command(short_help="Check that a UDF follows Kapacitor's protocol.")
@target_options
@options.calls(
    example=".field('value').size(10)", otherwise="made from the options that it declares"
)
@options.timeout(
    "How long each answer may take: the timeout in kapacitor.conf, or less.",
    least=0.05,
    default=5.0,
)
@click.option(
    "--cut/--no-cut",
    default=None,
    help="Also run the checks that cut connections. A UDF that does not handle this may exit, and "
    "stop all of its tasks.  [default: only with --exec and --handler]",
)
@click.option(
    "--verbose", is_flag=True, help="Show the rule that each check tests, and its source."
)
@options.as_json
def check(
    target: Target,
    calls: str | None,
    timeout_s: float,
    *,
    cut: bool | None,
    verbose: bool,
    as_json: bool,
) -> None:
    """Check whether a UDF, in any language, follows Kapacitor's protocol.

    Acts as Kapacitor: asks the UDF for its edges and options, starts tasks, sends data,
    takes snapshots and closes connections. Prints a line for each rule: passed, FAILED
    with the reason, or - if the rule does not apply. The tasks are named kapudf-check,
    and the data is generated. Do not run it against a UDF that serves production tasks:
    a faulty UDF may exit and stop them.

    Exits with 0 if no check failed, and with 1 if one did.
    """
    from kapudf_cli.client.target import SocketTarget
    from kapudf_cli.tools.check import run
    from kapudf_cli.tools.check.trial import Outcome, Trial

    target = silenced(target)
    chosen = None if calls is None else _options(calls, target, timeout_s)
    _quieten(logging.WARNING if verbose else logging.ERROR)
    results = []
    on_terminal = sys.stdout.isatty()
    with own_stdout() as out:
        out.live = True
        table = _Table(out, verbose=verbose, colour=on_terminal)
        may_cut = not isinstance(target, SocketTarget) if cut is None else cut
        for result in run(Trial(target, timeout_s, chosen, may_cut)):
            results.append(result)
            if not as_json:
                table.add(result)
        table.end()
        _show_tracebacks(results)
        counts = {
            outcome.value: sum(result.outcome is outcome for result in results)
            for outcome in Outcome
        }
        if as_json:
            summary = {
                "target": target.name,
                **{name.replace(" ", "_"): count for name, count in counts.items()},
                "checks": [_as_dict(result) for result in results],
            }
            out.emit(json_text(summary, indent=2))
        else:
            out.emit(", ".join(f"{count} {name}" for name, count in counts.items()))
    if counts[Outcome.FAILED.value]:
        click.get_current_context().exit(EXIT_FAILURE)


def _quieten(level: int) -> None:
    """Show log events from this level on, also if a script has set up logging already."""
    logging.basicConfig()
    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler:
            handler.setLevel(level)


def _show_tracebacks(results: Sequence[Result]) -> None:
    """Print to stderr where the handler raised, once for each exception that failed checks."""
    shown = set()
    for result in results:
        if result.error is not None and result.reason not in shown:
            shown.add(result.reason)
            if show_traceback(result.error):
                say(f"{result.check.name}: {result.reason}", err=True)


def _options(calls: str, target: Target, timeout_s: float) -> list[Option]:
    """Return the user's options, checked against those that the UDF declares."""
    from kapudf_cli.client.errors import ProbeError
    from kapudf_cli.client.target import info_of
    from kapudf_cli.tickscript.calls import check_calls, read_calls

    read = read_calls(calls)
    try:
        info = info_of(target, timeout_s=timeout_s)
    except ProbeError:
        # The check of Info reports this error with more detail.
        return [call.option for call in read]
    return check_calls(read, info)


class _Table:
    """Prints results as they arrive; skipped checks with the same reason share a line."""

    def __init__(self, out: Stdout, *, verbose: bool, colour: bool) -> None:
        self._out = out
        self._verbose = verbose
        self._colour = colour
        self._skipped: list[Result] = []

    def add(self, result: Result) -> None:
        """Print a result, or collect it if the check was skipped."""
        skipped = result.outcome.value == "not applicable"
        if self._skipped and not (skipped and result.reason == self._skipped[0].reason):
            self.end()
        if skipped and not self._verbose:
            self._skipped.append(result)
            return
        self._line(result, result.check.name)
        if self._verbose:
            for label, text in (("rule", result.check.rule), ("source", result.check.source)):
                for line in wrapped(f"{label}: {text}", indent=_INDENT):
                    self._out.emit(line)

    def end(self) -> None:
        """Print the collected skipped checks."""
        if self._skipped:
            more = len(self._skipped) - 1
            name = self._skipped[0].check.name
            self._line(self._skipped[0], f"{name} and {more} more" if more else name)
            self._skipped.clear()

    def _line(self, result: Result, name: str) -> None:
        outcome = result.outcome.value
        mark = f"{_MARKS[outcome]:6}"
        lines = labelled(f"{mark}  {name}", result.reason, indent=_REASON_COLUMN)
        if self._colour:
            lines[0] = click.style(mark, fg=_COLOURS[outcome]) + lines[0][len(mark) :]
        for line in lines:
            self._out.emit(line)


def _as_dict(result: Result) -> dict[str, object]:
    return {
        "name": result.check.name,
        "outcome": result.outcome.value.replace(" ", "_"),
        "reason": result.reason,
        "rule": result.check.rule,
        "source": result.check.source,
        "duration_s": round(result.duration_s, 6),
    }
