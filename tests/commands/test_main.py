"""The list of commands, the help, and the form of errors."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata

import pytest
from click.testing import CliRunner

import kapudf_cli
from kapudf_cli.commands import main
from tests.run_kapudf import run_kapudf
from tests.serve_process import PATIENCE_S

COMMANDS = [
    "serve",
    "exec",
    "list-handlers",
    "probe",
    "status",
    "reload",
    "upgrade",
    "replay",
    "dev",
    "check",
    "load",
    "check-config",
    "new",
    "schema",
    "completion",
]


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_every_command(flag: str) -> None:
    result = CliRunner().invoke(main, [flag])
    assert result.exit_code == 0
    places = [result.stdout.find(f"\n  {command} ") for command in COMMANDS]
    assert -1 not in places
    assert places == sorted(places)
    assert "..." not in result.stdout.partition("Commands:")[2]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command: str) -> None:
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: main {command} [OPTIONS]")
    assert result.stderr == ""


def test_the_version_is_shown_with_those_that_a_bug_report_needs() -> None:
    result = run_kapudf("--version")
    python, protobuf = platform.python_version(), metadata.version("protobuf")
    assert result.returncode == 0
    assert result.stdout == (
        f"kapudf {kapudf_cli.__version__} (Python {python}, protobuf {protobuf})\n"
    )


def test_an_unknown_command_is_refused() -> None:
    result = CliRunner().invoke(main, ["sreve"])
    assert result.exit_code == 2
    assert "No such command 'sreve'. Did you mean 'serve'?" in result.stderr


def test_an_unknown_option_is_refused() -> None:
    result = CliRunner().invoke(main, ["serve", "--sokcet", "/x"])
    assert result.exit_code == 2
    assert "--sokcet" in result.stderr
    assert "--socket" in result.stderr


def test_the_program_is_called_kapudf() -> None:
    assert run_kapudf("--help").stdout.startswith("Usage: kapudf [OPTIONS]")


@pytest.mark.parametrize("module", ["structlog", "yaml", "kapudf_cli.worker.server"])
def test_help_does_not_wait_for_what_it_does_not_need(module: str) -> None:
    code = f"""
import sys
from click.testing import CliRunner
from kapudf_cli.commands import main
assert CliRunner().invoke(main, ["--help"]).exit_code == 0
assert CliRunner().invoke(main, ["serve", "--help"]).exit_code == 0
print({module!r} in sys.modules)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    assert result.stdout == "False\n"
