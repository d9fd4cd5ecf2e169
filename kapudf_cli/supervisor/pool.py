"""The workers of one function: started, replaced by others, and buried when they die."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from kapudf_cli.supervisor.acceptance import accept
from kapudf_cli.supervisor.errors import WorkerStartError
from kapudf_cli.supervisor.hanging import HungWorkers
from kapudf_cli.supervisor.recycling import Recycling, WorkerUsage
from kapudf_cli.supervisor.replacement import Reloaded, Replacements
from kapudf_cli.supervisor.restart_backoff import RestartBackoff
from kapudf_cli.supervisor.router import Router
from kapudf_cli.supervisor.worker_death import WorkerDeath
from kapudf_cli.supervisor.worker_process import WorkerProcess, WorkerState
from kapudf_cli.supervisor.worker_reports import WorkerReports
from kapudf_cli.system.processes import working_folder
from kapudf_cli.worker import channel as orders

if TYPE_CHECKING:
    import selectors
    from collections.abc import Callable, Iterator

    from structlog.stdlib import BoundLogger

    from kapudf_cli.config import FunctionSettings, Settings
    from kapudf_cli.supervisor.descriptor_reserve import DescriptorReserve
    from kapudf_cli.system.socket_file import SocketFile
    from kapudf_cli.worker.channel import Report

#: A handler that is imported for longer may never be: it holds up no other function, and a
#: reload that is asked for meanwhile begins anew.
_LONG_START_S: Final = 10.0
#: After so long without a worker, a connection's wait is worth a warning.
_LONG_WAIT_S: Final = 10.0


#: So many workers are started at once in place of dead ones. The first one that is ready takes
#: the connections over, and more would only take the processors from it.
_MOST_STARTING: Final = os.cpu_count() or 1
#: When it is tried again to start a worker that the system had no room for.
_NO_ROOM_PAUSE_S: Final = 1.0
#: How often each connection is looked at. With thousands of them it is less often, so that it takes
#: no more than a tenth of the time, but often enough for the heartbeats that Kapacitor waits for.
_LOOK_S: Final = 0.2
_LOOK_SHARE: Final = 0.1
_LONGEST_LOOK_S: Final = 1.0
#: How long a worker may live on after its channel was closed. One that should serve cannot be
#: told anything any more; one that was told to end may take its time.
_CLOSED_PATIENCE_S: Final = 0.2
_EXIT_PATIENCE_S: Final = 10.0
#: How long workers serve on after a stop, until each connection that waits has one.
_PLACE_PATIENCE_S: Final = 1.0


class Pool:
    """The workers of one function, and the connections that they serve.

    Attributes:
        has_failed: whether the code that was loaded last could not be imported.
    """

    def __init__(
        self,
        name: str,
        settings: FunctionSettings,
        logging: Settings,
        *,
        worker_numbers: Iterator[int],
        connection_numbers: Iterator[int],
        selector: selectors.BaseSelector,
        reserve: DescriptorReserve,
        log: BoundLogger,
    ) -> None:
        """Serve a function.

        Args:
            name: what a TICKscript calls.
            settings: of the function.
            logging: where the form and level of the log are in.
            worker_numbers: what the log calls new workers; likewise the next, connections.
            connection_numbers: see above.
            selector: workers are registered with it, with a callable as data.
            reserve: descriptors for starting workers.
            log: where events go.
        """
        self.name = name
        self.settings = settings
        self._logging = logging
        self._worker_numbers = worker_numbers
        self._connection_numbers = connection_numbers
        self._reserve = reserve
        self._reports = WorkerReports(selector, on_report=self._on_report, on_end=self._on_exit)
        self._root_log = log
        self._log = log.bind(function=name)
        self.workers: list[WorkerProcess] = []
        self._placement = Router(self.workers, on_left=self._let_retire, log=self._log)
        self.connections = self._placement.connections
        self.deaths = 0
        # What the workers that serve, and those that are to take over, have loaded.
        self._loaded: orders.Ready | None = None
        self._coming_loaded: orders.Ready | None = None
        self.has_failed = False
        self._backoff = RestartBackoff()
        self._recycling = Recycling()
        self._hanging = HungWorkers(self._log)
        self._succession = Replacements(self._log)
        self._stopping = self._killing = self._told_to_stop = False
        self._stopped_s = 0.0
        self._looked_s = 0.0
        self._look_s = _LOOK_S
        self._was_ready = False
        self._warned_of_waiting = False

    # --- for the supervisor ---

    def rename(self, name: str) -> None:
        """Serve the function under another name; its connections go on."""
        self.name = name
        self._log = self._root_log.bind(function=name)
        for part in (self._placement, self._hanging, self._succession):
            part.use_log(self._log)

    def start(self) -> None:
        """Start the first workers.

        Raises:
            OSError: the system has no process, memory or descriptor left. It is tried again
                for those that are missing.
        """
        self._backoff.retry(time.monotonic())
        for _ in range(self.settings.workers):
            self.workers.append(self._start_worker(self.settings))
        self._backoff.cancel()

    @property
    def is_ready(self) -> bool:
        """Whether every worker has loaded the handler, or had once."""
        return self._was_ready

    @property
    def is_settled(self) -> bool:
        """Whether it is ready, or has died at its start, which it may do for a long time."""
        return self._was_ready or self._backoff.vain_starts > 0

    @property
    def handler(self) -> str:
        """The class of the handler that is served, empty until one is loaded."""
        return "" if self._loaded is None else self._loaded.handler

    @property
    def code(self) -> orders.Code | None:
        """The file that it was loaded from."""
        return None if self._loaded is None else self._loaded.code

    @property
    def code_files(self) -> tuple[str, ...]:
        """The files of its code, as far as they are imported."""
        return () if self._loaded is None else self._loaded.files

    @property
    def starting(self) -> int:
        """How many workers load the handler; without those that take unusually long."""
        return sum(
            each.state is WorkerState.STARTING and each.age_s < _LONG_START_S
            for each in (*self.workers, *self._succession.coming)
        )

    @property
    def is_reloading(self) -> bool:
        """Whether a reload waits for new workers, and they take no unusually long time."""
        coming = self._succession.coming if self._succession.is_reload else []
        return bool(coming) and all(each.age_s < _LONG_START_S for each in coming)

    @property
    def may_accept(self) -> bool:
        """Whether more connections should be accepted now: workers keep up with them."""
        return self._placement.may_add

    def accept(self, socket_file: SocketFile) -> bool:
        """Serve the next connection, if there is one; see `Listeners`."""
        self._reserve.check()
        served = accept(socket_file, self.settings, self._connection_numbers)
        if served is not None:
            self._placement.add(served)
        return served is not None

    def _on_report(self, worker: WorkerProcess, report: Report) -> None:
        match report:
            case orders.Ready():
                self._on_ready(worker, report)
            case orders.Failed():
                self._on_failed(worker, report)
            case orders.Finished():
                self._placement.on_finished(worker, report.connection)
            case orders.Paused() | orders.TakenOver() | orders.Refused():
                self._placement.on_report(worker, report)

    def tick(self, now_s: float) -> None:
        """Do what is due; to be called after each wait of the loop, a few times a second."""
        for worker in self.all_workers():
            self._reports.tick(worker)
        is_time = not 0.0 <= now_s - self._looked_s < self._look_s
        if is_time:
            began_s = time.monotonic()
            self._look_at_workers(now_s)
            self._look_at_connections(now_s)
            took_s = time.monotonic() - began_s
            self._looked_s = now_s
            self._look_s = min(max(_LOOK_S, took_s / _LOOK_SHARE), _LONGEST_LOOK_S)
        self._hanging.kill_due(now_s)
        self._placement.place_waiting()
        if self._stopping:
            self._stop_workers(now_s)
        else:
            self._replace_dead(now_s)
            if is_time:
                self._recycle(now_s)
            if not self._placement.move_on() and not self._succession.is_under_way:
                self._tell_reloaded()
                self._placement.spread()
        for worker in self.all_workers():
            self._reports.update(worker)

    def _look_at_workers(self, now_s: float) -> None:
        """Kill workers that cannot be told anything any more."""
        for worker in self.all_workers():
            if worker.blocked_s > self.settings.busy_limit_s and worker.killed_for is None:
                self._log.error(
                    "worker reads no orders, it is replaced",
                    worker=worker.number,
                    pid=worker.pid,
                    blocked_s=round(worker.blocked_s, 1),
                )
                worker.kill(f"it read no orders for {worker.blocked_s:.0f} s")
            elif worker.channel_lost_s is not None and worker.killed_for is None:
                self._end_without_channel(worker, now_s - worker.channel_lost_s)

    def _end_without_channel(self, worker: WorkerProcess, lost_s: float) -> None:
        """Kill a worker whose channel is closed, if it has not ended after a while."""
        is_told = self._stopping or worker.state in {WorkerState.RETIRING, WorkerState.DEAD}
        if is_told and lost_s > _EXIT_PATIENCE_S:
            self._log.warning(
                "worker takes too long to exit, and is killed",
                worker=worker.number,
                pid=worker.pid,
                exit_s=round(lost_s, 1),
            )
            worker.exit_overdue = True
            worker.kill(f"it had not exited {lost_s:.0f} s after it was done")
        elif not is_told and lost_s > _CLOSED_PATIENCE_S:
            worker.kill("it closed its channel to the supervisor")

    def _tell_reloaded(self) -> None:
        """Tell whoever waits for a reload how many connections its workers serve now."""
        stay = sum(served.cannot_move for served in self.connections.values())
        code = f"{self.handler} of {self.code}"
        self._succession.tell(Reloaded(len(self.connections) - stay, stay, code=code))

    def _look_at_connections(self, now_s: float) -> None:
        frozen = set()
        for served in list(self.connections.values()):
            served.tick(now_s)
            if served.needs_heartbeat:
                served.beat()
            if served.worker is None:
                continue
            if served.is_not_reading:
                frozen.add(served.worker)
            if served.watch.has_just_passed_limit:
                self._hanging.note(served, served.worker, now_s)
            elif served.is_not_pausing and not self._placement.is_at_work(served.worker):
                self._hanging.note_frozen(served, served.worker, now_s)
        for worker in self.workers:
            worker.is_frozen = worker in frozen
        self._warn_of_waiting()

    def _warn_of_waiting(self) -> None:
        """Log once that connections have waited long for a worker."""
        waits_s = [each.watch.busy_s for each in self.connections.values() if each.worker is None]
        if not waits_s:
            self._warned_of_waiting = False
        elif not self._warned_of_waiting and max(waits_s) >= _LONG_WAIT_S:
            self._warned_of_waiting = True
            self._log.warning(
                "connections wait for a worker",
                connections=len(waits_s),
                wait_s=round(max(waits_s), 1),
            )

    def reload(
        self, settings: FunctionSettings, on_done: Callable[[Reloaded], None] | None = None
    ) -> None:
        """Have new workers, with new code and these settings, take over.

        Args:
            settings: of the function, from now on if the new code can be loaded.
            on_done: called once it is known what came of it.

        Raises:
            OSError: the system has no process, memory or descriptor left; the old workers go on.
        """
        if self._succession.fills_gap:
            # Its successor is not to come after all, and the reload may come to nothing.
            self._backoff.retry(time.monotonic())
        if not self._succession.is_under_way:
            # What is left of an earlier one, this one does.
            self._tell_reloaded()
        self._succession.give_up("another reload began")
        self._log.info("reload begins", workers=settings.workers)
        successors: list[WorkerProcess] = []
        try:
            for _ in range(settings.workers):
                successors.append(self._start_worker(settings))  # noqa: PERF401 - some are kept
        except OSError:
            self._succession.dismiss(successors)
            raise
        self._succession.begin_reload(settings, successors, on_done)

    def stop(self) -> None:
        """Let every worker process what has arrived, and end."""
        self._stopping = True
        self._backoff.cancel()
        self._succession.give_up("kapudf was told to stop")
        self._placement.abandon_moves()
        self._stopped_s = time.monotonic()
        if not self._placement.has_waiting:
            for worker in self.all_workers():
                if worker.state is WorkerState.STARTING:
                    # It serves no connection, and its handler may take for ever to import.
                    worker.kill()
        self._stop_workers(self._stopped_s)

    def _stop_workers(self, now_s: float) -> None:
        """Tell all workers to stop, once each connection has one or has waited for long."""
        is_late = now_s - self._stopped_s > _PLACE_PATIENCE_S
        if not self._told_to_stop and (is_late or not self._placement.has_waiting):
            self._told_to_stop = True
            for worker in self.all_workers():
                if worker.state is not WorkerState.STARTING:
                    worker.send(orders.Stop())

    def kill(self) -> None:
        """End every worker at once, and start no other."""
        self._stopping = self._killing = True
        for worker in self.all_workers():
            worker.kill()

    @property
    def is_empty(self) -> bool:
        """Whether no worker is left."""
        return not self.all_workers()

    @property
    def needs_ticks(self) -> bool:
        """Whether there is anything that `look` could have to do."""
        return bool(
            self.connections
            or self._succession.is_under_way
            or self._backoff.is_pending
            or not self._hanging.is_empty
            or any(worker.channel_lost_s is not None for worker in self.all_workers())
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
        if worker in self._succession.coming:
            self._coming_loaded = report
            self._switch_if_ready()
        else:
            self._note_loaded(report)
            self._was_ready = self._was_ready or all(
                each.state is WorkerState.SERVING for each in self.workers
            )
            # Others have taken over what it should serve.
            self._placement.begin_spreading()
        self._told_to_stop = False

    def _on_failed(self, worker: WorkerProcess, report: orders.Failed) -> None:
        worker.state = WorkerState.DEAD
        self.has_failed = True
        if worker in self._succession.coming:
            self._on_coming_failed(report.problem)
            return
        if not self._was_ready:
            raise WorkerStartError(
                report.problem, function=self.name, is_usage_error=report.is_usage_error
            )
        self._log.error("worker cannot start", worker=worker.number, error=report.problem)

    # --- workers that come and go ---

    def _start_worker(self, settings: FunctionSettings) -> WorkerProcess:
        begin = orders.Start(
            self.name,
            next(self._worker_numbers),
            settings,
            self._logging.log_format,
            self._logging.log_level,
            working_folder(),
        )
        with self._reserve.lent():
            worker = WorkerProcess(begin)
        self._reports.watch(worker)
        return worker

    def _switch_if_ready(self) -> None:
        """Put the workers that have come in the place of those that go, if all have."""
        successors = self._succession.take_ready()
        if successors is None:
            return
        going = [] if successors.going is None else [successors.going]
        if successors.settings is not None:
            # One that died meanwhile has been replaced.
            going = list(self.workers)
            self.settings = successors.settings
            for served in self.connections.values():
                served.watch.limit_s = self.settings.busy_limit_s
        for worker in going:
            worker.state = WorkerState.RETIRING
        self._was_ready = True
        self.workers += successors.coming  # in place: others look at this list
        for worker in going:
            # What other code could not take, this may.
            self._placement.begin_moves(worker)
            self._let_retire(worker)
        if self._coming_loaded is not None:
            self._note_loaded(self._coming_loaded)
        self._log.info(
            "new workers serve",
            workers=[worker.number for worker in successors.coming],
            handler=self.handler,
            code=str(self.code),
        )

    def _note_loaded(self, report: orders.Ready) -> None:
        """Keep what the workers that serve have loaded."""
        self._loaded = report
        self.has_failed = False

    def _let_retire(self, worker: WorkerProcess) -> None:
        """Let a retiring worker end, once it serves nobody."""
        if worker.state is WorkerState.RETIRING and not worker.connections:
            worker.send(orders.Stop())

    def _on_coming_failed(self, problem: str) -> None:
        if not self._succession.is_reload:
            now_s = time.monotonic()
            self._recycling.pause(now_s)
            # In case that the one that had its time has died meanwhile.
            self._backoff.retry(now_s)
        self._succession.fail(problem)

    def _recycle(self, now_s: float) -> None:
        """Have a worker replaced that has had its time, one at a time."""
        if self._succession.is_under_way:
            return
        wears = (
            WorkerUsage(each, each.age_s, self._placement.points_of(each), each.rss_bytes() / 1e6)
            for each in self.workers
            if each.state is WorkerState.SERVING
        )
        worn = self._recycling.choose(wears, self.settings, now_s)
        if worn is not None:
            self._log.info(
                "worker is recycled",
                worker=worn.worker.number,
                points=worn.points,
                rss_mb=round(worn.rss_mb),
            )
            try:
                successor = self._start_worker(self.settings)
            except OSError as error:
                self._log.error("worker cannot be recycled", error=str(error))
                self._recycling.pause(now_s)
            else:
                self._succession.begin_recycling(worn.worker, successor)

    # --- death ---

    def _on_exit(self, worker: WorkerProcess) -> None:
        """Deal with a worker's end, expected or not."""
        self._hanging.forget(worker)
        self._reports.unwatch(worker)
        death = WorkerDeath.of(worker)
        was_coming = worker in self._succession.coming
        was_dismissed = worker in self._succession.dismissed
        self._succession.forget(worker)
        if worker in self.workers:
            self.workers.remove(worker)
        orphans = list(self._placement.of(worker))
        expected = self._killing or was_dismissed or death.is_expected(stopping=self._stopping)
        if not expected:
            self.deaths += 1
            death.log(self._log, connections=len(orphans))
        if was_coming:
            self._on_coming_failed(f"a new worker died: {death.how}")
        has_worked = any(served.points > served.points_before for served in orphans)
        self._placement.on_death(
            worker, death.how, death.stacks, drops_poison=self.settings.on_error != "fail"
        )
        if self._stopping:
            self._serve_the_rest()
        elif not was_coming and not was_dismissed and death.state is not WorkerState.RETIRING:
            now_s = time.monotonic()
            self._backoff.note_death(now_s, age_s=worker.age_s, has_worked=has_worked)
            self._replace_dead(now_s)

    def _serve_the_rest(self) -> None:
        """Start one more worker, for what a dead one has left at the very end."""
        if self._placement.has_waiting and not self._killing and not self.workers:
            self._start_missing(1)

    def _replace_dead(self, now_s: float) -> None:
        """Start as many workers as are missing, if it is time to."""
        room = _MOST_STARTING - self.starting
        if room > 0 and self._backoff.take_due(now_s):
            serving = [each for each in self.workers if each.state is not WorkerState.RETIRING]
            missing = self.settings.workers - len(serving) - self._succession.fills_gap
            if not self._start_missing(min(missing, room)):
                self._backoff.retry(time.monotonic(), pause_s=_NO_ROOM_PAUSE_S)
            elif missing > room:
                self._backoff.retry(time.monotonic())

    def _start_missing(self, count: int) -> bool:
        """Start so many workers; return whether there was room for all of them."""
        try:
            for _ in range(count):
                self.workers.append(self._start_worker(self.settings))
        except OSError as error:
            self._log.error("worker cannot start", error=str(error))
            return False
        return True

    def all_workers(self) -> list[WorkerProcess]:
        """Return every worker that has not ended."""
        return [*self.workers, *self._succession.coming, *self._succession.dismissed]
