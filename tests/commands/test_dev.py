"""`kapudf dev`: runs again after each save, until Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import threading
from typing import TYPE_CHECKING, Self

import pytest
from click.testing import CliRunner

from kapudf_cli import scaffold
from kapudf_cli.commands import main
from tests.dev.test_dev import save
from tests.processes import await_end
from tests.serve_process import KAPUDF, PATIENCE_S
from tests.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

HANDLER = """
import factor
from kapudf_cli import Handler, get_number, set_field

class Scale(Handler):
    def point(self, point):
        set_field(point, "scaled", get_number(point, "x") * factor.FACTOR)
        return point
"""
TESTS = """
from kapudf_cli.testing import lines
from scale import Scale

def test_it_scales(udf):
    (point,) = udf(Scale).send(*lines("m x=3 1")).points
    assert point.fieldsDouble["scaled"] == 6.0
"""
HANGS = """
import os, time
print(f"pid {os.getpid()} hangs", flush=True)
time.sleep(600)
"""


class Dev:
    """`kapudf dev` in a folder, and what it prints."""

    def __init__(self, folder: Path, *arguments: str, terminal: bool = False) -> None:
        self.folder = folder
        self.text = ""
        ours, theirs = pty.openpty() if terminal else os.pipe()
        self._process = subprocess.Popen(
            [*KAPUDF, "dev", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            cwd=folder,
        )
        os.close(theirs)
        self._output = ours
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        self._process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        os.close(self._output)

    def _read(self) -> None:
        # A terminal whose other end is closed raises.
        with contextlib.suppress(OSError):
            while data := os.read(self._output, 65536):
                self.text += data.decode(errors="replace").replace("\r\n", "\n")

    def signal(self, number: signal.Signals) -> int:
        """Send a signal, and return the exit status."""
        self._process.send_signal(number)
        return self._process.wait(PATIENCE_S)

    def run(self, number: int, end: str = "waiting for a save; Ctrl-C ends\n") -> str:
        """Wait for the end of a run, and return what it printed."""
        found: list[str] = []

        start = rf"(?:^|\x1b\[3J)run {number}\b"

        def ended() -> bool:
            found[:] = re.findall(f"({start}.*?{end})", self.text, re.MULTILINE | re.DOTALL)
            return bool(found)

        try:
            # A run may be several processes that import all of kapudf.
            wait_until(ended, 2 * PATIENCE_S)
        except AssertionError:
            pytest.fail(self.text)
        return found[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "scale.py").write_text(HANDLER)
    (tmp_path / "factor.py").write_text("FACTOR = 2\n")
    (tmp_path / "points.lp").write_text("m x=1 1\nm x=2 2\nm x=0 3\n")
    return tmp_path


def test_each_save_runs_again_whatever_was_saved(folder: Path) -> None:
    handler, factor = folder / "scale.py", folder / "factor.py"
    with Dev(folder, "scale.py:Scale", "--replay", "points.lp", "--limit", "3") as dev:
        first = dev.run(1)
        assert "~ m 1970-01-01T00:00:00.000000002Z  +scaled=4.0\n" in first
        assert "differ" not in first

        save(factor, "FACTOR = 5\n")
        second = dev.run(2)
        assert "run 2: factor.py saved\n" in second
        assert "2 points differ from the last complete run\n" in second
        assert "before  ~ m 1970-01-01T00:00:00.000000002Z  +scaled=4.0\n" in second
        assert "now     ~ m 1970-01-01T00:00:00.000000002Z  +scaled=10.0\n" in second

        save(factor, "FACTOR = = 5\n")
        broken = dev.run(3)
        assert 'File "scale.py", line 2, in <module>\n' in broken
        assert 'File "factor.py", line 1\n    FACTOR = = 5\n' in broken
        assert "cannot be imported: SyntaxError: " in broken
        assert "kapudf_cli" not in broken
        assert "importlib" not in broken

        save(factor, "import missing_one\nFACTOR = 5\n")
        assert "No module named 'missing_one'" in dev.run(4)
        (folder / "missing_one.py").write_text("")
        assert "no point differs from the last complete run\n" in dev.run(5)

        save(handler, HANDLER + "import os; os.kill(os.getpid(), 11)\n")
        assert "ended by SIGSEGV" in dev.run(6)

        save(handler, HANDLER + "print('hangs', flush=True); import time; time.sleep(600)\n")
        dev.run(7, end="hangs\n")
        save(handler, HANDLER)
        assert "no point differs from the last complete run\n" in dev.run(8)
        assert "\x1b" not in dev.text
        assert dev.signal(signal.SIGINT) == 0


def test_ctrl_c_ends_the_run_and_clears_are_for_terminals(folder: Path) -> None:
    tests = folder / "tests" / "test_scale.py"
    tests.parent.mkdir()
    tests.write_text(TESTS)
    (folder / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    with Dev(folder, "scale.py:Scale", "--replay", "points.lp", "--test", terminal=True) as dev:
        first = dev.run(1)
        assert "1 passed" in first
        assert "\x1b[33m" in first
        assert "\x1b[2J" not in first
        save(folder / "factor.py", HANGS)
        (pid,) = re.findall(r"pid (\d+) hangs", dev.run(2, end="hangs\n"))
        assert dev.text.count("\x1b[2J") == 1
        assert dev.signal(signal.SIGINT) == 0
        await_end(int(pid))


def test_the_code_of_an_installed_handler_is_followed_and_its_project_tested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaffold.write(scaffold.names_of("my-ramp"), tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "src"))
    with Dev(tmp_path, "my_ramp.handler:MyRamp", "--test") as dev:
        assert "4 passed" in dev.run(1)
        code = tmp_path / "src" / "my_ramp" / "handler.py"
        save(code, code.read_text().replace("change = (value", "change = 2 * (value"))
        assert "failed" in dev.run(2)
        assert dev.signal(signal.SIGINT) == 0


def test_sigterm_ends_the_run_too(folder: Path) -> None:
    (folder / "factor.py").write_text(HANGS)
    with Dev(folder, "scale.py:Scale", "--replay", "points.lp") as dev:
        (pid,) = re.findall(r"pid (\d+) hangs", dev.run(1, end="hangs\n"))
        assert dev.signal(signal.SIGTERM) == -signal.SIGTERM
        await_end(int(pid))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["scale.py:Scale"], "give --replay RECORDING, --test, or both"),
        (["scale.py:Scale", "--replay", "nothing.lp"], "'nothing.lp' does not exist"),
        (["scale.py:Scale", "--replay", "-"], "standard input can be read only once"),
        (["scale.py:Scale", "--test"], "there is no test_scale.py in"),
        (["--test", "scale.py:Scale"], "--test took 'scale.py:Scale' as its PATH; write HANDLER"),
        (["nothing.py:Scale", "--replay", "points.lp"], "there is no file nothing.py"),
        (["no-such-name", "--replay", "points.lp"], "no installed handler has the name"),
        (["scale.py:Scale", "--replay", "points.lp", "--window", "10x"], "not a duration"),
        (["scale.py:Scale", "--replay", "points.lp", "--socket", "/x"], "No such option"),
    ],
)
def test_a_wrong_call_is_told_before_the_first_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(main, ["dev", *arguments])
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in " ".join(result.stderr.split())
