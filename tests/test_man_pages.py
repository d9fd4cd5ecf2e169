"""The man pages: one for each command, valid, and in the wheel."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import click
import pytest

from kapudf_cli.commands import main

ROOT = Path(__file__).parent.parent
COMMANDS = main.list_commands(click.Context(main))
NAMES = {"kapudf.1", *(f"kapudf-{command}.1" for command in COMMANDS)}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    found: list[Path] = runpy.run_path(str(ROOT / "hatch_build.py"))["write_pages"](
        tmp_path_factory.mktemp("man")
    )
    return found


def test_each_command_has_a_page_with_its_options(pages: list[Path]) -> None:
    assert {page.name for page in pages} == NAMES
    texts = {page.stem: page.read_text().replace("\\-", "-") for page in pages}
    assert texts["kapudf-replay"].startswith(".TH KAPUDF-REPLAY 1 ")
    assert "kapudf-replay - Send a recording through a UDF" in texts["kapudf-replay"]
    assert "\\fB--options\\fR \\fICALLS\\fR\n" in texts["kapudf-replay"]
    assert "\\fB-h\\fR, \\fB--help\\fR\n" in texts["kapudf-replay"]
    assert "--report" not in texts["kapudf-replay"]
    assert all(f"\\fB{command}\\fR\n" in texts["kapudf"] for command in COMMANDS)


@pytest.mark.parametrize(
    "command",
    [
        ["mandoc", "-Tlint", "-Wwarning"],
        ["groff", "-ww", "-man", "-Tutf8", "-z"],
        ["man", "--warnings", "-l"],
    ],
    ids=lambda command: str(command[0]),
)
def test_the_pages_are_rendered_without_a_warning(pages: list[Path], command: list[str]) -> None:
    if not shutil.which(command[0]):
        pytest.skip(f"needs {command[0]}")
    result = subprocess.run([*command, *pages], capture_output=True, text=True, check=False)
    # The lint of mandoc writes to stdout.
    assert (result.returncode, result.stderr) == (0, "")
    assert (result.stdout == "") is (command[0] != "man")
    assert command[0] != "man" or "kapudf-load - Put a load on a UDF" in result.stdout


def test_a_wheel_has_the_pages(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("kapudf-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [Path(name) for name in archive.namelist()]
    folders = {name.parent for name in names if name.name in NAMES}
    assert [str(folder).partition(".data/")[2] for folder in folders] == ["data/share/man/man1"]
    assert {name.name for name in names} >= NAMES
