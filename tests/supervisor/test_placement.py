"""Which worker serves which connection, decided with workers that only note their orders."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any, cast

import pytest

from kapudf_cli.supervisor.connection import SupervisedConnection
from kapudf_cli.supervisor.router import Router, furthest_apart
from kapudf_cli.supervisor.worker_process import WorkerState
from kapudf_cli.system import logs
from kapudf_cli.worker import channel as orders
from tests.journal.connections import JournaledConnection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kapudf_cli.worker.channel import Order

#: Threads of the worker that has the connection, and of the one that was to have it.
OLD_THREAD, NEW_THREAD = 11, 22


class ToldWorker:
    """A worker that notes what it is told, and has room for some connections."""

    def __init__(self, number: int, *, room: int = 100) -> None:
        self.number = number
        self.state = WorkerState.SERVING
        self.connections: set[int] = set()
        self.hung: set[int] = set()
        self.is_frozen = False
        self.told: list[Order] = []
        self.room = room
        self.rests = 0
        self.points_of_ended = 0

    @property
    def has_room(self) -> bool:
        return self.room > 0

    def send(self, order: Order) -> None:
        self.told.append(order)

    def hand_over(self, order: orders.Serve, descriptors: list[int]) -> bool:
        assert len(descriptors) == 2
        if not self.has_room:
            return False
        self.room -= 1
        self.told.append(order)
        return True

    def rest(self) -> float:
        self.rests += 1
        return 0.5

    def end_rest(self) -> None:
        self.rests = 0

    def taken(self) -> list[int]:
        """Return the connections that it was told to serve, in their order."""
        return [each.connection for each in self.told if isinstance(each, orders.Serve)]


class Function:
    """The connections of one function, and workers that are told to serve them."""

    def __init__(self, *rooms: int) -> None:
        self.workers = [ToldWorker(number, room=room) for number, room in enumerate(rooms, 1)]
        self.left: list[ToldWorker] = []
        self.placement = Router(
            cast("Any", self.workers), on_left=cast("Any", self.left.append), log=logs.get_logger()
        )
        self.kept: list[JournaledConnection] = []

    def connect(self, count: int) -> None:
        """Add new connections."""
        for _ in range(count):
            kept = JournaledConnection()
            self.kept.append(kept)
            self.placement.add(
                SupervisedConnection(
                    len(self.kept), kept.connection.dup(), os.dup(kept.memory), None,
                    busy_limit_s=10.0,
                )
            )  # fmt: skip

    def place(self) -> None:
        self.placement.place_waiting()

    def bury(self, worker: ToldWorker, how: str = "SIGKILL") -> None:
        """Have a worker die."""
        self.workers.remove(worker)
        self.placement.on_death(cast("Any", worker), how, "", drops_poison=False)

    def suspect(self, number: int) -> SupervisedConnection:
        """Have a connection suspected of killing workers, and kept apart from other suspects."""
        served = self.placement.connections[number]
        served.poison_detector.until, served.poison_detector.isolated = 100, True
        return served

    def pause(self, worker: ToldWorker) -> list[int]:
        """Answer all of a worker's orders to pause; return which connections those were."""
        paused = [each.connection for each in worker.told if isinstance(each, orders.Pause)]
        worker.told = [each for each in worker.told if not isinstance(each, orders.Pause)]
        for number in paused:
            self.placement.on_report(cast("Any", worker), orders.Paused(number))
        return paused

    def take_over(self, worker: ToldWorker) -> None:
        """Have a worker take over what it was told to."""
        for number in worker.taken():
            self.placement.on_report(cast("Any", worker), orders.TakenOver(number))
        worker.told.clear()

    def loads(self) -> list[int]:
        return [len(worker.connections) for worker in self.workers]

    def close(self) -> None:
        for served in self.placement.connections.values():
            served.close()
        for kept in self.kept:
            kept.close()


@pytest.fixture
def function() -> Iterator[Callable[..., Function]]:
    """Give a way to have a function, whose workers have room for so many connections each."""
    with contextlib.ExitStack() as made:

        def make(*rooms: int) -> Function:
            return made.enter_context(contextlib.closing(Function(*rooms)))

        yield make


