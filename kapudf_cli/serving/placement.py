"""Which worker serves which connection, and how a connection gets from one to another.

It goes from worker to worker in one of two ways. After a death, another worker takes it
over from what the journal holds. In a handover, for new code or for a worker that has had
its time, the old worker stands still at a frame's boundary until the new one has the
handler's state, and goes on if that fails.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from kapudf_cli.serving import channel as orders
from kapudf_cli.serving import stacks as dumps
from kapudf_cli.serving.served import Move
from kapudf_cli.serving.worker_process import WorkerState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from structlog.stdlib import BoundLogger

    from kapudf_cli.serving.served import ServedConnection
    from kapudf_cli.serving.worker_process import WorkerProcess

#: How long a connection waits at most that a worker had no descriptor or thread for; the
#: time is doubled with each refusal.
_LONGEST_RETRY_S: Final = 30.0


class Placement:
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
            workers: those that serve, or are to.
            on_left: called when a worker serves a connection no longer.
            log: where events go.
        """
        self._workers = workers
        self._on_left = on_left
        self._log = log
        self.connections: dict[int, ServedConnection] = {}

    def add(self, served: ServedConnection) -> None:
        """Have a new connection served."""
        self.connections[served.number] = served
        self._assign(served)

    def place_waiting(self, now_s: float) -> None:
        """Have those served that nobody serves, where somebody can."""
        for served in self.connections.values():
            if served.worker is None and now_s >= served.not_before_s:
                self._assign(served)

    def use_log(self, log: BoundLogger) -> None:
        """Log to another logger from now on, for the function has another name."""
        self._log = log

    @property
    def has_waiting(self) -> bool:
        """Whether nobody serves some."""
        return any(served.worker is None for served in self.connections.values())

    def of(self, worker: WorkerProcess) -> Iterator[ServedConnection]:
        """Yield the connections that a worker serves."""
        for served in self.connections.values():
            if served.worker is worker:
                yield served

    def points_of(self, worker: WorkerProcess) -> int:
        """Return how many points a worker has dealt with."""
        return worker.points_of_ended + sum(
            served.points - served.points_before for served in self.of(worker)
        )

    def on_report(
        self, worker: WorkerProcess, report: orders.Paused | orders.Taken | orders.NotTaken
    ) -> None:
        """Deal with what a worker says of a connection on its way to another."""
        served = self.connections.get(report.connection)
        if served is None:
            return  # It has ended meanwhile.
        move = served.move
        match report:
            case orders.Paused() if move is not None and worker is served.worker:
                move.is_paused, move.thread = True, served.ledger.thread
                order, descriptors = served.take(waits=True)
                move.target.connections.add(served.number)
                move.target.send(order, descriptors)
            case orders.Paused():
                worker.send(orders.Go(served.number))
            case orders.Taken() if move is not None and worker is move.target:
                self._complete(served, move)
            case orders.NotTaken() if move is not None and worker is move.target:
                worker.connections.discard(served.number)
                self._log.error(
                    "handover failed, the old worker goes on",
                    connection=served.number,
                    error=report.problem,
                )
                served.stays = not report.retry
                self._go_back(served, move)
            case _ if worker is not served.worker:
                pass  # It was to take it over, and is not any more.
            case orders.Taken():
                self._log.info(
                    "connection taken over", connection=served.number, worker=worker.number
                )
            case orders.NotTaken():
                self._on_refused(worker, served, report)

    def on_finished(self, worker: WorkerProcess, number: int) -> None:
        """Let go of a connection that has ended, and been logged."""
        served = self.connections.pop(number, None)
        if served is None:
            return
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
        """Begin to hand over what a worker serves, whether or not other code could take it."""
        for served in self.of(worker):
            served.stays = False
            if served.move is None:
                self._move(served)

    def move_on(self) -> bool:
        """Move what is left with workers that are retiring; return whether anything is.

        A target may have died meanwhile, or there was none.
        """
        left = False
        for worker in self._workers:
            if worker.state is WorkerState.RETIRING:
                for served in self.of(worker):
                    left = left or not served.stays
                    if served.move is None and not served.stays:
                        self._move(served)
        return left

    def abandon_moves(self) -> None:
        """Leave every connection with the worker that has it."""
        for served in self.connections.values():
            if served.move is not None and served.move.is_paused:
                served.move.target.send(orders.Release(served.number))
                self._go_back(served, served.move)
            # One that is not paused yet gets its word when it is.
            served.move = None

    # --- deaths ---

    def on_death(
        self, worker: WorkerProcess, how: str, stacks: str, *, drops_poison: bool
    ) -> list[ServedConnection]:
        """Have others take over what a dead worker served; return that.

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
        for served in orphans:
            accused: bool | None = None
            if worker.hung:
                accused = served.number in worker.hung
            elif thread is not None and any(each.ledger.thread == thread for each in orphans):
                accused = served.ledger.thread == thread
            served.note_death(how, accused=accused, alone=careful == 1, drops_poison=drops_poison)
        for served in orphans:
            self._assign(served)
        return orphans

    # --- inside ---

    def _assign(self, served: ServedConnection) -> None:
        """Give a connection to the worker with the fewest, or leave it until there is one."""
        worker = self._least_busy()
        if worker is not None and served.suspicion.isolated and self._has_isolated(worker):
            worker = None  # If this one dies too, it shall be known over which of them.
        served.worker = worker
        served.begin_with_worker()
        if worker is not None:
            order, descriptors = served.take()
            worker.connections.add(served.number)
            worker.send(order, descriptors)

    def _has_isolated(self, worker: WorkerProcess) -> bool:
        return any(served.suspicion.isolated and served.is_careful for served in self.of(worker))

    def _least_busy(self) -> WorkerProcess | None:
        serving = [each for each in self._workers if each.state is WorkerState.SERVING]
        return min(serving, key=lambda each: len(each.connections), default=None)

    def _on_refused(
        self, worker: WorkerProcess, served: ServedConnection, report: orders.NotTaken
    ) -> None:
        """Deal with a worker that cannot serve a connection that nobody else serves."""
        worker.connections.discard(served.number)
        self._on_left(worker)
        if report.retry:
            self._log.error(
                "worker cannot serve a connection",
                connection=served.number,
                worker=worker.number,
                error=report.problem,
                retry_s=served.retry_s,
            )
            served.worker = None
            served.not_before_s = time.monotonic() + served.retry_s
            served.retry_s = min(served.retry_s * 2, _LONGEST_RETRY_S)
            return
        served.give_up(report.problem)
        self._assign(served)

    def _move(self, served: ServedConnection) -> None:
        """Begin to hand a connection over to a worker that is not retiring."""
        target = self._least_busy()
        if target is not None and served.worker is not None:
            served.move = Move(target)
            served.worker.send(orders.Pause(served.number))

    def _complete(self, served: ServedConnection, move: Move) -> None:
        """Let the new worker go on, now that it has everything."""
        old, served.worker, served.move = served.worker, move.target, None
        served.begin_with_worker()
        # In this order: were this process to die in between, better no worker than two.
        if old is not None:
            old.send(orders.Release(served.number))
            old.connections.discard(served.number)
        move.target.send(orders.Go(served.number))
        if old is not None:
            self._on_left(old)
        self._log.info(
            "connection handed over", connection=served.number, worker=move.target.number
        )

    def _go_back(self, served: ServedConnection, move: Move) -> None:
        """Have the old worker go on, which stands still; nothing comes of the move."""
        served.move = None
        if served.worker is not None:
            served.ledger.thread = move.thread
            served.worker.send(orders.Go(served.number))

    def _orphans_of(self, worker: WorkerProcess) -> list[ServedConnection]:
        """Return the connections that a dead worker leaves alone; end what it was to take."""
        orphans = []
        for served in self.connections.values():
            move = served.move
            if served.worker is worker:
                served.move = served.worker = None
                if move is not None and move.is_paused:
                    # The new one has what there is to have, and waits only for a word.
                    served.worker = move.target
                    served.begin_with_worker()
                    move.target.send(orders.Go(served.number))
                else:
                    orphans.append(served)
            elif move is not None and move.target is worker:
                served.move = None
                if move.is_paused:
                    self._go_back(served, move)
        return orphans
