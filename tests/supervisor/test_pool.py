"""The workers of one function, where the system has no room for another."""

from __future__ import annotations

import errno
import os
import signal
import socket
from typing import TYPE_CHECKING

import msgspec
import pytest
from structlog.testing import capture_logs

from kapudf_cli.config import Settings
from kapudf_cli.supervisor import pool
from kapudf_cli.supervisor.connection import SupervisedConnection
from kapudf_cli.supervisor.errors import WorkerStartError
from kapudf_cli.supervisor.replacement import Reloaded
from kapudf_cli.supervisor.routes import WorkerState
from kapudf_cli.supervisor.worker_process import WorkerProcess
from kapudf_cli.worker import channel as orders
from kapudf_cli.worker.channel import FinishList
from tests.supervisor.workers import SETTINGS

if TYPE_CHECKING:
    from pathlib import Path

    from kapudf_cli.supervisor.pool import Pool
    from kapudf_cli.worker.channel import Start
    from tests.journal.connections import JournaledConnection
    from tests.supervisor.loops import Loop


def states_of(served: Pool) -> list[WorkerState]:
    return [served.state_of(each) for each in served.workers]


class Room:
    """Room for some more processes, and no further one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, left: int) -> None:
        self.left = left
        self.started: list[WorkerProcess] = []
        self._start = WorkerProcess
        monkeypatch.setattr(pool, "WorkerProcess", self)

    def __call__(self, begin: Start) -> WorkerProcess:
        if not self.left:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        self.left -= 1
        self.started.append(self._start(begin))
        return self.started[-1]


def test_a_reload_whose_workers_cannot_all_be_started_changes_nothing(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that could be is not kept; the next reload is a whole one."""
    served = loop.start_pool(SETTINGS)
    old = list(served.workers)
    wanted = msgspec.structs.replace(SETTINGS, workers=2)
    room = Room(monkeypatch, 1)
    with pytest.raises(BlockingIOError):
        served.reload(wanted)
    loop.turn_until(lambda: len(served.all_workers()) == 1)
    assert [served.state_of(each) for each in room.started] == [WorkerState.DEAD]
    assert served.workers == old
    assert served.settings is SETTINGS
    assert not served.take_reload_results()
    assert served.deaths == 0

    room.left = 2
    served.reload(wanted)
    assert loop.reload_result(served).problem is None
    assert served.settings is wanted
    loop.turn_until(lambda: len(served.all_workers()) == 2)
    assert not set(served.workers) & set(old)


