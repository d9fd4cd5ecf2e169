"""Worker processes in a loop: ordered reports, one exit each, and queued messages."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.supervisor.worker_process import WorkerReports
from kapudf_cli.worker.channel import Failed, Ready, Resume, Stop
from tests.supervisor.loops import Loop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kapudf_cli.supervisor.worker_process import WorkerProcess
    from kapudf_cli.worker.channel import Report
    from tests.supervisor.workers import Workers

#: A handler that leaves a child process, which inherits all descriptors.
FORKING = """
import os, time
from kapudf_cli import Handler

if not (child := os.fork()):
    time.sleep(600)
    os._exit(0)
open({file!r}, "w").write(str(child))


class Forking(Handler):
    def point(self, point):
        self.agent.write_point(point)
"""


class Watched:
    """Workers that are watched, with their reports and exits."""

    def __init__(self, loop: Loop) -> None:
        self.selector = loop.selector
        self.turn_until = loop.turn_until
        self.reports = WorkerReports(loop.selector, on_report=self._on_report, on_end=self._on_end)
        self.told: list[tuple[WorkerProcess, Report | None]] = []

    def _on_report(self, worker: WorkerProcess, report: Report) -> None:
        self.told.append((worker, report))

    def _on_end(self, worker: WorkerProcess) -> None:
        self.told.append((worker, None))
        self.reports.unwatch(worker)


@pytest.fixture
def watched() -> Iterator[Watched]:
    """Give a loop that has no workers yet."""
    with Loop() as loop:
        yield Watched(loop)


def test_each_worker_reports_under_its_own_name(watched: Watched, workers: Workers) -> None:
    good, bad = workers.start("mirror"), workers.start("no-such-handler")
    for worker in (good, bad):
        watched.reports.watch(worker)
    watched.turn_until(lambda: len({worker for worker, _ in watched.told}) == 2)
    first = dict(reversed(watched.told))
    assert isinstance(first[good], Ready)
    assert isinstance(first[bad], Failed)


def test_reports_of_a_worker_are_handled_before_its_end(watched: Watched, workers: Workers) -> None:
    worker = workers.start("no-such-handler")
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
    watched.reports.watch(worker)
    watched.turn_until(lambda: (worker, None) in watched.told)
    report, end = (report for _, report in watched.told)
    assert isinstance(report, Failed)
    assert end is None
    assert not watched.selector.get_map()


def test_an_end_is_noticed_though_a_child_has_the_channel_open(
    watched: Watched, workers: Workers, tmp_path: Path
) -> None:
    file, child = tmp_path / "forking.py", tmp_path / "child"
    file.write_text(FORKING.format(file=str(child)), encoding="utf-8")
    worker = workers.start(f"{file}:Forking")
    watched.reports.watch(worker)
    try:
        watched.turn_until(lambda: bool(watched.told))
        assert isinstance(watched.told[0][1], Ready)
        worker.kill()
        watched.turn_until(lambda: (worker, None) in watched.told)
    finally:
        os.kill(int(child.read_text(encoding="utf-8")), 9)
    assert not watched.selector.get_map()


def test_orders_to_a_worker_that_does_not_read_are_queued(
    watched: Watched, workers: Workers
) -> None:
    worker = workers.start("mirror")
    watched.reports.watch(worker)
    watched.turn_until(lambda: bool(watched.told))
    os.kill(worker.pid, signal.SIGSTOP)
    for number in range(3000):
        worker.send(Resume(number))
    worker.send(Stop())
    watched.reports.update(worker)
    assert worker.lacks_room
    assert not worker.check_room()
    assert worker.blocked_s > 0.0
    assert not watched.selector.select(0)
    os.kill(worker.pid, signal.SIGCONT)
    # Its exit status shows that it read the last message.
    watched.turn_until(lambda: (worker, None) in watched.told)
    assert worker.blocked_s == 0.0
    assert worker.reap() == "exit status 0"
