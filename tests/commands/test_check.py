"""`kapudf check`: its table, JSON, exit status and errors."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.tools.check import CHECKS
from tests.conftest import plugin
from tests.run_kapudf import run_kapudf
from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.serve_process import ServeProcess

ROOT = Path(__file__).parent.parent.parent


def check(*arguments: str) -> tuple[int, str, str]:
    """Run the command and return its exit status, stdout and stderr."""
    result = run_kapudf("check", *arguments, cwd=ROOT, patience_s=4 * PATIENCE_S)
    return result.returncode, result.stdout, result.stderr


def rows(output: str) -> list[str]:
    """Return the rows of the table, with their continued lines joined."""
    for line in output.splitlines():
        assert len(line) <= 80 or len(line.split()) == 1, line
    return re.sub(r"\n {36}", " ", output).splitlines()


def broken_udf(name: str) -> str:
    return f"{sys.executable} -m tests.peers.broken_udfs {name}"


def test_a_handler_that_conforms_passes() -> None:
    status, output, errors = check("--handler", "mirror")
    assert (status, errors) == (0, "")
    *lines, summary = rows(output)
    assert "passed  info" in lines
    assert any(line.startswith("-       batch-types and ") for line in lines)
    assert not any(line.startswith("FAILED") for line in lines)
    passed, failed, skipped = (int(part.split()[0]) for part in summary.split(", "))
    assert failed == 0
    assert passed + skipped == len(CHECKS)
    # The rules are shown on request.
    assert "rule: " not in output


def test_a_udf_that_does_not_conform_fails() -> None:
    status, output, errors = check("--exec", broken_udf("ExitsWith1"))
    assert (status, errors) == (1, "")
    (failed,) = [row for row in rows(output) if row.startswith("FAILED")]
    assert failed.split(maxsplit=2)[1:] == [
        "exit",
        "exited with status 1, after saying: unexpected end of file",
    ]
    assert ", 1 failed, " in output


def test_the_rules_are_shown_on_request() -> None:
    # Where Info fails, all other checks end at once.
    status, output, _ = check("--exec", "true", "--verbose")
    text = " ".join(output.split())
    assert status == 1
    for each in CHECKS:
        assert f"rule: {each.rule}" in text
        assert f"source: {each.source}" in text


def test_a_run_for_machines_has_everything() -> None:
    status, output, errors = check("--exec", broken_udf("RefusesInSilence"), "--json")
    assert (status, errors) == (1, "")
    run = json.loads(output)
    assert [each["name"] for each in run["checks"]] == [each.name for each in CHECKS]
    assert run["passed"] + run["failed"] + run["not_applicable"] == len(CHECKS)
    by_name = {each["name"]: each for each in run["checks"]}
    assert by_name["info"]["outcome"] == "passed"
    assert by_name["info"]["duration_s"] > 0
    assert by_name["init-without-options"]["outcome"] == "failed"
    assert "without a reason" in by_name["init-without-options"]["reason"]
    assert by_name["batch-types"]["outcome"] == "not_applicable"
    assert run["target"] == broken_udf("RefusesInSilence")


def test_the_names_of_checks_are_told_apart() -> None:
    names = [each.name for each in CHECKS]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) <= 26


def test_a_socket_is_checked(serve: Callable[..., ServeProcess], socket_path: str) -> None:
    process = serve("mirror")
    status, output, _ = check("--socket", socket_path)
    assert (status, "FAILED" in output) == (0, False)
    assert process.stop() == 0
    assert [event for event in process.events if event["level"] == "error"] == []


def test_options_can_be_given() -> None:
    options = ".field('value').size(3)"
    status, output, _ = check("--handler", "moving-average", "--options", options, "--json")
    assert status == 0
    assert json.loads(output)["failed"] == 0


def test_options_that_a_udf_refuses_fail_the_check_of_init() -> None:
    status, output, _ = check(
        "--handler", "moving-average", "--options", ".field('value').size(-1)"
    )
    assert status == 1
    (failed,) = [row for row in rows(output) if row.startswith("FAILED")]
    assert "init" in failed
    assert "refused .field('value').size(-1): .size() expects" in failed
    assert "no task can be started on it; see init" in output


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (".field('value'", "a comma or ) belongs after 'value', not nothing"),
        (".feld('value')", "the UDF has no option .feld(); did you mean .field()? Its options: "),
        (".field(1)", ".field() expects a string, got 1, a whole number"),
    ],
)
def test_options_that_no_tickscript_could_call_are_refused(options: str, told: str) -> None:
    status, output, errors = check("--handler", "moving-average", "--options", options)
    assert (status, output) == (2, "")
    assert told in errors
    assert errors.startswith("Error: character ")
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "told", "status"),
    [
        ([], "select a UDF: --socket PATH, --exec 'COMMAND …' or --handler NAME", 2),
        (["--handler", "mirror", "--exec", "cat"], "select only one UDF: --socket PATH", 2),
        (["--handler", "mirrow"], "did you mean 'mirror'?", 2),
        (["--socket", "/nowhere.sock"], "/nowhere.sock: there is no such socket", 1),
        (["--exec", "no-such-program"], "there is no program 'no-such-program'", 1),
        (["--exec", "'"], "cannot be split into arguments: No closing quotation", 2),
        (["--exec", ""], "Invalid value for '--exec': '': names no program", 2),
        (["--handler", "mirror", "--timeout", "0"], "0.0 is not in the range", 2),
        (["--handler", "mirror", "--timeout", "nan"], "nan", 2),
    ],
)
def test_a_wrong_call_is_told(arguments: list[str], told: str, status: int) -> None:
    found, output, errors = check(*arguments)
    assert (found, output) == (status, "")
    assert told in errors
    assert "Traceback" not in errors


def test_a_command_that_is_no_udf_is_told() -> None:
    status, output, _ = check("--exec", "echo This is no UDF, just words", "--timeout", "9")
    assert status == 1
    assert output.splitlines()[0].startswith("FAILED  info")
    assert "it did not answer Info; see info" in output


def test_what_a_handler_prints_is_not_in_the_table() -> None:
    status, output, errors = check("--handler", plugin("talkative.py:Talkative"), "--json")
    assert status == 0
    assert json.loads(output)["failed"] == 0
    assert "printed by python" in errors
