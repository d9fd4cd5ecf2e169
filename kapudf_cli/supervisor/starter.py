"""Starts the workers of one function: the first ones, those of a reload, and missing ones."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from kapudf_cli.supervisor.replacement import Missing, RestartBackoff
from kapudf_cli.supervisor.routes import Reason, Replacement, WorkerState

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger

    from kapudf_cli.config import FunctionSettings
    from kapudf_cli.supervisor.dispatch import Dispatch
    from kapudf_cli.supervisor.templates import Templates
    from kapudf_cli.supervisor.worker_process import WorkerProcess, WorkerReports

#: A handler that takes longer to import may never be imported: it does not keep other functions
#: from starting, nor another reload from beginning.
LONG_START_S: Final = 10.0
#: How many workers are started at once in place of dead ones. The first one that is ready takes
#: the connections over; more would only take the processors from it.
_MAX_STARTING: Final = os.cpu_count() or 1
#: The pause before another attempt to start a worker that the system had no room for.
_NO_ROOM_PAUSE_S: Final = 1.0


class Starter:
    """Starts workers, and decides when those that died are replaced.

    Attributes:
        backoff: when dead workers are replaced.
    """

    def __init__(
        self, dispatch: Dispatch, templates: Templates, reports: WorkerReports, log: BoundLogger
    ) -> None:
        """Start none yet.

        Args:
            dispatch: has the workers.
            templates: starts their processes.
            reports: watches them.
            log: where events go.
        """
        self.backoff = RestartBackoff()
        self._dispatch = dispatch
        self._templates = templates
        self._reports = reports
        self._log = log

    def use_log(self, log: BoundLogger) -> None:
        """Log to another logger, because the function has another name."""
        self._log = log

    @property
    def starting(self) -> int:
        """How many workers load the handler, without those that take unusually long."""
        return sum(
            self._dispatch.state_of(each) is WorkerState.STARTING and each.age_s < LONG_START_S
            for each in self._dispatch.processes.values()
        )

    def start_first(self, settings: FunctionSettings) -> None:
        """Start the first workers.

        Raises:
            OSError: the system has no process, memory or descriptor left. Those that are missing
                are started later.
        """
        self.backoff.retry(time.monotonic())
        for _ in range(settings.workers):
            self.start(settings, Reason.DEATH)
        self.backoff.cancel()

    def start(self, settings: FunctionSettings, reason: Reason, old: tuple[int, ...] = ()) -> None:
        """Start a worker for a reason, to replace the workers `old`.

        Raises:
            OSError: the system has no process, memory or descriptor left.
        """
        worker = self._watch(self._templates.start(settings))
        self._dispatch.router.begin(Replacement(reason, (worker,), old))

    def start_for_reload(self, settings: FunctionSettings) -> None:
        """Start the workers that are to replace all others.

        Raises:
            OSError: as `start`. No worker was started.
        """
        new: list[int] = []
        old = tuple(self._dispatch.router.workers)
        try:
            for _ in range(settings.workers):
                worker = self._templates.start(settings, for_reload=True)
                new.append(self._watch(worker))
        except OSError:
            self._dispatch.router.begin(Replacement(Reason.RELOAD, tuple(new)))
            self._dispatch.execute(self._dispatch.router.cancel_replacement())
            self._templates.cancel_reload()
            raise
        self._dispatch.router.begin(Replacement(Reason.RELOAD, tuple(new), old, settings))

    def start_missing(
        self, settings: FunctionSettings, now_s: float, *, needs_spares: bool
    ) -> None:
        """Start the workers and spares that are missing, if it is time to.

        Args:
            settings: of the function.
            now_s: a monotonic clock's time, in seconds.
            needs_spares: whether spares may be started now.
        """
        room = _MAX_STARTING - self.starting
        if room <= 0:
            return
        is_due = self.backoff.take_due(now_s)
        router = self._dispatch.router
        needs_spares = needs_spares and router.replacement is None and not self.backoff.is_pending
        missing = Missing(
            workers=settings.workers - router.places_filled if is_due else 0,
            spares=settings.standby - router.spares if needs_spares else 0,
        )
        now = missing.within(room)
        try:
            for _ in range(now.workers):
                self.start(settings, Reason.DEATH)
            for _ in range(now.spares):
                self.start(settings, Reason.STANDBY)
        except OSError as error:
            self._log.error("worker cannot start", error=str(error))
            self.backoff.retry(time.monotonic(), pause_s=_NO_ROOM_PAUSE_S)
        else:
            if is_due and missing.workers > now.workers:
                self.backoff.retry(time.monotonic())

    def start_last(self, settings: FunctionSettings) -> None:
        """Start one more worker during a stop, for connections whose last worker died."""
        try:
            self.start(settings, Reason.DEATH)
        except OSError as error:
            self._log.error("worker cannot start", error=str(error))

    def _watch(self, worker: WorkerProcess) -> int:
        """Look after a worker that was just started; return its number."""
        self._dispatch.processes[worker.number] = worker
        self._dispatch.history.worker_starts += 1
        self._reports.watch(worker)
        return worker.number
