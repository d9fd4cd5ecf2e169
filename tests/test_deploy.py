"""The files for production are valid."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from kapudf_cli.commands.serve import serve

ROOT = Path(__file__).parent.parent
UNIT = ROOT / "deploy" / "systemd" / "kapudf.service"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not here")
def test_systemd_accepts_the_unit() -> None:
    command = ["systemd-analyze", "verify", "--man=no", str(UNIT)]
    verdict = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (verdict.returncode, verdict.stderr) == (0, "")


def test_the_unit_calls_serve_with_options_that_there_are() -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # keep the case of keys
    unit.read(UNIT)
    words = shlex.split(unit["Service"]["ExecStart"])
    assert words[:3] == ["/usr/bin/env", "kapudf", "serve"]
    context = serve.make_context("serve", words[3:])
    assert context.params["config_file"] == Path("/etc/kapudf/config.yaml")
    assert context.params["remove_stale"] is True


def test_the_unit_leaves_workers_to_the_supervisor() -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # keep the case of keys
    unit.read(UNIT)
    service = unit["Service"]
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert (service["KillMode"], service["OOMPolicy"]) == ("mixed", "continue")


def test_the_source_distribution_has_what_make_works_on() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    included = settings["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    words = set(re.findall(r"[\w.-]+", makefile))
    named = {entry.name for entry in ROOT.iterdir() if not entry.name.startswith(".")} & words
    assert {"tests", "constraints.txt"} <= named
    # Hatchling adds pyproject.toml by itself.
    assert named - {path.strip("/") for path in included} <= {"pyproject.toml", "build", "dist"}
