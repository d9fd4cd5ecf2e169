"""A signal ends a command and the processes that it has started."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.processes import await_end
from tests.serve_process import KAPUDF, PATIENCE_S
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: A UDF that sends nothing, and does not exit at the end of its input.
SILENT = """
import os, pathlib, sys, time
pathlib.Path(sys.argv[1]).write_text(f"{os.getpid()}\\n")
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def sigint_is_not_ignored() -> Iterator[None]:
    """Let SIGINT end children; they would ignore it if the tests run in background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("command", "number"),
    [
        ("check", signal.SIGTERM),
        ("load", signal.SIGTERM),
        ("replay", signal.SIGTERM),
        ("replay", signal.SIGINT),
    ],
)
def test_a_signal_ends_a_command_and_the_udf_that_it_has_started(
    tmp_path: Path, command: str, number: signal.Signals
) -> None:
    script, started = tmp_path / "silent.py", tmp_path / "started"
    script.write_text(SILENT, encoding="utf-8")
    recording = tmp_path / "points.lp"
    recording.write_text("cpu value=1 1\n", encoding="utf-8")
    arguments = [str(recording)] if command == "replay" else []
    udf = shlex.join([sys.executable, str(script), str(started)])
    with subprocess.Popen(
        [*KAPUDF, command, *arguments, "--exec", udf, "--timeout", "60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_until(lambda: started.exists() and started.read_text().endswith("\n"))
        process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == -number
    assert errors == ""
    await_end(int(started.read_text()))
