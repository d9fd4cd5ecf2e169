"""The supervisor: sockets, signals and worker processes, in one small loop.

It imports no handler and no protobuf, so that no plugin can hurt it. It keeps a
duplicate of every connection, so that a connection outlives the workers that serve it.
"""

from __future__ import annotations

import functools
import itertools
import selectors
import signal
import time
from typing import TYPE_CHECKING, Any, Final

from kapudf_cli.errors import ConfigError, KapudfError, SocketPathError, WorkerStartError
from kapudf_cli.serving import control, status, systemd
from kapudf_cli.serving.listeners import Listeners
from kapudf_cli.serving.pool import Pool
from kapudf_cli.serving.socket_file import SocketFile

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.stdlib import BoundLogger

    from kapudf_cli.config import FunctionSettings, Settings
    from kapudf_cli.serving.code_watch import CodeWatch
    from kapudf_cli.serving.control import Reply
    from kapudf_cli.serving.signals import SignalQueue
    from kapudf_cli.serving.succession import Reloaded

#: How often everything is looked after, while there is anything to look after.
_LOOK_S: Final = 0.25
#: How long a connection may take to end after it was aborted.
_ABORT_WAIT_S: Final = 1.0
#: How long workers have to end after a kill.
_KILL_WAIT_S: Final = 5.0


class _Function:
    """A function that is served: its sockets and its workers."""

    def __init__(
        self, pool: Pool, socket_file: SocketFile, control_file: SocketFile | None
    ) -> None:
        self.pool = pool
        self.socket_file = socket_file
        self.control_file = control_file
        self.listens = False

    def release(self) -> None:
        """Give the sockets' paths up."""
        if self.control_file is not None:
            self.control_file.release()
        self.socket_file.release()


