"""Starts worker processes, by exec or as forks of a template, and looks after the templates.

A template is a process that has loaded the handler and forks workers. The supervisor adopts
these, so that they are its children like workers started by exec.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from kapudf_cli.supervisor.replacement import RestartBackoff
from kapudf_cli.supervisor.routes import WorkerState
from kapudf_cli.supervisor.worker_death import WorkerDeath
from kapudf_cli.supervisor.worker_process import WorkerProcess, WorkerReports
from kapudf_cli.system import adoption
from kapudf_cli.system.processes import working_folder
from kapudf_cli.worker import channel

if TYPE_CHECKING:
    import selectors
    from collections.abc import Iterable, Iterator

    from structlog.stdlib import BoundLogger

    from kapudf_cli.config import FunctionSettings, Settings
    from kapudf_cli.supervisor.acceptance import DescriptorReserve
    from kapudf_cli.worker.channel import Report

T = TypeVar("T")

#: A template that has not forked a worker after this time is frozen, or about to end.
_FORK_PATIENCE_S: Final = 10.0
#: How long a template may take to exit.
_EXIT_PATIENCE_S: Final = 10.0
#: The pause before another attempt to start a template that the system had no room for.
_NO_ROOM_PAUSE_S: Final = 1.0


class TemplateRoles(Generic[T]):
    """Which template forks which workers; without I/O.

    Attributes:
        current: forks the workers that serve; None if there is none.
        coming: forks the new workers of a reload; None if there is none.
    """

    def __init__(self) -> None:
        """Begin without templates."""
        self.current: T | None = None
        self.coming: T | None = None

    def switch(self) -> T | None:
        """Have the coming template be the current one; return the one to end, if any."""
        old, self.current, self.coming = self.current, self.coming, None
        return old

    def cancel(self) -> T | None:
        """Give up the reload under way; return the template to end, if any."""
        coming, self.coming = self.coming, None
        return coming

    def remove(self, template: T) -> bool:
        """Forget a template that has ended; return whether it was needed."""
        is_needed = template in (self.current, self.coming)
        if self.current == template:
            self.current = None
        if self.coming == template:
            self.coming = None
        return is_needed


class Templates:
    """Starts workers, and the templates that fork them where the handler is preloaded."""

    def __init__(
        self,
        name: str,
        logging: Settings,
        *,
        worker_numbers: Iterator[int],
        selector: selectors.BaseSelector,
        reserve: DescriptorReserve,
        log: BoundLogger,
    ) -> None:
        """Start none yet.

        Args:
            name: of the function.
            logging: has the format and level of the log.
            worker_numbers: gives new workers their names in the log.
            selector: templates are registered with it, with a callable as data.
            reserve: descriptors for starting workers.
            log: where events go.
        """
        self._name = name
        self._log = log
        self._logging = logging
        self._numbers = worker_numbers
        self._reserve = reserve
        self._reports = WorkerReports(selector, on_report=self._on_report, on_end=self._on_exit)
        self._roles: TemplateRoles[WorkerProcess] = TemplateRoles()
        self._backoff = RestartBackoff()
        # Those that have not exited, with what is known of each.
        self._templates: dict[WorkerProcess, _Template] = {}

    @property
    def processes(self) -> list[WorkerProcess]:
        """The templates that have not exited."""
        return list(self._templates)

    @property
    def needs_ticks(self) -> bool:
        """Whether `tick` may have anything to do."""
        ending = any(each.told_s is not None for each in self._templates.values())
        return ending or self._backoff.is_pending

    def rename(self, name: str, log: BoundLogger) -> None:
        """Start workers under another name of the function, and log to another logger."""
        self._name, self._log = name, log

    def start(self, settings: FunctionSettings, *, for_reload: bool = False) -> WorkerProcess:
        """Start a worker.

        Args:
            settings: of the function.
            for_reload: whether it is one of the new workers of a reload.

        Raises:
            OSError: the system has no process, memory or descriptor left.
        """
        begin = self._begin(settings)
        with self._reserve.lent():
            if not settings.preload:
                return WorkerProcess.start(begin)
            template = self._roles.coming if for_reload else self._roles.current
            if template is not None:
                try:
                    return self._fork(begin, template)
                except ConnectionError:
                    self._roles.remove(template)  # It has ended; its exit was not read yet.
            template = self._start_template(settings)
            if for_reload:
                self._roles.coming = template
            else:
                self._roles.current = template
            return self._fork(begin, template)

    def switch(self) -> None:
        """Have the template of a reload fork all workers from now on; end the one before."""
        self._end(self._roles.switch())

    def cancel_reload(self) -> None:
        """End the template of a reload whose workers do not serve."""
        self._end(self._roles.cancel())

    def tick(self, settings: FunctionSettings, workers: Iterable[WorkerProcess]) -> None:
        """Start a template in place of a dead one, and kill those that hang.

        Args:
            settings: of the function.
            workers: those that have not ended.
        """
        now_s = time.monotonic()
        self._kill_overdue(now_s, workers)
        if not settings.preload or self._roles.current is not None:
            return
        if self._backoff.is_pending and not self._backoff.take_due(now_s):
            return
        try:
            with self._reserve.lent():
                self._roles.current = self._start_template(settings)
        except OSError as error:
            self._log.error("template cannot start", error=str(error))
            self._backoff.retry(now_s, pause_s=_NO_ROOM_PAUSE_S)

    def stop(self) -> None:
        """End the templates; start none in their place."""
        self._backoff.cancel()
        for template in (self._roles.cancel(), self._roles.switch()):
            self._end(template)

    def stop_loading(self) -> None:
        """End the templates that still load the handler."""
        for template in self.processes:
            if template.loaded is None:
                self._roles.remove(template)
                self._end(template)

    def kill(self) -> None:
        """Kill the templates."""
        self.stop()
        for template in self.processes:
            template.kill()

    # --- inside ---

    def _begin(self, settings: FunctionSettings, *, is_template: bool = False) -> channel.Start:
        return channel.Start(
            self._name,
            next(self._numbers),
            settings,
            self._logging.log_format,
            self._logging.log_level,
            working_folder(),
            is_template,
        )

    def _start_template(self, settings: FunctionSettings) -> WorkerProcess:
        adoption.adopt_orphans()
        template = WorkerProcess.start(self._begin(settings, is_template=True))
        self._templates[template] = _Template()
        self._reports.watch(template)
        return template

    def _fork(self, begin: channel.Start, template: WorkerProcess) -> WorkerProcess:
        worker = WorkerProcess.start(begin, template)
        self._templates[template].has_forked = True
        return worker

    def _end(self, template: WorkerProcess | None) -> None:
        """Have a template exit, if it has not exited yet."""
        known = None if template is None else self._templates.get(template)
        if template is None or known is None:
            return
        known.told_s = time.monotonic()
        if template.loaded is None:
            template.kill()  # The import of its handler may not end.
        else:
            template.send(channel.Stop())

    def _kill_overdue(self, now_s: float, workers: Iterable[WorkerProcess]) -> None:
        for each, known in self._templates.items():
            if known.told_s is not None and now_s - known.told_s > _EXIT_PATIENCE_S:
                each.kill()
        for worker in workers:
            template = worker.template
            if worker.pid or template is None or template not in self._templates:
                continue
            ready_s = self._templates[template].ready_s
            if ready_s and now_s - max(worker.started_s, ready_s) > _FORK_PATIENCE_S:
                template.kill(f"it forked no worker for {_FORK_PATIENCE_S:.0f} s")

    def _on_report(self, template: WorkerProcess, report: Report) -> None:
        known = self._templates[template]
        match report:
            case channel.Ready():
                template.loaded = report
                known.ready_s = time.monotonic()
                self._log.debug(
                    "template ready", pid=template.pid, start_s=round(template.age_s, 3)
                )
            case channel.Failed():
                known.has_failed = True
                if not known.has_forked:
                    # Otherwise, the workers that it should fork say so.
                    self._log.error("template cannot start", error=report.problem)

    def _on_exit(self, template: WorkerProcess) -> None:
        """Handle a template's end, expected or not; its workers go on."""
        self._reports.unwatch(template)
        known = self._templates.pop(template)
        death = WorkerDeath.of(template, WorkerState.SERVING)
        was_needed = self._roles.remove(template)
        if known.told_s is None and not known.has_failed:
            death.log_template(self._log)
        if was_needed:
            self._backoff.note_death(
                time.monotonic(), age_s=template.age_s, has_worked=known.ready_s is not None
            )


@dataclass
class _Template:
    """What is known of a template.

    Attributes:
        ready_s: when it had loaded the handler, None if it has not yet.
        told_s: when it was told to exit, None if it was not.
        has_forked: whether it was told to fork a worker.
        has_failed: whether it could not load the handler.
    """

    ready_s: float | None = None
    told_s: float | None = None
    has_forked: bool = False
    has_failed: bool = False
