"""Which worker serves which connection, and how a connection gets from one to another.

It goes from worker to worker in one of two ways. After a death, another worker takes it
over from what the journal holds. In a handover, for new code or for a worker that has had
its time, the old worker stands still at a frame's boundary until the new one has the
handler's state, and goes on if that fails.
"""

from __future__ import annotations

import collections
import time
from typing import TYPE_CHECKING, Final, TypeVar

from kapudf_cli.supervisor.connection import Move
from kapudf_cli.supervisor.worker_process import WorkerState
from kapudf_cli.worker import channel as orders
from kapudf_cli.worker import stacks as dumps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from structlog.stdlib import BoundLogger

    from kapudf_cli.supervisor.connection import SupervisedConnection
    from kapudf_cli.supervisor.worker_process import WorkerProcess

W = TypeVar("W")

#: So many connections are handed over at once. Each stands still for a moment, which is short
#: only if the worker that takes it over is not busy with hundreds of others.
_MOST_MOVES: Final = 16
#: A connection that has not paused by then is busy, and keeps no other one from being moved.
_PAUSE_S: Final = 0.5
#: So many new connections wait for room in a worker; more are not accepted.
_MOST_NEWCOMERS: Final = 256
#: For so long, no other thread runs only where one keeps the interpreter.
_KEPT_S: Final = 3.0


