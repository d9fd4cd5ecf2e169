"""`kapudf list-handlers`, with real distributions, valid and broken."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

import kapudf_cli
from tests.plugins.distributions import PLAIN, environment, install
from tests.run_kapudf import run_kapudf

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

OPTIONS = '''
from kapudf_cli import BATCH, Handler
from kapudf_cli.protocol import BOOL, DURATION, INT, OptionInfo


class Busy(Handler):
    """Counts everything."""

    wants = BATCH

    def info(self):
        info = super().info()
        info.options["window"].CopyFrom(OptionInfo(valueTypes=[DURATION, INT]))
        info.options["all"].CopyFrom(OptionInfo(valueTypes=[BOOL]))
        return info

    def point(self, point):
        pass
'''

#: Faults of info(), and the error for each.
BAD_INFO = {
    "raises": ("raise LookupError('no\\n  model')", "BadInfo.info raised LookupError: no model"),
    "exits": ("raise SystemExit('no licence')", "BadInfo.info raised SystemExit: no licence"),
    "nothing": ("return None", "info"),
    "other": ("return 'an answer'", "info"),
}


def bad_info(body: str) -> str:
    """Return a module whose handler fails in info()."""
    text = PLAIN.replace("Plain", "BadInfo")
    return f"{text}\n    def info(self):\n        {body}\n"


def list_handlers(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command with the distributions in `folder` installed."""
    return run_kapudf("list-handlers", *arguments, env=environment(folder), cwd=folder)


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of the JSON output, by name."""
    result = list_handlers(folder, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    return {row["name"]: row for row in json.loads(result.stdout)}


def called(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with its options as they are called."""
    calls = [f"{each['name']}({', '.join(each['types'])})" for each in row["options"]]
    return {**row, "options": calls}


def test_the_mirror_is_a_row(tmp_path: Path) -> None:
    assert called(rows(tmp_path)["mirror"]) == {
        "name": "mirror",
        "wants": "stream",
        "provides": "stream",
        "options": ["field(STRING, DOUBLE)", "tag(STRING, STRING)"],
        "distribution": "kapudf",
        "version": kapudf_cli.__version__,
        "target": "kapudf_handlers.mirror:Mirror",
        "summary": "Sends every point back; "
        "field(name, value) and tag(name, value) set these on each.",
        "error": None,
    }


def test_a_stranger_s_handler_is_a_row(tmp_path: Path) -> None:
    install(tmp_path, "acme-udfs", {"busy": "acme_busy:Busy"}, {"acme_busy": OPTIONS}, version="2")
    assert called(rows(tmp_path)["busy"]) == {
        "name": "busy",
        "wants": "batch",
        "provides": "stream",
        "options": ["all(BOOL)", "window(DURATION, INT)"],
        "distribution": "acme-udfs",
        "version": "2",
        "target": "acme_busy:Busy",
        "summary": "Counts everything.",
        "error": None,
    }


