"""The worker pool of one function: its processes, its connections, and their reload."""

from __future__ import annotations

import enum
import time
from typing import TYPE_CHECKING, Final

from kapudf_cli.supervisor.acceptance import accept, begin
from kapudf_cli.supervisor.dispatch import Dispatch
from kapudf_cli.supervisor.errors import WorkerStartError
from kapudf_cli.supervisor.replacement import (
    CheckInterval,
    Recycling,
    Reloaded,
    ReloadResults,
    WorkerUsage,
)
from kapudf_cli.supervisor.routes import (
    ConnectionState,
    Promote,
    Reason,
    Replacement,
    Switch,
    WorkerState,
)
from kapudf_cli.supervisor.starter import LONG_START_S, Starter
from kapudf_cli.supervisor.templates import Templates
from kapudf_cli.supervisor.worker_death import WorkerDeath
from kapudf_cli.supervisor.worker_process import WorkerReports
from kapudf_cli.worker import channel

if TYPE_CHECKING:
    import selectors
    import socket
    from collections.abc import Iterable, Iterator, Mapping

    from structlog.stdlib import BoundLogger

    from kapudf_cli.config import FunctionSettings, Settings
    from kapudf_cli.supervisor.acceptance import DescriptorReserve
    from kapudf_cli.supervisor.connection import SupervisedConnection
    from kapudf_cli.supervisor.counters import History
    from kapudf_cli.supervisor.routes import Order
    from kapudf_cli.supervisor.worker_process import WorkerProcess
    from kapudf_cli.system.descriptor_store import DescriptorStore
    from kapudf_cli.system.socket_file import SocketFile
    from kapudf_cli.worker.channel import Report

#: How long a stop waits until each waiting connection has a worker.
_PLACE_PATIENCE_S: Final = 1.0


class _Phase(enum.Enum):
    """How far the end of a pool has come."""

    RUNNING = enum.auto()
    #: It was told to stop, and workers to be told wait until each connection has one.
    PLACING = enum.auto()
    #: The workers were told to stop.
    STOPPING = enum.auto()
    #: The workers were killed.
    KILLED = enum.auto()