class Router:
    """The connections of one function, each with the worker that serves it.

    Attributes:
        connections: those that have not ended, by number.
    """

    def __init__(
        self,
        workers: list[WorkerProcess],
        *,
        on_left: Callable[[WorkerProcess], None],
        log: BoundLogger,
    ) -> None:
        """Give connections to `workers`, a list that its owner changes.

        Args:
            workers: those that serve, or will.
            on_left: called when a worker serves a connection no longer.
            log: where events go.
        """
        self._workers = workers
        self._on_left = on_left
        self._log = log
        self.connections: dict[int, SupervisedConnection] = {}
        # Those without a worker: some had one, which died, and some are new.
        self._orphans: dict[int, SupervisedConnection] = {}
        self._newcomers: dict[int, SupervisedConnection] = {}
        self._moving: dict[int, SupervisedConnection] = {}
        self._spreads = False

    def add(self, served: SupervisedConnection) -> None:
        """Add a new connection, which waits until `place_waiting` gives it to a worker."""
        self.connections[served.number] = served
        self._newcomers[served.number] = served

    @property
    def may_add(self) -> bool:
        """Whether workers keep up with new connections, so that more should be accepted."""
        return len(self._newcomers) < _MOST_NEWCOMERS

    def place_waiting(self) -> None:
        """Give connections without a worker to workers that have room: the least busy first."""
        if not self.has_waiting:
            return
        ready = [
            each for each in self._workers if each.state is WorkerState.SERVING and each.has_room
        ]
        suspected: set[WorkerProcess] | None = None
        for served in (*self._orphans.values(), *self._newcomers.values()):
            if not ready:
                return
            may_take = ready
            if served.poison_detector.isolated:
                # If its worker dies too, it must be clear which connection is the cause.
                if suspected is None:
                    suspected = {each for each in ready if self._has_isolated(each)}
                may_take = [each for each in ready if each not in suspected]
            for worker in sorted(may_take, key=_preference):
                if self._give(served, worker):
                    if suspected is not None and served.poison_detector.isolated:
                        suspected.add(worker)
                    break
                ready.remove(worker)

    def use_log(self, log: BoundLogger) -> None:
        """Log to another logger from now on, for the function has another name."""
        self._log = log

    @property
    def has_waiting(self) -> bool:
        """Whether some have no worker."""
        return bool(self._orphans or self._newcomers)

    def of(self, worker: WorkerProcess) -> Iterator[SupervisedConnection]:
        """Yield the connections that a worker serves."""
        for number in sorted(worker.connections):
            served = self.connections.get(number)
            if served is not None and served.worker is worker:
                yield served

    def is_at_work(self, worker: WorkerProcess) -> bool:
        """Return whether a worker says that one of its handlers has something to do."""
        return any(served.is_at_work for served in self.of(worker))

    def points_of(self, worker: WorkerProcess) -> int:
        """Return how many points a worker has dealt with."""
        return worker.points_of_ended + sum(
            served.points - served.points_before for served in self.of(worker)
        )

    def on_report(
        self, worker: WorkerProcess, report: orders.Paused | orders.TakenOver | orders.Refused
    ) -> None:
        """Deal with what a worker says of a connection on its way to another."""
        served = self.connections.get(report.connection)
        if served is None:
            return  # It has ended meanwhile.
        move = served.move
        match report:
            case orders.Paused() if move is not None and worker is served.worker:
                self._hand_over_state(served, move)
            case orders.Paused():
                worker.send(orders.Resume(served.number))
            case orders.TakenOver() if move is not None and worker is move.target:
                self._complete(served, move)
            case orders.Refused() if move is not None and worker is move.target:
                if report.retry:
                    worker.rest()
                self._log.error(
                    "handover failed, the old worker goes on",
                    connection=served.number,
                    error=report.problem,
                )
                served.cannot_move = not report.retry
                self._go_back(served, move)
            case _ if worker is not served.worker:
                pass  # It was to take it over, and is not any more.
            case orders.TakenOver():
                self._log.info(
                    "connection taken over", connection=served.number, worker=worker.number
                )
            case orders.Refused():
                self._on_refused(worker, served, report)

    def on_finished(self, worker: WorkerProcess, number: int) -> None:
        """Forget a connection that has ended, and been logged."""
        served = self.connections.pop(number, None)
        if served is None:
            return
        worker.end_rest()
        for waiting in (self._orphans, self._newcomers, self._moving):
            waiting.pop(number, None)
        worker.points_of_ended += served.points - served.points_before
        involved = {served.worker, None if served.move is None else served.move.target}
        for each in involved - {None, worker}:
            if each is not None:
                each.send(orders.Release(number))
        served.close()
        for each in involved | {worker}:
            if each is not None:
                each.connections.discard(number)
                self._on_left(each)

    # --- handovers ---

    def begin_moves(self, worker: WorkerProcess) -> None:
        """Begin to hand over what a worker serves, also what other code could not take before."""
        for served in self.of(worker):
            served.cannot_move = False
        self.move_on()

    def move_on(self) -> bool:
        """Hand over what workers that are retiring still serve; return whether anything is left."""
        left = False
        for worker in self._workers:
            if worker.state is WorkerState.RETIRING:
                for served in self.of(worker):
                    if not served.cannot_move:
                        left = True
                        if served.move is None and not self._move(served):
                            return True
        return left

    def begin_spreading(self) -> None:
        """Have `spread` even out how many connections each worker serves."""
        self._spreads = True

    def spread(self) -> None:
        """Hand connections over from the busiest worker to the least busy one.

        That goes on until they serve equally many, or what is left cannot be handed over.
        """
        while self._spreads and self._may_move():
            leaving = collections.Counter(each.worker for each in self._moving.values())
            loads = {
                each: _load(each) - leaving[each]
                for each in self._workers
                if each.state is WorkerState.SERVING and not each.is_frozen
            }
            pair = furthest_apart(loads)
            if pair is None:
                # A move that is under way may still fail.
                self._spreads = bool(self._moving)
                return
            busiest, target = pair
            movable = (
                served
                for served in self.of(busiest)
                if served.move is None and not served.cannot_move and served.is_movable
            )
            served = next(movable, None)
            if served is None:
                self._spreads = any(each.move is not None for each in self.of(busiest))
                return
            if not self._move(served, target):
                return

    def abandon_moves(self) -> None:
        """Leave every connection with the worker that has it."""
        self._spreads = False
        for served in list(self._moving.values()):
            if served.move is not None and served.move.is_paused:
                served.move.target.send(orders.Release(served.number))
                self._go_back(served, served.move)
            # One that is not paused yet gets its word when it is.
            self._end_move(served)

    # --- deaths ---

    def on_death(
        self, worker: WorkerProcess, how: str, stacks: str, *, drops_poison: bool
    ) -> list[SupervisedConnection]:
        """Note whose frames may have killed a worker; return the connections it left.

        They wait until `place_waiting` gives them to others.

        Args:
            worker: the dead one, no longer among the workers.
            how: the death, in words.
            stacks: what faulthandler wrote of its threads.
            drops_poison: whether a frame that kills workers is dropped, or its connection
                given up.
        """
        orphans = self._orphans_of(worker)
        thread = None if worker.hung else dumps.faulty_thread(stacks)
        careful = sum(served.is_careful for served in orphans)
        # A worker that has not written its stacks was stopped, and no handler is to blame. Where
        # one handler kept the interpreter, others that were at work may look as if they hung.
        kept = any(served.is_silent(_KEPT_S) for served in orphans)
        at_work = sum(served.header.busy_since_ns != 0 for served in orphans)
        is_clear = bool(stacks) and not (kept and at_work > 1)
        for served in orphans:
            self._orphans[served.number] = served
            accused: bool | None = None
            if not served.header.thread:
                # The worker died before it began with this one.
                accused = False
            elif worker.hung:
                accused = served.number in worker.hung if is_clear else None
            elif thread is not None and any(each.header.thread == thread for each in orphans):
                accused = served.header.thread == thread
            served.note_death(
                _in_words(served, worker, how, stacks),
                accused=accused,
                alone=careful == 1,
                drops_poison=drops_poison,
            )
        return orphans

    # --- inside ---

    def _give(self, served: SupervisedConnection, worker: WorkerProcess) -> bool:
        """Have a worker serve a connection; return False if it has no room."""
        order, descriptors = served.take()
        if not worker.hand_over(order, descriptors):
            return False
        served.was_served = True
        served.worker = worker
        served.begin_with_worker()
        worker.connections.add(served.number)
        self._orphans.pop(served.number, None)
        self._newcomers.pop(served.number, None)
        return True

    def _has_isolated(self, worker: WorkerProcess) -> bool:
        return any(
            served.poison_detector.isolated and served.is_careful for served in self.of(worker)
        )

    def _on_refused(
        self, worker: WorkerProcess, served: SupervisedConnection, report: orders.Refused
    ) -> None:
        """Handle that a worker cannot serve a connection that no other one serves."""
        worker.connections.discard(served.number)
        served.worker = None
        self._orphans[served.number] = served
        if report.retry:
            # It gets no others until one of its own has ended, or after a while.
            rest_s = worker.rest()
            if rest_s is not None:
                self._log.error(
                    "worker cannot serve a connection",
                    connection=served.number,
                    worker=worker.number,
                    error=report.problem,
                    retry_s=rest_s,
                )
        else:
            served.give_up(report.problem)
        self._on_left(worker)

    # --- moves ---

    def _may_move(self) -> bool:
        """Return whether one more connection may be handed over now."""
        if len(self._moving) < _MOST_MOVES:
            return True
        now_s = time.monotonic()
        moves = [each.move for each in self._moving.values() if each.move is not None]
        held_up = sum(not each.is_paused and now_s - each.began_s > _PAUSE_S for each in moves)
        return len(moves) - held_up < _MOST_MOVES

    def _move(self, served: SupervisedConnection, target: WorkerProcess | None = None) -> bool:
        """Begin to hand a connection over; return False if that must wait.

        Args:
            served: a connection that a worker serves.
            target: who takes it over, None for the least busy worker.
        """
        if served.worker is None or not self._may_move():
            return False
        if target is None:
            serving = [each for each in self._workers if each.state is WorkerState.SERVING]
            target = min((each for each in serving if each.has_room), key=_preference, default=None)
        if target is None or not target.has_room:
            return False
        served.move = Move(target, began_s=time.monotonic())
        # It counts as the target's from now on, so that the next one goes to another.
        target.connections.add(served.number)
        self._moving[served.number] = served
        served.worker.send(orders.Pause(served.number))
        return True

    def _hand_over_state(self, served: SupervisedConnection, move: Move) -> None:
        """Have the new worker take over a connection that stands still."""
        move.is_paused, move.thread = True, served.header.thread
        order, descriptors = served.take(waits=True)
        if not move.target.hand_over(order, descriptors):
            # It is tried again later; meanwhile the connection must not stand still.
            self._go_back(served, move)

    def _end_move(self, served: SupervisedConnection) -> None:
        """Forget a move, whatever came of it."""
        move, served.move = served.move, None
        self._moving.pop(served.number, None)
        if move is not None and move.target is not served.worker:
            move.target.connections.discard(served.number)
            self._on_left(move.target)

    def _complete(self, served: SupervisedConnection, move: Move) -> None:
        """Let the new worker go on, now that it has everything."""
        old, served.worker = served.worker, move.target
        self._end_move(served)
        served.begin_with_worker()
        # In this order: were this process to die in between, better no worker than two.
        if old is not None:
            old.send(orders.Release(served.number))
            old.connections.discard(served.number)
        move.target.send(orders.Resume(served.number))
        if old is not None:
            self._on_left(old)
        self._log.info(
            "connection handed over", connection=served.number, worker=move.target.number
        )

    def _go_back(self, served: SupervisedConnection, move: Move) -> None:
        """Have the old worker go on, which stands still; the move has failed."""
        self._end_move(served)
        if served.worker is not None:
            served.header.thread = move.thread
            served.worker.send(orders.Resume(served.number))

    def _orphans_of(self, worker: WorkerProcess) -> list[SupervisedConnection]:
        """Return the connections that a dead worker leaves alone; end what it was to take."""
        orphans = []
        for number in sorted(worker.connections):
            served = self.connections.get(number)
            if served is None:
                continue
            move = served.move
            if served.worker is worker:
                if move is not None and move.is_paused:
                    # The new one has all the state, and waits only for a word.
                    served.worker = move.target
                    self._end_move(served)
                    served.begin_with_worker()
                    move.target.send(orders.Resume(served.number))
                else:
                    served.worker = None
                    self._end_move(served)
                    orphans.append(served)
            elif move is not None and move.target is worker:
                if move.is_paused:
                    self._go_back(served, move)
                else:
                    self._end_move(served)
        return orphans


def furthest_apart(loads: Mapping[W, int]) -> tuple[W, W] | None:
    """Return the worker with most connections and the one with fewest.

    Returns:
        None if one connection more or less makes no difference between them.
    """
    if not loads:
        return None
    busiest, idlest = max(loads, key=loads.__getitem__), min(loads, key=loads.__getitem__)
    return (busiest, idlest) if loads[busiest] - loads[idlest] > 1 else None


def _load(worker: WorkerProcess) -> int:
    return len(worker.connections)


def _preference(worker: WorkerProcess) -> tuple[bool, int]:
    """Order workers for a connection, the best first."""
    return worker.is_frozen, _load(worker)


def _in_words(served: SupervisedConnection, worker: WorkerProcess, how: str, stacks: str) -> str:
    """Return what happened to a worker, for the error of one of its connections."""
    if served.number not in worker.hung:
        return f"died by {how}"
    where = dumps.where(stacks, served.header.thread)
    return f"hung for {served.watch.busy_s:.0f} s" + (f" in {where}" if where else "")