def shown(output: str) -> dict[str, list[str]]:
    """Return the lines of each handler in the output for people, by its name."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in output.splitlines():
        # The path of a folder of tests may be longer.
        assert len(line) <= 80 or len(line.split()) == 1
        if not line.startswith(" "):
            name = line.split()[0]
        found.setdefault(name, []).append(" ".join(line.split()))
    return found


def test_each_handler_has_a_few_short_lines(tmp_path: Path) -> None:
    install(
        tmp_path,
        "acme",
        {"busy": "acme_busy:Busy", "plain": "acme_plain:Plain"},
        {"acme_busy": OPTIONS, "acme_plain": PLAIN},
    )
    result = list_handlers(tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    named = shown(result.stdout)
    assert named["busy"] == [
        "busy batch to stream",
        "Counts everything.",
        ".all(BOOL) .window(DURATION, INT)",
        "acme 1.0 (acme_busy:Busy)",
    ]
    assert named["plain"] == [
        "plain stream to stream", "Drops every point.", "acme 1.0 (acme_plain:Plain)"
    ]  # fmt: skip
    assert named["default"][3:5] == [
        ".field(STRING, DOUBLE) .fieldBool(STRING, BOOL) .fieldInt(STRING, INT)",
        ".fieldString(STRING, STRING) .tag(STRING, STRING)",
    ]


def test_a_handler_without_a_docstring_has_no_summary(tmp_path: Path) -> None:
    text = (
        "from kapudf_cli import Handler\nclass Mute(Handler):\n    def point(self, point): pass\n"
    )
    install(tmp_path, "acme", {"mute": "acme_mute:Mute"}, {"acme_mute": text})
    assert rows(tmp_path)["mute"]["summary"] == ""


def test_a_broken_plugin_is_a_row_and_hides_no_other(tmp_path: Path) -> None:
    install(
        tmp_path,
        "acme",
        {"bad": "acme_bad:Bad", "plain": "acme_plain:Plain"},
        {"acme_bad": "raise RuntimeError('first\\n  second')", "acme_plain": PLAIN},
    )
    result = list_handlers(tmp_path)
    assert result.returncode == 0
    named = shown(result.stdout)
    head, *lines = named["bad"]
    assert head == "bad broken"
    assert lines[0] == "acme 1.0 (acme_bad:Bad)"
    assert lines[1].startswith("broken: ")
    assert "RuntimeError: first second" in " ".join(lines)
    assert {"mirror", "plain"} <= set(named)
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("target", "text", "cause"),
    [
        ("acme_m:Bad", "def f(:\n", "SyntaxError"),
        ("acme_m:Bad", "import no_such_module_anywhere", "no_such_module_anywhere"),
        ("acme_m:Bad", "import sys; sys.exit(3)", "SystemExit: 3"),
        ("acme_m:Bad", PLAIN, "acme_m has no 'Bad'; handlers there: Plain"),
        ("acme_m:Bad", "Bad = 1", "is not a subclass of kapudf_cli.Handler"),
        ("acme_gone:Bad", "", "No module named 'acme_gone'"),
        ("acme_m", PLAIN, ""),
    ],
    ids=["syntax", "import", "exit", "attribute", "not a class", "module", "no attribute"],
)
def test_every_way_to_be_broken_is_a_row(
    tmp_path: Path, target: str, text: str, cause: str
) -> None:
    install(tmp_path, "acme", {"bad": target}, {"acme_m": text})
    found = rows(tmp_path)
    assert found["mirror"]["error"] is None
    assert found["bad"]["error"]
    assert cause in found["bad"]["error"]
    assert found["bad"]["wants"] is None


def test_an_entry_point_that_is_none_hides_no_other(tmp_path: Path) -> None:
    install(tmp_path, "acme", {"bad": "this is no entry point!"}, {})
    assert rows(tmp_path)["mirror"]["error"] is None


@pytest.mark.parametrize("kind", BAD_INFO)
def test_a_plugin_that_cannot_say_what_it_is_is_a_row(tmp_path: Path, kind: str) -> None:
    body, cause = BAD_INFO[kind]
    install(tmp_path, "acme", {"bad": "acme_bad:BadInfo"}, {"acme_bad": bad_info(body)})
    found = rows(tmp_path)
    assert cause in found["bad"]["error"]
    assert "\n" not in found["bad"]["error"]
    assert found["bad"]["summary"] == "Drops every point."
    assert found["mirror"]["error"] is None


def test_a_plugin_that_cannot_be_made_is_a_row(tmp_path: Path) -> None:
    text = f"{PLAIN}\n    def __init__(self, agent):\n        raise OSError('no disk')\n"
    install(tmp_path, "acme", {"bad": "acme_bad:Plain"}, {"acme_bad": text})
    assert "OSError: no disk" in rows(tmp_path)["bad"]["error"]


def test_a_name_offered_twice_is_two_rows_that_say_so(tmp_path: Path) -> None:
    install(tmp_path, "acme", {"plain": "acme_plain:Plain"}, {"acme_plain": PLAIN})
    install(tmp_path, "rival", {"plain": "rival_plain:Plain"}, {"rival_plain": PLAIN})
    result = list_handlers(tmp_path, "--json")
    both = [row for row in json.loads(result.stdout) if row["name"] == "plain"]
    assert [row["distribution"] for row in both] == ["acme", "rival"]
    assert all("another distribution also provides 'plain'" in row["error"] for row in both)


def test_a_plugin_that_prints_does_not_spoil_the_json(tmp_path: Path) -> None:
    text = f"print('Welcome to Acme!')\n{PLAIN}"
    install(tmp_path, "acme", {"loud": "acme_loud:Plain"}, {"acme_loud": text})
    result = list_handlers(tmp_path, "--json")
    assert {"loud", "mirror"} <= {row["name"] for row in json.loads(result.stdout)}


def test_other_alphabets_are_kept(tmp_path: Path) -> None:
    text = PLAIN.replace("Drops every point.", "Zählt 漢字.")
    install(tmp_path, "acme", {"plain": "acme_plain:Plain"}, {"acme_plain": text})
    assert rows(tmp_path)["plain"]["summary"] == "Zählt 漢字."
    assert "Zählt 漢字." in list_handlers(tmp_path).stdout
