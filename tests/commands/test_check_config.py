"""`kapudf check-config`: its result, its errors, and the sections for kapacitor.conf."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import plugin
from tests.plugins.distributions import environment, install
from tests.run_kapudf import run_kapudf
from tests.serve_process import PATIENCE_S

UNCHECKED = (
    "not checked: permissions of the service's user, and whether another process serves the sockets"
)
EXAMPLE = Path(__file__).parents[2] / "config.example.yaml"


def check_config(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder."""
    return run_kapudf("check-config", *arguments, env=environment(folder), cwd=folder)


def faults(folder: Path, text: str) -> list[str]:
    """Return the lines that the command prints about a file, without the file's name."""
    (folder / "kapudf.yaml").write_text(text)
    result = check_config(folder, "kapudf.yaml")
    assert (result.returncode, result.stdout) == (2, "")
    lines = result.stderr.splitlines()
    start = "Error: kapudf.yaml: "
    assert all(line.startswith(start) for line in lines), lines
    return [line.removeprefix(start) for line in lines]


def kapacitor_section(folder: Path, text: str, before: str = "") -> dict[str, Any]:
    """Return the functions of a kapacitor.conf into which the section was pasted."""
    (folder / "kapudf.yaml").write_text(text)
    result = check_config(folder, "kapudf.yaml", "--kapacitor", "--elsewhere")
    assert result.returncode == 0, result.stderr
    functions: dict[str, Any] = tomllib.loads(before + result.stdout)["udf"]["functions"]
    return functions


def test_a_good_file_is_ok(tmp_path: Path) -> None:
    (tmp_path / "kapudf.yaml").write_text(
        "functions:\n  a: {handler: mirror, socket: a.sock}\n  b: {handler: mirror, socket: b.sock}"
    )
    result = check_config(tmp_path, "kapudf.yaml")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == ["kapudf.yaml: OK, 2 functions", UNCHECKED]


def test_the_example_is_ok(tmp_path: Path) -> None:
    result = check_config(tmp_path, str(EXAMPLE), "--elsewhere")
    assert result.returncode == 0, result.stderr
    assert "not checked: setup_worker, the sockets' folders and groups, limits, " in result.stdout


def test_every_fault_is_a_line(tmp_path: Path) -> None:
    assert faults(
        tmp_path,
        "functions:\n  a: {handler: mirror, socket: a.sock, sockt_mode: '0660'}\nlog_level: loud\n",
    ) == [
        "functions.a.sockt_mode: unknown setting; did you mean socket_mode?",
        "log_level: expected debug, info, warning or error, got 'loud'",
    ]


def test_a_handler_that_is_not_installed_is_a_fault_at_its_function(tmp_path: Path) -> None:
    (fault,) = faults(tmp_path, "functions: {a: {handler: miror, socket: a.sock}}")
    assert fault.startswith("functions.a.handler: no installed handler has the name 'miror'")
    assert "did you mean 'mirror'?" in fault


def test_every_handler_that_cannot_be_loaded_is_a_line(tmp_path: Path) -> None:
    install(tmp_path, "acme", {"bad": "acme_bad:Bad"}, {"acme_bad": "raise RuntimeError('broken')"})
    found = faults(
        tmp_path,
        """functions:
  a: {handler: bad, socket: a.sock}
  b: {handler: gone.py:Gone, socket: b.sock}
  c: {handler: mirror, socket: c.sock}
  d: {handler: "kapudf_handlers.mirror:Miror", socket: d.sock}
""",
    )
    assert [fault.partition(": ")[0] for fault in found] == [
        "functions.a.handler",
        "functions.b.handler",
        "functions.d.handler",
    ]
    assert "acme 1.0 (acme_bad:Bad)" in found[0]
    assert "RuntimeError: broken" in found[0]


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"socket": "~/a.sock"}, "~/a.sock: ~ is not expanded; write the full path"),
        ({"socket": "/no/such/a.sock"}, "/no/such/a.sock: the folder /no/such does not exist"),
        ({"socket": "x" * 120}, "a Unix socket allows 107"),
        ({"socket": "kapudf.yaml"}, "a file is here, not a socket"),
        ({"socket": "a", "socket_group": "no-such-group"}, "there is no group 'no-such-group'"),
        ({"socket": "a", "socket_group": "x\0"}, "there is no group 'x\\x00'"),
        ({"socket": "a", "handler": "~/h.py:H"}, "~ is not expanded; write the full path"),
    ],
)
def test_what_serve_would_refuse_is_a_fault(
    tmp_path: Path, settings: dict[str, object], fault: str
) -> None:
    text = json.dumps({"functions": {"a": {"handler": "mirror", **settings}}})
    (found,) = faults(tmp_path, text)
    assert found.startswith("functions.a.")
    assert fault in found
    if settings["socket"] == "/no/such/a.sock":
        assert check_config(tmp_path, "kapudf.yaml", "--elsewhere").returncode == 0


