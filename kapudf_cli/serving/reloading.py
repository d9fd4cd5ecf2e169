"""Settings and code loaded anew while functions are served: of all of them, or of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapudf_cli.errors import ConfigError, ControlError, KapudfError, describe

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.stdlib import BoundLogger

    from kapudf_cli.config import Settings
    from kapudf_cli.serving.functions import Functions
    from kapudf_cli.serving.succession import Reloaded


class Reloading:
    """Has functions served by new code, with the settings as they are now."""

    def __init__(
        self, functions: Functions, read_settings: Callable[[], Settings], log: BoundLogger
    ) -> None:
        """Begin with what is served.

        Args:
            functions: which are served.
            read_settings: reads the settings anew; raises KapudfError if they are wrong.
            log: where it is said what could not be reloaded.
        """
        self._functions = functions
        self._read_settings = read_settings
        self._log = log

    def reload_all(self) -> None:
        """Serve what the settings say now, each by new code; what fails is in the log."""
        try:
            settings = self._settings_anew()
        except (KapudfError, OSError) as error:
            self._log.error("reload failed, everything goes on as it was", error=str(error))
            return
        for name in self._functions.names() - settings.functions.keys():
            self._functions.remove(name)
        for name, wanted in settings.functions.items():
            function = self._functions.get(name)
            if function is None:
                self._functions.add(name, wanted)
            elif wanted.socket != function.pool.settings.socket:
                self._functions.remove(name)
                self._functions.add(name, wanted)
            else:
                try:
                    function.reload(wanted)
                except (KapudfError, OSError) as error:
                    self._log.error("reload failed", function=name, error=str(error))
        self._functions.settings = settings

    def reload_one(self, name: str, on_done: Callable[[Reloaded], None]) -> None:
        """Have one function served by new code, with its settings as they are now.

        Args:
            name: of a function that is served.
            on_done: called once it is known what came of it.

        Raises:
            KapudfError: that cannot even begin, and everything goes on as it was.
            OSError: likewise, for the system has no process, memory or descriptor left.
        """
        if self._functions.ends:
            raise ControlError("kapudf was told to stop, and reloads nothing any more")
        wanted = self._settings_anew().functions.get(name)
        function = self._functions.get(name)
        if wanted is None or function is None:
            raise ControlError(f"{name} is no longer in the configuration; SIGHUP removes it")
        if wanted.socket != function.pool.settings.socket:
            raise ControlError(f"the socket of {name} is another one now; SIGHUP moves it")
        try:
            function.reload(wanted, on_done)
        except (KapudfError, OSError) as error:
            self._log.error("reload failed", function=name, error=str(error))
            raise

    def _settings_anew(self) -> Settings:
        try:
            settings = self._read_settings()
        except (KapudfError, OSError):
            raise
        except Exception as error:
            problem = f"the settings cannot be read: {describe(error)}"
            raise ControlError(problem) from error
        if settings.in_one_process:
            place = f"functions.{next(iter(settings.functions))}"
            raise ConfigError(place, ["workers: 0 needs a restart"])
        return settings
