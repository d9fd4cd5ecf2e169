"""Each command exits with the statuses that docs/command-line.md lists.

Other tests send signals (test_interruption.py, test_dev.py, test_serve.py, test_exec.py), run all
checks (test_check.py), upgrade a server (tests/supervisor/test_upgrade.py), and fill stdout
(test_standard_streams.py).
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner

from kapudf_cli.commands import main
from tests.run_kapudf import run_kapudf

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.serve_process import ServeProcess

COMMANDS = set(main.list_commands(click.Context(main)))
#: What a command is called with, in a folder with the files of `folder`, and its exit status.
CALLS = [
    ("--version", 0),
    ("--help", 0),
    ("list-handlers mirror", 0),
    ("list-handlers broken.py:Handler", 0),
    ("replay points.lp --handler mirror", 0),
    ("load --handler mirror --points 10", 0),
    ("check-config good.yaml", 0),
    ("new my-average", 0),
    ("schema check", 0),
    ("completion bash", 0),
    # The call is right, and fails.
    ("probe --socket nowhere.sock", 1),
    ("status --socket nowhere.sock", 1),
    ("reload --socket nowhere.sock", 1),
    ("upgrade --socket nowhere.sock", 1),
    ("replay points.lp --socket nowhere.sock", 1),
    ("replay points.lp --handler broken.py:Handler", 1),
    ("replay points.lp --handler fails.py:Fails", 1),
    ("replay wrong.lp --handler mirror", 1),
    ("replay wrong.lp --handler mirror --keep-going", 1),
    ("replay empty.lp --handler mirror", 1),
    ("check --socket nowhere.sock", 1),
    ("load --socket nowhere.sock", 1),
    ("load --handler fails.py:Fails --points 10", 1),
    # The call or a file is wrong: the same call would fail again.
    ("", 2),
    ("no-such-command", 2),
    ("list-handlers no-such-handler", 2),
    ("probe", 2),
    ("status --format xml", 2),
    ("reload --config wrong.yaml", 2),
    ("upgrade", 2),
    ("replay nowhere.lp --handler mirror", 2),
    ("replay points.lp --handler no-such-handler", 2),
    ("replay points.lp --handler batch-mirror", 2),
    ("replay points.lp --handler mirror --options .feld()", 2),
    ("dev fails.py:Fails", 2),
    ("dev nowhere.py:Handler --replay points.lp", 2),
    ("check", 2),
    ("check --handler broken.py:NoHandler", 1),
    ("load --handler mirror --points 0", 2),
    ("check-config wrong.yaml", 2),
    ("check-config nowhere.yaml", 2),
    ("new 1", 2),
    ("schema serve", 2),
    ("completion csh", 2),
]
#: The same for commands that run until they are ended, as processes.
RUNS = [
    ("serve --socket used.sock --handler mirror", 1),
    ("serve --socket new.sock --handler broken.py:Handler", 1),
    ("serve --config wrong.yaml", 2),
    ("serve --socket new.sock --handler no-such-handler", 2),
    ("exec --handler broken.py:Handler", 1),
    ("exec --handler no-such-handler", 2),
    ("exec --handler mirror", 0),
]


@pytest.fixture
def folder(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(short_folder)
    for name, content in {
        "points.lp": "m value=1 1\n",
        "empty.lp": "# no point\n",
        "wrong.lp": "m value= 1\n",
        "broken.py": "raise RuntimeError('no model')\n",
        "fails.py": "from kapudf_cli import Handler\nclass Fails(Handler):\n"
        "    def point(self, point): raise RuntimeError('no model')\n",
        "good.yaml": "functions: {f: {handler: mirror, socket: f.sock}}",
        "wrong.yaml": "functions: {f: {handler: mirror}}",
    }.items():
        (short_folder / name).write_text(content)
    return short_folder


@pytest.mark.parametrize(("call", "status"), CALLS)
@pytest.mark.usefixtures("folder")
def test_a_command_ends_with_the_status_of_the_table(call: str, status: int) -> None:
    result = CliRunner().invoke(main, call.split())
    assert result.exit_code == status, result.output
    assert status == 0 or result.stderr


@pytest.mark.parametrize(("call", "status"), RUNS)
@pytest.mark.usefixtures("folder")
def test_a_service_that_does_not_start_ends_with_the_status_of_the_table(
    call: str, status: int
) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind("used.sock")
        other.listen()
        assert run_kapudf(*call.split()).returncode == status


def test_a_served_function_is_asked_with_success(
    serve: Callable[..., ServeProcess], socket_path: str
) -> None:
    process = serve("mirror")
    for command in ("probe", "status", "reload"):
        assert run_kapudf(command, "--socket", socket_path).returncode == 0
    assert process.stop() == 0


def test_each_command_refuses_a_wrong_call_with_2() -> None:
    assert {
        call.split()[0] for call, status in CALLS[2:] + RUNS if call and status == 2
    } >= COMMANDS