class Supervisor:
    """Serves functions by worker processes, until it is told to stop."""

    def __init__(
        self, settings: Settings, *, log: BoundLogger, code_watch: CodeWatch | None = None
    ) -> None:
        """Bind the sockets of all functions.

        Args:
            settings: what to serve.
            log: where events go.
            code_watch: is told where the handlers' code is, if there is one.

        Raises:
            SocketPathError: one cannot be had; none is kept then.
        """
        self._settings = settings
        self._log = log
        self._code_watch = code_watch
        self._started_s = time.monotonic()
        self._selector = selectors.DefaultSelector()
        self._listeners: Listeners[str] = Listeners(self._selector, self._accept, log)
        self._control_listeners: Listeners[str] = Listeners(self._selector, self._greet, log)
        self._clients = control.ControlClients(self._selector)
        self._worker_numbers = itertools.count(1)
        self._connection_numbers = itertools.count(1)
        self._functions: dict[str, _Function] = {}
        # Functions that are served no more, until their last worker has ended.
        self._leaving: list[_Function] = []
        self._reload_settings: Callable[[], Settings] = lambda: settings
        self._is_up = False
        try:
            for name, function in settings.functions.items():
                self._functions[name] = self._bind(name, function)
        except BaseException:
            self._release()
            raise

    def run(self, signals: SignalQueue, reload_settings: Callable[[], Settings]) -> int:
        """Serve until SIGINT or SIGTERM and return the exit status: 0, or 1 if hurried.

        Args:
            signals: a queue of these and of SIGHUP, which reloads.
            reload_settings: reads the settings anew; raises KapudfError if they are wrong.

        Raises:
            WorkerStartError: a handler cannot be loaded, at the very start.
            OSError: no process could be started, at the very start.
        """
        self._reload_settings = reload_settings
        self._selector.register(signals, selectors.EVENT_READ)
        abandoned = 0
        try:
            for function in self._functions.values():
                function.pool.start()
            first = self._serve_until_signal(signals)
            systemd.notify("STOPPING=1")
            hurried = self._drain(first, signals)
            abandoned = sum(pool.abandon() for pool in self._pools())
        finally:
            self._end_workers()
            self._release()
            self._selector.close()
        self._log.info("stopped", abandoned_connections=abandoned)
        return 1 if hurried else 0

    # --- the loop ---

    def _serve_until_signal(self, signals: SignalQueue) -> signal.Signals:
        while True:
            self._turn()
            for number in signals.take():
                if number is not signal.SIGHUP:
                    return number
                self._reload_all()

    def _turn(self, longest_s: float | None = None) -> None:
        """Wait for something to happen, for `longest_s` at most, and deal with it."""
        now_s = time.monotonic()
        rests_s = [each.wait_s(now_s) for each in (self._listeners, self._control_listeners)]
        look_s = _LOOK_S if self._needs_looks() else None
        waits = [each for each in (*rests_s, look_s, longest_s) if each is not None]
        for key, _ in self._selector.select(max(min(waits), 0.0) if waits else None):
            if key.data is not None and self._selector.get_map().get(key.fileobj) is key:
                self._deal_with(key.data)
        now_s = time.monotonic()
        for pool in self._pools():
            self._deal_with(functools.partial(pool.look, now_s))
        if self._code_watch is not None:
            self._code_watch.follow(folder for pool in self._pools() for folder in pool.folders)
        self._clients.look(now_s)
        self._listen_where_ready()
        for function in [each for each in self._leaving if each.pool.is_empty]:
            function.release()
            self._leaving.remove(function)
            self._log.info("function removed", function=function.pool.name)

    def _deal_with(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except WorkerStartError as error:
            if not self._is_up:
                raise
            # A function that a reload has added.
            self._log.error("function cannot be served", error=str(error))
        except Exception:
            if not self._is_up:
                raise
            # Whatever it is: an end of this process would be one of every connection.
            self._log.exception("unexpected failure, everything else goes on")

    def _needs_looks(self) -> bool:
        return any(pool.needs_looks for pool in self._pools())

    def _pools(self) -> list[Pool]:
        return [each.pool for each in (*self._functions.values(), *self._leaving)]

    def _listen_where_ready(self) -> None:
        if not self._is_up and not all(each.pool.is_settled for each in self._functions.values()):
            return  # If one cannot be served at all, none is.
        for name, function in self._functions.items():
            if not function.listens and function.pool.is_ready:
                function.listens = True
                self._listeners.add(name, function.socket_file)
                self._log.info(
                    "listening",
                    function=name,
                    handler=function.pool.handler,
                    socket=function.socket_file.path,
                )
        if not self._is_up and all(each.listens for each in self._functions.values()):
            self._is_up = True
            systemd.notify("READY=1")

    def _accept(self, name: str, socket_file: SocketFile) -> bool:
        return self._functions[name].pool.accept(socket_file)

    # --- functions that come and go ---

    def _bind(self, name: str, settings: FunctionSettings) -> _Function:
        socket_file = SocketFile.bind(
            settings.socket,
            mode=settings.mode,
            group=settings.socket_group,
            remove_stale=settings.remove_stale,
        )
        try:
            control_file = socket_file.bind_beside(
                control.SUFFIX, mode=settings.mode, group=settings.socket_group
            )
        except SocketPathError as error:
            self._log.warning("no status and reload by socket", function=name, error=str(error))
            control_file = None
        pool = Pool(
            name,
            settings,
            self._settings,
            worker_numbers=self._worker_numbers,
            connection_numbers=self._connection_numbers,
            selector=self._selector,
            log=self._log,
        )
        if control_file is not None:
            self._control_listeners.add(name, control_file)
        return _Function(pool, socket_file, control_file)

    def _remove(self, name: str) -> None:
        function = self._functions[name]
        if function.listens:
            # Whoever is in the queue is served.
            self._listeners.remove(name)
        del self._functions[name]
        if function.control_file is not None:
            self._control_listeners.remove(name)
        function.pool.stop()
        self._leaving.append(function)

    # --- reload ---

    def _reload_all(self) -> None:
        """Have everything loaded anew: the settings, and the code of every function."""
        try:
            settings = self._settings_anew()
        except KapudfError as error:
            self._log.error("reload failed, everything goes on as it was", error=str(error))
            return
        for name in self._functions.keys() - settings.functions.keys():
            self._remove(name)
        for name, function in settings.functions.items():
            if name not in self._functions:
                self._add(name, function)
                continue
            try:
                self._reload(name, function, None)
            except (KapudfError, OSError) as error:
                self._log.error("reload failed", function=name, error=str(error))
        self._settings = settings

    def _settings_anew(self) -> Settings:
        settings = self._reload_settings()
        if settings.in_one_process:
            place = f"functions.{next(iter(settings.functions))}"
            raise ConfigError(place, ["workers: 0 needs a restart"])
        return settings

    def _add(self, name: str, settings: FunctionSettings) -> None:
        try:
            function = self._functions[name] = self._bind(name, settings)
            function.pool.start()
        except (KapudfError, OSError) as error:
            self._log.error("function cannot be served", function=name, error=str(error))

    def _reload(
        self, name: str, settings: FunctionSettings, on_done: Callable[[Reloaded], None] | None
    ) -> None:
        """Have a function loaded anew. Raises KapudfError or OSError if that cannot even begin."""
        function = self._functions[name]
        old = function.pool.settings
        if settings.socket != old.socket:
            self._remove(name)
            self._add(name, settings)
            return
        if (settings.mode, settings.socket_group) != (old.mode, old.socket_group):
            for socket_file in (function.socket_file, function.control_file):
                if socket_file is not None:
                    socket_file.set_access(settings.mode, settings.socket_group)
        function.pool.reload(settings, on_done)

    # --- who asks ---

    def _greet(self, name: str, control_file: SocketFile) -> bool:
        """Serve the next one who asks, if there is one; see `Listeners`."""
        connection = control_file.accept()
        if connection is None:
            return False
        self._clients.add(connection, lambda command, reply: self._obey(name, command, reply))
        return True

    def _obey(self, name: str, command: str, reply: Reply) -> None:
        """Do what is asked through the control socket of a function."""
        function = self._functions.get(name)
        if function is None:
            reply({"error": f"{name} is served no more"})
        elif command == "status":
            reply(
                status.of_pool(
                    function.pool,
                    socket_path=function.socket_file.path,
                    started_s=self._started_s,
                )
            )
        elif command == "reload":
            self._reload_one(name, reply)
        else:
            reply({"error": "unknown command; there are status and reload"})

    def _reload_one(self, name: str, reply: Reply) -> None:
        try:
            settings = self._settings_anew().functions.get(name)
        except KapudfError as error:
            reply({"error": str(error)})
            return
        if settings is None:
            reply({"error": f"{name} is no longer in the configuration; SIGHUP removes it"})
            return
        if settings.socket != self._functions[name].pool.settings.socket:
            reply({"error": f"the socket of {name} is another one now; SIGHUP moves it"})
            return

        def on_done(reloaded: Reloaded) -> None:
            answer: dict[str, Any] = {
                "function": name,
                "connections": reloaded.connections,
                "stay": reloaded.stay,
            }
            if reloaded.problem is not None:
                answer = {"error": f"the old code goes on: {reloaded.problem}"}
            reply(answer)

        try:
            self._reload(name, settings, on_done)
        except (KapudfError, OSError) as error:
            self._log.error("reload failed", function=name, error=str(error))
            reply({"error": str(error)})

    # --- the end ---

    def _drain(self, first: signal.Signals, signals: SignalQueue) -> bool:
        """Let every connection finish; return whether a second signal cut that short."""
        for name, function in self._functions.items():
            if function.listens:
                # Whoever is in the queue was connected before the signal came.
                self._listeners.remove(name)
        pools = self._pools()
        grace_period_s = self._settings.grace_period_s
        self._log.info(
            "stopping",
            signal=first.name,
            connections=sum(len(pool.connections) for pool in pools),
            grace_period_s=grace_period_s,
        )
        for pool in pools:
            pool.stop()
        # What is done for those that do not end in time, and how long it may take.
        measures: list[tuple[Callable[[Pool], None], float]] = [
            (Pool.abort, _ABORT_WAIT_S),
            (Pool.ask_for_stacks, _LOOK_S),
            (Pool.log_hanging, 0.0),
        ]
        deadline = time.monotonic() + grace_period_s
        while not all(pool.is_empty for pool in pools):
            now_s = time.monotonic()
            if now_s >= deadline:
                if not measures:
                    break
                measure, patience_s = measures.pop(0)
                for pool in pools:
                    measure(pool)
                deadline = now_s + patience_s
            self._turn(deadline - now_s)
            if any(number is not signal.SIGHUP for number in signals.take()):
                connections = sum(len(pool.connections) for pool in pools)
                self._log.warning("second signal, ending at once", connections=connections)
                return True
        return False

    def _end_workers(self) -> None:
        """See to it that no worker is left."""
        deadline = time.monotonic() + _KILL_WAIT_S
        for pool in self._pools():
            pool.kill()
        while not all(pool.is_empty for pool in self._pools()) and time.monotonic() < deadline:
            self._turn(deadline - time.monotonic())
        self._clients.close()

    def _release(self) -> None:
        for function in (*self._functions.values(), *self._leaving):
            function.release()
