"""All functions: their sockets, and how they are started, changed and removed."""

from __future__ import annotations

import collections
import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kapudf_cli.config import CONTROL_SUFFIX
from kapudf_cli.journal.header import FORMAT
from kapudf_cli.supervisor import counters
from kapudf_cli.supervisor.connection import socket_name
from kapudf_cli.supervisor.errors import WorkerStartError
from kapudf_cli.supervisor.pool import Pool
from kapudf_cli.system import systemd
from kapudf_cli.system.errors import SocketPathError
from kapudf_cli.system.socket_file import SocketFile

if TYPE_CHECKING:
    import selectors
    import socket
    from collections.abc import Mapping

    from structlog.stdlib import BoundLogger

    from kapudf_cli.config import FunctionSettings, Settings
    from kapudf_cli.supervisor.acceptance import DescriptorReserve
    from kapudf_cli.supervisor.adoption import Adopted, AdoptedFunction, Inheritance
    from kapudf_cli.system.descriptor_store import DescriptorStore
    from kapudf_cli.system.socket_file import Access
    from kapudf_cli.worker.listeners import Listeners

#: No further function is started while this many workers load their handlers: they would only
#: take the processors from each other, and from the workers that serve.
_MAX_STARTING: Final = max(4, 2 * (os.cpu_count() or 1))
#: The names in the store of the sockets that kapudf has bound begin with this.
_LISTENER: Final = "listener-"


class InheritedListeners:
    """Sockets that are bound already: by an earlier supervisor, or by systemd."""

    def __init__(self, listeners: Mapping[str, socket.socket], store: DescriptorStore) -> None:
        """Take over sockets.

        Args:
            listeners: the sockets by their names. Those that systemd listens on have the names
                that the units give them, which should be those of the functions.
            store: keeps those of an earlier supervisor.
        """
        self._listeners = dict(listeners)
        self._store = store

    def take(self, name: str, settings: FunctionSettings) -> tuple[SocketFile, str] | None:
        """Return the socket of a function, and its name in the store; None if it is not bound yet.

        Raises:
            SocketPathError: systemd listens for the function at another path.
        """
        path = os.path.realpath(settings.socket)
        for kept_name, listener in list(self._listeners.items()):
            if os.path.realpath(listener.getsockname()) == path:
                break
            if kept_name == name:
                problem = (
                    f"systemd listens for the function {name} at {listener.getsockname()}; set its "
                    "socket to that path, or ListenStream= to this one"
                )
                raise SocketPathError(settings.socket, problem)
        else:
            return None
        del self._listeners[kept_name]
        if not kept_name.startswith(_LISTENER):
            # systemd passes it on by itself, an upgrade does not.
            self._store.keep(kept_name, listener.fileno())
            return SocketFile.borrow(listener), kept_name
        if not os.path.exists(path):
            # It was removed: the socket cannot be reached any more.
            listener.close()
            self._store.remove(kept_name)
            return None
        self._store.keep(kept_name, listener.fileno())
        return SocketFile.adopt(listener, mode=settings.mode, group=settings.group), kept_name

    def close_unused(self) -> None:
        """Close the sockets that no function has taken."""
        for kept_name, listener in self._listeners.items():
            if kept_name.startswith(_LISTENER):
                with contextlib.suppress(OSError):
                    os.unlink(listener.getsockname())
                self._store.remove(kept_name)
            listener.close()
        self._listeners.clear()