class Pool:
    """The worker processes of one function, and the connections that they serve.

    Attributes:
        name: what a TICKscript calls.
        settings: of the function.
        loaded: what the workers have loaded that serve, None before the first one.
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
        store: DescriptorStore,
        log: BoundLogger,
        history: History | None = None,
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
            store: keeps connections and workers for the next supervisor.
            log: where events go.
            history: what an earlier supervisor has counted.
        """
        self.name = name
        self.settings = settings
        self._connection_numbers = connection_numbers
        self._reserve = reserve
        self._store = store
        self._reports = WorkerReports(selector, on_report=self._on_report, on_end=self._on_exit)
        self._root_log = log
        self._log = log.bind(function=name)
        self._templates = Templates(
            name,
            logging,
            worker_numbers=worker_numbers,
            selector=selector,
            reserve=reserve,
            log=self._log,
        )
        self._dispatch = Dispatch(self._log, history)
        self._starter = Starter(self._dispatch, self._templates, self._reports, self._log)
        self.loaded: channel.Ready | None = None
        self.has_failed = False
        self._was_ready = self._has_adopted = False
        self._recycling = Recycling()
        self._reload_results = ReloadResults()
        self._phase = _Phase.RUNNING
        self._stopped_s = 0.0
        self._check_interval = CheckInterval()

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

    @property
    def history(self) -> History:
        """Counts what has ended."""
        return self._dispatch.history

    @property
    def deaths(self) -> int:
        """How many workers have died unexpectedly."""
        return sum(self.history.worker_deaths.values())

    def all_workers(self) -> list[WorkerProcess]:
        """Return every worker that has not ended."""
        return list(self._dispatch.processes.values())

    @property
    def templates(self) -> list[WorkerProcess]:
        """The processes that fork workers, and have not ended."""
        return self._templates.processes

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
        return self.is_ready or self._starter.backoff.vain_starts > 0

    @property
    def starting(self) -> int:
        """How many workers load the handler, without those that take unusually long."""
        return self._starter.starting

    @property
    def is_reloading(self) -> bool:
        """Whether a reload waits for new workers, and they do not take unusually long."""
        replacement = self._dispatch.router.replacement
        if replacement is None or replacement.reason is not Reason.RELOAD:
            return False
        return all(self._dispatch.processes[each].age_s < LONG_START_S for each in replacement.new)

    @property
    def may_accept(self) -> bool:
        """Whether workers keep up with new connections, so that more should be accepted."""
        return self._dispatch.router.may_add

    @property
    def is_empty(self) -> bool:
        """Whether no worker and no template is left."""
        return not self._dispatch.processes and not self._templates.processes

    @property
    def needs_ticks(self) -> bool:
        """Whether `tick` may have anything to do."""
        return bool(
            self.connections
            or self._dispatch.router.replacement is not None
            or self._starter.backoff.is_pending
            or self._dispatch.has_hung
            or self._templates.needs_ticks
            or any(
                worker.channel_lost_s is not None for worker in self._dispatch.processes.values()
            )
        )

    # --- for the supervisor ---

    def rename(self, name: str) -> None:
        """Serve the function under another name; its connections go on."""
        self.name = name
        for connection in self.connections.values():
            connection.record.function = name
            connection.save()
        self._log = self._root_log.bind(function=name)
        self._dispatch.use_log(self._log)
        self._templates.rename(name, self._log)
        self._starter.use_log(self._log)

    def adopt(
        self,
        workers: Iterable[tuple[WorkerProcess, list[SupervisedConnection]]],
        waiting: Iterable[SupervisedConnection],
        ended: Iterable[SupervisedConnection],
    ) -> None:
        """Go on with workers of an earlier supervisor, until `start` replaces them.

        Args:
            workers: each with the connections that it serves.
            waiting: connections that no worker serves.
            ended: connections that have ended meanwhile.
        """
        for worker, connections in workers:
            for each in connections:
                each.watch.limit_s = self.settings.busy_limit_s
            self._dispatch.adopt(worker, connections)
            self._reports.watch(worker)
            self.loaded = worker.loaded
            self._was_ready = self._has_adopted = True
        for connection in waiting:
            self.add(connection)
        for connection in ended:
            self._dispatch.add_ended(connection)

    def begin(self, number: int, connection: socket.socket) -> None:
        """Serve a connection that an earlier supervisor has accepted, and not begun to serve.

        Raises:
            OSError: the system has no memory left; the connection is closed.
        """
        self.add(begin(connection, number, self.settings, function=self.name, store=self._store))

    def start(self) -> None:
        """Start the first workers, or those that replace adopted ones as in a reload.

        Raises:
            OSError: the system has no process, memory or descriptor left. Those that are missing
                are started later.
        """
        if self._has_adopted:
            self._starter.start_for_reload(self.settings)
        else:
            self._starter.start_first(self.settings)

    def accept(self, socket_file: SocketFile) -> bool:
        """Serve the next connection, if there is one; see `Listeners`."""
        self._reserve.check()
        connection = accept(
            socket_file,
            self.settings,
            function=self.name,
            numbers=self._connection_numbers,
            store=self._store,
        )
        if connection is not None:
            self._dispatch.add(connection)
        return connection is not None

    def add(self, connection: SupervisedConnection) -> None:
        """Serve a connection that has no worker."""
        connection.watch.limit_s = self.settings.busy_limit_s
        self._dispatch.add(connection)

    def tick(self, now_s: float) -> None:
        """Do what is due; to be called after each wait of the loop, a few times a second."""
        for worker in self.all_workers():
            self._reports.tick(worker)
        is_time = self._check_interval.is_over(now_s)
        if is_time:
            began_s = time.monotonic()
            self._dispatch.check_channels(
                now_s, busy_limit_s=self.settings.busy_limit_s, is_stopping=self._is_stopping
            )
            self._dispatch.check(now_s)
            self._check_interval.note(now_s, took_s=time.monotonic() - began_s)
        self._dispatch.kill_hung(now_s)
        if self._phase is not _Phase.KILLED:
            self._dispatch.place()
        if self._is_stopping:
            self._stop_workers(now_s)
        else:
            self._starter.start_missing(self.settings, now_s, needs_spares=self.is_ready)
            if self.is_ready:
                self._templates.tick(self.settings, self.all_workers())
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
        self._starter.start_for_reload(settings)
        self._reload_results.begin()

    def take_reload_results(self) -> list[Reloaded]:
        """Return the results of reloads that are known now, each of them once, in their order."""
        return self._reload_results.take()

    def stop(self) -> None:
        """Let every worker process what has arrived, and end."""
        self._phase = _Phase.PLACING
        self._starter.backoff.cancel()
        self._cancel_replacement("kapudf was told to stop")
        self._execute(self._dispatch.router.abandon_moves())
        self._stopped_s = time.monotonic()
        if not self._dispatch.router.has_waiting:
            self._templates.stop_loading()
            for worker in self.all_workers():
                if self._dispatch.state_of(worker) is WorkerState.STARTING:
                    # It serves no connection, and the import of its handler may not end.
                    worker.kill()
        self._stop_workers(self._stopped_s)

    def kill(self) -> None:
        """End every worker at once, and start no other."""
        self._phase = _Phase.KILLED
        self._templates.kill()
        for worker in self.all_workers():
            worker.kill()

    def close_ended(self) -> None:
        """Close the connections that have ended; to be called once `history` was kept."""
        self._dispatch.close_ended()

    def abandon(self) -> int:
        """Log the connections that did not end by themselves; return how many there are."""
        for connection in self.connections.values():
            connection.log_abandoned(self._log)
        return len(self.connections)

    # --- what is due ---

    @property
    def _is_stopping(self) -> bool:
        return self._phase is not _Phase.RUNNING

    def _stop_workers(self, now_s: float) -> None:
        """Tell all workers to stop, once each connection has one or has waited for long."""
        is_late = now_s - self._stopped_s > _PLACE_PATIENCE_S
        has_waiting = self._dispatch.router.has_waiting
        if self._phase is _Phase.PLACING and (is_late or not has_waiting):
            self._phase = _Phase.STOPPING
            for worker in self.all_workers():
                if self._dispatch.state_of(worker) is not WorkerState.STARTING:
                    worker.send(channel.Stop())

    def _recycle(self, now_s: float) -> None:
        """Replace a worker that has reached a limit or is outdated, one at a time."""
        if self._dispatch.router.replacement is not None:
            return
        usages = (
            WorkerUsage(
                each,
                each.age_s,
                self._dispatch.points_of(each),
                each.rss_bytes() / 1e6,
                is_outdated=each.outdated is not None,
            )
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
            **({"reason": usage.worker.outdated} if usage.is_outdated else {}),
        )
        if orders := self._dispatch.router.relieve(usage.worker.number):
            self._execute(orders)
            return
        try:
            self._starter.start(self.settings, Reason.RECYCLING, (usage.worker.number,))
        except OSError as error:
            self._log.error("worker cannot be recycled", error=str(error))
            self._recycling.pause(now_s)

    # --- orders of the router ---

    def _execute(self, orders: Iterable[Order]) -> None:
        """Carry orders out."""
        for order in self._dispatch.execute(orders):
            match order:
                case Switch():
                    self._on_switched(order.replacement)
                case Promote():
                    self._note_loaded(order.worker)
                    self._log.info("standby worker serves", worker=order.worker)

    def _on_switched(self, replacement: Replacement) -> None:
        """Note that the new workers of a replacement serve."""
        if replacement.settings is not None:
            self.settings = replacement.settings
            for connection in self.connections.values():
                connection.watch.limit_s = self.settings.busy_limit_s
            self._templates.switch()
        self._was_ready = True
        self._note_loaded(replacement.new[-1])
        self._log.info(
            "new workers serve",
            workers=list(replacement.new),
            **self._loaded_facts(),
        )

    # --- what workers report ---

    def _on_report(self, worker: WorkerProcess, report: Report) -> None:
        match report:
            case channel.Ready():
                self._on_ready(worker, report)
            case channel.Failed():
                self._on_failed(worker, report)
            case channel.Outdated():
                worker.outdated = report.reason
            case channel.Identity() | channel.Placed() | channel.Unreachable():
                pass  # It answers an earlier supervisor, or comes from a partition to its worker.
            case _:
                self._dispatch.on_report(worker, report)

    def _on_ready(self, worker: WorkerProcess, report: channel.Ready) -> None:
        self._log.debug(
            "worker ready",
            worker=worker.number,
            pid=worker.pid,
            start_s=round(worker.age_s, 3),
        )
        worker.loaded = report
        worker.keep(self._store)
        self._dispatch.observe()
        before = self._dispatch.state_of(worker)
        self._execute(self._dispatch.router.on_ready(worker.number))
        if before is WorkerState.STARTING and self.state_of(worker) is WorkerState.SERVING:
            self._note_loaded(worker.number)
        if self._phase is _Phase.STOPPING:
            self._phase = _Phase.PLACING  # It was not told to stop yet.
        serving = [self._dispatch.state_of(each) is WorkerState.SERVING for each in self.workers]
        self._was_ready = self._was_ready or (bool(serving) and all(serving))

    def _note_loaded(self, worker: int) -> None:
        """Keep what a worker has loaded that serves now."""
        self.loaded = self._dispatch.processes[worker].loaded
        self.has_failed = False

    def _loaded_facts(self) -> dict[str, str]:
        """Return the handler and its code, for the log."""
        if self.loaded is None:
            return {}
        return {"handler": self.loaded.handler, "code": str(self.loaded.code)}

    def _on_failed(self, worker: WorkerProcess, report: channel.Failed) -> None:
        self.has_failed = True
        if self._dispatch.router.is_replacing(worker.number):
            self._fail_replacement(self._dispatch.router.replacement, report.problem)
            return
        self._execute(self._dispatch.router.on_failed(worker.number))
        if not self.is_ready:
            raise WorkerStartError(
                report.problem, function=self.name, is_usage_error=report.is_usage_error
            )
        self._log.error("worker cannot start", worker=worker.number, error=report.problem)

    # --- workers that come and go ---

    def _cancel_replacement(self, problem: str) -> None:
        """Dismiss the new workers of a reload or recycling, if one is under way."""
        self._execute(self._dispatch.router.cancel_replacement())
        self._templates.cancel_reload()
        self._reload_results.add(Reloaded(problem=problem))

    def _fail_replacement(self, replacement: Replacement | None, problem: str) -> None:
        """Give up a reload or recycling, because one of its new workers cannot serve."""
        if replacement is not None and replacement.reason is Reason.RELOAD:
            self._log.error("reload failed, the old code goes on", error=problem)
            self._cancel_replacement(problem)
        else:
            # A reload before it may still be moving connections.
            self._log.error("worker cannot be recycled", error=problem)
            self._recycling.pause(time.monotonic())
            self._execute(self._dispatch.router.cancel_replacement())

    def _finish_reload(self) -> None:
        """Note the result of a reload whose connections have all been handed over."""
        if self._reload_results.is_pending:
            states = [each.route.state for each in self.connections.values()]
            stay = states.count(ConnectionState.PINNED)
            code = "{handler} of {code}".format(**self._loaded_facts())
            self._reload_results.add(Reloaded(len(states) - stay, stay, code=code))

    def _on_exit(self, worker: WorkerProcess) -> None:
        """Handle a worker's end, expected or not."""
        self._reports.unwatch(worker)
        state = self._dispatch.state_of(worker)
        finished = worker.finished_connections()
        death = WorkerDeath.of(worker, state)
        was_new = self._dispatch.router.is_replacing(worker.number)
        replacement = self._dispatch.router.replacement
        orphans, orders = self._dispatch.on_exit(worker, finished)
        is_expected = death.is_expected(stopping=self._is_stopping)
        if self._phase is not _Phase.KILLED and not is_expected:
            self.history.add_death(death.cause)
            death.log(self._log, connections=len(orphans))
        self._execute(orders)
        if was_new:
            self._fail_replacement(replacement, f"a new worker died: {death.how}")
        has_worked = any(each.points > each.points_before for each in orphans)
        drops_poison = self.settings.on_error != "fail"
        self._dispatch.note_death(death, orphans, drops_poison=drops_poison)
        if self._is_stopping:
            self._serve_the_rest()
        elif state not in {WorkerState.RETIRING, WorkerState.DISMISSED} and not was_new:
            now_s = time.monotonic()
            self._starter.backoff.note_death(now_s, age_s=worker.age_s, has_worked=has_worked)
            self._starter.start_missing(self.settings, now_s, needs_spares=self.is_ready)

    def _serve_the_rest(self) -> None:
        """During a stop, have one more worker serve the connections whose last one died."""
        if self._dispatch.processes:
            return
        if self._dispatch.router.has_waiting and self._phase is not _Phase.KILLED:
            self._starter.start_last(self.settings)
        else:
            self._templates.stop()
