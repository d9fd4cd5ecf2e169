"""The worker pool: replacements, reloads and deaths, also where no process can be started."""

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
from kapudf_cli.supervisor import templates
from kapudf_cli.supervisor.errors import WorkerStartError
from kapudf_cli.supervisor.replacement import Reloaded
from kapudf_cli.supervisor.routes import WorkerState
from kapudf_cli.supervisor.worker_process import WorkerProcess
from kapudf_cli.worker import channel as orders
from tests.supervisor.connections import supervised
from tests.supervisor.workers import SETTINGS

if TYPE_CHECKING:
    from pathlib import Path

    from kapudf_cli.supervisor.pool import Pool
    from kapudf_cli.worker.channel import Start
    from tests.journal.connections import JournaledConnection
    from tests.supervisor.loops import Loop


def states_of(pool: Pool) -> list[WorkerState]:
    return [pool.state_of(each) for each in pool.workers]


class Room:
    """Room for a number of processes; starting more fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, left: int) -> None:
        self.left = left
        self.started: list[WorkerProcess] = []
        self._start = WorkerProcess.start
        monkeypatch.setattr(templates, "WorkerProcess", self)

    def start(self, begin: Start) -> WorkerProcess:
        if not self.left:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        self.left -= 1
        self.started.append(self._start(begin))
        return self.started[-1]


def test_a_reload_whose_workers_cannot_all_be_started_changes_nothing(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = loop.start_pool(SETTINGS)
    old = list(pool.workers)
    wanted = msgspec.structs.replace(SETTINGS, workers=2)
    room = Room(monkeypatch, 1)
    with pytest.raises(BlockingIOError):
        pool.reload(wanted)
    loop.turn_until(lambda: len(pool.all_workers()) == 1)
    assert [pool.state_of(each) for each in room.started] == [WorkerState.DEAD]
    assert pool.workers == old
    assert pool.settings is SETTINGS
    assert not pool.take_reload_results()
    assert pool.deaths == 0

    room.left = 2
    pool.reload(wanted)
    assert loop.reload_result(pool).problem is None
    assert pool.settings is wanted
    loop.turn_until(lambda: len(pool.all_workers()) == 2)
    assert not set(pool.workers) & set(old)


def test_a_worker_goes_on_if_there_is_no_room_to_recycle_it(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = loop.start_pool(msgspec.structs.replace(SETTINGS, max_points=1))
    (worker,) = pool.workers
    worker.points_of_ended = 1
    Room(monkeypatch, 0)
    monkeypatch.setattr("kapudf_cli.supervisor.replacement._MIN_LIFE_S", 0.0)
    with capture_logs() as events:
        for now_s in (1e9, 1e9 + 1.0, 1e9 + 29.0):
            pool.tick(now_s)
    assert [each["event"] for each in events] == ["worker is recycled", "worker cannot be recycled"]
    assert pool.workers == [worker]
    with capture_logs() as events:
        pool.tick(1e9 + 30.0)
    assert len(events) == 2


def test_a_dead_worker_that_cannot_be_replaced_for_want_of_room_is_later(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = loop.start_pool(SETTINGS)
    room = Room(monkeypatch, 0)
    monkeypatch.setattr("kapudf_cli.supervisor.replacement._LONG_LIFE_S", 0.0)
    with capture_logs() as events:
        pool.workers[0].kill()
        loop.turn_until(lambda: any(each["event"] == "worker cannot start" for each in events))
        assert pool.is_empty
        assert pool.needs_ticks
        room.left = 1
        loop.turn_until(lambda: not pool.is_empty)
    assert pool.deaths == 1
    assert len(pool.workers) == 1


@pytest.mark.parametrize("comes", [True, False], ids=["its successor comes", "nor it comes"])
def test_one_that_dies_before_its_successor_is_ready_is_replaced_once(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, *, comes: bool
) -> None:
    pool = loop.start_pool(msgspec.structs.replace(SETTINGS, max_points=1))
    (worker,) = pool.workers
    worker.points_of_ended = 1
    room = Room(monkeypatch, 10)
    monkeypatch.setattr("kapudf_cli.supervisor.replacement._MIN_LIFE_S", 0.0)
    monkeypatch.setattr("kapudf_cli.supervisor.replacement._LONG_LIFE_S", 0.0)
    pool.tick(1e9)
    (successor,) = room.started
    if not comes:
        successor.kill()
    worker.kill()
    loop.turn_until(lambda: worker not in pool.all_workers())
    loop.turn_until(lambda: [pool.state_of(each) for each in pool.workers] == [WorkerState.SERVING])
    assert len(pool.all_workers()) == 1
    assert (successor in pool.workers) == comes
    assert len(room.started) == (1 if comes else 2)


@pytest.mark.parametrize("left", [0, 10], ids=["no room for a reload", "a reload that fails"])
def test_a_worker_that_fills_in_for_a_dead_one_serves_though_a_reload_fails(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    pool = loop.start_pool(msgspec.structs.replace(SETTINGS, max_points=1))
    (worker,) = pool.workers
    worker.points_of_ended = 1
    room = Room(monkeypatch, 1)
    monkeypatch.setattr("kapudf_cli.supervisor.replacement._MIN_LIFE_S", 0.0)
    monkeypatch.setattr("kapudf_cli.supervisor.replacement._LONG_LIFE_S", 0.0)
    pool.tick(1e9)
    (successor,) = room.started
    os.kill(successor.pid, signal.SIGSTOP)
    worker.kill()
    loop.turn_until(lambda: worker not in pool.all_workers())
    assert pool.workers == [successor]

    room.left = left
    wanted = msgspec.structs.replace(SETTINGS, handler="not-there")
    if left:
        pool.reload(wanted)
        assert loop.reload_result(pool).problem is not None
    else:
        with pytest.raises(BlockingIOError):
            pool.reload(wanted)
    os.kill(successor.pid, signal.SIGCONT)
    loop.turn_until(lambda: states_of(pool) == [WorkerState.SERVING])
    assert pool.all_workers() == [successor]
    assert pool.settings.handler == "mirror"


def test_workers_that_could_not_be_started_at_first_are_later(
    short_folder: Path, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = Room(monkeypatch, 1)
    wanted = msgspec.structs.replace(SETTINGS, workers=2, socket=str(short_folder / "f"))
    functions = loop.bind_functions(Settings(functions={}, log_format="json"))
    functions.change(functions.prepare(Settings(functions={"f": wanted}, log_format="json")))
    with pytest.raises(WorkerStartError):
        functions.start()
    (pool,) = functions.pools()
    assert len(pool.workers) == 1
    room.left = 1
    loop.turn_until(lambda: states_of(pool) == [WorkerState.SERVING] * 2)
    assert pool.is_ready


def test_a_reload_that_is_followed_by_another_has_a_result(loop: Loop) -> None:
    pool = loop.start_pool(SETTINGS)
    pool.reload(SETTINGS)
    pool.reload(SETTINGS)
    assert pool.take_reload_results() == [Reloaded(problem="another reload began")]
    result = loop.reload_result(pool)
    assert (result.connections, result.stay, result.problem) == (0, 0, None)
    assert not pool.take_reload_results()


def test_a_worker_that_reads_no_orders_for_long_is_replaced_and_the_log_says_why(
    loop: Loop,
) -> None:
    pool = loop.start_pool(msgspec.structs.replace(SETTINGS, busy_limit_s=1.0))
    (worker,) = pool.workers
    with capture_logs() as events:
        os.kill(worker.pid, signal.SIGSTOP)
        while not worker.lacks_room:
            worker.send(orders.Resume(1))
        loop.turn_until(lambda: worker not in pool.workers)
    told = {each["event"]: each for each in events}
    assert told["worker reads no orders, it is replaced"]["worker"] == worker.number
    assert told["worker died"]["how"] == "SIGKILL"
    assert "read no orders for" in told["worker died"]["reason"]


def test_a_worker_that_closed_its_channel_is_replaced_and_delays_nothing(loop: Loop) -> None:
    pool = loop.start_pool(SETTINGS)
    (worker,) = pool.workers
    os.kill(worker.pid, signal.SIGSTOP)
    with capture_logs() as events:
        # To the supervisor, this looks like a handler that closes all descriptors.
        worker.channel.socket.shutdown(socket.SHUT_RDWR)
        turns_s = loop.turns_until(lambda: worker not in pool.workers)
    assert max(turns_s) < 0.5
    (died,) = (each for each in events if each["event"] == "worker died")
    assert died["how"] == "SIGKILL"
    assert "closed its channel" in died["reason"]


def test_a_retired_worker_that_exits_slowly_has_not_died(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kapudf_cli.supervisor.dispatch._EXIT_PATIENCE_S", 0.5)
    pool = loop.start_pool(SETTINGS)
    (worker,) = pool.workers
    os.kill(worker.pid, signal.SIGSTOP)
    with capture_logs() as events:
        pool.reload(SETTINGS)
        loop.turn_until(lambda: pool.state_of(worker) is WorkerState.RETIRING)
        worker.channel.socket.shutdown(socket.SHUT_RDWR)
        loop.turn_until(lambda: worker not in pool.all_workers())
    names = [each["event"] for each in events]
    assert "worker takes too long to exit, and is killed" in names
    assert "worker died" not in names
    assert pool.deaths == 0


#: A handler that only one process can load.
FOR_ONE = """
import os
from kapudf_handlers.mirror import Mirror

