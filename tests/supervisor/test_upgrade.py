"""Upgrades in place: the installed version goes on with the tasks, or nothing changes."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.protocol.udf_pb2 import Point
from kapudf_cli.supervisor.upgrade import Verdict, describe_version
from tests.serve_process import ServeProcess
from tests.supervisor.ongoing import Code, OngoingTask, check_count, kapudf, status_of
from tests.supervisor.tasks import started_task

if TYPE_CHECKING:
    from pathlib import Path

OTHER_VERSION = (sys.executable, "-m", "tests.peers.other_version")


@pytest.mark.parametrize(
    ("output", "formats", "problem"),
    [
        ('{"version": "2.0", "formats": [1, 2]}', {1}, None),
        ('{"version": "2.0", "formats": [1, 2]}\n', {1, 2}, None),
        ('A warning\n{"version": "2.0", "formats": [1]}', {1}, None),
        # It is newer, and reads only newer formats; or older.
        ('{"version": "9.0", "formats": [4, 5]}', {1}, "version 9.0 cannot read format 1 "),
        ('{"version": "0.9", "formats": [1]}', {1, 2}, "version 0.9 cannot read format 2 "),
        # A connection is older than the running version.
        ('{"version": "3.0", "formats": [2, 3]}', {1, 2}, "version 3.0 cannot read format 1 "),
        ("Error: functions.f: wrong", {1}, "it does not start: Error: functions.f: wrong"),
        ("", {1}, "it does not start: it printed nothing"),
        ('{"version": "2.0"}', {1}, "it does not start: "),
        ("[]", {1}, "it does not start: []"),
        ("1", {1}, "it does not start: 1"),
    ],
)
def test_the_installed_version_must_start_and_read_all_formats(
    output: str, formats: set[int], problem: str | None
) -> None:
    verdict = Verdict.of(output, formats)
    if problem is None:
        assert (verdict.version, verdict.problem) == ("2.0", None)
    else:
        assert (verdict.problem or "").startswith(problem)


def test_this_version_can_replace_itself() -> None:
    assert Verdict.of(describe_version(), {1}).problem is None


def test_tasks_go_on_as_the_installed_version_if_it_can_read_what_is_left(
    socket_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The command is run again as it was called.
    monkeypatch.setenv("KAPUDF_TESTS_EXEC", "1")
    formats = tmp_path / "formats"
    formats.write_text("1 1", "ascii")
    monkeypatch.setenv("FORMATS", str(formats))
    code = Code(tmp_path)
    arguments = ("--socket", socket_path, "--handler", code.handler)
    with contextlib.ExitStack() as ends:
        process = ends.enter_context(ServeProcess(*arguments, kapudf=OTHER_VERSION)).ready()
        task = ends.enter_context(OngoingTask(socket_path))
        task.await_more()
        pid = status_of(socket_path)["supervisor"]["pid"]
        formats.write_text("3 2 3", "ascii")
        code.change()
        refused = kapudf("upgrade", "--socket", socket_path, status=1)
        assert "cannot read format 1 of the running one, only [2, 3]" in refused
        process.event("upgrade failed, the old version goes on")
        task.await_more()
        formats.write_text("2 1 2", "ascii")
        assert "workers: replaced" in kapudf("upgrade", "--socket", socket_path)
        task.await_version(2)
        assert status_of(socket_path)["supervisor"]["pid"] == pid
        # The connection still has a journal of version 1.
        formats.write_text("3 2 3", "ascii")
        assert "format 1" in kapudf("upgrade", "--socket", socket_path, status=1)
        assert check_count(task) == [1, 2]
        assert process.stop() == 0


def test_a_version_that_does_not_start_changes_nothing(
    socket_path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KAPUDF_TESTS_EXEC", "1")
    config = tmp_path / "kapudf.yaml"
    good = f"functions:\n  f:\n    handler: mirror\n    socket: {socket_path}\n"
    config.write_text(good, "utf-8")
    with ServeProcess("--config", str(config)) as process:
        process.ready()
        with started_task(socket_path):
            config.write_text(good + "    workerz: 1\n", "utf-8")
            process.signal(signal.SIGUSR2)
            failed = process.event("upgrade failed, the old version goes on")
            assert "workerz: unknown setting" in failed["error"]
            assert len(status_of(socket_path)["connections"]) == 1


#: Starts kapudf as systemd does for a socket unit: `-c ACTIVATING PATH serve ...`.
ACTIVATING = """
import os, socket, sys
from kapudf_cli.system import systemd

_, path, *arguments = sys.argv
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
os.chmod(path, 0o604)
listener.listen()
os.environ.update(systemd.pass_descriptors({"udf": listener.fileno()}))
os.execv(sys.executable, [sys.executable, "-m", "kapudf_cli", *arguments])
"""


def test_a_socket_of_systemd_is_used_as_it_is_also_after_an_upgrade(
    socket_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAPUDF_TESTS_EXEC", "1")
    starts = (sys.executable, "-c", ACTIVATING, socket_path)
    arguments = ("--socket", socket_path, "--handler", "mirror")
    with ServeProcess(*arguments, kapudf=starts) as process:
        process.ready()
        with started_task(socket_path) as side:
            kapudf("upgrade", "--socket", socket_path)
            assert status_of(socket_path)["supervisor"]["starts"] == 2
            side.send(Point(time=1))
            assert side.receive() == Point(time=1)
        with started_task(socket_path):
            pass
        assert process.stop() == 0
    # It is systemd's, which goes on listening.
    assert stat.S_IMODE(os.stat(socket_path).st_mode) == 0o604


def test_a_socket_of_systemd_at_another_path_is_refused(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAPUDF_TESTS_EXEC", "1")
    other, wanted = str(short_folder / "other"), str(short_folder / "udf")
    starts = (sys.executable, "-c", ACTIVATING, other)
    with ServeProcess("--socket", wanted, "--handler", "mirror", kapudf=starts) as process:
        assert process.wait() == 1
    (line,) = process.lines
    assert f"systemd listens for the function udf at {other}; set its socket to that path" in line
