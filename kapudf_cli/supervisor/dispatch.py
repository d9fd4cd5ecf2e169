"""Connections and worker processes of one function: carries out what the router decides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kapudf_cli.supervisor.counters import History
from kapudf_cli.supervisor.router import Router
from kapudf_cli.supervisor.routes import (
    Assign,
    ConnectionState,
    Give,
    Kill,
    Promote,
    Switch,
    Tell,
    WorkerState,
)
from kapudf_cli.supervisor.worker_death import HungWorkers
from kapudf_cli.worker import channel

if TYPE_CHECKING:
    from collections.abc import Iterable

    from structlog.stdlib import BoundLogger

    from kapudf_cli.supervisor.connection import SupervisedConnection
    from kapudf_cli.supervisor.routes import Order
    from kapudf_cli.supervisor.worker_death import WorkerDeath
    from kapudf_cli.supervisor.worker_process import WorkerProcess

#: After this time without a worker, the log warns of a connection.
_LONG_WAIT_S: Final = 10.0
#: How long a worker may live after its channel is closed. One that should serve cannot be told
#: anything any more; one that was told to stop may take its time.
_CLOSED_PATIENCE_S: Final = 0.2
_EXIT_PATIENCE_S: Final = 10.0


class Dispatch:
    """The connections and worker processes of one function.

    Attributes:
        router: decides which worker serves which connection.
        connections: those that have not ended, by number.
        processes: the workers that have not ended, by number.
        history: counts what has ended.
    """

    def __init__(self, log: BoundLogger, history: History | None = None) -> None:
        """Begin without workers and connections; log to `log`, and count on from `history`."""
        self.router = Router()
        self.connections: dict[int, SupervisedConnection] = {}
        self.processes: dict[int, WorkerProcess] = {}
        self.history = History() if history is None else history
        self._log = log
        # Those that have ended, and are kept until they are counted for the next supervisor, too.
        self._ended: list[SupervisedConnection] = []
        self._hung = HungWorkers()
        self._warned_of_waiting = False

    def use_log(self, log: BoundLogger) -> None:
        """Log to another logger, because the function has another name."""
        self._log = log

    # --- queries ---

    @property
    def has_hung(self) -> bool:
        """Whether workers that hang are to be killed."""
        return not self._hung.is_empty

    def state_of(self, worker: WorkerProcess) -> WorkerState:
        """Return what a worker does."""
        routed = self.router.workers.get(worker.number)
        return WorkerState.DEAD if routed is None else routed.state

    def connections_of(self, worker: WorkerProcess) -> int:
        """Return how many connections a worker serves, or is to take over."""
        routed = self.router.workers.get(worker.number)
        return 0 if routed is None else len(routed.connections)

    def points_of(self, worker: WorkerProcess) -> int:
        """Return how many points a worker has handled."""
        return worker.points_of_ended + sum(
            each.points - each.points_before for each in self.served_by(worker)
        )

    def served_by(self, worker: WorkerProcess) -> list[SupervisedConnection]:
        """Return the connections that a worker serves."""
        routes = self.router.served_by(worker.number)
        return [self.connections[each.number] for each in routes]

    def _is_at_work(self, worker: WorkerProcess) -> bool:
        """Return whether a worker says that one of its handlers has something to do."""
        return any(each.is_at_work for each in self.served_by(worker))

    # --- connections ---

    def add(self, connection: SupervisedConnection) -> None:
        """Serve a connection."""
        self.connections[connection.number] = connection
        self.router.add(connection.route)

    def adopt(self, worker: WorkerProcess, connections: list[SupervisedConnection]) -> None:
        """Add a worker of an earlier supervisor, and the connections that it serves."""
        self.processes[worker.number] = worker
        self.router.adopt(worker.number, (each.route for each in connections))
        for connection in connections:
            self.connections[connection.number] = connection
            connection.on_assigned()

    def check(self, now_s: float) -> None:
        """Send heartbeats where they are due, and find workers that hang."""
        frozen = set()
        for connection in list(self.connections.values()):
            connection.tick(now_s)
            self._observe(connection)
            if connection.needs_heartbeat:
                connection.beat()
            worker = self.processes.get(connection.route.worker or 0)
            if worker is None:
                continue
            if connection.is_not_reading:
                frozen.add(worker.number)
            if connection.watch.has_just_passed_limit:
                self._hung.note(connection, worker, now_s, self._log)
            elif connection.is_not_pausing and not self._is_at_work(worker):
                self._hung.note_frozen(connection, worker, now_s, self._log)
        self.router.observe_frozen(frozen)
        self._warn_of_waiting()

    def observe(self) -> None:
        """Tell the router what is seen of the connections."""
        for connection in self.connections.values():
            self._observe(connection)

    def _observe(self, connection: SupervisedConnection) -> None:
        is_isolated, is_careful, is_movable = connection.observed()
        self.router.observe(
            connection.number,
            is_isolated=is_isolated,
            is_careful=is_careful,
            is_movable=is_movable,
        )

    def _warn_of_waiting(self) -> None:
        """Log once that connections have waited long for a worker."""
        waits_s = [each.watch.busy_s for each in self.connections.values() if each.is_waiting]
        if not waits_s:
            self._warned_of_waiting = False
        elif not self._warned_of_waiting and max(waits_s) >= _LONG_WAIT_S:
            self._warned_of_waiting = True
            self._log.warning(
                "connections wait for a worker",
                connections=len(waits_s),
                wait_s=round(max(waits_s), 1),
            )

    def place(self) -> None:
        """Give connections without a worker to workers that have room."""
        full: set[int] = set()
        while self.router.has_waiting and (gives := self.router.place(self._room() - full)):
            # The last one first: what cannot be sent goes back to the front of the queue.
            full |= {give.worker for give in reversed(gives) if not self._give(give)}

    def move(self, now_s: float) -> None:
        """Begin the handovers that may begin now."""
        if self.router.needs_room:
            self.execute(self.router.move(now_s, self._room()))

    def kill_hung(self, now_s: float) -> None:
        """Kill workers that hang and have had the time to write where."""
        self._hung.kill_due(now_s)

    # --- workers that do not read ---

    def check_channels(self, now_s: float, *, busy_limit_s: float, is_stopping: bool) -> None:
        """Kill workers that cannot be told anything any more.

        Args:
            now_s: a monotonic clock's time, in seconds.
            busy_limit_s: how long orders to a worker may wait.
            is_stopping: whether all workers were told to stop.
        """
        for worker in list(self.processes.values()):
            if worker.killed_for is not None:
                continue
            if worker.blocked_s > busy_limit_s:
                self._log.error(
                    "worker reads no orders, it is replaced",
                    worker=worker.number,
                    pid=worker.pid,
                    blocked_s=round(worker.blocked_s, 1),
                )
                worker.kill(f"it read no orders for {worker.blocked_s:.0f} s")
            elif worker.channel_lost_s is not None:
                may_end = {WorkerState.RETIRING, WorkerState.DEAD, WorkerState.DISMISSED}
                is_told = is_stopping or self.state_of(worker) in may_end
                self._end_without_channel(worker, now_s - worker.channel_lost_s, is_told=is_told)

    def _end_without_channel(self, worker: WorkerProcess, lost_s: float, *, is_told: bool) -> None:
        """Kill a worker that has not ended some time after its channel was closed."""
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

    # --- orders of the router ---

    def execute(self, orders: Iterable[Order]) -> list[Promote | Switch]:
        """Carry orders out; return those that say that other workers serve now."""
        others: list[Promote | Switch] = []
        for order in orders:
            match order:
                case Give():
                    self._give(order)
                case Tell():
                    self._tell(order)
                case Assign():
                    self.connections[order.connection].on_assigned()
                case Kill():
                    self.processes[order.worker].kill()
                case Promote() | Switch():
                    others.append(order)
        return others

    def _give(self, give: Give) -> bool:
        """Send a connection to a worker; return False if there is no room for it."""
        connection = self.connections[give.connection]
        message, descriptors = connection.prepare(give)
        if not self.processes[give.worker].hand_over(message, descriptors):
            self.execute(self.router.on_unsent(give))
            return False
        if not give.waits:
            connection.on_assigned()
        return True

    def _tell(self, order: Tell) -> None:
        worker = self.processes.get(order.worker)
        if worker is None:
            return  # It has ended meanwhile.
        if isinstance(order.message, channel.Resume):
            connection = self.connections.get(order.message.connection)
            if connection is not None:
                connection.on_resumed(order.worker)
        worker.send(order.message)

    def _room(self) -> set[int]:
        """Return the workers that can be sent a connection now."""
        return {
            each.number
            for each in self.processes.values()
            if self.state_of(each) is WorkerState.SERVING and each.check_room()
        }

    # --- what workers report ---

    def on_report(
        self,
        worker: WorkerProcess,
        report: channel.Finished | channel.Paused | channel.TakenOver | channel.Refused,
    ) -> None:
        """Handle a report on a connection."""
        router, number = self.router, worker.number
        match report:
            case channel.Finished():
                self._on_finished(worker, report.connection)
            case channel.Paused():
                self.execute(router.on_paused(number, report.connection))
            case channel.TakenOver():
                orders = router.on_taken_over(number, report.connection)
                self.execute(orders)
                connection = self.connections.get(report.connection)
                if connection is not None and connection.route.worker == number:
                    if not orders:
                        connection.on_taken_over()
                    event = "connection handed over" if orders else "connection taken over"
                    self._log.info(event, connection=report.connection, worker=number)
            case channel.Refused():
                self._on_refused(worker, report)

    def _on_finished(self, worker: WorkerProcess, number: int) -> None:
        connection = self.connections.pop(number, None)
        if connection is None:
            return
        worker.end_rest()
        worker.points_of_ended += connection.points - connection.points_before
        self.execute(self.router.on_finished(worker.number, number))
        self.add_ended(connection)

    def add_ended(self, connection: SupervisedConnection) -> None:
        """Count a connection that has ended; it stays open until `close_ended` is called."""
        # First: its worker, which knows it too, may be replaced before this connection is closed.
        connection.header.has_ended = 1
        self.history.add_ended(connection)
        self._ended.append(connection)

    def close_ended(self) -> None:
        """Close the connections that have ended; to be called once `history` was kept."""
        while self._ended:
            connection = self._ended.pop()
            connection.close()
            self.history.counted.discard(connection.number)

    def _on_refused(self, worker: WorkerProcess, report: channel.Refused) -> None:
        """Handle that a worker cannot serve a connection, or not take it over."""
        connection = self.connections.get(report.connection)
        if connection is None:
            return
        route = connection.route
        is_handover = route.state is ConnectionState.MOVING and route.target == worker.number
        if is_handover or route.worker == worker.number:
            rest_s = worker.rest() if report.retry else None
            if is_handover:
                self._log.error(
                    "handover failed, the old worker goes on",
                    connection=report.connection,
                    error=report.problem,
                )
            elif rest_s is not None:
                self._log.error(
                    "worker cannot serve a connection",
                    connection=report.connection,
                    worker=worker.number,
                    error=report.problem,
                    retry_s=rest_s,
                )
            elif not report.retry:
                connection.give_up(report.problem)
        self.execute(self.router.on_refused(worker.number, report.connection, retry=report.retry))

    def on_exit(
        self, worker: WorkerProcess, finished: Iterable[int]
    ) -> tuple[list[SupervisedConnection], list[Order]]:
        """Forget a worker that has ended.

        Args:
            worker: the one that has ended.
            finished: connections that it has logged as finished and not reported.

        Returns:
            The connections that need another worker, and orders that are still to be executed.
        """
        self._hung.forget(worker)
        for number in finished:
            self._on_finished(worker, number)
        served = self.served_by(worker)
        del self.processes[worker.number]
        orders = self.router.on_exit(worker.number)
        return [each for each in served if each.is_waiting], orders

    def note_death(
        self,
        death: WorkerDeath,
        orphans: list[SupervisedConnection],
        *,
        drops_poison: bool,
    ) -> None:
        """Find out whether a frame of the connections that a dead worker served is the cause."""
        accused = death.accusations(orphans)
        careful = sum(each.is_careful for each in orphans)
        for connection in orphans:
            connection.note_death(
                death.in_words(connection),
                accused=accused[connection.number],
                alone=careful == 1,
                drops_poison=drops_poison,
            )
            self._observe(connection)
