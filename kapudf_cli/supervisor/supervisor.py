"""The supervisor: one loop over sockets, signals and worker processes.

It imports no handler and no protobuf, so that no plugin can crash it. It keeps a duplicate of
every connection, so that connections outlive the workers that serve them.
"""

from __future__ import annotations

import functools
import math
import os
import selectors
import signal
import time
import traceback
from typing import TYPE_CHECKING, Final, TypeVar

from kapudf_cli.supervisor.acceptance import DescriptorReserve
from kapudf_cli.supervisor.adoption import Inheritance
from kapudf_cli.supervisor.control import ControlClients
from kapudf_cli.supervisor.control_commands import ControlCommands
from kapudf_cli.supervisor.errors import WorkerStartError
from kapudf_cli.supervisor.functions import Functions
from kapudf_cli.supervisor.reload import Reloader
from kapudf_cli.supervisor.upgrade import Upgrade
from kapudf_cli.supervisor.worker_death import beginning
from kapudf_cli.system import keeping, systemd
from kapudf_cli.system.terminal_text import counted
from kapudf_cli.worker.channel import Abort
from kapudf_cli.worker.listeners import Listeners

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from structlog.stdlib import BoundLogger

    from kapudf_cli.config import Settings
    from kapudf_cli.supervisor.code_watch import CodeWatch
    from kapudf_cli.supervisor.control import ControlClient
    from kapudf_cli.supervisor.functions import FunctionSockets
    from kapudf_cli.supervisor.metrics_server import MetricsServer
    from kapudf_cli.supervisor.pool import Pool
    from kapudf_cli.system.descriptor_store import DescriptorStore
    from kapudf_cli.system.signals import SignalQueue
    from kapudf_cli.system.socket_file import SocketFile

#: The interval of the loop while pools need ticks.
_TICK_S: Final = 0.25
#: How often a process that adopts orphans reaps them while it is idle.
_REAP_S: Final = 5.0
#: How long workers have to end after a kill.
_KILL_WAIT_S: Final = 5.0
#: The pause of the loop after a step that failed unexpectedly.
_PAUSE_AFTER_FAILURE_S: Final = 0.1
#: How long a failure of the same type at the same line is not logged again.
_SAME_FAILURE_S: Final = 60.0

#: How long a connection may take to end after it is aborted.
_ABORT_WAIT_S: Final = 1.0
#: How long a worker has to write where it hangs.
_DUMP_WAIT_S: Final = 0.25

T = TypeVar("T")


