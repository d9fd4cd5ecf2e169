"""The workers of one function: who serves which connection, and who takes over from whom.

A connection goes from worker to worker in one of two ways. After a death, another worker
takes it over from what the journal holds. In a handover, for new code or for a worker
that has had its time, the old worker stands still at a frame's boundary until the new
one has the handler's state, and goes on if that fails.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kapudf_cli.errors import WorkerStartError
from kapudf_cli.serving import channel as orders
from kapudf_cli.serving import journal
from kapudf_cli.serving.served import Move, ServedConnection
from kapudf_cli.serving.socket_file import peer_credentials
from kapudf_cli.serving.worker_process import WorkerProcess, WorkerState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from structlog.stdlib import BoundLogger

    from kapudf_cli.config import FunctionSettings, Settings
    from kapudf_cli.serving.channel import Report
    from kapudf_cli.serving.socket_file import SocketFile

#: Deaths that are the worker's own doing, whatever else happens on the machine.
_FAULTS: Final = frozenset({"SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE", "SIGSYS"})
#: The pause before a worker that came to nothing is replaced, doubled each time.
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 30.0
#: A worker that has lived so long has come to something, whatever became of it.
_LONG_LIFE_S: Final = 10.0
#: No worker is recycled sooner: one whose handler needs more memory than it may have would
#: be for ever.
_SHORTEST_LIFE_S: Final = 2.0
#: How long a worker that hangs has to write where.
_DUMP_PAUSE_S: Final = 0.3
#: How many lines of stacks are logged.
_STACK_LINES: Final = 60


@dataclass(frozen=True)
class Reloaded:
    """What came of a reload.

    Attributes:
        connections: how many connections the new code serves.
        stay: how many the old code goes on with, for the new one could not take them over.
        problem: why there are no new workers, None if there are.
    """

    connections: int = 0
    stay: int = 0
    problem: str | None = None


class Pool:
    """The workers of one function, and the connections that they serve."""

    def __init__(
        self,
        name: str,
        settings: FunctionSettings,
        logging: Settings,
        *,
        number_worker: Callable[[], int],
        number_connection: Callable[[], int],
        watch: Callable[[Pool, WorkerProcess], None],
        unwatch: Callable[[WorkerProcess], None],
        log: BoundLogger,
    ) -> None:
        """Serve a function.

        Args:
            name: what a TICKscript calls.
            settings: of the function.
            logging: where the form and level of the log are in.
            number_worker: numbers a new worker; likewise the next a connection.
            number_connection: see above.
            watch: has `on_readable` called when a worker's channel is readable.
            unwatch: ends that.
            log: where events go.
        """
        self.name = name
        self.settings = settings
        self._logging = logging
        self._number_worker = number_worker
        self._number_connection = number_connection
        self._watch = watch
        self._unwatch = unwatch
        self._log = log.bind(function=name)
        self.workers: list[WorkerProcess] = []
        self.connections: dict[int, ServedConnection] = {}
        self.deaths = 0
        self.handler = ""
        self.folders: tuple[str, ...] = ()
        # Workers that are to replace others once all of them are ready, and those others.
        self._coming: list[WorkerProcess] = []
        self._going: list[WorkerProcess] = []
        # Workers that were to replace others and are not wanted any more.
        self._dismissed: list[WorkerProcess] = []
        self._next_settings: FunctionSettings | None = None
        self._vain_starts = 0
        self._restart_at_s: float | None = None
        self._recycle_at_s = 0.0
        self._hanging: dict[int, float] = {}
        self._stopping = self._killing = False
        self._was_ready = False
        self._on_reloaded: Callable[[Reloaded], None] | None = None

    # --- for the supervisor ---

    def start(self) -> None:
        """Start the first workers.

        Raises:
            OSError: the system has no process, memory or descriptor left.
        """
        for _ in range(self.settings.workers):
            self.workers.append(self._start_worker(self.settings))

    @property
    def is_ready(self) -> bool:
        """Whether every worker has loaded the handler, or had once."""
        return self._was_ready

    def accept(self, socket_file: SocketFile) -> bool:
        """Serve the next connection, if there is one; see `Listeners`."""
        connection = socket_file.accept()
        if connection is None:
            return False
        try:
            memory = journal.create(
                connection,
                journal_bytes=self.settings.journal_bytes,
                max_frame_bytes=self.settings.max_frame_bytes,
            )
        except OSError:
            connection.close()
            raise
        served = ServedConnection(
            self._number_connection(),
            connection,
            memory,
            peer_credentials(connection),
            busy_limit_s=self.settings.busy_limit_s,
        )
        self.connections[served.number] = served
        self._assign(served)
        return True

    def on_readable(self, worker: WorkerProcess) -> None:
        """Deal with what a worker reports, or with its death."""
        try:
            received = worker.channel.receive()
        except BlockingIOError:
            return
        if received is None:
            self._bury(worker)
            return
        report: Report = received[0]
        match report:
            case orders.Ready():
                self._on_ready(worker, report)
            case orders.Failed():
                self._on_failed(worker, report)
            case orders.Finished():
                self._on_finished(worker, report.connection)
            case orders.Paused() | orders.Taken() | orders.NotTaken():
                # One that has ended meanwhile is of no interest any more.
                if (served := self.connections.get(report.connection)) is not None:
                    self._on_moving(worker, served, report)

    def look(self, now_s: float) -> None:
        """Look after everything; to be called a few times a second."""
        for served in list(self.connections.values()):
            served.look(now_s)
            if served.watch.beats:
                served.beat()
            if served.watch.has_just_passed_limit and served.worker is not None:
                self._on_hanging(served, served.worker, now_s)
        for number, dumped_s in list(self._hanging.items()):
            if now_s - dumped_s >= _DUMP_PAUSE_S:
                del self._hanging[number]
                for worker in self.workers:
                    if worker.number == number:
                        worker.kill()
        if self._restart_at_s is not None and now_s >= self._restart_at_s and not self._stopping:
            self._restart_at_s = None
            self._replace_dead()
        if not self._stopping:
            self._recycle()
            self._move_on()

    def reload(
        self, settings: FunctionSettings, on_done: Callable[[Reloaded], None] | None = None
    ) -> None:
        """Have new workers, with new code and these settings, take over.

        Args:
            settings: of the function, from now on if the new code can be loaded.
            on_done: called once it is known what came of it.

        Raises:
            OSError: the system has no process, memory or descriptor left.
        """
        self._give_coming_up("another reload began")
        self._next_settings = settings
        self._on_reloaded = on_done
        self._log.info("reload begins", workers=settings.workers)
        for _ in range(settings.workers):
            self._coming.append(self._start_worker(settings))
        self._going = list(self.workers)

    def stop(self) -> None:
        """Let every worker process what has arrived, and end."""
        self._stopping = True
        self._restart_at_s = None
        self._give_coming_up("kapudf was told to stop")
        for served in self.connections.values():
            if served.move is not None and served.move.is_paused:
                served.move.target.send(orders.Release(served.number))
                self._abandon_move(served)
            # One that is not paused yet gets its word when it is.
            served.move = None
        left_alone = any(served.worker is None for served in self.connections.values())
        for worker in self.all_workers():
            if worker.state is not WorkerState.STARTING:
                worker.send(orders.Stop())
            elif not left_alone:
                # It serves nobody, and its handler may take for ever to be imported. One
                # that somebody waits for is told to stop once it serves them.
                worker.kill()

    def kill(self) -> None:
        """End every worker at once, and start no other."""
        self._stopping = self._killing = True
        for worker in self.all_workers():
            worker.kill()

    @property
    def is_empty(self) -> bool:
        """Whether no worker is left."""
        return not self.workers and not self._coming and not self._dismissed

    @property
    def needs_looks(self) -> bool:
        """Whether there is anything that `look` could have to do."""
        return bool(
            self.connections or self._coming or self._hanging or self._restart_at_s is not None
        )

    def abort(self) -> None:
        """Have the connections broken that are left after a stop."""
        for worker in self.all_workers():
            worker.send(orders.Abort())

    def ask_for_stacks(self) -> None:
        """Have every worker write where it is, for `log_hanging`."""
        for worker in self.all_workers():
            worker.ask_for_stacks()

    def log_hanging(self) -> None:
        """Log where each worker is that does not even break its connections."""
        for worker in self.all_workers():
            self._log.error(
                "worker hangs at the end, and is killed",
                worker=worker.number,
                pid=worker.pid,
                connections=len(worker.connections),
                stacks="\n".join(worker.stacks().splitlines()[:_STACK_LINES]),
            )

    def abandon(self) -> int:
        """Log how far those connections got that do not come to their end; return how many."""
        for served in self.connections.values():
            served.log_abandoned(self._log)
        return len(self.connections)

    # --- what workers report ---

    def _on_ready(self, worker: WorkerProcess, report: orders.Ready) -> None:
        self._log.debug(
            "worker ready",
            worker=worker.number,
            pid=worker.pid,
            start_s=round(worker.age_s, 3),
        )
        if worker.state is WorkerState.RETIRING:
            worker.send(orders.Stop())
            return
        worker.state = WorkerState.SERVING
        self.handler, self.folders = report.handler, report.folders
        if worker in self._coming:
            if all(each.state is WorkerState.SERVING for each in self._coming):
                self._switch()
        else:
            self._was_ready = self._was_ready or all(
                each.state is WorkerState.SERVING for each in self.workers
            )
        for served in self.connections.values():
            if served.worker is None:
                self._assign(served)
        if self._stopping:
            worker.send(orders.Stop())

    def _on_failed(self, worker: WorkerProcess, report: orders.Failed) -> None:
        worker.state = WorkerState.DEAD
        if worker in self._coming:
            self._on_coming_failed(report.problem)
            return
        if not self._was_ready:
            raise WorkerStartError(report.problem, function=self.name, wrong_call=report.wrong_call)
        self._log.error("worker cannot start", worker=worker.number, error=report.problem)

    def _on_finished(self, worker: WorkerProcess, number: int) -> None:
        served = self.connections.pop(number, None)
        if served is None:
            return
        worker.connections.discard(number)
        worker.points_of_ended += served.points - served.points_before
        if served.move is not None and served.move.is_paused:
            served.move.target.send(orders.Release(number))
            served.move.target.connections.discard(number)
        served.close()
        self._let_retire(worker)

    def _on_moving(
        self,
        worker: WorkerProcess,
        served: ServedConnection,
        report: orders.Paused | orders.Taken | orders.NotTaken,
    ) -> None:
        move = served.move
        match report:
            case orders.Paused() if move is not None and worker is served.worker:
                move.is_paused = True
                order, descriptors = served.take(waits=True)
                move.target.send(order, descriptors)
                move.target.connections.add(served.number)
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
                served.stays = True
                self._abandon_move(served)
            case _ if worker is not served.worker:
                pass  # It was to take it over, and is not any more.
            case orders.Taken():
                self._log.info(
                    "connection taken over", connection=served.number, worker=worker.number
                )
            case orders.NotTaken():
                served.give_up(report.problem)
                self._assign(served)

    # --- connections from worker to worker ---

    def _assign(self, served: ServedConnection) -> None:
        """Give a connection to the worker with the fewest, or leave it until there is one."""
        worker = self._least_busy()
        served.worker = worker
        served.begin_with_worker()
        if worker is not None:
            order, descriptors = served.take()
            worker.connections.add(served.number)
            worker.send(order, descriptors)

    def _least_busy(self) -> WorkerProcess | None:
        serving = [each for each in self.workers if each.state is WorkerState.SERVING]
        return min(serving, key=lambda each: len(each.connections), default=None)

    def _move(self, served: ServedConnection) -> None:
        """Begin to hand a connection over to a worker that is not retiring."""
        target = self._least_busy()
        if target is not None and served.worker is not None:
            served.move = Move(target)
            served.worker.send(orders.Pause(served.number))

    def _move_on(self) -> None:
        """Move what is left with workers that are retiring, say after a target has died."""
        left = False
        for worker in self.workers:
            if worker.state is WorkerState.RETIRING:
                for served in list(self._movable(worker)):
                    left = True
                    if served.move is None:
                        self._move(served)
        if not left and not self._coming:
            stay = sum(served.stays for served in self.connections.values())
            self._tell_reloaded(Reloaded(connections=len(self.connections) - stay, stay=stay))

    def _complete(self, served: ServedConnection, move: Move) -> None:
        """Let the new worker go on, now that it has everything."""
        old, served.worker, served.move = served.worker, move.target, None
        served.begin_with_worker()
        move.target.send(orders.Go(served.number))
        if old is not None:
            old.send(orders.Release(served.number))
            old.connections.discard(served.number)
            self._let_retire(old)
        self._log.info(
            "connection handed over", connection=served.number, worker=move.target.number
        )

    def _abandon_move(self, served: ServedConnection) -> None:
        served.move = None
        if served.worker is not None:
            served.worker.send(orders.Go(served.number))

    def _movable(self, worker: WorkerProcess) -> Iterator[ServedConnection]:
        for number in worker.connections:
            served = self.connections.get(number)
            if served is not None and served.worker is worker and not served.stays:
                yield served

    # --- workers that come and go ---

    def _start_worker(self, settings: FunctionSettings) -> WorkerProcess:
        worker = WorkerProcess(
            orders.Begin(
                self.name,
                self._number_worker(),
                settings,
                self._logging.log_format,
                self._logging.log_level,
            )
        )
        self._watch(self, worker)
        return worker

    def _switch(self) -> None:
        """Put the workers that have come in the place of those that go."""
        coming, going = self._coming, self._going
        self._coming, self._going = [], []
        if self._next_settings is not None:
            # One that died meanwhile has been replaced.
            going = list(self.workers)
            self.settings, self._next_settings = self._next_settings, None
            for served in self.connections.values():
                served.watch.limit_s = self.settings.busy_limit_s
        for worker in self.workers:
            if worker in going:
                worker.state = WorkerState.RETIRING
        self.workers += coming
        for worker in going:
            for served in self.connections.values():
                if served.worker is worker:
                    # What other code could not take, this may.
                    served.stays = False
                    if served.move is None:
                        self._move(served)
            self._let_retire(worker)
        self._log.info("new workers serve", workers=[worker.number for worker in coming])

    def _let_retire(self, worker: WorkerProcess) -> None:
        """Let a retiring worker end, once it serves nobody."""
        if worker.state is WorkerState.RETIRING and not worker.connections:
            worker.send(orders.Stop())

    def _on_coming_failed(self, problem: str) -> None:
        if self._next_settings is None:
            self._log.error("worker cannot be recycled", error=problem)
            self._recycle_at_s = time.monotonic() + _LONGEST_PAUSE_S
        else:
            self._log.error("reload failed, the old code goes on", error=problem)
        self._give_coming_up(problem)

    def _give_coming_up(self, problem: str) -> None:
        for worker in self._coming:
            worker.kill()
        self._dismissed += self._coming
        self._coming, self._going = [], []
        self._next_settings = None
        self._tell_reloaded(Reloaded(problem=problem))

    def _tell_reloaded(self, reloaded: Reloaded) -> None:
        on_done, self._on_reloaded = self._on_reloaded, None
        if on_done is not None:
            on_done(reloaded)

    def _recycle(self) -> None:
        """Have a worker replaced that has had its time, one at a time."""
        settings = self.settings
        if self._coming or (not settings.max_points and not settings.max_rss_mb):
            return
        if time.monotonic() < self._recycle_at_s:
            return
        for worker in self.workers:
            if worker.state is not WorkerState.SERVING or worker.age_s < _SHORTEST_LIFE_S:
                continue
            rss_mb = worker.rss_bytes() / 1e6
            points = self._points(worker)
            if (settings.max_points and points >= settings.max_points) or (
                settings.max_rss_mb and rss_mb >= settings.max_rss_mb
            ):
                self._log.info(
                    "worker is recycled", worker=worker.number, points=points, rss_mb=round(rss_mb)
                )
                self._coming = [self._start_worker(settings)]
                self._going = [worker]
                return

    def _points(self, worker: WorkerProcess) -> int:
        """Return how many points a worker has dealt with."""
        return worker.points_of_ended + sum(
            self.connections[number].points - self.connections[number].points_before
            for number in worker.connections
            if number in self.connections
        )

    # --- death ---

    def _on_hanging(self, served: ServedConnection, worker: WorkerProcess, now_s: float) -> None:
        """Have a worker write where it hangs, before it is killed."""
        if not worker.hangs:
            worker.hangs = True
            worker.ask_for_stacks()
            self._hanging[worker.number] = now_s
            task_id, node_id = served.ledger.task
            self._log.error(
                "handler hangs, its worker is replaced",
                connection=served.number,
                task_id=task_id,
                node_id=node_id,
                worker=worker.number,
                pid=worker.pid,
                busy_s=round(served.watch.busy_s, 1),
            )

    def _bury(self, worker: WorkerProcess) -> None:
        """Deal with a worker's end, expected or not."""
        state = worker.state
        self._hanging.pop(worker.number, None)
        self._unwatch(worker)
        how = worker.reap()
        stacks = worker.stacks().splitlines()[:_STACK_LINES]
        worker.close()
        was_coming = worker in self._coming
        was_dismissed = worker in self._dismissed
        for workers in (self.workers, self._coming, self._going, self._dismissed):
            if worker in workers:
                workers.remove(worker)
        told = state in {WorkerState.RETIRING, WorkerState.DEAD} or self._stopping
        was_idle = self._stopping and state is WorkerState.STARTING
        expected = self._killing or was_dismissed or was_idle or (told and how == "exit status 0")
        orphans = self._orphans_of(worker)
        if not expected:
            self.deaths += 1
            self._log.error(
                "worker died",
                worker=worker.number,
                pid=worker.pid,
                how=how,
                connections=len(orphans),
                **({"stacks": "\n".join(stacks)} if stacks else {}),
            )
        if was_coming:
            self._on_coming_failed(f"a new worker died: {how}")
        lived = worker.age_s >= _LONG_LIFE_S or any(
            served.points > served.points_before for served in orphans
        )
        by_fault = worker.hangs or how in _FAULTS
        for served in orphans:
            served.note_death(how, by_fault=by_fault, drops_poison=self.settings.on_error != "fail")
            self._assign(served)
        if was_coming or was_dismissed or self._stopping or state is WorkerState.RETIRING:
            return
        self._vain_starts = 0 if lived else self._vain_starts + 1
        pause_s = min(_FIRST_PAUSE_S * 2**self._vain_starts, _LONGEST_PAUSE_S) if not lived else 0.0
        self._restart_at_s = time.monotonic() + pause_s
        if not pause_s:
            self._restart_at_s = None
            self._replace_dead()

    def _orphans_of(self, worker: WorkerProcess) -> list[ServedConnection]:
        """Return the connections that a dead worker leaves alone; end what it was to take."""
        orphans = []
        for served in self.connections.values():
            if served.worker is worker:
                move, served.move, served.worker = served.move, None, None
                if move is not None and move.is_paused:
                    # The new one has what there is to have, and waits only for a word.
                    served.worker = move.target
                    move.target.send(orders.Go(served.number))
                else:
                    orphans.append(served)
            elif served.move is not None and served.move.target is worker:
                was_paused = served.move.is_paused
                served.move = None
                if was_paused and served.worker is not None:
                    served.worker.send(orders.Go(served.number))
        return orphans

    def _replace_dead(self) -> None:
        serving = [each for each in self.workers if each.state is not WorkerState.RETIRING]
        for _ in range(self.settings.workers - len(serving)):
            try:
                self.workers.append(self._start_worker(self.settings))
            except OSError as error:
                self._log.error("worker cannot start", error=str(error))
                self._restart_at_s = time.monotonic() + _FIRST_PAUSE_S
                return

    def all_workers(self) -> list[WorkerProcess]:
        """Return every worker that has not ended."""
        return [*self.workers, *self._coming, *self._dismissed]
