"""An event loop like the supervisor's, for tests of pools and functions with real workers."""

from __future__ import annotations

import contextlib
import itertools
import selectors
import time
from typing import TYPE_CHECKING, Self

from kapudf_cli.config import FunctionSettings, Settings
from kapudf_cli.supervisor.acceptance import DescriptorReserve
from kapudf_cli.supervisor.adoption import Inheritance
from kapudf_cli.supervisor.functions import Functions
from kapudf_cli.supervisor.pool import Pool
from kapudf_cli.system import logs
from kapudf_cli.worker.listeners import Listeners
from tests.serve_process import PATIENCE_S
from tests.supervisor.connections import unkept

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from kapudf_cli.supervisor.functions import FunctionSockets
    from kapudf_cli.supervisor.replacement import Reloaded
    from kapudf_cli.system.socket_file import SocketFile


class Loop:
    """The supervisor's loop, reduced to a selector and pools."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self._undo = contextlib.ExitStack()
        self._undo.callback(self.selector.close)
        self.store = unkept()
        self.reserve = DescriptorReserve()
        self._undo.callback(self.reserve.close)
        self.pools: Callable[[], list[Pool]] = list

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._undo.close()

    def turn_until(self, is_done: Callable[[], bool]) -> None:
        """Run the loop until a condition is met."""
        self.turns_until(is_done)

    def turns_until(self, is_done: Callable[[], bool]) -> list[float]:
        """Run the loop until a condition is met; return the duration of each turn, in seconds."""
        turns_s = []
        started_s = time.monotonic()
        while not is_done():
            turns_s.append(-time.monotonic())
            assert -turns_s[-1] < started_s + PATIENCE_S
            for key, _ in self.selector.select(0.05):
                if self.selector.get_map().get(key.fd) is key:
                    key.data()
            for pool in self.pools():
                pool.tick(time.monotonic())
                pool.close_ended()
            turns_s[-1] += time.monotonic()
        return turns_s

    def start_pool(self, settings: FunctionSettings) -> Pool:
        """Start the workers of one function, and wait until they are ready."""
        pool = Pool(
            "f",
            settings,
            Settings(functions={"f": settings}, log_format="json"),
            worker_numbers=itertools.count(1),
            connection_numbers=itertools.count(1),
            selector=self.selector,
            reserve=self.reserve,
            store=self.store,
            log=logs.get_logger(),
        )
        self.pools = lambda: [pool]
        self._undo.callback(self._end)
        pool.start()
        self.turn_until(lambda: pool.is_ready)
        return pool

    def reload_result(self, pool: Pool) -> Reloaded:
        """Wait for the result of a reload."""
        results: list[Reloaded] = []

        def is_known() -> bool:
            results.extend(pool.take_reload_results())
            return bool(results)

        self.turn_until(is_known)
        (result,) = results
        return result

    def bind_functions(self, settings: Settings) -> Functions:
        """Bind the sockets of some functions, and start no worker."""
        log = logs.get_logger()

        def accept(sockets: FunctionSockets, socket_file: SocketFile) -> bool:
            return sockets.user is not None and sockets.user.pool.accept(socket_file)

        def greet(_: FunctionSockets, control_file: SocketFile) -> bool:
            connection = control_file.accept()
            if connection is not None:
                connection.close()
            return connection is not None

        functions = Functions(
            settings,
            self.selector,
            listeners=Listeners(self.selector, accept, log),
            control_listeners=Listeners(self.selector, greet, log),
            reserve=self.reserve,
            store=self.store,
            inheritance=Inheritance(self.store, log),
            log=log,
        )
        self.pools = functions.pools
        self._undo.callback(functions.release)
        self._undo.callback(self._end)
        return functions

    def _end(self) -> None:
        for pool in self.pools():
            pool.kill()
        self.turn_until(lambda: all(pool.is_empty for pool in self.pools()))
