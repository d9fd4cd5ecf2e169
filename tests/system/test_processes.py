"""CPU time, memory and descendants of processes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from kapudf_cli.system import processes

if TYPE_CHECKING:
    from collections.abc import Iterator

PARENT = """
import subprocess, sys
code = "x = bytearray(1 << 24); print(1, flush=True); input()"
subprocess.Popen([sys.executable, "-c", code], stdin=sys.stdin).wait()
"""


@contextlib.contextmanager
def parent_with_child() -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that starts another, and give it once that is ready."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdin is not None
        parent.stdout.readline()
        yield parent
        parent.stdin.write(b"\n")


def test_a_tree_has_the_children_in_it() -> None:
    with parent_with_child() as parent:
        pids = processes.tree([parent.pid])
        assert parent.pid in pids
        assert len(pids) == 2
        assert sum(map(processes.rss_bytes, pids)) > processes.rss_bytes(parent.pid) + (1 << 24)
        assert processes.cpu_s(pids) >= processes.cpu_s([parent.pid]) >= 0


def test_processor_time_grows_with_work() -> None:
    before = processes.cpu_s([os.getpid()])
    while processes.cpu_s([os.getpid()]) < before + 0.05:
        sum(range(10_000))


def test_a_process_that_is_gone_costs_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert processes.cpu_s([process.pid]) == 0
    assert processes.rss_bytes(process.pid) == 0
    assert processes.tree([process.pid]) == {process.pid}
