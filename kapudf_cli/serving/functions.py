"""The functions that are served: bound, started, listened on where they are ready, and let go."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from kapudf_cli.errors import KapudfError, WorkerStartError
from kapudf_cli.serving import systemd
from kapudf_cli.serving.pool import Pool
from kapudf_cli.serving.served_function import ServedFunction

if TYPE_CHECKING:
    import selectors

    from structlog.stdlib import BoundLogger

    from kapudf_cli.config import FunctionSettings, Settings
    from kapudf_cli.serving.listeners import Listeners


class Functions:
    """All functions, by name.

    Attributes:
        settings: what is served, and how it logs.
        is_up: whether all that there were at the start have been ready; then whatever fails
            ends nothing else.
        ends: whether `stop_listening` was called, and nobody is to begin anything more.
    """

    def __init__(
        self,
        settings: Settings,
        selector: selectors.BaseSelector,
        *,
        listeners: Listeners[str],
        control_listeners: Listeners[str],
        log: BoundLogger,
    ) -> None:
        """Bind the sockets of all functions.

        Args:
            settings: what to serve.
            selector: workers are registered with it, with a callable as data.
            listeners: has Kapacitor's connections accepted, once a function is ready.
            control_listeners: has those accepted who ask for status or reload.
            log: where events go.

        Raises:
            SocketPathError: one cannot be had; none is kept then.
        """
        self.settings = settings
        self.is_up = False
        self._selector = selector
        self._listeners = listeners
        self._control_listeners = control_listeners
        self._log = log
        self._worker_numbers = itertools.count(1)
        self._connection_numbers = itertools.count(1)
        self._served: dict[str, ServedFunction] = {}
        # Those that are served no more, until their last worker has ended.
        self._leaving: list[ServedFunction] = []
        self.ends = False
        try:
            for name, function in settings.functions.items():
                self._bind(name, function)
        except BaseException:
            self.release()
            raise

    def get(self, name: str) -> ServedFunction | None:
        """Return a function, None if it is served no more."""
        return self._served.get(name)

    def names(self) -> frozenset[str]:
        """Return what functions are served."""
        return frozenset(self._served)

    def pools(self) -> list[Pool]:
        """Return the workers of each, and of those that are served no more."""
        return [each.pool for each in (*self._served.values(), *self._leaving)]

    # --- as they come up ---

    def start(self) -> None:
        """Start the first workers of all.

        Raises:
            WorkerStartError: the system has no process, memory or descriptor left.
        """
        for name, function in self._served.items():
            try:
                function.pool.start()
            except OSError as error:
                problem = f"no worker of {name} can be started: {error}"
                raise WorkerStartError(problem, function=name, wrong_call=False) from error

    def listen_where_ready(self) -> None:
        """Have connections accepted for those that can serve them; tell systemd of the last."""
        if self.ends:
            return
        if not self.is_up and not all(each.pool.is_settled for each in self._served.values()):
            return  # If one cannot be served at all, none is.
        for name, function in self._served.items():
            if not function.listens and function.pool.is_ready:
                function.listens = True
                self._listeners.add(name, function.socket_file)
                self._log.info(
                    "listening",
                    function=name,
                    handler=function.pool.handler,
                    socket=function.socket_file.path,
                )
        if not self.is_up and all(each.listens for each in self._served.values()):
            self.is_up = True
            systemd.notify("READY=1")

    # --- as they come and go ---

    def add(self, name: str, settings: FunctionSettings) -> None:
        """Serve one more; if that cannot be, the log says so."""
        try:
            self._bind(name, settings).pool.start()
        except (KapudfError, OSError) as error:
            self._log.error("function cannot be served", function=name, error=str(error))

    def remove(self, name: str) -> None:
        """Serve one no more, but who is connected or in its queue."""
        function = self._served[name]
        if function.listens:
            self._listeners.remove(name)
        del self._served[name]
        if function.control_file is not None:
            self._control_listeners.remove(name)
        function.pool.stop()
        self._leaving.append(function)

    def forget_ended(self) -> None:
        """Give up the paths of those that are served no more and have no worker left."""
        for function in [each for each in self._leaving if each.pool.is_empty]:
            function.release()
            self._leaving.remove(function)
            self._log.info("function removed", function=function.pool.name)

    def _bind(self, name: str, settings: FunctionSettings) -> ServedFunction:
        pool = Pool(
            name,
            settings,
            self.settings,
            worker_numbers=self._worker_numbers,
            connection_numbers=self._connection_numbers,
            selector=self._selector,
            log=self._log,
        )
        function = self._served[name] = ServedFunction(pool, self._log)
        if function.control_file is not None:
            self._control_listeners.add(name, function.control_file)
        return function

    # --- at the end ---

    def stop_listening(self) -> None:
        """Accept who is in the queues, for they were connected before, and then nobody."""
        self.ends = True
        for name, function in self._served.items():
            if function.listens:
                self._listeners.remove(name)

    def release(self) -> None:
        """Give the paths of all up."""
        for function in (*self._served.values(), *self._leaving):
            function.release()
