"""The worker pool of one function: its processes, its connections, and their reload."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from kapudf_cli.supervisor.acceptance import accept
from kapudf_cli.supervisor.dispatch import Dispatch
from kapudf_cli.supervisor.errors import WorkerStartError
from kapudf_cli.supervisor.replacement import Recycling, Reloaded, RestartBackoff, WorkerUsage
from kapudf_cli.supervisor.routes import ConnectionState, Reason, Replacement, WorkerState
from kapudf_cli.supervisor.worker_death import WorkerDeath
from kapudf_cli.supervisor.worker_process import WorkerProcess, WorkerReports
from kapudf_cli.system.processes import working_folder
from kapudf_cli.worker import channel

if TYPE_CHECKING:
    import selectors
    from collections.abc import Iterable, Iterator, Mapping

    from structlog.stdlib import BoundLogger

    from kapudf_cli.config import FunctionSettings, Settings
    from kapudf_cli.supervisor.acceptance import DescriptorReserve
    from kapudf_cli.supervisor.connection import SupervisedConnection
    from kapudf_cli.system.socket_file import SocketFile
    from kapudf_cli.worker.channel import Report

#: A handler that takes longer to import may never be imported: it does not keep other functions
#: from starting, nor another reload from beginning.
_LONG_START_S: Final = 10.0
#: How many workers are started at once in place of dead ones. The first one that is ready takes
#: the connections over; more would only take the processors from it.
_MAX_STARTING: Final = os.cpu_count() or 1
#: The pause before another attempt to start a worker that the system had no room for.
_NO_ROOM_PAUSE_S: Final = 1.0
#: The interval of connection checks. With thousands of connections it grows, so that checks take
#: a tenth of the time at most, up to what heartbeats in time for Kapacitor allow.
_TICK_S: Final = 0.2
_TICK_SHARE: Final = 0.1
_MAX_TICK_S: Final = 1.0
#: How long a worker may live after its channel is closed. One that should serve cannot be told
#: anything any more; one that was told to stop may take its time.
_CLOSED_PATIENCE_S: Final = 0.2
_EXIT_PATIENCE_S: Final = 10.0
#: How long a stop waits until each waiting connection has a worker.
_PLACE_PATIENCE_S: Final = 1.0


class Pool:
    """The worker processes of one function, and the connections that they serve.

    Attributes:
        name: what a TICKscript calls.
        settings: of the function.
        deaths: how many workers have died unexpectedly.
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
            logging: has the format and level of the log.
            worker_numbers: gives new workers their names in the log.
            connection_numbers: gives new connections their names in the log.
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
        self._dispatch = Dispatch(self._log)
        self.deaths = 0
        # What the workers have loaded that serve, and those of a replacement to come.
        self._loaded: channel.Ready | None = None
        self._coming_loaded: channel.Ready | None = None
        self.has_failed = False
        self._was_ready = False
        self._backoff = RestartBackoff()
        self._recycling = Recycling()
        # Whether a reload has no result yet, and the results that were not taken yet.
        self._reload_pending = False
        self._reload_results: list[Reloaded] = []
        self._stopping = self._killing = self._told_to_stop = False
        self._stopped_s = 0.0
        self._ticked_s = 0.0
        self._tick_s = _TICK_S

    # --- queries ---

    @property
    def connections(self) -> Mapping[int, SupervisedConnection]:
        """The connections that have not ended, by number."""
        return self._dispatch.connections

    @property
    def workers(self) -> list[WorkerProcess]:
        """The workers that serve, are to serve, or retire."""
        return [
            each
            for each in self._dispatch.processes.values()
            if self._dispatch.state_of(each) is not WorkerState.DISMISSED
            and not self._dispatch.router.is_replacing(each.number)
        ]

    def all_workers(self) -> list[WorkerProcess]:
        """Return every worker that has not ended."""
        return list(self._dispatch.processes.values())

    def state_of(self, worker: WorkerProcess) -> WorkerState:
        """Return what a worker does."""
        return self._dispatch.state_of(worker)

    def connections_of(self, worker: WorkerProcess) -> int:
        """Return how many connections a worker serves, or is to take over."""
        return self._dispatch.connections_of(worker)

    @property
    def is_ready(self) -> bool:
        """Whether all workers have loaded the handler at some time."""
        return self._was_ready

    @property
    def is_settled(self) -> bool:
        """Whether it is ready, or its workers have died as they started."""
        return self.is_ready or self._backoff.vain_starts > 0

    @property
    def handler(self) -> str:
        """The class of the handler that is served, empty until one is loaded."""
        return "" if self._loaded is None else self._loaded.handler

    @property
    def code(self) -> channel.Code | None:
        """The file that the handler was loaded from."""
        return None if self._loaded is None else self._loaded.code

    @property
    def code_files(self) -> tuple[str, ...]:
        """The files of its code, as far as they are imported."""
        return () if self._loaded is None else self._loaded.files

    @property
    def starting(self) -> int:
        """How many workers load the handler, without those that take unusually long."""
        return sum(
            self._dispatch.state_of(each) is WorkerState.STARTING and each.age_s < _LONG_START_S
            for each in self._dispatch.processes.values()
        )

    @property
    def is_reloading(self) -> bool:
        """Whether a reload waits for new workers, and they do not take unusually long."""
        replacement = self._dispatch.router.replacement
        if replacement is None or replacement.reason is not Reason.RELOAD:
            return False
        return all(self._dispatch.processes[each].age_s < _LONG_START_S for each in replacement.new)

    @property
    def may_accept(self) -> bool:
        """Whether workers keep up with new connections, so that more should be accepted."""
        return self._dispatch.router.may_add

    @property
    def is_empty(self) -> bool:
        """Whether no worker is left."""
        return not self._dispatch.processes

    @property
    def needs_ticks(self) -> bool:
        """Whether `tick` may have anything to do."""
        return bool(
            self.connections
            or self._dispatch.router.replacement is not None
            or self._backoff.is_pending
            or self._dispatch.has_hung
            or any(
                worker.channel_lost_s is not None for worker in self._dispatch.processes.values()
            )
        )

    # --- for the supervisor ---

    def rename(self, name: str) -> None:
        """Serve the function under another name; its connections go on."""
        self.name = name
        self._log = self._root_log.bind(function=name)
        self._dispatch.use_log(self._log)

    def start(self) -> None:
        """Start the first workers.

        Raises:
            OSError: the system has no process, memory or descriptor left. Those that are missing
                are started later.
        """
        self._backoff.retry(time.monotonic())
        for _ in range(self.settings.workers):
            self._start_for_dead()
        self._backoff.cancel()

    def accept(self, socket_file: SocketFile) -> bool:
        """Serve the next connection, if there is one; see `Listeners`."""
        self._reserve.check()
        connection = accept(socket_file, self.settings, self._connection_numbers)
        if connection is not None:
            self._dispatch.add(connection)
        return connection is not None

    def add(self, connection: SupervisedConnection) -> None:
        """Serve a connection."""
        self._dispatch.add(connection)

    def tick(self, now_s: float) -> None:
        """Do what is due; to be called after each wait of the loop, a few times a second."""
        for worker in self.all_workers():
            self._reports.tick(worker)
        is_time = not 0.0 <= now_s - self._ticked_s < self._tick_s
        if is_time:
            began_s = time.monotonic()
            self._check_workers(now_s)
            self._dispatch.check(now_s)
            took_s = time.monotonic() - began_s
            self._ticked_s = now_s
            self._tick_s = min(max(_TICK_S, took_s / _TICK_SHARE), _MAX_TICK_S)
        self._dispatch.kill_hung(now_s)
        if not self._killing:
            self._dispatch.place()
        if self._stopping:
            self._stop_workers(now_s)
        else:
            self._replace_dead(now_s)
            if is_time:
                self._recycle(now_s)
            self._dispatch.move(now_s)
            if (
                self._dispatch.router.replacement is None
                and not self._dispatch.router.has_left_to_move
            ):
                self._finish_reload()
        for worker in self.all_workers():
            self._reports.update(worker)

    def reload(self, settings: FunctionSettings) -> None:
        """Have new workers, with new code and these settings, take over.

        The result comes with `take_reload_results`.

        Args:
            settings: of the function, from now on if the new code can be loaded.

        Raises:
            OSError: the system has no process, memory or descriptor left; the old workers go on,
                and there is no result.
        """
        if self._dispatch.router.replacement is None:
            # The rest of an earlier reload becomes part of this one.
            self._finish_reload()
        self._cancel_replacement("another reload began")
        self._log.info("reload begins", workers=settings.workers)
        new: list[WorkerProcess] = []
        old = tuple(self._dispatch.router.workers)
        try:
            for _ in range(settings.workers):
                new.append(self._start_worker(settings))  # noqa: PERF401 - some are kept
        except OSError:
            self._dispatch.router.begin(Replacement(Reason.RELOAD, _numbers(new)))
            self._dispatch.execute(self._dispatch.router.cancel_replacement())
            raise
        self._reload_pending = True
        self._dispatch.router.begin(Replacement(Reason.RELOAD, _numbers(new), old, settings))

    def take_reload_results(self) -> list[Reloaded]:
        """Return the results of reloads that are known now, each of them once, in their order."""
        results, self._reload_results = self._reload_results, []
        return results

    def stop(self) -> None:
        """Let every worker process what has arrived, and end."""
        self._stopping = True
        self._backoff.cancel()
        self._cancel_replacement("kapudf was told to stop")
        self._dispatch.execute(self._dispatch.router.abandon_moves())
        self._stopped_s = time.monotonic()
        if not self._dispatch.router.has_waiting:
            for worker in self.all_workers():
                if self._dispatch.state_of(worker) is WorkerState.STARTING:
                    # It serves no connection, and the import of its handler may not end.
                    worker.kill()
        self._stop_workers(self._stopped_s)

    def kill(self) -> None:
        """End every worker at once, and start no other."""
        self._stopping = self._killing = True
        for worker in self.all_workers():
            worker.kill()

    def abandon(self) -> int:
        """Log the connections that did not end by themselves; return how many there are."""
        for connection in self.connections.values():
            connection.log_abandoned(self._log)
        return len(self.connections)

    # --- what is due ---

    def _check_workers(self, now_s: float) -> None:
        """Kill workers that cannot be told anything any more."""
        for worker in self.all_workers():
            if worker.killed_for is not None:
                continue
            if worker.blocked_s > self.settings.busy_limit_s:
                self._log.error(
                    "worker reads no orders, it is replaced",
                    worker=worker.number,
                    pid=worker.pid,
                    blocked_s=round(worker.blocked_s, 1),
                )
                worker.kill(f"it read no orders for {worker.blocked_s:.0f} s")
            elif worker.channel_lost_s is not None:
                self._end_without_channel(worker, now_s - worker.channel_lost_s)

    def _end_without_channel(self, worker: WorkerProcess, lost_s: float) -> None:
        """Kill a worker that has not ended some time after its channel was closed."""
        may_end = {WorkerState.RETIRING, WorkerState.DEAD, WorkerState.DISMISSED}
        is_told = self._stopping or self._dispatch.state_of(worker) in may_end
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

    def _stop_workers(self, now_s: float) -> None:
        """Tell all workers to stop, once each connection has one or has waited for long."""
        is_late = now_s - self._stopped_s > _PLACE_PATIENCE_S
        if not self._told_to_stop and (is_late or not self._dispatch.router.has_waiting):
            self._told_to_stop = True
            for worker in self.all_workers():
                if self._dispatch.state_of(worker) is not WorkerState.STARTING:
                    worker.send(channel.Stop())

    def _recycle(self, now_s: float) -> None:
        """Replace a worker that has reached `max_points` or `max_rss_mb`, one at a time."""
        if self._dispatch.router.replacement is not None:
            return
        usages = (
            WorkerUsage(each, each.age_s, self._dispatch.points_of(each), each.rss_bytes() / 1e6)
            for each in self.workers
            if self._dispatch.state_of(each) is WorkerState.SERVING
        )
        usage = self._recycling.choose(usages, self.settings, now_s)
        if usage is None:
            return
        self._log.info(
            "worker is recycled",
            worker=usage.worker.number,
            points=usage.points,
            rss_mb=round(usage.rss_mb),
        )
        try:
            new = self._start_worker(self.settings)
        except OSError as error:
            self._log.error("worker cannot be recycled", error=str(error))
            self._recycling.pause(now_s)
        else:
            old = (usage.worker.number,)
            self._dispatch.router.begin(Replacement(Reason.RECYCLING, (new.number,), old))

    # --- orders of the router ---

    def _on_switched(self, replacement: Replacement) -> None:
        """Note that the new workers of a replacement serve."""
        if replacement.settings is not None:
            self.settings = replacement.settings
            for connection in self.connections.values():
                connection.watch.limit_s = self.settings.busy_limit_s
        self._was_ready = True
        if self._coming_loaded is not None:
            self._note_loaded(self._coming_loaded)
        self._log.info(
            "new workers serve",
            workers=list(replacement.new),
            handler=self.handler,
            code=str(self.code),
        )

    # --- what workers report ---

    def _on_report(self, worker: WorkerProcess, report: Report) -> None:
        match report:
            case channel.Ready():
                self._on_ready(worker, report)
            case channel.Failed():
                self._on_failed(worker, report)
            case _:
                self._dispatch.on_report(worker, report)

    def _on_ready(self, worker: WorkerProcess, report: channel.Ready) -> None:
        self._log.debug(
            "worker ready",
            worker=worker.number,
            pid=worker.pid,
            start_s=round(worker.age_s, 3),
        )
        if self._dispatch.router.is_replacing(worker.number):
            self._coming_loaded = report
        elif self._dispatch.state_of(worker) is WorkerState.STARTING:
            self._note_loaded(report)
            self._dispatch.observe()
        for replacement in self._dispatch.execute(self._dispatch.router.on_ready(worker.number)):
            self._on_switched(replacement)
        self._told_to_stop = False
        serving = [self._dispatch.state_of(each) is WorkerState.SERVING for each in self.workers]
        self._was_ready = self._was_ready or (bool(serving) and all(serving))

    def _note_loaded(self, report: channel.Ready) -> None:
        """Keep what the workers that serve have loaded."""
        self._loaded = report
        self.has_failed = False

    def _on_failed(self, worker: WorkerProcess, report: channel.Failed) -> None:
        self.has_failed = True
        if self._dispatch.router.is_replacing(worker.number):
            self._fail_replacement(self._dispatch.router.replacement, report.problem)
            return
        self._dispatch.execute(self._dispatch.router.on_failed(worker.number))
        if not self.is_ready:
            raise WorkerStartError(
                report.problem, function=self.name, is_usage_error=report.is_usage_error
            )
        self._log.error("worker cannot start", worker=worker.number, error=report.problem)

    # --- workers that come and go ---

    def _start_worker(self, settings: FunctionSettings) -> WorkerProcess:
        begin = channel.Start(
            self.name,
            next(self._worker_numbers),
            settings,
            self._logging.log_format,
            self._logging.log_level,
            working_folder(),
        )
        with self._reserve.lent():
            worker = WorkerProcess(begin)
        self._dispatch.processes[worker.number] = worker
        self._reports.watch(worker)
        return worker

    def _start_for_dead(self) -> None:
        """Start a worker that serves as soon as it is ready."""
        worker = self._start_worker(self.settings)
        self._dispatch.router.begin(Replacement(Reason.DEATH, (worker.number,)))

    def _start_missing(self, count: int) -> bool:
        """Start so many workers; return whether there was room for all of them."""
        try:
            for _ in range(count):
                self._start_for_dead()
        except OSError as error:
            self._log.error("worker cannot start", error=str(error))
            return False
        return True

    def _replace_dead(self, now_s: float) -> None:
        """Start as many workers as are missing, if it is time to."""
        room = _MAX_STARTING - self.starting
        if room > 0 and self._backoff.take_due(now_s):
            missing = self.settings.workers - self._dispatch.router.places_filled
            if not self._start_missing(min(missing, room)):
                self._backoff.retry(time.monotonic(), pause_s=_NO_ROOM_PAUSE_S)
            elif missing > room:
                self._backoff.retry(time.monotonic())

    def _cancel_replacement(self, problem: str) -> None:
        """Dismiss the new workers of a reload or recycling, if one is under way."""
        self._dispatch.execute(self._dispatch.router.cancel_replacement())
        if self._reload_pending:
            self._reload_pending = False
            self._reload_results.append(Reloaded(problem=problem))

    def _fail_replacement(self, replacement: Replacement | None, problem: str) -> None:
        """Give up a reload or recycling, because one of its new workers cannot serve."""
        if replacement is not None and replacement.reason is Reason.RELOAD:
            self._log.error("reload failed, the old code goes on", error=problem)
            self._cancel_replacement(problem)
        else:
            # A reload before it may still be moving connections.
            self._log.error("worker cannot be recycled", error=problem)
            self._recycling.pause(time.monotonic())
            self._dispatch.execute(self._dispatch.router.cancel_replacement())

    def _finish_reload(self) -> None:
        """Note the result of a reload whose connections have all been handed over."""
        if self._reload_pending:
            self._reload_pending = False
            states = [each.route.state for each in self.connections.values()]
            stay = states.count(ConnectionState.PINNED)
            code = f"{self.handler} of {self.code}"
            self._reload_results.append(Reloaded(len(states) - stay, stay, code=code))

    def _on_exit(self, worker: WorkerProcess) -> None:
        """Handle a worker's end, expected or not."""
        self._reports.unwatch(worker)
        state = self._dispatch.state_of(worker)
        finished = worker.finished_connections()
        death = WorkerDeath.of(worker, state)
        was_new = self._dispatch.router.is_replacing(worker.number)
        replacement = self._dispatch.router.replacement
        orphans = self._dispatch.on_exit(worker, finished)
        if not self._killing and not death.is_expected(stopping=self._stopping):
            self.deaths += 1
            death.log(self._log, connections=len(orphans))
        if was_new:
            self._fail_replacement(replacement, f"a new worker died: {death.how}")
        has_worked = any(each.points > each.points_before for each in orphans)
        drops_poison = self.settings.on_error != "fail"
        self._dispatch.note_death(death, orphans, drops_poison=drops_poison)
        if self._stopping:
            self._serve_the_rest()
        elif state not in {WorkerState.RETIRING, WorkerState.DISMISSED} and not was_new:
            now_s = time.monotonic()
            self._backoff.note_death(now_s, age_s=worker.age_s, has_worked=has_worked)
            self._replace_dead(now_s)

    def _serve_the_rest(self) -> None:
        """Start one more worker during a stop, for connections whose last worker died."""
        if self._dispatch.router.has_waiting and not self._killing and not self._dispatch.processes:
            self._start_missing(1)


def _numbers(workers: Iterable[WorkerProcess]) -> tuple[int, ...]:
    return tuple(each.number for each in workers)
