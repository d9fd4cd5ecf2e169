"""Reloads: new settings and new code, of all functions or of one, while they are served.

A reload is prepared first: the settings are read, and new sockets are bound. If any of that
fails, everything is as it was. Then new workers are started, a few functions at a time. What
is asked for meanwhile is done once afterwards, however often it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kapudf_cli.errors import ConfigError, KapudfError, describe
from kapudf_cli.supervisor.errors import ControlError
from kapudf_cli.supervisor.replacement import Reloaded

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.stdlib import BoundLogger

    from kapudf_cli.config import FunctionSettings, Settings
    from kapudf_cli.supervisor.functions import Functions
    from kapudf_cli.supervisor.served_function import ServedFunction


@dataclass
class _Waiting:
    """A reload of one function that has not begun.

    Attributes:
        settings: of the function, as they were read last.
        on_done: called with the result; each who asked for it has one.
    """

    settings: FunctionSettings
    on_done: list[Callable[[Reloaded], None]] = field(default_factory=list)

    def tell(self, reloaded: Reloaded) -> None:
        for each in self.on_done:
            each(reloaded)


class Reloader:
    """Has functions served by new code, with the settings as they are now."""

    def __init__(
        self, functions: Functions, read_settings: Callable[[], Settings], log: BoundLogger
    ) -> None:
        """Begin with what is served.

        Args:
            functions: which are served.
            read_settings: reads the settings again; raises KapudfError if they are wrong.
            log: where it is said what could not be reloaded.
        """
        self._functions = functions
        self._read_settings = read_settings
        self._log = log
        self._waiting: dict[str, _Waiting] = {}
        self._all_wait = False

    @property
    def is_waiting(self) -> bool:
        """Whether a reload has been asked for and has not begun."""
        return bool(self._waiting) or self._all_wait

    def reload_all(self) -> None:
        """Serve what the settings say now, each function by new code.

        While another reload is under way, it waits, and all that wait are one.
        """
        if not self._is_under_way():
            self._begin_all()
        elif not self._all_wait:
            self._all_wait = True
            self._log.info("reload waits for the one under way")

    def reload_one(self, name: str, on_done: Callable[[Reloaded], None]) -> None:
        """Have one function served by new code, with its settings as they are now.

        Args:
            name: of a function that is served.
            on_done: called once the result is known.

        Raises:
            KapudfError: it cannot be prepared, and everything is as it was.
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
            function.sockets.set_access((wanted.mode, wanted.group))
        except KapudfError as error:
            function.sockets.restore_access(access)
            self._log.error(
                "reload failed, everything goes on as it was", function=name, error=str(error)
            )
            raise
        self._await(name, wanted).on_done.append(on_done)
        self.step()

    def step(self) -> None:
        """Begin the reloads that have waited and for which there is room now."""
        if self._functions.ends:
            for name in list(self._waiting):
                problem = "kapudf was told to stop, and reloads nothing any more"
                self._waiting.pop(name).tell(Reloaded(problem=problem))
            self._all_wait = False
        for name in list(self._waiting):
            function = self._functions.get(name)
            if function is None:
                self._waiting.pop(name).tell(Reloaded(problem=f"{name} is no longer served"))
            elif not function.pool.is_reloading:
                if not self._functions.has_room:
                    break
                self._begin(function, self._waiting.pop(name))
        if self._all_wait and not self._is_under_way():
            self._all_wait = False
            self._begin_all()

    def _is_under_way(self) -> bool:
        return bool(self._waiting) or any(pool.is_reloading for pool in self._functions.pools())

    def _await(self, name: str, settings: FunctionSettings) -> _Waiting:
        waiting = self._waiting.setdefault(name, _Waiting(settings))
        waiting.settings = settings
        return waiting

    def _begin_all(self) -> None:
        try:
            change = self._functions.prepare(self._settings_now())
        except Exception as error:  # noqa: BLE001 - whatever it is, what is served goes on
            problem = str(error) if isinstance(error, KapudfError) else describe(error)
            self._log.error("reload failed, everything goes on as it was", error=problem)
            return
        for name in self._functions.change(change):
            self._await(name, change.settings.functions[name])
        self.step()

    def _begin(self, function: ServedFunction, waiting: _Waiting) -> None:
        try:
            function.pool.reload(waiting.settings, waiting.tell)
        except OSError as error:
            self._log.error(
                "reload failed, the old code goes on",
                function=function.pool.name,
                error=str(error),
            )
            waiting.tell(Reloaded(problem=str(error)))

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
