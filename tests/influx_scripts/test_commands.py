"""Commands that take a handler take a script for InfluxData's agent too."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import pytest

from tests.influx_scripts.test_habits import SCRIPTS
from tests.run_kapudf import run_kapudf

if TYPE_CHECKING:
    from pathlib import Path

COUNTING: Final = str(SCRIPTS / "counting.py")


def test_list_handlers_shows_the_edges_and_options_of_a_script() -> None:
    result = run_kapudf("list-handlers", "--json", COUNTING, str(SCRIPTS / "import_fails.py"))
    assert result.returncode == 0
    counting, broken = json.loads(result.stdout)
    assert (counting["wants"], counting["provides"]) == ("stream", "stream")
    (option,) = counting["options"]
    assert (option["name"], option["types"], counting["target"]) == ("as", ["STRING"], COUNTING)
    assert "No module named 'no_such_package'" in broken["error"]


def test_check_makes_options_from_the_answer_of_a_script_and_hides_its_log() -> None:
    result = run_kapudf("check", "--handler", COUNTING, "--json", "--timeout", "30")
    checks = {each["name"]: each for each in json.loads(result.stdout)["checks"]}
    failed = {name for name, each in checks.items() if each["outcome"] == "failed"}
    # The script reads the value of an option without looking whether it has one.
    assert failed == {"init-no-values"}
    assert checks["restore-used"]["outcome"] == "passed"
    assert result.stderr.count("Agent finished") <= 1


def test_replay_moves_a_script_s_state_from_one_run_to_the_next(tmp_path: Path) -> None:
    recording = tmp_path / "points.lp"
    recording.write_text("cpu a=1 1\ncpu a=2 2\n", encoding="utf-8")
    snapshot = str(tmp_path / "snapshot")
    script = ("--handler", COUNTING, "--options", ".as('n')")
    first = run_kapudf("replay", str(recording), *script, "--snapshot-to", snapshot)
    assert first.stdout == "cpu a=1.0,n=1i 1\ncpu a=2.0,n=2i 2\n"
    assert json.loads((tmp_path / "snapshot").read_text(encoding="utf-8")) == {"": 2}
    second = run_kapudf("replay", str(recording), *script, "--restore-from", snapshot, "--diff")
    assert second.stdout.splitlines()[-2].endswith("+n=4i")


def test_replay_shows_its_results_although_the_script_closes_stdout(tmp_path: Path) -> None:
    text = (SCRIPTS / "counting.py").read_text(encoding="utf-8")
    (tmp_path / "closing.py").write_text(f"{text}    sys.stdout.close()\n", encoding="utf-8")
    (tmp_path / "points.lp").write_text("cpu a=1 1\n", encoding="utf-8")
    result = run_kapudf("replay", "points.lp", "--handler", "closing.py", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, "cpu a=1.0,count=1i 1\n")


def test_load_measures_a_script() -> None:
    result = run_kapudf("load", "--handler", COUNTING, "--points", "100", "--json")
    assert json.loads(result.stdout)["points_returned"] == 100


@pytest.mark.parametrize("handler", ["gone.py", "gone.py --size 3"])
def test_a_script_that_is_missing_is_named(tmp_path: Path, handler: str) -> None:
    result = run_kapudf("list-handlers", handler, cwd=tmp_path)
    assert result.stderr == f"Error: handler '{handler}': there is no file gone.py\n"
    assert result.returncode == 2


def test_a_file_without_a_class_that_is_no_script_is_told_what_to_write(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text("class A: pass\n", encoding="utf-8")
    result = run_kapudf("list-handlers", "plain.py", cwd=tmp_path)
    assert result.stderr == (
        "Error: handler 'plain.py' does not name a class; write package.module:Class or "
        "file.py:Class. It is no script for InfluxData's agent: it does not import "
        "kapacitor.udf.agent\n"
    )