def test_a_worker_that_cannot_be_recycled_for_want_of_room_goes_on(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again after a while, and not at every look."""
    served = loop.start_pool(msgspec.structs.replace(SETTINGS, max_points=1))
    (worker,) = served.workers
    worker.points_of_ended = 1
    Room(monkeypatch, 0)
    monkeypatch.setattr("kapudf_cli.supervisor.replacement._MIN_LIFE_S", 0.0)
    with capture_logs() as events:
        for now_s in (1e9, 1e9 + 1.0, 1e9 + 29.0):
            served.tick(now_s)
    assert [each["event"] for each in events] == ["worker is recycled", "worker cannot be recycled"]
    assert served.workers == [worker]
    with capture_logs() as events:
        served.tick(1e9 + 30.0)
    assert len(events) == 2


def test_a_dead_worker_that_cannot_be_replaced_for_want_of_room_is_later(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log says so, and the connections wait."""
    served = loop.start_pool(SETTINGS)
    room = Room(monkeypatch, 0)
    monkeypatch.setattr("kapudf_cli.supervisor.replacement._LONG_LIFE_S", 0.0)
    with capture_logs() as events:
        served.workers[0].kill()
        loop.turn_until(lambda: any(each["event"] == "worker cannot start" for each in events))
        assert served.is_empty
        assert served.needs_ticks
        room.left = 1
        loop.turn_until(lambda: not served.is_empty)
    assert served.deaths == 1
    assert len(served.workers) == 1


@pytest.mark.parametrize("comes", [True, False], ids=["its successor comes", "nor it comes"])
def test_one_that_dies_before_its_successor_is_ready_is_replaced_once(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, *, comes: bool
) -> None:
    """By its successor, or by another one where that dies too."""
    served = loop.start_pool(msgspec.structs.replace(SETTINGS, max_points=1))
    (worker,) = served.workers
    worker.points_of_ended = 1
    room = Room(monkeypatch, 10)
    monkeypatch.setattr("kapudf_cli.supervisor.replacement._MIN_LIFE_S", 0.0)
    monkeypatch.setattr("kapudf_cli.supervisor.replacement._LONG_LIFE_S", 0.0)
    served.tick(1e9)
    (successor,) = room.started
    if not comes:
        successor.kill()
    worker.kill()
    loop.turn_until(lambda: worker not in served.all_workers())
    loop.turn_until(
        lambda: [served.state_of(each) for each in served.workers] == [WorkerState.SERVING]
    )
    assert len(served.all_workers()) == 1
    assert (successor in served.workers) == comes
    assert len(room.started) == (1 if comes else 2)


@pytest.mark.parametrize("left", [0, 10], ids=["no room for a reload", "a reload that fails"])
def test_a_worker_that_fills_in_for_a_dead_one_serves_though_a_reload_fails(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    served = loop.start_pool(msgspec.structs.replace(SETTINGS, max_points=1))
    (worker,) = served.workers
    worker.points_of_ended = 1
    room = Room(monkeypatch, 1)
    monkeypatch.setattr("kapudf_cli.supervisor.replacement._MIN_LIFE_S", 0.0)
    monkeypatch.setattr("kapudf_cli.supervisor.replacement._LONG_LIFE_S", 0.0)
    served.tick(1e9)
    (successor,) = room.started
    os.kill(successor.pid, signal.SIGSTOP)
    worker.kill()
    loop.turn_until(lambda: worker not in served.all_workers())
    assert served.workers == [successor]

    room.left = left
    wanted = msgspec.structs.replace(SETTINGS, handler="not-there")
    if left:
        served.reload(wanted)
        assert loop.reload_result(served).problem is not None
    else:
        with pytest.raises(BlockingIOError):
            served.reload(wanted)
    os.kill(successor.pid, signal.SIGCONT)
    loop.turn_until(lambda: states_of(served) == [WorkerState.SERVING])
    assert served.all_workers() == [successor]
    assert served.settings.handler == "mirror"


def test_workers_that_could_not_be_started_at_first_are_later(
    short_folder: Path, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a function that a reload adds, in a system that is full."""
    room = Room(monkeypatch, 1)
    wanted = msgspec.structs.replace(SETTINGS, workers=2, socket=str(short_folder / "f"))
    functions = loop.bind_functions(Settings(functions={}, log_format="json"))
    functions.change(functions.prepare(Settings(functions={"f": wanted}, log_format="json")))
    with pytest.raises(WorkerStartError):
        functions.start()
    (served,) = functions.pools()
    assert len(served.workers) == 1
    room.left = 1
    loop.turn_until(lambda: served.is_ready)
    assert states_of(served) == [WorkerState.SERVING] * 2


def test_a_reload_that_is_followed_by_another_has_a_result(loop: Loop) -> None:
    served = loop.start_pool(SETTINGS)
    served.reload(SETTINGS)
    served.reload(SETTINGS)
    assert served.take_reload_results() == [Reloaded(problem="another reload began")]
    result = loop.reload_result(served)
    assert (result.connections, result.stay, result.problem) == (0, 0, None)
    assert not served.take_reload_results()


def test_a_worker_that_reads_no_orders_for_long_is_replaced_and_the_log_says_why(
    loop: Loop,
) -> None:
    served = loop.start_pool(msgspec.structs.replace(SETTINGS, busy_limit_s=1.0))
    (worker,) = served.workers
    with capture_logs() as events:
        os.kill(worker.pid, signal.SIGSTOP)
        while not worker.lacks_room:
            worker.send(orders.Resume(1))
        loop.turn_until(lambda: worker not in served.workers)
    told = {each["event"]: each for each in events}
    assert told["worker reads no orders, it is replaced"]["worker"] == worker.number
    assert told["worker died"]["how"] == "SIGKILL"
    assert "read no orders for" in told["worker died"]["reason"]


def test_a_worker_that_closed_its_channel_is_replaced_and_holds_nothing_up(loop: Loop) -> None:
    """The loop does not wait for it."""
    served = loop.start_pool(SETTINGS)
    (worker,) = served.workers
    os.kill(worker.pid, signal.SIGSTOP)
    with capture_logs() as events:
        # What a handler does that closes all descriptors, as far as the supervisor can see.
        worker.channel._socket.shutdown(socket.SHUT_RDWR)
        turns_s = loop.turns_until(lambda: worker not in served.workers)
    assert max(turns_s) < 0.5
    (died,) = (each for each in events if each["event"] == "worker died")
    assert died["how"] == "SIGKILL"
    assert "closed its channel" in died["reason"]


def test_a_retired_worker_that_exits_slowly_has_not_died(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has time for it, and is killed after that; neither is a death."""
    monkeypatch.setattr("kapudf_cli.supervisor.pool._EXIT_PATIENCE_S", 0.5)
    served = loop.start_pool(SETTINGS)
    (worker,) = served.workers
    os.kill(worker.pid, signal.SIGSTOP)
    with capture_logs() as events:
        served.reload(SETTINGS)
        loop.turn_until(lambda: served.state_of(worker) is WorkerState.RETIRING)
        worker.channel._socket.shutdown(socket.SHUT_RDWR)
        loop.turn_until(lambda: worker not in served.all_workers())
    names = [each["event"] for each in events]
    assert "worker takes too long to exit, and is killed" in names
    assert "worker died" not in names
    assert served.deaths == 0


#: Only one process can load it.
FOR_ONE = """
import os
from kapudf_handlers.mirror import Mirror

os.close(os.open({gate!r}, os.O_CREAT | os.O_EXCL))


class Rejected(Mirror):
    pass
"""


def test_after_a_failed_reload_the_handler_that_serves_is_shown(loop: Loop, tmp_path: Path) -> None:
    """Not the one that one of two new workers could load."""
    file = tmp_path / "rejected.py"
    file.write_text(FOR_ONE.format(gate=str(tmp_path / "gate")), encoding="utf-8")
    served = loop.start_pool(SETTINGS)
    before = served.code
    wanted = msgspec.structs.replace(SETTINGS, handler=f"{file}:Rejected", workers=2)
    served.reload(wanted)
    assert loop.reload_result(served).problem is not None
    assert (served.handler, served.code) == ("Mirror", before)


def test_a_long_wait_for_a_worker_is_logged_once(
    loop: Loop, kept: JournaledConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While no worker can be started, or one imports its handler for long."""
    served = loop.start_pool(SETTINGS)
    Room(monkeypatch, 0)
    served.workers[0].kill()
    loop.turn_until(lambda: served.is_empty)
    waiting = SupervisedConnection(
        7, kept.connection.dup(), os.dup(kept.memory), None, busy_limit_s=1.0
    )
    served.add(waiting)
    with capture_logs() as events:
        for now_s in (100.0, 105.0, 110.0, 120.0):
            served.tick(now_s)
    warnings = [each for each in events if each["event"] == "connections wait for a worker"]
    assert [(each["connections"], each["wait_s"]) for each in warnings] == [(1, 10.0)]
    waiting.close()


def test_a_connection_that_a_dead_worker_logged_as_finished_is_not_taken_over(
    loop: Loop, kept: JournaledConnection
) -> None:
    """Nor logged as abandoned: each connection has one `connection finished`."""
    served = loop.start_pool(SETTINGS)
    (worker,) = served.workers
    for number, memory in ((7, kept.memory), (8, kept.memory)):
        served.add(
            SupervisedConnection(
                number, kept.connection.dup(), os.dup(memory), None, busy_limit_s=1.0
            )
        )
    loop.turn_until(lambda: served.connections_of(worker) == 2)
    os.kill(worker.pid, signal.SIGSTOP)
    # What the worker does after logging a finish; it dies before it reports it.
    FinishList(worker._finishes).add(7)
    with capture_logs() as events:
        served.kill()
        loop.turn_until(lambda: served.is_empty)
        assert served.abandon() == 1
    finished = [each["connection"] for each in events if each["event"] == "connection finished"]
    assert finished == [8]
    served.connections[8].close()
