"""Routing: which worker serves which connection.

The router only decides. It is told what happened, and returns orders that the pool carries
out. It does no I/O, calls nothing back and reads no clock.

A connection gets another worker in two ways. After a death, a new worker takes it over from
its journal. In a handover (new code, or a worker that is recycled), the old worker pauses at a
frame boundary until the new one has the handler's state, and goes on if that fails.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from typing import TYPE_CHECKING, Final, TypeVar

from kapudf_cli.supervisor.routes import (
    Assign,
    ConnectionState,
    Give,
    Kill,
    Promote,
    Reason,
    Replacement,
    RoutedWorker,
    Step,
    Switch,
    Tell,
    WorkerState,
)
from kapudf_cli.worker.channel import Pause, Release, Resume, Stop

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from kapudf_cli.supervisor.routes import Order, RoutedConnection

K = TypeVar("K")

#: How many connections are handed over at once. Each one is paused meanwhile, which is short
#: only while the worker that takes it over is not busy with hundreds of others.
_MAX_MOVES: Final = 16
#: A connection that has not paused after this time is busy. It does not count any more, so that
#: other connections are handed over meanwhile.
_PAUSE_S: Final = 0.5
#: How many new connections may wait for a worker; beyond that, none is accepted.
_MAX_NEW: Final = 256


class Router:
    """The connections and workers of one function.

    Attributes:
        connections: those that have not ended, by number.
        workers: those that have not ended, by number.
        replacement: the reload or recycling whose new workers are not all ready, if any.
    """

    def __init__(self) -> None:
        """Begin without connections and workers."""
        self.connections: dict[int, RoutedConnection] = {}
        self.workers: dict[int, RoutedWorker] = {}
        self.replacement: Replacement | None = None
        # Connections without a worker: those whose worker died, and new ones.
        self._orphans: dict[int, RoutedConnection] = {}
        self._new: dict[int, RoutedConnection] = {}
        # Those that are pausing or moving.
        self._moving: dict[int, RoutedConnection] = {}
        # Whether connections are to be spread over the workers, and whether that goes on once
        # one more can be moved, or a frozen worker runs again.
        self._spreads = self._spreads_later = False

    # --- queries ---

    @property
    def may_add(self) -> bool:
        """Whether workers keep up with new connections, so that more should be accepted."""
        return len(self._new) < _MAX_NEW

    @property
    def has_waiting(self) -> bool:
        """Whether connections have no worker."""
        return bool(self._orphans or self._new)

    @property
    def has_left_to_move(self) -> bool:
        """Whether retiring workers serve connections that another worker may take over."""
        return any(
            each.state is not ConnectionState.PINNED
            for worker in self.workers.values()
            if worker.state is WorkerState.RETIRING
            for each in self.served_by(worker.number)
        )

    @property
    def needs_room(self) -> bool:
        """Whether `place` or `move` may return orders if workers have room."""
        return self.has_waiting or self._spreads or self.has_left_to_move

    @property
    def places_filled(self) -> int:
        """How many workers serve or will, without spares and those of a replacement to come."""
        return sum(self._fills_place(each) for each in self.workers.values())

    @property
    def spares(self) -> int:
        """How many spares are ready or starting, or could not load the handler."""
        states = {WorkerState.STARTING, WorkerState.STANDBY, WorkerState.DEAD}
        return sum(each.is_spare and each.state in states for each in self.workers.values())

    def is_replacing(self, worker: int) -> bool:
        """Return whether a worker is a new one of the reload or recycling under way."""
        return self.replacement is not None and worker in self.replacement.new

    def served_by(self, worker: int) -> list[RoutedConnection]:
        """Return the connections that a worker serves, in the order of their numbers."""
        routed = self.workers.get(worker)
        if routed is None:
            return []
        numbers = sorted(routed.connections)
        served = (self.connections[number] for number in numbers if number in self.connections)
        return [each for each in served if each.worker == worker]

    # --- connections come and go ---

    def add(self, connection: RoutedConnection) -> None:
        """Add a connection, which waits until `place` gives it to a worker."""
        self.connections[connection.number] = connection
        waiting = self._orphans if connection.was_served else self._new
        waiting[connection.number] = connection

    def adopt(self, worker: int, connections: Iterable[RoutedConnection]) -> None:
        """Add a worker of an earlier supervisor, and the connections that it serves."""
        routed = self.workers[worker] = RoutedWorker(worker)
        routed.change(Step.SERVE)
        for connection in connections:
            connection.change(Step.GIVE)
            connection.worker, connection.was_served = worker, True
            self.connections[connection.number] = connection
            routed.connections.add(connection.number)

    def observe(
        self, number: int, *, is_isolated: bool, is_careful: bool, is_movable: bool
    ) -> None:
        """Note what is seen of a connection; see `RoutedConnection`."""
        connection = self.connections[number]
        connection.is_isolated = is_isolated
        connection.is_careful = is_careful
        if is_movable and not connection.is_movable:
            self._spreads |= self._spreads_later
        connection.is_movable = is_movable

    def observe_frozen(self, workers: Collection[int]) -> None:
        """Note which workers are frozen; see `RoutedWorker`."""
        for worker in self.workers.values():
            if worker.is_frozen and worker.number not in workers:
                self._spreads |= self._spreads_later
            worker.is_frozen = worker.number in workers

    def place(self, room: Collection[int]) -> list[Give]:
        """Give waiting connections to workers: the least busy first, orphans before new ones.

        To be called again until it returns nothing: it gives each worker one connection at most,
        since only sending the order shows whether there is room for another.

        Args:
            room: the workers that can be sent a connection now.
        """
        serving = [each for each in self.workers.values() if each.state is WorkerState.SERVING]
        ready = [each for each in serving if each.number in room]
        # Workers that serve an isolated connection whose frames are handled one at a time.
        suspected: set[int] | None = None
        gives: dict[int, Give] = {}
        for connection in itertools.chain(self._orphans.values(), self._new.values()):
            may_take = ready
            if connection.is_isolated:
                if suspected is None:
                    suspected = {each.number for each in ready if self._has_suspect(each.number)}
                may_take = [each for each in ready if each.number not in suspected]
            best = min(may_take, key=_preference, default=None)
            if best is None:
                if not ready:
                    break
                continue
            if best.number in gives:
                break
            gives[best.number] = Give(best.number, connection.number, connection.was_served)
            best.connections.add(connection.number)
            if suspected is not None and connection.is_isolated:
                suspected.add(best.number)
        for give in gives.values():
            connection = self.connections[give.connection]
            connection.change(Step.GIVE)
            connection.worker, connection.was_served = give.worker, True
            self._orphans.pop(give.connection, None)
            self._new.pop(give.connection, None)
        least = min((len(each.connections) for each in serving), default=0)
        if any(len(self.workers[number].connections) > least + 1 for number in gives):
            # A worker with fewer connections had no room.
            self._spreads = True
        return list(gives.values())

    def on_unsent(self, give: Give) -> list[Order]:
        """Take back an order that could not be sent; it is given again later."""
        connection = self.connections[give.connection]
        if give.waits:
            # Meanwhile, the old worker must not stay paused.
            return self._go_back(connection)
        connection.change(Step.LOSE)
        connection.worker, connection.was_served = None, give.takes_over
        self.workers[give.worker].connections.discard(give.connection)
        # It comes before those that came after it.
        if give.takes_over:
            self._orphans = {give.connection: connection, **self._orphans}
        else:
            self._new = {give.connection: connection, **self._new}
        return []

    def on_finished(self, worker: int, number: int) -> list[Order]:
        """Forget a connection that has ended at a worker."""
        connection = self.connections.pop(number, None)
        if connection is None:
            return []
        for index in (self._orphans, self._new, self._moving):
            index.pop(number, None)
        others = {connection.worker, connection.target} - {None, worker}
        orders: list[Order] = []
        for each in self.workers.values():
            if each.number in others:
                orders.append(Tell(each.number, Release(number)))
            if number in each.connections:
                orders += self._leave(each.number, number)
        return orders

    # --- handovers ---

    def move(self, now_s: float, room: Collection[int]) -> list[Order]:
        """Begin handovers: of what retiring workers serve, then to even out the rest.

        Args:
            now_s: a monotonic clock's time, in seconds.
            room: the workers that can be sent a connection now.
        """
        orders: list[Order] = []
        for worker in self.workers.values():
            if worker.state is not WorkerState.RETIRING:
                continue
            for connection in self.served_by(worker.number):
                if connection.state is ConnectionState.SERVED:
                    target = self._best(room)
                    if target is None or not self._may_move(now_s):
                        return orders
                    orders.append(self._pause(connection, target, now_s))
        if self._spreads and self.replacement is None and not self.has_left_to_move:
            orders += self._spread(now_s, room)
        return orders

    def on_paused(self, worker: int, number: int) -> list[Order]:
        """Have the new worker take over a connection whose worker has paused."""
        connection = self.connections.get(number)
        if connection is None:
            return []  # It has ended meanwhile.
        if connection.state is ConnectionState.PAUSING and connection.worker == worker:
            connection.change(Step.PAUSE)
            target = self._target_of(connection)
            return [Give(target, number, takes_over=True, waits=True)]
        return [Tell(worker, Resume(number))]

    def on_taken_over(self, worker: int, number: int) -> list[Order]:
        """Complete a handover: the new worker has the handler's state."""
        connection = self.connections.get(number)
        if (
            connection is None
            or connection.state is not ConnectionState.MOVING
            or connection.target != worker
        ):
            return []
        old = connection.worker
        orders = self._complete(connection)
        if old is not None:
            # The old one first: if this process ends in between, no worker is better than two.
            orders[:0] = [Tell(old, Release(number))]
            orders += self._leave(old, number)
        return orders

    def on_refused(self, worker: int, number: int, *, retry: bool) -> list[Order]:
        """Have another worker serve a connection that one could not take.

        Args:
            worker: the one that could not.
            number: the connection.
            retry: whether it was only short of descriptors, memory or threads.
        """
        connection = self.connections.get(number)
        if connection is None:
            return []
        if connection.state is ConnectionState.MOVING and connection.target == worker:
            return self._go_back(connection, Step.GO_BACK if retry else Step.REFUSE)
        if connection.worker != worker:
            return []  # It was to take it over, and is not any more.
        orders = [] if connection.target is None else self._go_back(connection)
        self._lose(connection)
        return orders + self._leave(worker, number)

    def abandon_moves(self) -> list[Order]:
        """Leave every connection with the worker that has it."""
        self._spreads = self._spreads_later = False
        orders: list[Order] = []
        for connection in list(self._moving.values()):
            if connection.state is ConnectionState.MOVING:
                orders.append(Tell(self._target_of(connection), Release(connection.number)))
            # One that has not paused yet is resumed when it has.
            orders += self._go_back(connection)
        return orders

    # --- workers come and go ---

    def begin(self, replacement: Replacement) -> None:
        """Add the new workers of a replacement, which have just been started.

        Of reloads and recyclings, only one may be under way: see `cancel_replacement`.
        """
        is_spare = replacement.reason is Reason.STANDBY
        if is_spare or replacement.reason is Reason.DEATH:
            under_way = self.replacement
            if under_way is not None and under_way.reason is Reason.RELOAD:
                # These are replaced as well.
                self.replacement = dataclasses.replace(
                    under_way, old=(*under_way.old, *replacement.new)
                )
        elif self.replacement is not None:
            problem = "another replacement is under way"
            raise ValueError(problem)
        else:
            self.replacement = replacement
        for number in replacement.new:
            self.workers[number] = RoutedWorker(number, is_spare=is_spare)

    def relieve(self, worker: int) -> list[Order]:
        """Have a spare that is ready serve instead of a worker, which retires.

        Returns:
            Nothing if there is no such spare.
        """
        spare = self._best_spare()
        if spare is None or spare.state is not WorkerState.STANDBY:
            return []
        spare.is_spare = False
        return self._switch(Replacement(Reason.RECYCLING, (spare.number,), (worker,)))

    def on_ready(self, worker: int) -> list[Order]:
        """Have a worker serve that has loaded the handler, once it may."""
        routed = self.workers[worker]
        if routed.state is WorkerState.RETIRING:
            return [Tell(worker, Stop())]
        if routed.state is not WorkerState.STARTING:
            return []
        if routed.is_spare:
            routed.change(Step.STAND_BY)
            return []
        if self.replacement is None or worker not in self.replacement.new:
            routed.change(Step.SERVE)
            # Other workers have taken over what it should serve.
            self._spreads = True
            return []
        routed.change(Step.STAND_BY)
        new = [self.workers[number] for number in self.replacement.new]
        if any(each.state is not WorkerState.STANDBY for each in new):
            return []
        return self._switch(self.replacement)

    def on_failed(self, worker: int) -> list[Order]:
        """Note that a worker could not load the handler; it exits by itself."""
        if self.is_replacing(worker):
            return self.cancel_replacement()
        self.workers[worker].change(Step.DIE)
        return []

    def on_exit(self, worker: int) -> list[Order]:
        """Forget a worker that has ended; its connections wait for another one."""
        orders: list[Order] = []
        leaves_place = self._fills_place(self.workers[worker])
        dead = self.workers.pop(worker)
        dead.change(Step.DIE)
        replacement = self.replacement
        if replacement is not None and worker in replacement.new:
            orders += self.cancel_replacement()
        elif replacement is not None and worker in replacement.old:
            old = tuple(each for each in replacement.old if each != worker)
            if replacement.reason is Reason.RECYCLING:
                # The new one replaces a dead worker now, and no longer waits to serve.
                self.replacement = None
                leaves_place = False
            else:
                self.replacement = dataclasses.replace(replacement, old=old)
        if leaves_place:
            orders += self._promote_spare()
        for number in sorted(dead.connections):
            connection = self.connections[number]
            if connection.worker != worker:
                orders += self._go_back(connection)
            elif connection.state is ConnectionState.MOVING:
                # The new worker has the whole state, and only waits.
                orders += self._complete(connection)
            else:
                if connection.target is not None:
                    orders += self._go_back(connection)
                self._lose(connection)
        return orders

    def cancel_replacement(self) -> list[Order]:
        """Dismiss the new workers of the reload or recycling that is under way, if any."""
        replacement, self.replacement = self.replacement, None
        orders: list[Order] = []
        for number in () if replacement is None else replacement.new:
            worker = self.workers.get(number)
            if worker is not None:
                worker.change(Step.DISMISS)
                orders.append(Kill(number))
        return orders

    # --- inside ---

    def _fills_place(self, worker: RoutedWorker) -> bool:
        """Return whether a worker is one of those that serve, or is about to be."""
        states = {WorkerState.STARTING, WorkerState.SERVING, WorkerState.DEAD}
        is_extra = worker.is_spare or self.is_replacing(worker.number)
        return worker.state in states and not is_extra

    def _best_spare(self) -> RoutedWorker | None:
        """Return a spare, preferably one that is ready; None if there is none."""
        states = [WorkerState.STANDBY, WorkerState.STARTING]
        spares = (each for each in self.workers.values() if each.is_spare and each.state in states)
        return min(spares, key=lambda each: states.index(each.state), default=None)

    def _promote_spare(self) -> list[Order]:
        """Have a spare fill the place of a dead worker, at once or when it is ready."""
        spare = self._best_spare()
        if spare is None:
            return []
        spare.is_spare = False
        if spare.state is WorkerState.STARTING:
            return []
        spare.change(Step.SERVE)
        self._spreads = True
        return [Promote(spare.number)]

    def _switch(self, replacement: Replacement) -> list[Order]:
        """Have the new workers of a replacement serve, and the old ones retire."""
        self.replacement = None
        for number in replacement.new:
            self.workers[number].change(Step.SERVE)
        orders: list[Order] = [Switch(replacement)]
        for number in replacement.old:
            worker = self.workers[number]
            for connection in self.served_by(number):
                if connection.state is ConnectionState.PINNED:
                    # The new code may take over what other code could not.
                    connection.change(Step.UNPIN)
            idle = {WorkerState.SERVING, WorkerState.STANDBY}
            if worker.state in idle and not worker.connections:
                orders.append(Tell(number, Stop()))
            if worker.state in {WorkerState.STARTING, *idle}:
                worker.change(Step.RETIRE)
        return orders

    def _leave(self, worker: int, number: int) -> list[Order]:
        """Take a connection off a worker; one that retires is stopped after its last one."""
        routed = self.workers.get(worker)
        if routed is None:
            return []
        routed.connections.discard(number)
        if routed.state is WorkerState.RETIRING and not routed.connections:
            return [Tell(worker, Stop())]
        return []

    def _lose(self, connection: RoutedConnection) -> None:
        """Have a connection wait for another worker."""
        connection.change(Step.LOSE)
        connection.worker = None
        self._orphans[connection.number] = connection

    def _pause(self, connection: RoutedConnection, target: RoutedWorker, now_s: float) -> Tell:
        """Begin a handover of a connection that is served."""
        connection.change(Step.MOVE)
        connection.target, connection.move_began_s = target.number, now_s
        # It counts as the target's from now on, so that the next one goes to another worker.
        target.connections.add(connection.number)
        self._moving[connection.number] = connection
        return Tell(self._worker_of(connection), Pause(connection.number))

    def _complete(self, connection: RoutedConnection) -> list[Order]:
        """Have the new worker serve a connection that it has taken over."""
        target = self._target_of(connection)
        connection.change(Step.COMPLETE)
        connection.worker, connection.target = target, None
        del self._moving[connection.number]
        return [Assign(target, connection.number), Tell(target, Resume(connection.number))]

    def _go_back(self, connection: RoutedConnection, step: Step = Step.GO_BACK) -> list[Order]:
        """End a handover that has failed; the old worker goes on."""
        was_paused = connection.state is ConnectionState.MOVING
        connection.change(step)
        target, connection.target = self._target_of(connection), None
        del self._moving[connection.number]
        orders = self._leave(target, connection.number)
        if was_paused:
            orders.append(Tell(self._worker_of(connection), Resume(connection.number)))
        return orders

    def _may_move(self, now_s: float) -> bool:
        """Return whether one more connection may be handed over now."""
        if len(self._moving) < _MAX_MOVES:
            return True
        busy = sum(
            each.state is ConnectionState.PAUSING and now_s - each.move_began_s > _PAUSE_S
            for each in self._moving.values()
        )
        return len(self._moving) - busy < _MAX_MOVES

    def _best(self, room: Collection[int]) -> RoutedWorker | None:
        """Return the serving worker that is to get the next connection, None without room."""
        serving = (
            each
            for each in self.workers.values()
            if each.state is WorkerState.SERVING and each.number in room
        )
        return min(serving, key=_preference, default=None)

    def _spread(self, now_s: float, room: Collection[int]) -> list[Order]:
        """Hand connections over from the busiest worker to the least busy one.

        That goes on until they serve equally many. If no connection can be handed over before,
        it goes on once one can, or once a frozen worker runs again.
        """
        orders: list[Order] = []
        while self._may_move(now_s):
            leaving = collections.Counter(each.worker for each in self._moving.values())
            loads = {
                each.number: len(each.connections) - leaving[each.number]
                for each in self.workers.values()
                if each.state is WorkerState.SERVING and not each.is_frozen
            }
            pair = furthest_apart(loads)
            if pair is None:
                # A handover that is under way may still fail.
                self._spreads = bool(self._moving)
                self._spreads_later = any(each.is_frozen for each in self.workers.values())
                break
            busiest, target = pair
            served = self.served_by(busiest)
            movable = (
                each for each in served if each.state is ConnectionState.SERVED and each.is_movable
            )
            connection = next(movable, None)
            if connection is None:
                self._spreads = any(each.target is not None for each in served)
                self._spreads_later = True
                break
            if target not in room:
                break
            orders.append(self._pause(connection, self.workers[target], now_s))
        return orders

    def _has_suspect(self, worker: int) -> bool:
        return any(each.is_isolated and each.is_careful for each in self.served_by(worker))

    def _worker_of(self, connection: RoutedConnection) -> int:
        if connection.worker is None:
            raise ValueError(connection)
        return connection.worker

    def _target_of(self, connection: RoutedConnection) -> int:
        if connection.target is None:
            raise ValueError(connection)
        return connection.target


def furthest_apart(loads: Mapping[K, int]) -> tuple[K, K] | None:
    """Return the busiest worker and the least busy one.

    Returns:
        None if moving one connection between them makes no difference.
    """
    if not loads:
        return None
    busiest, idlest = max(loads, key=loads.__getitem__), min(loads, key=loads.__getitem__)
    return (busiest, idlest) if loads[busiest] - loads[idlest] > 1 else None


def _preference(worker: RoutedWorker) -> tuple[bool, int]:
    """Order workers for a connection, the best first."""
    return worker.is_frozen, len(worker.connections)