class FunctionSockets:
    """The sockets at one path: Kapacitor's, and the control socket.

    A reload may pass them from one function to another; they stay bound meanwhile.

    Attributes:
        socket_file: Kapacitor's socket.
        control_file: the socket for status and reload, None if it cannot be bound.
        user: the function that accepts the connections, None before the first one.
        listens: whether connections are accepted from `socket_file`.
        access: who may connect.
    """

    def __init__(
        self,
        name: str,
        settings: FunctionSettings,
        listeners: InheritedListeners,
        store: DescriptorStore,
        log: BoundLogger,
    ) -> None:
        """Bind the sockets.

        Args:
            name: the function's name.
            settings: the function's settings.
            listeners: sockets that are bound already.
            store: keeps the socket for the next supervisor.
            log: where a missing control socket is logged.

        Raises:
            SocketPathError: the path for Kapacitor cannot be bound.
        """
        self.user: ServedFunction | None = None
        self.listens = False
        self.access: Access | None = settings.access
        self._store = store
        found = listeners.take(name, settings)
        if found is not None:
            self.socket_file, self._kept_name = found
        else:
            self.socket_file = SocketFile.bind(
                settings.socket,
                mode=settings.mode,
                group=settings.group,
                remove_stale=settings.remove_stale,
                # Kapacitor retries a refused connection for minutes, but waits for an answer only
                # for its time-out.
                listens=False,
            )
            self._kept_name = store.unused(f"{_LISTENER}{name}")
            store.put(self._kept_name, self.socket_file.listener.fileno())
        self.control_file: SocketFile | None = None
        try:
            self.control_file = self.socket_file.bind_beside(
                CONTROL_SUFFIX, mode=settings.mode, group=settings.group
            )
        except SocketPathError as error:
            log.warning("no status and reload by socket", function=name, error=str(error))
        try:
            self._filter_peers(settings.access)
        except SocketPathError:
            self.release()
            raise

    def __str__(self) -> str:
        """Return the name of the function that uses them, for the log."""
        return self.socket_file.path if self.user is None else self.user.pool.name

    def is_at(self, path: str) -> bool:
        """Return whether a path leads to these sockets."""
        return os.path.realpath(path) == os.path.realpath(self.socket_file.path)

    def set_access(self, access: Access) -> None:
        """Change who may connect.

        Raises:
            SocketPathError: there is no such user or group, or it may not be given.
        """
        if access != self.access:
            self._filter_peers(access)
            for socket_file in self._files():
                socket_file.set_access(access.mode, access.group)
            self.access = access

    def _filter_peers(self, access: Access) -> None:
        for socket_file in self._files():
            socket_file.filter_peers(access)

    def _files(self) -> list[SocketFile]:
        both = (self.socket_file, self.control_file)
        return [each for each in both if each is not None]

    def restore_access(self, access: Access | None) -> None:
        """Undo `set_access`, also if it changed only one of the sockets."""
        self.access = None
        if access is not None:
            with contextlib.suppress(SocketPathError):
                self.set_access(access)

    def release(self) -> None:
        """Close the sockets and remove their paths."""
        self._store.remove(self._kept_name)
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
        starts: how many supervisors have served the tasks, one after the other.
    """

    def __init__(
        self,
        settings: Settings,
        selector: selectors.BaseSelector,
        *,
        listeners: Listeners[FunctionSockets],
        control_listeners: Listeners[FunctionSockets],
        reserve: DescriptorReserve,
        store: DescriptorStore,
        inheritance: Inheritance,
        log: BoundLogger,
    ) -> None:
        """Bind the sockets of all functions.

        Args:
            settings: what to serve.
            selector: workers are registered with it, with a callable as data.
            listeners: accept Kapacitor's connections, once a function is ready.
            control_listeners: accept control clients.
            reserve: descriptors for starting workers.
            store: keeps everything for the next supervisor.
            inheritance: what an earlier supervisor has left.
            log: where events go.

        Raises:
            SocketPathError: a socket cannot be bound; all are released.
        """
        self.settings = settings
        self.is_up = self._is_announced = False
        self.ends = False
        self._selector = selector
        self._listeners = listeners
        self._control_listeners = control_listeners
        self._reserve = reserve
        self._store = store
        self._listeners_found = InheritedListeners(inheritance.listeners, store)
        self._log = log
        self._numbers = inheritance.numbers
        # What functions have counted, at the end of the last turn of the loop.
        self._kept_counters = self._numbers.counters
        self._histories = counters.decode(self._kept_counters)
        self.starts = self._numbers.note_start()
        # Functions in the settings, and removed ones whose successor is not ready yet.
        self._served: dict[str, ServedFunction] = {}
        # Removed functions, until their last worker has ended.
        self._leaving: list[ServedFunction] = []
        self._sockets: list[FunctionSockets] = []
        self._unstarted: collections.deque[ServedFunction] = collections.deque()
        self.change(self.prepare(settings))
        self._listeners_found.close_unused()

    def get(self, name: str) -> ServedFunction | None:
        """Return a function, None if it is no longer served."""
        return self._served.get(name)

    def names(self) -> frozenset[str]:
        """Return the names of the functions in the settings."""
        return frozenset(name for name, each in self._served.items() if each.sockets)

    def formats(self) -> set[int]:
        """Return the versions of all that the next supervisor would go on with."""
        pools = self.pools()
        return {FORMAT} | {
            each.header.format for pool in pools for each in pool.connections.values()
        }

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
        if self.is_up or all(each.sockets and each.sockets.listens for each in served):
            self.is_up = True
            if not self._is_announced:
                self._is_announced = True
                systemd.notify("READY=1")

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
                    ours = FunctionSockets(
                        name, wanted, self._listeners_found, self._store, self._log
                    )
                    undo.callback(ours.release)
                else:
                    undo.callback(ours.restore_access, ours.access)
                    ours.set_access(wanted.access)
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
            function = known or ServedFunction(
                self._pool(name, change.settings.functions[name]), None
            )
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

    # --- after the death of another supervisor ---

    def adopt(self, adopted: Adopted) -> None:
        """Go on with the workers and connections of an earlier supervisor.

        The workers are replaced as in a reload, once `start` was called. The connections of
        functions that are no longer in the settings end.
        """
        if not adopted.is_empty:
            # From now on, a function that cannot be served does not end the others.
            self.is_up = True
        groups = adopted.by_function()
        before = {
            name: (group.settings.handler, group.settings.socket)
            for name, group in groups.items()
            if group.settings is not None
        }
        renamed = _renamed(before, self.settings.functions)
        for old, group in groups.items():
            name = renamed.get(old, old)
            if name in self._served:
                pool = self._served[name].pool
            elif group.settings is not None:
                pool = self._pool(name, group.settings)
                self._leaving.append(ServedFunction(pool, None))
            else:
                # Without any worker, nothing is known of the function.
                self._abandon(group)
                continue
            pool.adopt(
                [(each.process, each.connections) for each in group.workers],
                waiting=group.waiting,
                ended=group.ended,
            )
            if name != old:
                self._log.info("function renamed", function=name, before=old)
                pool.rename(name)
            if name not in self._served:
                pool.stop()
        for number, unbegun in adopted.unbegun:
            path = unbegun.getsockname()
            sockets = next((each for each in self._sockets if each.is_at(path)), None)
            if sockets is None or sockets.user is None:
                unbegun.close()
                self._store.remove(socket_name(number))
            else:
                sockets.user.pool.begin(number, unbegun)

    def _abandon(self, group: AdoptedFunction) -> None:
        for connection in group.waiting:
            connection.log_abandoned(self._log)
        for connection in (*group.waiting, *group.ended):
            connection.close()

    def _renamed(self, settings: Settings) -> dict[str, str]:
        """Return the new name of each function that keeps its handler and path, by the old one."""
        served = {
            name: (each.pool.settings.handler, each.sockets.socket_file.path)
            for name, each in self._served.items()
            if each.sockets is not None
        }
        return _renamed(served, settings.functions)

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

    def keep_counters(self) -> None:
        """Keep what functions have counted, for the next supervisor; close what has ended."""
        pools = self.pools()
        try:
            kept = counters.encode({each.name: each.history for each in pools})
            if kept != self._kept_counters:
                self._kept_counters = kept
                self._numbers.keep_counters(kept)
        finally:
            # Not before: only connections that are not kept any more cannot be counted again.
            for pool in pools:
                pool.close_ended()

    def _pool(self, name: str, settings: FunctionSettings) -> Pool:
        return Pool(
            name,
            settings,
            self.settings,
            worker_numbers=self._numbers.workers,
            connection_numbers=self._numbers.connections,
            selector=self._selector,
            reserve=self._reserve,
            store=self._store,
            log=self._log,
            history=self._histories.pop(name, None),
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
        """Release the sockets of all functions, and the numbers."""
        for sockets in self._sockets:
            sockets.release()
        self._numbers.close()


def _renamed(
    before: Mapping[str, tuple[str, str]], settings: Mapping[str, FunctionSettings]
) -> dict[str, str]:
    """Return the new name of each function that keeps its handler and path, by the old one.

    Args:
        before: the handler and the path of each function.
        settings: the new settings of all functions.
    """
    return {
        old: new
        for new, wanted in settings.items()
        for old, (handler, path) in before.items()
        if new not in before
        and old not in settings
        and handler == wanted.handler
        and os.path.realpath(path) == os.path.realpath(wanted.socket)
    }