class PausedMove:
    """A connection on its way from one worker to another, which was told to take it."""

    def __init__(self, kept: JournaledConnection) -> None:
        self.served = SupervisedConnection(
            7, kept.connection.dup(), os.dup(kept.memory), None, busy_limit_s=10.0
        )
        self.old = cast("Any", ToldWorker(1))
        self.new = cast("Any", ToldWorker(2, room=0))
        workers = [self.old, self.new]
        self.placement = Router(workers, on_left=lambda _: None, log=logs.get_logger())
        self.placement.add(self.served)
        self.placement.place_waiting()
        self.served.header.thread = OLD_THREAD
        self.old.told.clear()
        self.old.state, self.new.room = WorkerState.RETIRING, 1
        self.placement.begin_moves(self.old)
        assert self.old.told.pop() == orders.Pause(7)
        self.placement.on_report(self.old, orders.Paused(7))
        self.served.header.thread = NEW_THREAD


@pytest.fixture
def paused() -> Iterator[PausedMove]:
    """Give one."""
    kept = JournaledConnection()
    paused = PausedMove(kept)
    yield paused
    paused.served.close()
    kept.close()


@pytest.mark.parametrize("why", ["it is refused", "the new worker dies", "kapudf stops"])
def test_the_old_workers_thread_serves_the_connection_again(paused: PausedMove, why: str) -> None:
    """A fault of that thread is the connection's, and of no other."""
    match why:
        case "it is refused":
            paused.placement.on_report(paused.new, orders.Refused(7, "no such state"))
        case "the new worker dies":
            paused.placement.on_death(paused.new, "SIGKILL", "", drops_poison=False)
        case _:
            paused.placement.abandon_moves()
    assert paused.old.told == [orders.Resume(7)]
    assert paused.served.worker is paused.old
    assert not paused.new.connections
    assert paused.served.move is None
    assert paused.served.header.thread == OLD_THREAD


def test_after_a_handover_it_is_the_new_workers(paused: PausedMove) -> None:
    """Which noted it when it began."""
    paused.placement.on_report(paused.new, orders.TakenOver(7))
    assert paused.old.told == [orders.Release(7)]
    assert paused.served.header.thread == NEW_THREAD


# --- new connections and orphans ---


def test_new_connections_go_to_the_least_busy_worker(
    function: Callable[..., Function],
) -> None:
    made = function(100, 100, 100)
    made.connect(7)
    made.place()
    assert [worker.taken() for worker in made.workers] == [[1, 4, 7], [2, 5], [3, 6]]


def test_connections_wait_for_room_and_are_given_in_their_order(
    function: Callable[..., Function],
) -> None:
    """A worker that has not read its orders is given no more, and is not killed for it."""
    made = function(2, 3)
    made.connect(8)
    made.place()
    assert [worker.taken() for worker in made.workers] == [[1, 3], [2, 4, 5]]
    assert made.placement.has_waiting
    made.workers[0].room = 10
    made.place()
    assert made.workers[0].taken() == [1, 3, 6, 7, 8]
    assert not made.placement.has_waiting


def test_no_more_connections_are_accepted_while_many_wait_for_room(
    function: Callable[..., Function],
) -> None:
    made = function(0)
    while made.placement.may_add:
        made.connect(1)
    waiting = len(made.kept)
    assert 100 < waiting < 1000
    made.workers[0].room = 1
    made.place()
    assert made.placement.may_add


def test_connections_of_a_dead_worker_come_before_new_ones(
    function: Callable[..., Function],
) -> None:
    made = function(2)
    made.connect(3)
    made.place()
    made.bury(made.workers[0])
    made.workers.append(ToldWorker(2))
    made.place()
    (worker,) = made.workers
    assert worker.taken() == [1, 2, 3]
    takes = [each for each in worker.told if isinstance(each, orders.Serve)]
    assert [each.takes_over for each in takes] == [True, True, False]