class Supervisor:
    """Serves functions by worker processes, until it is told to stop."""

    def __init__(
        self,
        settings: Settings,
        read_settings: Callable[[], Settings],
        *,
        store: DescriptorStore,
        log: BoundLogger,
        code_watch: CodeWatch | None = None,
        metrics: MetricsServer | None = None,
    ) -> None:
        """Bind the sockets of all functions.

        Args:
            settings: what to serve.
            read_settings: reads the settings again; raises KapudfError if they are wrong.
            store: keeps descriptors for the next supervisor, and has those of the last one.
            log: where events go.
            code_watch: watches the files of the handlers, if given.
            metrics: gets the status of all functions, if given.

        Raises:
            SocketPathError: a socket cannot be bound; all are released.
        """
        self._log = log
        self._code_watch = code_watch
        self._selector = selectors.DefaultSelector()
        self._reserve = DescriptorReserve()
        self._listeners: Listeners[FunctionSockets] = Listeners(
            self._selector, self._accept, log, may_accept=self._may_accept
        )
        self._control_listeners: Listeners[FunctionSockets] = Listeners(
            self._selector, self._accept_control, log
        )
        self._clients = ControlClients(self._selector)
        self._inheritance = Inheritance(store, log)
        self._functions = Functions(
            settings,
            self._selector,
            listeners=self._listeners,
            control_listeners=self._control_listeners,
            reserve=self._reserve,
            store=store,
            inheritance=self._inheritance,
            log=log,
        )
        self._reloading: Reloader[ControlClient] = Reloader(self._functions, read_settings, log)
        self._upgrade = Upgrade(self._selector, store, log, formats=self._functions.formats)
        self._commands = ControlCommands(self._functions, self._reloading, self._upgrade)
        if metrics is not None:
            supply = functools.partial(metrics.supply, self._commands.statuses)
            self._selector.register(metrics, selectors.EVENT_READ, supply)
        self._watchdog_s = systemd.watchdog_s()
        self._fed_s = -math.inf
        self._announces_reload = False
        self._status = ""
        self._is_ending = self._is_succeeded = False
        self._has_failed = False
        # When each kind of failure was last logged, by its type, file and line.
        self._failures: dict[tuple[type, str, int | None], float] = {}

    def run(self, signals: SignalQueue) -> int:
        """Serve until SIGINT or SIGTERM and return the exit status: 0, or 1 if hurried.

        Args:
            signals: a queue of these, of SIGHUP, which reloads, and of SIGUSR2, which upgrades.

        Raises:
            WorkerStartError: a handler cannot be loaded, or no process be started, at the very
                start.
        """
        self._selector.register(signals, selectors.EVENT_READ)
        abandoned = 0
        try:
            self._adopt()
            self._functions.start()
            first = self._serve_until_signal(signals)
            if first is signal.SIGTERM and self._leaves_to_successor():
                return 0
            systemd.notify("STOPPING=1")
            hurried = self._drain(first, signals)
            # Workers may log finished connections until they have ended.
            self._end_workers()
            abandoned = sum(pool.abandon() for pool in self._functions.pools())
        finally:
            if not self._is_succeeded:
                self._is_ending = True
                self._end_workers()
                self._attempt(self._functions.release)
            self._reserve.close()
            self._selector.close()
        self._log.info("stopped", abandoned_connections=abandoned)
        return 1 if hurried else 0

    def _adopt(self) -> None:
        """Go on with what an earlier supervisor has left, if there was one."""
        adopted = self._inheritance.adopt()
        last_end = os.environ.pop(keeping.LAST_END_VARIABLE, "")
        if not adopted.is_empty:
            self._log.info(
                "goes on with the tasks of the last supervisor",
                **({"last_end": last_end} if last_end else {}),
                workers=len(adopted.workers),
                connections=adopted.connections,
            )
        self._functions.adopt(adopted)

    def _leaves_to_successor(self) -> bool:
        """Return whether systemd restarts this service, so that everything is to go on."""
        if not systemd.is_restarting():
            return False
        verdict = self._upgrade.check_now()
        if verdict.problem is not None and verdict.starts:
            self._log.error("tasks cannot go on after the restart", error=verdict.problem)
            return False
        if verdict.problem is not None:
            self._log.error(
                "successor cannot start, tasks go on in their workers until it can",
                error=verdict.problem,
            )
        self._log.info(
            "leaves the tasks to the next supervisor",
            connections=sum(len(pool.connections) for pool in self._functions.pools()),
        )
        self._is_succeeded = True
        return True

    # --- the loop ---

    def _serve_until_signal(self, signals: SignalQueue) -> signal.Signals:
        while True:
            self._turn()
            taken = self._attempt(signals.take) or []
            # A stop comes before a reload, and several reloads are one.
            for number in taken:
                if number not in {signal.SIGHUP, signal.SIGUSR2}:
                    return number
            if signal.SIGHUP in taken:
                systemd.notify_reload(begins=True)
                self._announces_reload = True
                self._attempt(self._reloading.reload_all)
            if signal.SIGUSR2 in taken:
                self._attempt(self._upgrade.begin)

    def _turn(self, longest_s: float | None = None) -> None:
        """Wait for events, for `longest_s` at most, and handle them."""
        if self._has_failed:
            # What caused the failure is still there: without a pause, the loop would spin.
            self._has_failed = False
            time.sleep(_PAUSE_AFTER_FAILURE_S)
        for key, _ in self._attempt(functools.partial(self._wait, longest_s)) or []:
            # An earlier callback of this turn may have closed the descriptor.
            if key.data is not None and self._selector.get_map().get(key.fd) is key:
                self._attempt(key.data)
        now_s = time.monotonic()
        for pool in self._functions.pools():
            self._attempt(functools.partial(pool.tick, now_s))
        if self._code_watch is not None:
            self._attempt(functools.partial(self._follow_code, self._code_watch))
        self._attempt(functools.partial(self._clients.tick, now_s))
        self._attempt(self._functions.start)
        self._attempt(self._reloading.step)
        self._attempt(self._commands.answer_reloads)
        self._attempt(self._functions.listen_where_ready)
        self._attempt(self._functions.keep_counters)
        self._attempt(self._functions.forget_ended)
        self._attempt(self._reap_orphans)
        self._attempt(self._upgrade.step)
        self._tell_systemd(now_s)

    def _tell_systemd(self, now_s: float) -> None:
        """Tell systemd what has changed, and that the loop works."""
        if self._announces_reload and not self._reloading.is_under_way:
            self._announces_reload = False
            systemd.notify_reload(begins=False)
        functions = len(self._functions.names())
        connections = sum(len(pool.connections) for pool in self._functions.pools())
        status = f"serves {counted(connections, 'connection')} of {counted(functions, 'function')}"
        if status != self._status:
            self._status = status
            systemd.notify(f"STATUS={status}")
        self._feed_watchdog(now_s)

    def _feed_watchdog(self, now_s: float) -> None:
        """Tell systemd that the loop works, unless a step of it has failed."""
        if self._watchdog_s is None or self._has_failed:
            return
        if now_s - self._fed_s >= self._watchdog_s:
            self._fed_s = now_s
            systemd.notify("WATCHDOG=1")

    def _reap_orphans(self) -> None:
        """Reap child processes that have ended, other than workers and templates.

        Where this process is PID 1 of a container or adopts workers from a template, the
        processes that a dead worker has started become its children, and would stay as zombies.
        """
        pools = self._functions.pools()
        workers = {each.pid for pool in pools for each in (*pool.all_workers(), *pool.templates)}
        if 0 in workers:
            return  # One of the children is a worker whose process id is not known yet.
        while True:
            try:
                # Do not take the exit status yet: a worker's is read by its pool.
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None or ended.si_pid in workers:
                return  # Other children come after this worker.
            os.waitpid(ended.si_pid, os.WNOHANG)

    def _wait(self, longest_s: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait until something is ready, a tick is due or `longest_s` is over; return what is."""
        now_s = time.monotonic()
        rests_s = [each.wait_s(now_s) for each in (self._listeners, self._control_listeners)]
        needs_ticks = (
            self._functions.is_starting
            or self._reloading.is_waiting
            or self._upgrade.is_under_way
            or any(pool.needs_ticks for pool in self._functions.pools())
        )
        tick_s = _TICK_S if needs_ticks else None
        adopts = os.getpid() == 1 or any(pool.templates for pool in self._functions.pools())
        reap_s = _REAP_S if adopts else None
        often = (*rests_s, tick_s, reap_s, longest_s, self._watchdog_s)
        waits = [each for each in often if each is not None]
        return self._selector.select(max(min(waits), 0.0) if waits else None)

    def _follow_code(self, code_watch: CodeWatch) -> None:
        """Watch the code of all functions; after a failed import, also for new files."""
        pools = self._functions.pools()
        code_watch.follow(
            (file for pool in pools if pool.loaded for file in pool.loaded.files),
            new_files=any(pool.has_failed for pool in pools),
        )

    def _attempt(self, step: Callable[[], T]) -> T | None:
        """Do one step of the loop; return None if it fails, and log why.

        If this process ended, every connection would end. Only at the start, before anything is
        served, a failure is raised.
        """
        try:
            return step()
        except WorkerStartError as error:
            if not self._functions.is_up and not self._is_ending:
                raise
            # A function that a reload has added.
            self._log.error("function cannot be served", error=str(error))
        except Exception as error:
            if not self._functions.is_up and not self._is_ending:
                raise
            self._has_failed = True
            self._log_failure(error)
        return None

    def _log_failure(self, error: Exception) -> None:
        """Log an unexpected failure, unless the same one was logged shortly before."""
        frames = traceback.extract_tb(error.__traceback__)
        place = (type(error), frames[-1].filename, frames[-1].lineno)
        now_s = time.monotonic()
        if now_s - self._failures.get(place, -math.inf) >= _SAME_FAILURE_S:
            self._failures[place] = now_s
            self._log.error("unexpected failure, everything else goes on", exc_info=error)

    # --- who connects ---

    def _may_accept(self, sockets: FunctionSockets) -> bool:
        """Return whether the workers of a function keep up with new connections."""
        return sockets.user is not None and sockets.user.pool.may_accept

    def _accept(self, sockets: FunctionSockets, socket_file: SocketFile) -> bool:
        """Serve Kapacitor's next connection, if there is one; see `Listeners`."""
        return sockets.user is not None and sockets.user.pool.accept(socket_file)

    def _accept_control(self, sockets: FunctionSockets, control_file: SocketFile) -> bool:
        """Serve the next control client, if there is one; see `Listeners`."""
        with self._reserve.lent():
            connection = control_file.accept()
        if connection is None:
            return False
        self._clients.add(connection, functools.partial(self._commands.handle, sockets))
        return True

    # --- the end ---

    def _drain(self, first: signal.Signals, signals: SignalQueue) -> bool:
        """Let every connection finish; return whether a second signal cut that short."""
        self._functions.stop_listening()
        pools = self._functions.pools()
        grace_period_s = self._functions.settings.grace_period_s
        self._log.info(
            "stopping",
            signal=first.name,
            connections=sum(len(pool.connections) for pool in pools),
            grace_period_s=grace_period_s,
        )
        now_s = time.monotonic()
        drain = Drain(
            pools,
            grace_period_s=grace_period_s,
            now_s=now_s,
            attempt=self._attempt,
            log=self._log,
        )
        while (wait_s := drain.advance(time.monotonic())) is not None:
            self._turn(wait_s)
            taken = self._attempt(signals.take) or []
            if any(number not in {signal.SIGHUP, signal.SIGUSR2} for number in taken):
                connections = sum(len(pool.connections) for pool in pools)
                self._log.warning("second signal, ending at once", connections=connections)
                return True
        return False

    def _end_workers(self) -> None:
        """Kill all workers, and wait for their ends."""
        deadline = time.monotonic() + _KILL_WAIT_S
        pools = self._functions.pools
        for pool in pools():
            self._attempt(pool.kill)
        while not all(pool.is_empty for pool in pools()) and time.monotonic() < deadline:
            self._turn(deadline - time.monotonic())
        self._clients.close()


class Drain:
    """The end of serving: connections finish, or are aborted step by step; without a clock."""

    def __init__(
        self,
        pools: Sequence[Pool],
        *,
        grace_period_s: float,
        now_s: float,
        attempt: Callable[[Callable[[], None]], object],
        log: BoundLogger,
    ) -> None:
        """Tell every worker to process what was received, and to end.

        Args:
            pools: those of the workers.
            grace_period_s: how long the workers may take.
            now_s: a monotonic clock's time, in seconds.
            attempt: executes one step, and does not raise if it fails.
            log: where workers that hang are logged.
        """
        self._pools = pools
        self._attempt = attempt
        self._log = log
        self._due_s = now_s + grace_period_s
        # The next steps, and how long each may take.
        self._steps: list[tuple[Callable[[Pool], None], float]] = [
            (_abort, _ABORT_WAIT_S),
            (_ask_for_stacks, _DUMP_WAIT_S),
            (self._log_hanging, 0.0),
        ]
        for pool in pools:
            attempt(pool.stop)

    def advance(self, now_s: float) -> float | None:
        """Do the step that is due; return how long to wait for the next one, None at the end.

        The end is when no worker or no step is left.
        """
        if all(pool.is_empty for pool in self._pools):
            return None
        if now_s >= self._due_s:
            if not self._steps:
                return None
            step, patience_s = self._steps.pop(0)
            for pool in self._pools:
                self._attempt(functools.partial(step, pool))
            self._due_s = now_s + patience_s
        return self._due_s - now_s

    def _log_hanging(self, pool: Pool) -> None:
        """Log where each worker hangs that has not even aborted its connections."""
        for worker in pool.all_workers():
            self._log.error(
                "worker hangs at the end, and is killed",
                function=pool.name,
                worker=worker.number,
                pid=worker.pid,
                connections=pool.connections_of(worker),
                stacks=beginning(worker.stacks()),
            )


def _abort(pool: Pool) -> None:
    """Abort the connections that are left."""
    for worker in pool.all_workers():
        worker.send(Abort())


def _ask_for_stacks(pool: Pool) -> None:
    """Have every worker write the stacks of its threads."""
    for worker in pool.all_workers():
        worker.ask_for_stacks()
