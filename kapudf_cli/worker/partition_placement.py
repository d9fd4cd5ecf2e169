"""Where the partitions of a worker run: on a Ray cluster, or on this machine."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Final

import msgspec

from kapudf_cli.plugin_errors import PluginError
from kapudf_cli.worker.channel import Outdated
from kapudf_cli.worker.partition_pool import PartitionPool
from kapudf_cli.worker.shipped_code import ShippedCode

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.stdlib import BoundLogger

    from kapudf_cli.handler.handler import Handler
    from kapudf_cli.worker.channel import Channel, Report, Start

#: How often a worker whose partitions run without Ray looks for it.
_INTERVAL_S: Final = 10.0
#: The pause after an attempt to reach Ray that has ended the process that tried.
_PAUSE_S: Final = 1.0


class PartitionPlacement:
    """Starts the partitions of a worker where the settings say, or on this machine instead."""

    def __init__(
        self, begin: Start, supervisor: Channel, dump: int, record: int, log: BoundLogger
    ) -> None:
        """Start nothing yet.

        Args:
            begin: how the worker was started.
            supervisor: the channel to it.
            dump: the memory file in which the supervisor finds the stacks of this process.
            record: the memory file of the worker's record.
            log: where events go.
        """
        self._begin = begin
        self._supervisor = supervisor
        self._dump = dump
        self._record = record
        self._log = log.bind(function=begin.name)
        self._pool: PartitionPool | None = None

    def start(self) -> None:
        """Start the processes, which load the handler while this one does.

        Raises:
            OSError: the system has no process, memory or descriptor left.
        """
        self._pool = self._start(self._begin)

    def _start(self, begin: Start) -> PartitionPool:
        return PartitionPool.start(begin, self._dump, self._record, self._log)

    def finish(self, handler: type[Handler]) -> PartitionPool:
        """Return the partitions once they have loaded the handler, after `start`.

        Args:
            handler: its class, which this process has loaded.

        Raises:
            PluginError: they cannot load it.
            OSError: the system has no process, memory or descriptor left.
        """
        assert self._pool is not None
        settings = self._begin.settings
        pool: PartitionPool | None = self._pool
        if settings.engine == "ray":
            pool = self._await_cluster(self._pool, handler)
        if pool is None:
            local = msgspec.structs.replace(settings, engine="processes")
            pool = self._start(msgspec.structs.replace(self._begin, settings=local))
        if not pool.nodes:
            pool.await_ready()
        pool.watch()
        self._pool = pool
        return pool

    def _await_cluster(self, pool: PartitionPool, handler: type[Handler]) -> PartitionPool | None:
        """Return the partitions once they are on a cluster; None if they are to be here instead."""
        settings = self._begin.settings
        code = ShippedCode.of(settings.handler, handler)
        is_patient = not settings.ray_fallback
        while True:
            problem = pool.await_cluster(code, self._supervisor, is_patient=is_patient)
            if problem is None:
                return pool
            pool.close()
            if settings.ray_fallback:
                self._log.warning("partitions run without Ray", reason=problem)
                return None
            self._log.warning("partitions wait for Ray", reason=problem)
            time.sleep(_PAUSE_S)
            pool = self._start(self._begin)

    def return_to_ray(self, handler: type[Handler], report: Callable[[Report], None]) -> None:
        """If the partitions are here instead of on a cluster, have this worker replaced later.

        Args:
            handler: its class.
            report: sends the supervisor a report, from any thread.
        """
        if self._pool is None or self._pool.nodes or self._begin.settings.engine != "ray":
            return
        code = ShippedCode.of(self._begin.settings.handler, handler)
        threading.Thread(target=self._await_ray, args=(code, report), daemon=True).start()

    def _await_ray(self, code: ShippedCode, report: Callable[[Report], None]) -> None:
        """Wait until Ray takes the partitions; the target of a thread."""
        last_problem = ""
        while True:
            time.sleep(_INTERVAL_S)
            try:
                with contextlib.closing(self._start(self._begin)) as pool:
                    # Without a supervisor, this worker still serves its connections.
                    if pool.await_cluster(code, None, is_patient=False) is None:
                        report(Outdated("Ray can be reached again"))
                        return
            except (PluginError, OSError) as error:
                if str(error) != last_problem:
                    last_problem = str(error)
                    self._log.warning("partitions cannot return to Ray", error=last_problem)