def test_a_death_before_a_worker_began_with_a_connection_does_not_concern_it(
    function: Callable[..., Function],
) -> None:
    """Several workers may die before one begins; the connection is no suspect for that."""
    made = function(100)
    made.connect(1)
    for number in range(2, 6):
        made.place()
        made.bury(made.workers[0], "SIGSEGV")
        made.workers.append(ToldWorker(number))
    served = made.placement.connections[1]
    assert (served.takeovers, served.poison_detector.until, served.poison_detector.isolated) == (
        4,
        0,
        False,
    )


def test_a_worker_that_lacks_descriptors_rests_and_the_connection_waits(
    function: Callable[..., Function],
) -> None:
    """Until a connection of its own ends, or for a while."""
    made = function(100)
    made.connect(2)
    made.place()
    (worker,) = made.workers
    refusal = orders.Refused(2, "no file descriptors are left", retry=True)
    made.placement.on_report(cast("Any", worker), refusal)
    assert (worker.rests, worker.connections) == (1, {1})
    assert made.placement.has_waiting
    made.placement.on_finished(cast("Any", worker), 1)
    assert worker.rests == 0


# --- suspects ---


@pytest.mark.parametrize(
    ("suspects", "taken", "waits"),
    [
        ([], [[1, 3], [2, 4]], False),
        ([1, 2], [[1, 3], [2, 4]], False),
        ([1, 3], [[1, 4], [2, 3]], False),
        ([1, 2, 3], [[1, 4], [2]], True),
    ],
    ids=["none", "one each", "both would meet", "one too many"],
)
def test_suspects_are_kept_apart_and_wait_only_if_each_worker_has_one(
    function: Callable[..., Function], suspects: list[int], taken: list[list[int]], *, waits: bool
) -> None:
    made = function(0, 0)
    made.connect(4)
    for number in suspects:
        made.suspect(number)
    for worker in made.workers:
        worker.room = 100
    made.place()
    assert [sorted(worker.connections) for worker in made.workers] == taken
    assert made.placement.has_waiting is waits


def test_a_suspect_is_taken_by_an_idle_worker_though_it_serves_more(
    function: Callable[..., Function],
) -> None:
    """It does not wait behind another suspect on the worker with the fewest connections."""
    made = function(0, 100)
    made.connect(3)
    made.place()
    made.workers[0].room = 100
    made.connect(2)
    made.suspect(4)
    made.place()
    assert [sorted(worker.connections) for worker in made.workers] == [[4, 5], [1, 2, 3]]
    made.connect(1)
    made.suspect(6)
    made.place()
    assert 6 in made.workers[1].connections


# --- spreading and moves ---


@pytest.mark.parametrize(
    ("loads", "pair"),
    [
        ({}, None),
        ({"a": 9}, None),
        ({"a": 2, "b": 1}, None),
        ({"a": 2, "b": 0}, ("a", "b")),
        ({"a": 3, "b": 7, "c": 5}, ("b", "a")),
    ],
    ids=["no worker", "one worker", "even", "uneven", "of three"],
)
def test_the_busiest_worker_and_the_least_busy_one(
    loads: dict[str, int], pair: tuple[str, str] | None
) -> None:
    assert furthest_apart(loads) == pair


def test_connections_are_spread_once_there_are_workers_again(
    function: Callable[..., Function],
) -> None:
    """All of them are handed over by the worker that came first, and none comes back."""
    made = function(100, 0, 0)
    made.connect(10)
    made.place()
    for worker in made.workers:
        worker.told.clear()
        worker.room = 100
    made.placement.spread()
    assert not made.workers[0].told
    made.placement.begin_spreading()
    for _ in range(3):
        made.placement.spread()
        made.pause(made.workers[0])
        for worker in made.workers[1:]:
            made.take_over(worker)
    assert made.loads() == [4, 3, 3]
    assert {served.move for served in made.placement.connections.values()} == {None}


def test_only_some_connections_stand_still_at_the_same_time(
    function: Callable[..., Function],
) -> None:
    """Each is handed over as another one has been."""
    made = function(100, 0)
    made.connect(60)
    made.place()
    old, new = made.workers
    old.state, new.room = WorkerState.RETIRING, 100
    old.told.clear()
    made.placement.begin_moves(cast("Any", old))
    steps = 0
    while made.placement.move_on():
        assert 0 < len(made.pause(old)) <= 16
        made.take_over(new)
        steps += 1
    assert steps >= 4
    assert made.loads() == [0, 60]


