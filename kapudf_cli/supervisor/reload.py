"""Reloads: new settings and new code for all functions or for one, while they are served.

A reload is prepared first: the settings are read, and new sockets are bound. If that fails,
nothing changes. Then new workers are started, for a few functions at a time. Requests that come
meanwhile are combined into one reload afterwards.
"""

from __future__ import annotations

import collections
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from kapudf_cli.errors import ConfigError, KapudfError, describe
from kapudf_cli.supervisor.errors import ControlError
from kapudf_cli.supervisor.replacement import Reloaded

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.stdlib import BoundLogger

    from kapudf_cli.config import FunctionSettings, Settings
    from kapudf_cli.supervisor.functions import Functions, ServedFunction
    from kapudf_cli.supervisor.pool import Pool


#: Who has asked for a reload.
C = TypeVar("C")


@dataclass
class _Waiting(Generic[C]):
    """A reload of one function that has not begun.

    Attributes:
        settings: of the function, as they were read last.
        clients: who has asked for it.
    """

    settings: FunctionSettings
    clients: list[C] = field(default_factory=list)


@dataclass(frozen=True)
class ReloadResult(Generic[C]):
    """What to tell the clients that have asked for a reload."""

    clients: list[C]
    function: str
    reloaded: Reloaded


class Reloader(Generic[C]):
    """Reloads functions, each with new code and its current settings."""

    def __init__(
        self, functions: Functions, read_settings: Callable[[], Settings], log: BoundLogger
    ) -> None:
        """Reload `functions`.

        Args:
            functions: those that are served.
            read_settings: reads the settings again; raises KapudfError if they are wrong.
            log: where failures go.
        """
        self._functions = functions
        self._read_settings = read_settings
        self._log = log
        self._waiting: dict[str, _Waiting[C]] = {}
        self._all_wait = False
        # Who waits for the results of the reloads that each pool has begun, in their order.
        self._running: dict[Pool, collections.deque[list[C]]] = {}
        self._results: list[ReloadResult[C]] = []

    @property
    def is_waiting(self) -> bool:
        """Whether a reload was requested and has not begun."""
        return bool(self._waiting) or self._all_wait

    @property
    def is_under_way(self) -> bool:
        """Whether a reload was requested and is not done."""
        return self.is_waiting or self._is_under_way()

    def reload_all(self) -> None:
        """Reload all functions, with the settings as they are now.

        While another reload is under way, it waits; all that wait become one.
        """
        if not self._is_under_way():
            self._begin_all()
        elif not self._all_wait:
            self._all_wait = True
            self._log.info("reload waits for the one under way")

    def reload_one(self, name: str, client: C) -> None:
        """Reload one function, with its settings as they are now.

        Args:
            name: of a function that is served.
            client: who waits for the result; see `take_results`.

        Raises:
            KapudfError: it cannot be prepared, and nothing has changed.
        """
        if self._functions.ends:
            raise ControlError("kapudf was told to stop, and reloads nothing any more")
        wanted = self._settings_now().functions.get(name)
        function = self._functions.get(name)
        if wanted is None or function is None or function.sockets is None:
            problem = f"{name} is no longer in the configuration; SIGHUP removes or renames it"
            raise ControlError(problem)
        if not function.sockets.is_at(wanted.socket):
            raise ControlError(f"the socket of {name} is another one now; SIGHUP moves it")
        access = function.sockets.access
        try:
            function.sockets.set_access(wanted.access)
        except KapudfError as error:
            function.sockets.restore_access(access)
            self._log.error(
                "reload failed, everything goes on as it was", function=name, error=str(error)
            )
            raise
        self._await(name, wanted).clients.append(client)
        self.step()

    def take_results(self) -> list[ReloadResult[C]]:
        """Return the results that are known now, each of them once."""
        results, self._results = self._results, []
        return results

    def step(self) -> None:
        """Collect results, and begin the reloads that have waited and for which there is room."""
        self._collect()
        if self._functions.ends:
            problem = "kapudf was told to stop, and reloads nothing any more"
            for name in list(self._waiting):
                self._end(self._waiting.pop(name).clients, name, Reloaded(problem=problem))
            self._all_wait = False
        for name in list(self._waiting):
            function = self._functions.get(name)
            if function is None:
                problem = f"{name} is no longer served"
                self._end(self._waiting.pop(name).clients, name, Reloaded(problem=problem))
            elif not function.pool.is_reloading:
                if not self._functions.has_room:
                    break
                self._begin(function, self._waiting.pop(name))
        if self._all_wait and not self._is_under_way():
            self._all_wait = False
            self._begin_all()

    def _collect(self) -> None:
        """Keep the results of pools for those that wait for them."""
        for pool, waiting in list(self._running.items()):
            for reloaded in pool.take_reload_results():
                self._end(waiting.popleft(), pool.name, reloaded)
            if not waiting:
                del self._running[pool]

    def _end(self, clients: list[C], name: str, reloaded: Reloaded) -> None:
        self._results.append(ReloadResult(clients, name, reloaded))

    def _is_under_way(self) -> bool:
        return bool(self._waiting) or any(pool.is_reloading for pool in self._functions.pools())

    def _await(self, name: str, settings: FunctionSettings) -> _Waiting[C]:
        waiting = self._waiting.setdefault(name, _Waiting(settings))
        waiting.settings = settings
        return waiting

    def _begin_all(self) -> None:
        try:
            change = self._functions.prepare(self._settings_now())
        except Exception as error:  # noqa: BLE001 - whatever it is, the old settings stay
            problem = str(error) if isinstance(error, KapudfError) else describe(error)
            self._log.error("reload failed, everything goes on as it was", error=problem)
            return
        for name in self._functions.change(change):
            self._await(name, change.settings.functions[name])
        self.step()

    def _begin(self, function: ServedFunction, waiting: _Waiting[C]) -> None:
        pool = function.pool
        try:
            pool.reload(waiting.settings)
        except OSError as error:
            self._log.error(
                "reload failed, the old code goes on", function=pool.name, error=str(error)
            )
            self._end(waiting.clients, pool.name, Reloaded(problem=str(error)))
        else:
            self._running.setdefault(pool, collections.deque()).append(waiting.clients)

    def _settings_now(self) -> Settings:
        try:
            settings = self._read_settings()
        except KapudfError:
            raise
        except Exception as error:
            problem = f"the settings cannot be read: {describe(error)}"
            raise ControlError(problem) from error
        if settings.in_one_process:
            place = f"functions.{next(iter(settings.functions))}"
            raise ConfigError(place, ["workers: 0 needs a restart"])
        return settings