os.close(os.open({gate!r}, os.O_CREAT | os.O_EXCL))


class Rejected(Mirror):
    pass
"""


def test_after_a_failed_reload_the_handler_that_serves_is_shown(loop: Loop, tmp_path: Path) -> None:
    file = tmp_path / "rejected.py"
    file.write_text(FOR_ONE.format(gate=str(tmp_path / "gate")), encoding="utf-8")
    pool = loop.start_pool(SETTINGS)
    before = pool.loaded
    assert before is not None
    assert before.handler == "Mirror"
    wanted = msgspec.structs.replace(SETTINGS, handler=f"{file}:Rejected", workers=2)
    pool.reload(wanted)
    assert loop.reload_result(pool).problem is not None
    assert pool.loaded is before


def test_a_long_wait_for_a_worker_is_logged_once(
    loop: Loop, kept: JournaledConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = loop.start_pool(SETTINGS)
    Room(monkeypatch, 0)
    pool.workers[0].kill()
    loop.turn_until(lambda: pool.is_empty)
    waiting = supervised(kept, busy_limit_s=1.0)
    pool.add(waiting)
    with capture_logs() as events:
        for now_s in (100.0, 105.0, 110.0, 120.0):
            pool.tick(now_s)
    warnings = [each for each in events if each["event"] == "connections wait for a worker"]
    assert [(each["connections"], each["wait_s"]) for each in warnings] == [(1, 10.0)]
    waiting.close()


def test_a_connection_that_a_dead_worker_logged_as_finished_is_not_taken_over(
    loop: Loop, kept: JournaledConnection
) -> None:
    pool = loop.start_pool(SETTINGS)
    (worker,) = pool.workers
    for number in (7, 8):
        pool.add(supervised(kept, number, busy_limit_s=1.0))
    loop.turn_until(lambda: pool.connections_of(worker) == 2)
    os.kill(worker.pid, signal.SIGSTOP)
    # The worker has logged the finish, and dies before it reports it.
    worker.record.add_finished(7)
    with capture_logs() as events:
        pool.kill()
        loop.turn_until(lambda: pool.is_empty)
        assert pool.abandon() == 1
    finished = [each["connection"] for each in events if each["event"] == "connection finished"]
    assert finished == [8]
    pool.connections[8].close()
