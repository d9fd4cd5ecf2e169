"""What a loop finds of its workers: their reports, in order, and their ends, once."""

from __future__ import annotations

import os
import selectors
import time
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.serving.channel import Failed, Ready
from kapudf_cli.serving.worker_reports import WorkerReports
from tests.serve_process import PATIENCE_S
from tests.serving.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kapudf_cli.serving.channel import Report
    from kapudf_cli.serving.worker_process import WorkerProcess

#: Loads, and leaves a child behind that has everything open which its parent had.
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


class Loop:
    """A loop with workers in it, and what it was told of them."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self.reports = WorkerReports(selector, on_report=self._on_report, on_end=self._on_end)
        self.told: list[tuple[WorkerProcess, Report | None]] = []

    def turn_until(self, is_done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not is_done():
            assert time.monotonic() < deadline
            for key, _ in self._selector.select(0.1):
                if self._selector.get_map().get(key.fileobj) is key:
                    key.data()

    def _on_report(self, worker: WorkerProcess, report: Report) -> None:
        self.told.append((worker, report))

    def _on_end(self, worker: WorkerProcess) -> None:
        self.told.append((worker, None))
        self.reports.unwatch(worker)


@pytest.fixture
def loop() -> Iterator[Loop]:
    """Give a loop without workers."""
    with selectors.DefaultSelector() as selector:
        yield Loop(selector)


@pytest.fixture
def workers() -> Iterator[Workers]:
    """Give somebody who starts workers."""
    with Workers() as starter:
        yield starter


def test_each_worker_reports_under_its_own_name(loop: Loop, workers: Workers) -> None:
    """As soon as it has something to say."""
    good, bad = workers.start("mirror"), workers.start("no-such-handler")
    for worker in (good, bad):
        loop.reports.watch(worker)
    loop.turn_until(lambda: len({worker for worker, _ in loop.told}) == 2)
    first = dict(reversed(loop.told))
    assert isinstance(first[good], Ready)
    assert isinstance(first[bad], Failed)


def test_what_a_worker_reported_is_dealt_with_before_its_end(loop: Loop, workers: Workers) -> None:
    """Though both are found at once; the end is told once, and nothing stays registered."""
    worker = workers.start("no-such-handler")
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
    loop.reports.watch(worker)
    loop.turn_until(lambda: (worker, None) in loop.told)
    report, end = (report for _, report in loop.told)
    assert isinstance(report, Failed)
    assert end is None
    assert not loop._selector.get_map()


def test_an_end_is_noticed_though_a_child_has_the_channel_open(
    loop: Loop, workers: Workers, tmp_path: Path
) -> None:
    """What handlers start is not ours to know of."""
    file, child = tmp_path / "forking.py", tmp_path / "child"
    file.write_text(FORKING.format(file=str(child)), encoding="utf-8")
    worker = workers.start(f"{file}:Forking")
    loop.reports.watch(worker)
    try:
        loop.turn_until(lambda: bool(loop.told))
        assert isinstance(loop.told[0][1], Ready)
        worker.kill()
        loop.turn_until(lambda: (worker, None) in loop.told)
    finally:
        os.kill(int(child.read_text(encoding="utf-8")), 9)
    assert not loop._selector.get_map()
