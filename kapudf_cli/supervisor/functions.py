"""All functions: their sockets, and how they are started, changed and removed."""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kapudf_cli.config import CONTROL_SUFFIX
from kapudf_cli.supervisor.errors import WorkerStartError
from kapudf_cli.supervisor.pool import Pool
from kapudf_cli.system import processes
from kapudf_cli.system.errors import SocketPathError
from kapudf_cli.system.socket_file import SocketFile

if TYPE_CHECKING:
    import selectors
    from collections.abc import Mapping

    from structlog.stdlib import BoundLogger

    from kapudf_cli.config import FunctionSettings, Settings
    from kapudf_cli.supervisor.acceptance import DescriptorReserve
    from kapudf_cli.worker.listeners import Listeners

#: No further function is started while this many workers load their handlers: they would only
#: take the processors from each other, and from the workers that serve.
_MAX_STARTING: Final = max(4, 2 * (os.cpu_count() or 1))


class FunctionSockets:
    """The sockets at one path: Kapacitor's, and the control socket.

    A reload may pass them from one function to another; they stay bound meanwhile.

    Attributes:
        socket_file: Kapacitor's socket.
        control_file: the socket for status and reload, None if it cannot be bound.
        user: the function that accepts the connections, None before the first one.
        listens: whether connections are accepted from `socket_file`.
        access: the permission bits and the group.
    """

    def __init__(self, name: str, settings: FunctionSettings, log: BoundLogger) -> None:
        """Bind the sockets.

        Args:
            name: the function's name.
            settings: the function's settings.
            log: where a missing control socket is logged.

        Raises:
            SocketPathError: the path for Kapacitor cannot be bound.
        """
        self.user: ServedFunction | None = None
        self.listens = False
        self.access: tuple[int, str | None] | None = (settings.mode, settings.group)
        self.socket_file = SocketFile.bind(
            settings.socket,
            mode=settings.mode,
            group=settings.group,
            remove_stale=settings.remove_stale,
            # Kapacitor retries a refused connection for minutes, but waits for an answer only
            # for its time-out.
            listens=False,
        )
        self.control_file: SocketFile | None = None
        try:
            self.control_file = self.socket_file.bind_beside(
                CONTROL_SUFFIX, mode=settings.mode, group=settings.group
            )
        except SocketPathError as error:
            log.warning("no status and reload by socket", function=name, error=str(error))

    def __str__(self) -> str:
        """Return the name of the function that uses them, for the log."""
        return self.socket_file.path if self.user is None else self.user.pool.name

    def is_at(self, path: str) -> bool:
        """Return whether a path leads to these sockets."""
        return os.path.realpath(path) == os.path.realpath(self.socket_file.path)

    def set_access(self, access: tuple[int, str | None]) -> None:
        """Change the permission bits and the group of the sockets.

        Raises:
            SocketPathError: there is no such group, or it may not be given.
        """
        if access != self.access:
            for socket_file in (self.socket_file, self.control_file):
                if socket_file is not None:
                    socket_file.set_access(*access)
            self.access = access

    def restore_access(self, access: tuple[int, str | None] | None) -> None:
        """Undo `set_access`, also if it changed only one of the sockets."""
        self.access = None
        if access is not None:
            with contextlib.suppress(SocketPathError):
                self.set_access(access)

    def release(self) -> None:
        """Close the sockets and remove their paths."""
        if self.control_file is not None:
            self.control_file.release()
        self.socket_file.release()


@dataclass(eq=False)
class ServedFunction:
    """A function's workers and sockets.

    Attributes:
        pool: the workers.
        sockets: the sockets that it is to use, None if it is no longer in the settings. Another
            function uses them until the workers of this one are ready.
    """

    pool: Pool
    sockets: FunctionSockets | None


@dataclass(frozen=True)
class Change:
    """A prepared change of the settings, which cannot fail any more.

    Attributes:
        settings: the new settings.
        sockets: the bound sockets of each function, with their mode and group.
        renamed: the new names of functions that are renamed, by their old names.
    """

    settings: Settings
    sockets: Mapping[str, FunctionSockets]
    renamed: Mapping[str, str]


