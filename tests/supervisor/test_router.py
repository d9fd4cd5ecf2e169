"""Routing decisions: tables of examples, and a state machine that checks the invariants."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from kapudf_cli.supervisor.router import Router, furthest_apart
from kapudf_cli.supervisor.routes import (
    Assign,
    ConnectionState,
    Give,
    Kill,
    Order,
    Promote,
    Reason,
    Replacement,
    RoutedConnection,
    Switch,
    Tell,
    WorkerState,
)
from kapudf_cli.worker.channel import Pause, Release, Resume, Stop
from tests.examples import examples


class Function:
    """A router with workers that have room for `room` connections each."""

    def __init__(self, *rooms: int) -> None:
        self.router = Router()
        self.room = dict(enumerate(rooms, 1))
        self.given: dict[int, list[int]] = {number: [] for number in self.room}
        self.connected = 0
        self.start(*self.room)

    def start(
        self, *workers: int, reason: Reason = Reason.DEATH, old: tuple[int, ...] = ()
    ) -> None:
        """Start workers that are ready at once."""
        self.router.begin(Replacement(reason, workers, old))
        for number in workers:
            self.given.setdefault(number, [])
            self.room.setdefault(number, 100)
        self.orders = [order for number in workers for order in self.router.on_ready(number)]

    def connect(self, count: int) -> None:
        for _ in range(count):
            self.connected += 1
            self.router.add(RoutedConnection(self.connected))

    def with_room(self) -> set[int]:
        return {number for number, room in self.room.items() if room}

    def place(self) -> None:
        """Place all connections for which there is room."""
        while gives := self.router.place(self.with_room()):
            for give in gives:
                self.room[give.worker] -= 1
                self.given[give.worker].append(give.connection)

    def isolate(self, *numbers: int) -> None:
        """Mark connections as suspected of killing workers."""
        for number in numbers:
            self.router.observe(number, is_isolated=True, is_careful=True, is_movable=False)

    def loads(self) -> dict[int, int]:
        return {
            each.number: len(each.connections)
            for each in self.router.workers.values()
            if each.state is not WorkerState.DEAD
        }

    def move(self) -> list[int]:
        """Start and complete all handovers that may start; return the connections."""
        moved = []
        for order in self.router.move(200.0, self.with_room()):
            assert isinstance(order, Tell)
            assert isinstance(order.message, Pause)
            (give,) = self.router.on_paused(order.worker, order.message.connection)
            assert isinstance(give, Give)
            assert give.waits
            self.router.on_taken_over(give.worker, give.connection)
            moved.append(give.connection)
        return moved


# --- placing ---


@pytest.mark.parametrize(
    ("rooms", "connections", "given", "waiting"),
    [
        ((100, 100, 100), 7, [[1, 4, 7], [2, 5], [3, 6]], False),
        ((2, 3), 8, [[1, 3], [2, 4, 5]], True),
        ((0, 0), 2, [[], []], True),
        ((), 1, [], True),
    ],
    ids=["the least busy worker first", "until no worker has room", "no room", "no worker"],
)
def test_new_connections_are_placed_in_their_order(
    rooms: tuple[int, ...], connections: int, given: list[list[int]], *, waiting: bool
) -> None:
    function = Function(*rooms)
    function.connect(connections)
    function.place()
    assert list(function.given.values()) == given
    assert function.router.has_waiting is waiting


def test_a_connection_that_could_not_be_sent_is_the_next_one() -> None:
    function = Function(100)
    function.connect(3)
    (give,) = function.router.place({1})
    assert function.router.on_unsent(give) == []
    assert function.loads() == {1: 0}
    function.place()
    assert function.given == {1: [1, 2, 3]}


def test_no_more_connections_are_accepted_while_many_wait() -> None:
    function = Function(0)
    while function.router.may_add:
        function.connect(1)
    assert 100 < function.connected < 1000
    function.room[1] = 1
    function.place()
    assert function.router.may_add


def test_connections_of_a_dead_worker_come_before_new_ones() -> None:
    function = Function(2)
    function.connect(3)
    function.place()
    assert function.router.on_exit(1) == []
    function.start(2)
    gives = []
    while new := function.router.place({2}):
        gives += new
    assert gives == [Give(2, 1, takes_over=True), Give(2, 2, takes_over=True), Give(2, 3)]


@pytest.mark.parametrize(
    ("suspects", "loads", "waits"),
    [
        ([], [[1, 3], [2, 4]], False),
        ([1, 2], [[1, 3], [2, 4]], False),
        ([1, 3], [[1, 4], [2, 3]], False),
        ([1, 2, 3], [[1, 4], [2]], True),
    ],
    ids=["none", "one each", "both would meet", "one too many"],
)
def test_suspects_are_kept_apart_and_wait_only_if_each_worker_has_one(
    suspects: list[int], loads: list[list[int]], *, waits: bool
) -> None:
    function = Function(100, 100)
    function.connect(4)
    function.isolate(*suspects)
    function.place()
    assert [sorted(each.connections) for each in function.router.workers.values()] == loads
    assert function.router.has_waiting is waits


def test_a_suspect_goes_to_a_busier_worker_rather_than_to_one_with_a_suspect() -> None:
    function = Function(0, 100)
    function.connect(3)
    function.place()
    function.room[1] = 100
    function.connect(2)
    function.isolate(4)
    function.place()
    assert function.given == {1: [4, 5], 2: [1, 2, 3]}
    function.connect(1)
    function.isolate(6)
    function.place()
    assert function.given[2] == [1, 2, 3, 6]


def test_a_frozen_worker_gets_connections_only_if_no_other_has_room() -> None:
    function = Function(10, 3)
    function.router.observe_frozen({1})
    function.connect(4)
    function.place()
    assert function.loads() == {1: 1, 2: 3}


def test_a_connection_that_a_worker_refuses_waits_for_another() -> None:
    function = Function(100)
    function.connect(1)
    function.place()
    assert function.router.on_refused(1, 1, retry=True) == []
    assert function.router.connections[1].state is ConnectionState.WAITING
    assert function.router.place({1}) == [Give(1, 1, takes_over=True)]


# --- handovers ---


class Handover(Function):
    """A connection that worker 1 has paused, and worker 2 is taking over for a reload."""

    def __init__(self, *, paused: bool = True) -> None:
        super().__init__(100)
        self.connect(1)
        self.place()
        self.start(2, reason=Reason.RELOAD, old=(1,))
        assert self.router.move(100.0, {1, 2}) == [Tell(1, Pause(1))]
        if paused:
            assert self.router.on_paused(1, 1) == [Give(2, 1, takes_over=True, waits=True)]

    def expect(self, orders: list[Order], *, worker: int | None, state: ConnectionState) -> None:
        (connection,) = self.router.connections.values()
        assert (connection.worker, connection.target, connection.state) == (worker, None, state)
        assert orders == self.wanted

    wanted: list[Order]


def test_the_old_worker_releases_a_connection_before_the_new_one_goes_on() -> None:
    function = Handover()
    function.wanted = [Tell(1, Release(1)), Assign(2, 1), Tell(2, Resume(1)), Tell(1, Stop())]
    orders = function.router.on_taken_over(2, 1)
    function.expect(orders, worker=2, state=ConnectionState.SERVED)


@pytest.mark.parametrize(
    ("event", "orders", "worker", "state"),
    [
        ("it is refused", [Tell(1, Resume(1))], 1, ConnectionState.PINNED),
        ("it is refused for now", [Tell(1, Resume(1))], 1, ConnectionState.SERVED),
        ("the new worker dies", [Tell(1, Resume(1))], 1, ConnectionState.SERVED),
        ("the old worker dies", [Assign(2, 1), Tell(2, Resume(1))], 2, ConnectionState.SERVED),
        ("kapudf stops", [Tell(2, Release(1)), Tell(1, Resume(1))], 1, ConnectionState.SERVED),
        ("it cannot be sent", [Tell(1, Resume(1))], 1, ConnectionState.SERVED),
    ],
)
def test_a_handover_that_ends_early_leaves_one_worker_that_goes_on(
    event: str, orders: list[Order], worker: int, state: ConnectionState
) -> None:
    function = Handover()
    function.wanted = orders
    router = function.router
    match event:
        case "it is refused":
            got = router.on_refused(2, 1, retry=False)
        case "it is refused for now":
            got = router.on_refused(2, 1, retry=True)
        case "the new worker dies":
            got = router.on_exit(2)
        case "the old worker dies":
            got = router.on_exit(1)
        case "kapudf stops":
            got = router.abandon_moves()
        case _:
            got = router.on_unsent(Give(2, 1, takes_over=True, waits=True))
    function.expect(got, worker=worker, state=state)
    if event != "the new worker dies":
        assert function.loads()[3 - worker if 3 - worker in function.loads() else worker] in {0, 1}


def test_a_worker_that_pauses_after_its_handover_was_abandoned_is_resumed() -> None:
    function = Handover(paused=False)
    assert function.router.abandon_moves() == []
    assert function.router.on_paused(1, 1) == [Tell(1, Resume(1))]


def test_both_workers_of_a_handover_release_a_connection_that_ends() -> None:
    function = Handover()
    assert function.router.on_finished(1, 1) == [Tell(1, Stop()), Tell(2, Release(1))]
    assert not function.router.connections
    assert function.router.on_paused(1, 1) == []


def test_a_pinned_connection_is_tried_again_by_the_next_reload_only() -> None:
    function = Handover()
    function.router.on_refused(2, 1, retry=False)
    assert not function.router.has_left_to_move
    assert function.router.move(100.0, {1, 2}) == []
    function.start(3, reason=Reason.RELOAD, old=(1, 2))
    assert function.move() == [1]


def test_a_limited_number_of_connections_is_paused_at_once() -> None:
    function = Function(100)
    function.connect(60)
    function.place()
    function.start(2, reason=Reason.RELOAD, old=(1,))
    first = function.router.move(100.0, {2})
    assert len(first) == 16
    assert function.router.move(100.4, {2}) == []
    # Connections that have not paused by then are busy, and do not delay others.
    assert len(function.router.move(101.0, {2})) == 16
    for order in first:
        assert isinstance(order, Tell)
        assert isinstance(order.message, Pause)
        function.router.on_paused(1, order.message.connection)
        function.router.on_taken_over(2, order.message.connection)
    while function.move():
        pass
    # The busy ones are counted at both workers.
    assert function.loads() == {1: 16, 2: 60}


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


def test_connections_are_spread_once_there_are_workers_again() -> None:
    function = Function(100)
    function.connect(10)
    function.place()
    assert function.move() == []
    function.start(2, 3)
    while function.move():
        pass
    assert function.loads() == {1: 4, 2: 3, 3: 3}


def test_only_connections_that_can_be_moved_are_spread() -> None:
    function = Function(100)
    function.connect(4)
    function.place()
    for number in (1, 2, 4):
        function.router.observe(number, is_isolated=False, is_careful=False, is_movable=False)
    function.start(2)
    assert function.move() == [3]
    assert function.move() == []
    # They are spread as soon as one more can be moved.
    function.router.observe(4, is_isolated=False, is_careful=False, is_movable=True)
    assert function.router.needs_room
    assert function.move() == [4]
    assert function.loads() == {1: 2, 2: 2}
    assert function.move() == []
    assert not function.router.needs_room


def test_connections_are_spread_once_a_worker_without_room_has_some() -> None:
    function = Function(100, 1)
    assert function.move() == []
    function.connect(6)
    function.place()
    assert function.loads() == {1: 5, 2: 1}
    assert function.move() == []
    function.room[2] = 100
    while function.move():
        pass
    assert function.loads() == {1: 3, 2: 3}
    assert not function.router.needs_room


def test_connections_are_spread_once_a_frozen_worker_runs_again() -> None:
    function = Function(100)
    function.connect(4)
    function.place()
    function.start(2)
    function.router.observe_frozen({2})
    assert function.move() == []
    assert not function.router.needs_room
    function.router.observe_frozen(())
    while function.move():
        pass
    assert function.loads() == {1: 2, 2: 2}


# --- replacements ---


def test_the_workers_of_a_reload_serve_once_all_are_ready() -> None:
    function = Function(100)
    router = function.router
    reload = Replacement(Reason.RELOAD, (2, 3), (1,))
    router.begin(reload)
    assert router.on_ready(2) == []
    assert router.workers[2].state is WorkerState.STANDBY
    assert router.on_ready(3) == [Switch(reload), Tell(1, Stop())]
    states = [each.state for each in router.workers.values()]
    assert states == [WorkerState.RETIRING, WorkerState.SERVING, WorkerState.SERVING]


def test_a_worker_started_for_a_dead_one_during_a_reload_retires_too() -> None:
    function = Function(100)
    router = function.router
    router.begin(Replacement(Reason.RELOAD, (2,), (1,)))
    router.on_exit(1)
    router.begin(Replacement(Reason.DEATH, (3,)))
    assert router.on_ready(2) == [Switch(Replacement(Reason.RELOAD, (2,), (3,)))]
    assert router.workers[3].state is WorkerState.RETIRING
    assert router.on_ready(3) == [Tell(3, Stop())]


@pytest.mark.parametrize("event", ["on_failed", "on_exit"])
def test_if_one_new_worker_fails_the_others_are_dismissed(event: str) -> None:
    function = Function(100)
    router = function.router
    router.begin(Replacement(Reason.RELOAD, (2, 3), (1,)))
    router.on_ready(2)
    orders = getattr(router, event)(3)
    assert Kill(2) in orders
    assert router.replacement is None
    assert router.workers[2].state is WorkerState.DISMISSED
    assert router.workers[1].state is WorkerState.SERVING
    assert router.on_ready(2) == []
    assert router.places_filled == 1


def test_a_recycled_worker_that_dies_is_replaced_by_the_one_that_was_to_relieve_it() -> None:
    function = Function(100)
    router = function.router
    router.begin(Replacement(Reason.RECYCLING, (2,), (1,)))
    assert router.places_filled == 1
    assert router.on_exit(1) == []
    assert router.replacement is None
    assert router.places_filled == 1
    assert router.on_ready(2) == []
    assert router.workers[2].state is WorkerState.SERVING


def test_only_one_planned_replacement_is_under_way() -> None:
    function = Function(100)
    function.router.begin(Replacement(Reason.RECYCLING, (2,), (1,)))
    with pytest.raises(ValueError, match="under way"):
        function.router.begin(Replacement(Reason.RELOAD, (3,), (1,)))
    assert function.router.cancel_replacement() == [Kill(2)]
    function.router.begin(Replacement(Reason.RELOAD, (3,), (1,)))


# --- spares ---


class Spared(Function):
    """A worker with a connection, and a spare."""

    def __init__(self, *, ready: bool = True) -> None:
        super().__init__(100)
        self.connect(1)
        self.place()
        self.router.begin(Replacement(Reason.STANDBY, (2,)))
        self.room[2], self.given[2] = 100, []
        if ready:
            assert self.router.on_ready(2) == []

    def states(self) -> list[WorkerState]:
        return [each.state for each in self.router.workers.values()]


def test_a_spare_is_ready_and_serves_nothing() -> None:
    function = Spared()
    assert function.states() == [WorkerState.SERVING, WorkerState.STANDBY]
    assert (function.router.places_filled, function.router.spares) == (1, 1)
    function.connect(1)
    function.place()
    assert function.given == {1: [1, 2], 2: []}
    assert function.move() == []


def test_a_ready_spare_takes_the_place_of_a_dead_worker_at_once() -> None:
    function = Spared()
    assert function.router.on_exit(1) == [Promote(2)]
    assert (function.router.places_filled, function.router.spares) == (1, 0)
    assert function.router.place({2}) == [Give(2, 1, takes_over=True)]


def test_a_spare_that_is_not_ready_takes_the_place_when_it_is() -> None:
    function = Spared(ready=False)
    assert function.router.on_exit(1) == []
    assert (function.router.places_filled, function.router.spares) == (1, 0)
    assert function.router.on_ready(2) == []
    assert function.states() == [WorkerState.SERVING]


def test_a_ready_spare_is_preferred() -> None:
    function = Spared(ready=False)
    function.router.begin(Replacement(Reason.STANDBY, (3,)))
    function.router.on_ready(3)
    assert function.router.on_exit(1) == [Promote(3)]
    assert function.router.spares == 1


def test_a_dead_spare_is_missing_as_a_spare_only() -> None:
    function = Spared()
    assert function.router.on_exit(2) == []
    assert (function.router.places_filled, function.router.spares) == (1, 0)


def test_a_spare_that_cannot_load_the_handler_is_missing_after_its_end() -> None:
    function = Spared(ready=False)
    assert function.router.on_failed(2) == []
    assert function.router.spares == 1
    # It is no help to a worker that dies before it ends.
    assert function.router.on_exit(1) == []
    assert function.router.on_exit(2) == []
    assert (function.router.places_filled, function.router.spares) == (0, 0)


def test_the_spares_of_old_code_end_with_a_reload() -> None:
    function = Spared()
    function.router.begin(Replacement(Reason.STANDBY, (3,)))
    reload = Replacement(Reason.RELOAD, (4,), (1, 2, 3))
    function.router.begin(reload)
    assert function.router.on_ready(4) == [Switch(reload), Tell(2, Stop())]
    assert function.states()[1:3] == [WorkerState.RETIRING] * 2
    assert function.router.on_ready(3) == [Tell(3, Stop())]
    assert function.router.spares == 0


def test_a_spare_that_serves_during_a_reload_is_replaced_too() -> None:
    function = Spared()
    function.router.begin(Replacement(Reason.RELOAD, (3,), (1, 2)))
    assert function.router.on_exit(1) == [Promote(2)]
    assert function.router.on_ready(3) == [
        Switch(Replacement(Reason.RELOAD, (3,), (2,))),
        Tell(2, Stop()),
    ]
    assert function.router.on_exit(2) == []


def test_a_ready_spare_relieves_a_worker_that_is_recycled() -> None:
    function = Spared()
    assert function.router.relieve(1) == [Switch(Replacement(Reason.RECYCLING, (2,), (1,)))]
    assert function.states() == [WorkerState.RETIRING, WorkerState.SERVING]
    assert function.move() == [1]


def test_without_a_ready_spare_none_is_relieved() -> None:
    assert Spared(ready=False).router.relieve(1) == []


def test_a_recycled_worker_that_dies_leaves_the_spare_in_reserve() -> None:
    function = Spared(ready=False)
    function.router.begin(Replacement(Reason.RECYCLING, (3,), (1,)))
    function.router.on_ready(2)
    assert function.router.on_exit(1) == []
    assert (function.router.places_filled, function.router.spares) == (1, 1)


# --- any order of events ---


class Process:
    """A worker process of the model: its orders, and its connections."""

    def __init__(self, number: int) -> None:
        self.number = number
        #: For each connection: "runs", "to pause", "paused" or "restoring".
        self.connections: dict[int, str] = {}
        self.stopped = False

    def handle(self, message: Pause | Resume | Release | Stop) -> None:
        match message:
            case Stop():
                assert not self.connections
                self.stopped = True
            case Pause(connection=number):
                if self.connections[number] != "paused":
                    self.connections[number] = "to pause"
            case Resume(connection=number):
                assert number in self.connections
                self.connections[number] = "runs"
            case Release(connection=number):
                self.connections.pop(number, None)


class RouterMachine(RuleBasedStateMachine):
    """Model of workers that carry out orders at any time, die, and refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.router = Router()
        self.processes: dict[int, Process] = {}
        self.numbers = 0
        self.now_s = 0.0

    # --- the pool's part ---

    def execute(self, orders: list[Order], *, room: bool = True) -> None:
        for order in orders:
            if isinstance(order, Switch | Promote):
                continue
            assert order.worker in self.processes, f"{order} for a dead worker"
            process = self.processes[order.worker]
            match order:
                case Kill():
                    assert not process.connections
                case Give() if not room:
                    self.execute(self.router.on_unsent(order))
                case Give():
                    assert order.connection not in process.connections
                    process.connections[order.connection] = "restoring" if order.waits else "runs"
                case Tell():
                    process.handle(order.message)

    def start(self, reason: Reason, count: int, old: tuple[int, ...] = ()) -> None:
        new = tuple(range(self.numbers + 1, self.numbers + count + 1))
        self.numbers += count
        for number in new:
            self.processes[number] = Process(number)
        self.router.begin(Replacement(reason, new, old))

    # --- events ---

    @initialize()
    def begin(self) -> None:
        """Begin with two workers that serve three connections."""
        self.start(Reason.DEATH, 2)
        for number in (1, 2):
            self.execute(self.router.on_ready(number))
        self.connect(3)

    @rule(count=st.integers(1, 3))
    def connect(self, count: int) -> None:
        for _ in range(count):
            self.numbers += 1
            self.router.add(RoutedConnection(self.numbers))
        self.tick()

    @precondition(lambda self: self.router.places_filled < 3)
    @rule()
    def start_for_dead(self) -> None:
        self.start(Reason.DEATH, 1)

    @precondition(lambda self: self.router.spares < 2)
    @rule()
    def start_spare(self) -> None:
        self.start(Reason.STANDBY, 1)

    @precondition(lambda self: self.router.replacement is None and self.serving())
    @rule(data=st.data())
    def relieve(self, data: st.DataObject) -> None:
        self.execute(self.router.relieve(data.draw(st.sampled_from(self.serving()))))
        self.tick()

    @precondition(lambda self: self.router.replacement is None)
    @rule(count=st.integers(1, 2))
    def reload(self, count: int) -> None:
        self.start(Reason.RELOAD, count, tuple(self.router.workers))

    @precondition(lambda self: self.router.replacement is None and self.serving())
    @rule(data=st.data())
    def recycle(self, data: st.DataObject) -> None:
        self.start(Reason.RECYCLING, 1, (data.draw(st.sampled_from(self.serving())),))

    @precondition(lambda self: self.tasks())
    @rule(data=st.data(), count=st.integers(1, 6))
    def work(self, data: st.DataObject, count: int) -> None:
        """Let workers carry out orders: load, pause, restore."""
        for _ in range(count):
            if tasks := self.tasks():
                process, number, state = data.draw(st.sampled_from(tasks))
                works = data.draw(st.sampled_from([True, True, True, False]))
                self.do(process, number, state, works=works)
                self.tick()

    def do(self, process: Process, number: int, state: str, *, works: bool) -> None:
        match state:
            case "loading" if works:
                self.execute(self.router.on_ready(process.number))
            case "loading":
                if self.router.workers[process.number].state is WorkerState.STARTING:
                    self.execute(self.router.on_failed(process.number))
            case "to pause":
                process.connections[number] = "paused"
                # If it does not work, the new worker has no room.
                self.execute(self.router.on_paused(process.number, number), room=works)
            case _ if works:
                self.execute(self.router.on_taken_over(process.number, number))
            case _:
                # A worker that refuses keeps nothing of the connection.
                del process.connections[number]
                retry = number % 2 == 0
                self.execute(self.router.on_refused(process.number, number, retry=retry))

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.processes)))
        del self.processes[number]
        serving, spares = len(self.serving()), self.ready_spares()
        was_serving = self.router.workers[number].state is WorkerState.SERVING
        recycled = self.router.replacement
        is_relieved = recycled is not None and recycled.reason is Reason.RECYCLING
        self.execute(self.router.on_exit(number))
        if was_serving and spares and not is_relieved:
            assert len(self.serving()) == serving
            assert self.ready_spares() == spares - 1
        self.tick()

    @precondition(lambda self: self.having("runs", "to pause"))
    @rule(data=st.data(), finished=st.booleans())
    def end(self, data: st.DataObject, *, finished: bool) -> None:
        """Let a connection end, or be refused, at its worker."""
        process, number = data.draw(st.sampled_from(self.having("runs", "to pause")))
        del process.connections[number]
        if finished:
            self.execute(self.router.on_finished(process.number, number))
        else:
            self.execute(self.router.on_refused(process.number, number, retry=True))
        self.tick()

    @rule()
    def die_again_and_again(self) -> None:
        """Let all workers die repeatedly, so that all their connections are suspected."""
        for number in list(self.processes):
            del self.processes[number]
            self.execute(self.router.on_exit(number))
        for each in self.router.connections.values():
            self.router.observe(each.number, is_isolated=True, is_careful=True, is_movable=False)
        self.start(Reason.DEATH, 2)

    @rule()
    def acquit(self) -> None:
        for number in self.router.connections:
            self.router.observe(number, is_isolated=False, is_careful=False, is_movable=True)
        self.tick()

    @rule()
    def give_up_handovers(self) -> None:
        self.execute(self.router.abandon_moves())
        self.execute(self.router.cancel_replacement())

    @rule()
    def find_no_room(self) -> None:
        """Fill the channels of all workers before connections are sent."""
        self.execute(list(reversed(self.router.place(set(self.processes)))), room=False)

    def tick(self) -> None:
        """Place and move connections, as the pool does after each event."""
        suspects = {
            number
            for number in self.serving()
            if any(each.is_isolated for each in self.router.served_by(number))
        }
        while gives := self.router.place(set(self.processes)):
            for give in gives:
                if self.router.connections[give.connection].is_isolated:
                    assert give.worker not in suspects, "suspects share a worker"
                    suspects.add(give.worker)
            self.execute(list(gives))
        for connection in self.router.connections.values():
            if connection.state is ConnectionState.WAITING and self.serving():
                assert connection.is_isolated, "it waits although a worker has room"
                assert suspects == set(self.serving())
        self.now_s += 0.2
        self.execute(self.router.move(self.now_s, set(self.processes)))

    def tasks(self) -> list[tuple[Process, int, str]]:
        """Return the orders that workers have not carried out yet."""
        return [
            *((self.processes[number], 0, "loading") for number in self.loading()),
            *(
                (process, number, process.connections[number])
                for process, number in self.having("to pause", "restoring")
            ),
        ]

    def having(self, *states: str) -> list[tuple[Process, int]]:
        """Return the connections of all processes that are in some states."""
        return [
            (process, number)
            for process in self.processes.values()
            for number, state in process.connections.items()
            if state in states
        ]

    def loading(self) -> list[int]:
        """Return the workers that are loading."""
        return [
            each.number
            for each in self.router.workers.values()
            if each.state in {WorkerState.STARTING, WorkerState.RETIRING}
            and not each.connections
            and not self.processes[each.number].stopped
        ]

    def ready_spares(self) -> int:
        return sum(
            each.is_spare and each.state is WorkerState.STANDBY
            for each in self.router.workers.values()
        )

    def serving(self) -> list[int]:
        return [
            each.number
            for each in self.router.workers.values()
            if each.state is WorkerState.SERVING
        ]

    # --- what always holds ---

    @invariant()
    def one_worker_at_most_runs_a_connection(self) -> None:
        runs: dict[int, int] = {}
        for process in self.processes.values():
            for number, state in process.connections.items():
                if state in {"runs", "to pause"}:
                    assert number not in runs, "two workers serve one connection"
                    runs[number] = process.number
        for connection in self.router.connections.values():
            if connection.number in runs:
                assert connection.worker == runs[connection.number]

    @invariant()
    def no_connection_stays_paused(self) -> None:
        """Each paused connection is being taken over; each other one runs at a worker."""
        for connection in self.router.connections.values():
            has = connection.worker
            state = None if has is None else self.processes[has].connections[connection.number]
            match connection.state:
                case ConnectionState.WAITING:
                    assert (has, connection.target) == (None, None)
                case ConnectionState.MOVING:
                    assert state == "paused"
                    assert connection.target is not None
                    target = self.processes[connection.target]
                    assert target.connections[connection.number] == "restoring"
                case ConnectionState.PAUSING:
                    assert state == "to pause"
                    assert connection.target in self.processes
                case _:
                    assert state in {"runs", "to pause"}
                    assert connection.target is None

    @invariant()
    def workers_have_the_connections_that_they_serve_or_are_to_take_over(self) -> None:
        for worker in self.router.workers.values():
            assert worker.connections == {
                each.number
                for each in self.router.connections.values()
                if worker.number in {each.worker, each.target}
            }


RouterMachine.TestCase.settings = examples(1.0, stateful_step_count=30)
TestRouter = RouterMachine.TestCase