@pytest.mark.parametrize(("limit", "name"), [("-f", "RLIMIT_FSIZE"), ("-v", "RLIMIT_AS")])
def test_a_limit_that_leaves_no_room_for_a_journal_is_a_fault(
    tmp_path: Path, limit: str, name: str
) -> None:
    (tmp_path / "kapudf.yaml").write_text("functions: {a: {handler: mirror, socket: a.sock}}")
    for command in (["check-config", "kapudf.yaml"], ["serve", "--config", "kapudf.yaml"]):
        script = f'ulimit {limit} 600000; exec "$@"'
        result = subprocess.run(
            ["/bin/bash", "-c", script, "bash", sys.executable, "-m", "kapudf_cli", *command],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert (result.returncode, result.stdout) == (2, "")
        (line,) = result.stderr.splitlines()
        assert line.startswith(
            f"Error: kapudf.yaml: functions.a: {name} is 614400000 bytes, and a connection needs "
        )
        assert "lower journal_mb and max_frame_bytes" in line


def test_no_flag_is_recommended_that_the_command_does_not_have(tmp_path: Path) -> None:
    install(tmp_path, "acme", {"bad": "acme_bad:Bad"}, {"acme_bad": "raise RuntimeError('broken')"})
    (fault,) = faults(tmp_path, "functions: {a: {handler: bad, socket: a.sock}}")
    known = check_config(tmp_path, "--help").stdout
    assert [flag for flag in re.findall(r"--[a-z-]+", fault) if flag not in known] == []


def test_a_missing_file_is_a_line(tmp_path: Path) -> None:
    result = check_config(tmp_path, "no.yaml")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "Error: no.yaml: cannot be read: No such file or directory\n"


def test_a_file_with_nothing_but_a_template_is_a_line(tmp_path: Path) -> None:
    (fault,) = faults(tmp_path, "functions: {{ functions }}\n")
    assert fault.startswith("line 1, column ")


def test_the_file_must_be_named(tmp_path: Path) -> None:
    result = check_config(tmp_path)
    assert result.returncode == 2
    assert "Missing argument 'FILE'" in result.stderr


def test_checking_makes_nothing(tmp_path: Path) -> None:
    (tmp_path / "kapudf.yaml").write_text("functions: {a: {handler: mirror, socket: a.sock}}")
    check_config(tmp_path, "kapudf.yaml")
    assert [entry.name for entry in tmp_path.iterdir()] == ["kapudf.yaml"]


# --- the section for kapacitor.conf ---


def test_the_section_names_each_function_and_its_socket(tmp_path: Path) -> None:
    text = f"""functions:
  one: {{handler: mirror, socket: one.sock}}
  two: {{handler: "{plugin("captured.py:StreamMirror")}", socket: /run/two.sock}}
"""
    assert kapacitor_section(tmp_path, text) == {
        "one": {"socket": f"{tmp_path}/one.sock", "timeout": "10s"},
        "two": {"socket": "/run/two.sock", "timeout": "10s"},
    }


def test_stdout_has_the_section_alone(tmp_path: Path) -> None:
    (tmp_path / "kapudf.yaml").write_text("functions: {a: {handler: mirror, socket: a.sock}}")
    result = check_config(tmp_path, "kapudf.yaml", "--kapacitor")
    assert "OK" not in result.stdout
    assert result.stderr.splitlines() == ["kapudf.yaml: OK, 1 function", UNCHECKED]


def test_the_section_can_be_pasted_into_the_file_that_kapacitor_ships(tmp_path: Path) -> None:
    functions = kapacitor_section(
        tmp_path,
        "functions: {mine: {handler: mirror, socket: /run/mine.sock}}",
        before='[udf]\n[udf.functions]\n    [udf.functions.theirs]\n    socket = "/run/t.sock"\n',
    )
    assert set(functions) == {"theirs", "mine"}


@pytest.mark.parametrize(
    "name", ["a b", 'quo"te', "back\\\\slash", "ünï", "漢", "😀", "\x7f", "\t"]
)
def test_a_path_of_any_letters_is_a_toml_string(tmp_path: Path, name: str) -> None:
    written = name.replace('"', '\\"').replace("\x7f", "\\x7f").replace("\t", "\\t")
    functions = kapacitor_section(
        tmp_path, f'functions: {{a: {{handler: mirror, socket: "/run/{written}.sock"}}}}\n'
    )
    assert functions["a"]["socket"] == f"/run/{name}.sock".replace("\\\\", "\\")


def test_nothing_is_printed_for_a_file_that_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "kapudf.yaml").write_text("functions: {a: {handler: miror, socket: a.sock}}")
    result = check_config(tmp_path, "kapudf.yaml", "--kapacitor")
    assert (result.returncode, result.stdout) == (2, "")
