"""Deaths of workers combined with another event: a second death, a child process, a neighbour."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.protocol.codec import REQUESTS
from kapudf_cli.protocol.udf_pb2 import Point
from tests.conftest import plugin
from tests.peers import in_thread
from tests.processes import is_alive
from tests.serve_process import PATIENCE_S, ServeProcess
from tests.supervisor.ongoing import await_status, status_of
from tests.supervisor.tasks import play, points, points_in, started_task, tallied
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kapudf_cli.client.driver import KapacitorSide

    Serve = Callable[..., ServeProcess]


def echoed(side: KapacitorSide, number: int) -> Point:
    """Send a point, and return the point that comes back."""
    side.send(Point(time=number))
    back = side.receive()
    assert isinstance(back, Point)
    assert back.time == number
    return back


def slow_points(count: int, *, ms: int) -> list[Point]:
    """Return points for which `mortal.Slow` needs `ms` milliseconds each."""
    made = list(points(count))
    for point in made:
        point.fieldsInt["ms"] = ms
    return made


def the_worker(path: str) -> int:
    """Return the pid of the only worker."""
    (worker,) = status_of(path)["workers"]
    return int(worker["pid"])


def test_a_second_death_during_the_replay_repeats_no_output(serve: Serve, socket_path: str) -> None:
    process = serve(plugin("mortal.py:Slow"))
    first, *others = sent = slow_points(1_500, ms=1)
    # While the worker handles it, all others arrive, and the next read returns many. Output is
    # longer than input, so it is flushed before all points of a read are handled.
    first.fieldsInt["ms"] = 200
    with started_task(socket_path) as side:
        side.send_bytes(b"".join(map(REQUESTS.encode, sent)))
        back = [side.receive() for _ in range(1 + len(others) // 4)]
        noted = points_in(status_of(socket_path))
        assert noted < len(back)
        os.kill(the_worker(socket_path), signal.SIGKILL)
        process.event("connection taken over")
        await_status(socket_path, lambda status: points_in(status) > noted + 10)
        os.kill(the_worker(socket_path), signal.SIGKILL)
        process.await_events("connection taken over", 2)
        side.half_close()
        back += side.responses()
    assert back == tallied(sent)
    assert process.event("connection finished")["takeovers"] == 2


@pytest.fixture
def children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give the file where `unruly.Parent` writes the pids of its children; kill them in the end."""
    file = tmp_path / "children"
    monkeypatch.setenv("CHILDREN", str(file))
    yield file
    for line in file.read_text(encoding="ascii").splitlines():
        if is_alive(int(line)):
            os.kill(int(line), signal.SIGKILL)


def test_a_child_that_outlives_a_worker_hides_neither_its_death_nor_the_end(
    socket_path: str, children: Path
) -> None:
    with ServeProcess("--socket", socket_path, "--handler", plugin("unruly.py:Parent")) as process:
        process.ready()
        try:
            with started_task(socket_path) as side:
                echoed(side, 1)
                os.kill(the_worker(socket_path), signal.SIGKILL)
                process.event("connection taken over")
                echoed(side, 2)
                side.half_close()
                assert side.receive() is None
            process.event("connection finished", reason="closed")
            pids = [int(line) for line in children.read_text(encoding="ascii").splitlines()]
            assert [is_alive(pid) for pid in pids] == [True, True]
        finally:
            # They also hold the log open.
            for line in children.read_text(encoding="ascii").splitlines():
                os.kill(int(line), signal.SIGKILL)


#: Becomes a subreaper, which gets orphans as PID 1 does, and then runs `kapudf`.
SUBREAPER = """
import ctypes, os, sys

PR_SET_CHILD_SUBREAPER = 36
ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
os.execv(sys.executable, [sys.executable, "-m", "kapudf_cli", *sys.argv[1:]])
"""


def test_children_that_a_dead_worker_leaves_do_not_become_zombies(
    socket_path: str, children: Path
) -> None:
    kapudf = (sys.executable, "-c", SUBREAPER)
    with ServeProcess(
        "--socket", socket_path, "--handler", plugin("unruly.py:Parent"), kapudf=kapudf
    ) as process:
        process.ready()
        with started_task(socket_path) as side:
            echoed(side, 1)
            os.kill(the_worker(socket_path), signal.SIGKILL)
            assert process.event("worker died")["how"] == "SIGKILL"
            orphan, _ = (int(line) for line in children_of(children, 2))
            os.kill(orphan, signal.SIGKILL)
            wait_until(lambda: not os.path.exists(f"/proc/{orphan}"))
            os.kill(the_worker(socket_path), signal.SIGKILL)
            process.await_events("worker died", 2, how="SIGKILL")
        for line in children_of(children, 3):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(line), signal.SIGKILL)


def children_of(file: Path, count: int) -> list[str]:
    """Wait until the file has `count` pids, and return its lines."""
    wait_until(lambda: len(file.read_text(encoding="ascii").splitlines()) >= count)
    return file.read_text(encoding="ascii").splitlines()


@pytest.mark.parametrize("poison", ["kill", "abort"])
def test_a_neighbour_of_a_point_that_kills_workers_loses_nothing(
    serve: Serve, socket_path: str, poison: str
) -> None:
    process = serve(plugin("mortal.py:Slow"), "--on-error", "skip")
    slow, sent = slow_points(1_000, ms=2), list(points(20))
    bad = Point(time=-1, name="m", group="g0", tags={"poison": poison}, fieldsDouble={"x": 1})
    neighbour = in_thread(partial(play, socket_path, slow, task="neighbour"))
    await_status(
        socket_path,
        lambda status: status["connections"] and status["connections"][0]["state"] == "busy",
    )
    assert play(socket_path, [*sent[:10], bad, *sent[10:]], task="poisoned") == tallied(sent)
    assert neighbour.result(PATIENCE_S) == tallied(slow)
    process.event("dropped what killed the worker", task_id="poisoned")
    assert not list(process.matching("dropped what killed the worker", task_id="neighbour"))
    assert process.event("connection finished", task_id="neighbour")["takeovers"] >= 1


def test_a_connection_survives_its_supervisor_during_a_takeover(
    serve: Serve, socket_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATE", str(tmp_path / "gate"))
    gate = tmp_path / "gate.restore"
    process = serve(plugin("laden.py:HeldUp"), "--snapshot-interval", "0.1")
    with started_task(socket_path) as side:
        echoed(side, 1)
        os.kill(the_worker(socket_path), signal.SIGKILL)
        # The next worker compacts the journal as soon as it can.
        process.event("connection taken over")
        echoed(side, 2)
        os.mkfifo(gate)
        await_status(socket_path, lambda status: status["connections"][0]["state"] == "idle")
        os.kill(the_worker(socket_path), signal.SIGKILL)
        # Opening it waits until the new worker opens it, too.
        with open(in_thread(partial(os.open, gate, os.O_WRONLY)).result(PATIENCE_S), "wb"):
            process.signal(signal.SIGKILL)
            process.event("supervisor is gone, serving connections to their end")
        assert echoed(side, 3).fieldsInt["count"] == 3
        side.half_close()
        assert side.receive() is None
    assert process.wait() == -signal.SIGKILL
    assert process.event("connection finished")["reason"] == "closed"
