"""Files that are saved, runs that report, and what differs between two runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from kapudf_cli.tools.dev import Saves, differing, python_files_below, run
from tests.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path


def save(path: Path, text: str) -> None:
    """Save as an editor does: write another file, and rename it."""
    beside = path.with_name(f".{path.name}.swp")
    beside.write_text(text)
    beside.rename(path)


def test_files_that_are_saved_together_are_one_save(tmp_path: Path) -> None:
    first, second, new = (tmp_path / f"{name}.py" for name in ("first", "second", "new"))
    notes = tmp_path / "notes.txt"
    for file in (first, second, notes):
        file.write_text("before")
    saves = Saves()
    saves.follow(str(first))
    assert not saves.look()
    notes.write_text("other files do not count")
    save(first, "after!")
    second.write_text("longer")
    new.write_text("new")
    assert saves.take() == {str(first), str(second), str(new)}
    assert not saves.look()


def test_a_followed_file_of_any_kind_counts(tmp_path: Path) -> None:
    recording, other = tmp_path / "points.lp", tmp_path / "other.py"
    recording.write_text("m x=1 1")
    saves = Saves()
    saves.follow(str(recording))
    other.write_text("no Python file is followed in this folder")
    save(recording, "m x=1 1\nm x=2 2")
    assert saves.take() == {str(recording)}


def test_a_save_between_the_read_of_a_file_and_its_report_counts(tmp_path: Path) -> None:
    file = tmp_path / "handler.py"
    file.write_text("read")
    found = os.stat(file)
    save(file, "saved while it was loaded")
    saves = Saves()
    saves.follow(str(file), (found.st_ino, found.st_mtime_ns, found.st_size))
    assert saves.take() == {str(file)}


def test_a_file_that_is_deleted_and_written_again_counts(tmp_path: Path) -> None:
    file = tmp_path / "handler.py"
    file.write_text("1")
    saves = Saves()
    saves.follow(str(file))
    file.unlink()
    assert saves.take() == {str(file)}
    file.write_text("2")
    assert saves.take() == {str(file)}


def test_environments_are_not_the_author_s_code(tmp_path: Path) -> None:
    for name in ("a.py", "b/c.py", "b/d.txt", ".venv/e.py", "env/lib/site-packages/f.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    found = {os.path.relpath(each, tmp_path) for each in python_files_below(str(tmp_path))}
    assert found == {"a.py", "b/c.py"}


def test_a_run_reports_and_a_save_ends_it(tmp_path: Path) -> None:
    file = tmp_path / "code.py"
    file.write_text("1")
    script = (
        "import sys, time; from kapudf_cli.tools.dev import Report; "
        "report = Report(int(sys.argv[2].partition('=')[2])); report.file(sys.argv[1]); "
        "report.line('~ m 1  x: 1 → 2'); report.complete(); "
    )
    command = [sys.executable, "-c", f"{script}", str(file)]
    saves = Saves()
    result = run(command, saves, reports=True)
    assert (result.status, result.is_complete) == (0, True)
    assert result.lines == ["~ m 1  x: 1 → 2"]
    # A save before the file is loaded does not count: the run has it.
    save(file, "22")
    command[2] += "open(sys.argv[1], 'w').write('333'); time.sleep(60)"
    assert run(command, saves, reports=True).status is None
    assert saves.take() == {str(file)}


def test_ctrl_c_while_a_run_starts_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(*arguments: Any, **more: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*arguments, **more))
        signal.raise_signal(signal.SIGINT)
        return started[0]

    monkeypatch.setattr("kapudf_cli.tools.dev.subprocess.Popen", start)
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(KeyboardInterrupt):
        run(command, Saves(), reports=False)
    assert started[0].returncode is not None


def test_the_end_of_a_run_ends_its_children(tmp_path: Path) -> None:
    file = tmp_path / "code.py"
    file.write_text("1")
    script = (
        "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "os.fork(); open(f'{sys.argv[1]}.{os.getpid()}', 'w').close(); time.sleep(60)"
    )
    saves = Saves()
    saves.follow(str(file))
    file.write_text("22")
    result = run([sys.executable, "-c", script, str(tmp_path / "started")], saves, reports=False)
    assert result.status is None
    wait_until(lambda: not any(
        os.path.exists(f"/proc/{each.suffix[1:]}/exe") for each in tmp_path.glob("started.*")
    ))  # fmt: skip


def test_points_differ_by_what_is_said_about_them(subtests: pytest.Subtests) -> None:
    same, doubled, halved = "= m 1", "~ m 2  x: 1 → 2", "~ m 2  x: 1 → 0.5"
    for before, now, expected in [
        ([same, doubled], [same, doubled], []),
        # The order in which points come back is no difference.
        ([same, doubled], [doubled, same], []),
        ([same, doubled], [same, halved], [([doubled], [halved])]),
        ([same], [same, "+ m 9  y=1"], [([], ["+ m 9  y=1"])]),
        ([same, doubled], [same, "- m 2"], [([doubled], ["- m 2"])]),
        ([same, same], [same], [([same], [])]),
        ([], [], []),
    ]:
        with subtests.test(now=now):
            assert list(differing(before, now)) == expected