class Functions:
    """All functions, by name.

    Attributes:
        settings: the current settings.
        is_up: whether all first functions have been ready; after that, a failure of one does not
            end the others.
        ends: whether `stop_listening` was called; nothing new is started after that.
    """

    def __init__(
        self,
        settings: Settings,
        selector: selectors.BaseSelector,
        *,
        listeners: Listeners[FunctionSockets],
        control_listeners: Listeners[FunctionSockets],
        reserve: DescriptorReserve,
        log: BoundLogger,
    ) -> None:
        """Bind the sockets of all functions.

        Args:
            settings: what to serve.
            selector: workers are registered with it, with a callable as data.
            listeners: accept Kapacitor's connections, once a function is ready.
            control_listeners: accept control clients.
            reserve: descriptors for starting workers.
            log: where events go.

        Raises:
            SocketPathError: a socket cannot be bound; all are released.
        """
        self.settings = settings
        self.is_up = False
        self.ends = False
        self._selector = selector
        self._listeners = listeners
        self._control_listeners = control_listeners
        self._reserve = reserve
        self._log = log
        self._worker_numbers = itertools.count(1)
        self._connection_numbers = itertools.count(1)
        # Functions in the settings, and removed ones whose successor is not ready yet.
        self._served: dict[str, ServedFunction] = {}
        # Removed functions, until their last worker has ended.
        self._leaving: list[ServedFunction] = []
        self._sockets: list[FunctionSockets] = []
        self._unstarted: collections.deque[ServedFunction] = collections.deque()
        self.change(self.prepare(settings))

    def get(self, name: str) -> ServedFunction | None:
        """Return a function, None if it is no longer served."""
        return self._served.get(name)

    def names(self) -> frozenset[str]:
        """Return the names of the functions in the settings."""
        return frozenset(name for name, each in self._served.items() if each.sockets)

    def pools(self) -> list[Pool]:
        """Return the worker pools of all functions, removed ones included."""
        return [each.pool for each in (*self._served.values(), *self._leaving)]

    # --- as they start ---

    def start(self) -> None:
        """Start the first workers of as many functions as there is room for.

        Raises:
            WorkerStartError: the system has no process, memory or descriptor left.
        """
        while self._unstarted and self.has_room:
            function = self._unstarted.popleft()
            name = function.pool.name
            try:
                function.pool.start()
            except OSError as error:
                problem = f"no worker of {name} can be started: {error}"
                raise WorkerStartError(problem, function=name, is_usage_error=False) from error

    @property
    def is_starting(self) -> bool:
        """Whether functions wait for room to be started."""
        return bool(self._unstarted)

    @property
    def has_room(self) -> bool:
        """Whether the workers of one more function may be started."""
        return sum(pool.starting for pool in self.pools()) < _MAX_STARTING

    def listen_where_ready(self) -> None:
        """Accept connections for the functions that are ready; tell systemd once all are."""
        if self.ends:
            return
        served = [each for each in self._served.values() if each.sockets]
        if not self.is_up and not all(each.pool.is_settled for each in served):
            return  # At the start, one function that cannot be served ends kapudf.
        for function in served:
            sockets = function.sockets
            if sockets is None or not function.pool.is_ready:
                continue
            if sockets.listens and sockets.user is function:
                continue
            sockets.user = function
            if not sockets.listens:
                sockets.listens = True
                sockets.socket_file.listen()
                self._listeners.add(sockets, sockets.socket_file)
            loaded = function.pool.loaded
            self._log.info(
                "listening",
                function=function.pool.name,
                handler="" if loaded is None else loaded.handler,
                socket=sockets.socket_file.path,
            )
        self._dismiss_replaced()
        if not self.is_up and all(each.sockets and each.sockets.listens for each in served):
            self.is_up = True
            processes.notify_systemd("READY=1")

    # --- as the settings change ---

    def prepare(self, settings: Settings) -> Change:
        """Prepare a change to new settings; if that fails, nothing has changed.

        Raises:
            SocketPathError: a path, mode or group cannot be used.
        """
        sockets: dict[str, FunctionSockets] = {}
        with contextlib.ExitStack() as undo:
            for name, wanted in settings.functions.items():
                ours = next((each for each in self._sockets if each.is_at(wanted.socket)), None)
                if ours is None:
                    ours = FunctionSockets(name, wanted, self._log)
                    undo.callback(ours.release)
                else:
                    undo.callback(ours.restore_access, ours.access)
                    ours.set_access((wanted.mode, wanted.group))
                sockets[name] = ours
            undo.pop_all()
        return Change(settings, sockets, self._renamed(settings))

    def change(self, change: Change) -> list[str]:
        """Apply a prepared change; return the functions that are still to load new code.

        An added function is served once its workers are ready. Only then does it take over the
        sockets of another function.
        """
        stay = []
        self.settings = change.settings
        for old, new in change.renamed.items():
            function = self._served.pop(old)
            self._served[new] = function
            function.pool.rename(new)
            self._log.info("function renamed", function=new, before=old)
        for function in self._served.values():
            function.sockets = None
        for name, sockets in change.sockets.items():
            known = self._served.get(name)
            function = known or ServedFunction(self._pool(name), None)
            function.sockets = sockets
            self._served[name] = function
            if known is None:
                self._unstarted.append(function)
            elif known in self._unstarted:
                known.pool.settings = change.settings.functions[name]
            else:
                stay.append(name)
            if sockets not in self._sockets:
                sockets.user = function
                self._sockets.append(sockets)
                if sockets.control_file is not None:
                    self._control_listeners.add(sockets, sockets.control_file)
        if self.is_up:
            self.listen_where_ready()
        return stay

    def _renamed(self, settings: Settings) -> dict[str, str]:
        """Return the new name of each function that keeps its handler and path, by the old one."""
        renamed = {}
        for new, wanted in settings.functions.items():
            for old, function in self._served.items():
                sockets = function.sockets
                if (
                    new not in self._served
                    and old not in settings.functions
                    and sockets is not None
                    and sockets.is_at(wanted.socket)
                    and function.pool.settings.handler == wanted.handler
                ):
                    renamed[old] = new
        return renamed

    def _dismiss_replaced(self) -> None:
        """Release unused sockets, and stop the functions without sockets."""
        wanted = [each.sockets for each in self._served.values()]
        for sockets in [each for each in self._sockets if each not in wanted]:
            self._close(sockets)
            sockets.release()
            self._sockets.remove(sockets)
        users = [each.user for each in self._sockets]
        for name, function in list(self._served.items()):
            if function.sockets is None and function not in users:
                del self._served[name]
                if function in self._unstarted:
                    self._unstarted.remove(function)
                function.pool.stop()
                self._leaving.append(function)

    def _close(self, sockets: FunctionSockets) -> None:
        """Accept the connections that wait, and then no more."""
        if sockets.listens:
            sockets.listens = False
            self._listeners.remove(sockets)
        if sockets.control_file is not None:
            self._control_listeners.remove(sockets)

    def forget_ended(self) -> None:
        """Forget removed functions whose last worker has ended."""
        for function in [each for each in self._leaving if each.pool.is_empty]:
            self._leaving.remove(function)
            self._log.info("function removed", function=function.pool.name)

    def _pool(self, name: str) -> Pool:
        return Pool(
            name,
            self.settings.functions[name],
            self.settings,
            worker_numbers=self._worker_numbers,
            connection_numbers=self._connection_numbers,
            selector=self._selector,
            reserve=self._reserve,
            log=self._log,
        )

    # --- at the end ---

    def stop_listening(self) -> None:
        """Accept the connections that wait, because they came before the stop, and then no more."""
        self.ends = True
        self._unstarted.clear()
        for sockets in self._sockets:
            if sockets.listens:
                sockets.listens = False
                self._listeners.remove(sockets)

    def release(self) -> None:
        """Release the sockets of all functions."""
        for sockets in self._sockets:
            sockets.release()