def test_a_connection_whose_new_worker_has_no_room_does_not_stand_still(
    function: Callable[..., Function],
) -> None:
    made = function(1, 0)
    made.connect(1)
    made.place()
    old, new = made.workers
    old.state, new.room = WorkerState.RETIRING, 1
    old.told.clear()
    made.placement.begin_moves(cast("Any", old))
    new.room = 0
    assert made.pause(old) == [1]
    assert old.told == [orders.Resume(1)]
    assert made.placement.move_on()
    new.room = 1
    assert made.placement.move_on()
    assert made.pause(old) == [1]
    assert new.taken() == [1]


def test_a_frozen_worker_is_given_connections_only_if_there_is_no_other(
    function: Callable[..., Function],
) -> None:
    """They would wait there until it is replaced."""
    served = function(10, 3)
    served.workers[0].is_frozen = True
    served.connect(4)
    served.place()
    assert served.loads() == [1, 3]


# --- whose fault a hang is ---

STACKS = """\
Thread 0x000000000000000b (most recent call first):
  File "slow.py", line 3 in wait
  File "slow.py", line 9 in point
Current thread 0x0000000000000001 (most recent call first):
  File "worker.py", line 1 in main
"""


class Judged(SupervisedConnection):
    """A connection that notes what is said of a death."""

    judgement: tuple[str, bool | None] | None = None

    def note_death(self, how: str, *, accused: bool | None, **more: Any) -> None:
        self.judgement = (how, accused)
        super().note_death(how, accused=accused, **more)


@pytest.mark.parametrize(
    ("hung", "at_work", "silent_s", "stacks", "accused"),
    [
        ({1}, {1, 2}, 0.0, STACKS, [True, False]),
        ({1, 2}, {1, 2}, 0.0, STACKS, [True, True]),
        ({1}, {1}, 60.0, STACKS, [True, False]),
        ({1}, {1, 2}, 60.0, STACKS, [None, None]),
        ({1, 2}, {1, 2}, 60.0, STACKS, [None, None]),
        ({1}, {1}, 60.0, "", [None, None]),
    ],
    ids=[
        "one hangs, the other works",
        "both hang",
        "one keeps the interpreter, the other waits",
        "one keeps the interpreter, the other was at work",
        "it looks as if both hang, for one keeps the interpreter",
        "the process was stopped",
    ],
)
def test_a_hang_is_blamed_on_a_connection_only_if_it_must_be_its_own(
    hung: set[int], at_work: set[int], silent_s: float, stacks: str, accused: list[bool | None]
) -> None:
    """And the one that is blamed is told where it hung."""
    worker = cast("Any", ToldWorker(1))
    worker.hung = hung
    worker.connections = {1, 2}
    placement = Router([], on_left=lambda _: None, log=logs.get_logger())
    with contextlib.ExitStack() as undo:
        connections = []
        for number in (1, 2):
            kept = JournaledConnection()
            undo.callback(kept.close)
            served = Judged(
                number, kept.connection.dup(), os.dup(kept.memory), None, busy_limit_s=10.0
            )
            undo.callback(served.close)
            served.take()
            served.worker = worker
            served.header.thread = 10 + number
            served.header.busy_since_ns = int(number in at_work)
            served.header.heartbeat_ns = time.monotonic_ns() - round(silent_s * 1e9)
            placement.connections[number] = served
            connections.append(served)
        placement.on_death(worker, "SIGKILL", stacks, drops_poison=True)
        judgements = [served.judgement for served in connections]
    assert [each and each[1] for each in judgements] == accused
    if stacks:
        assert judgements[0] == (
            "hung for 0 s in wait (slow.py:3) < point (slow.py:9)",
            accused[0],
        )
    if 2 not in hung:
        assert judgements[1] == ("died by SIGKILL", accused[1])
