"""New workers in the place of others: for new code, or for one that has had its time.

They take over once all of them are ready. Where one of them does not come so far, none is
wanted any more, and those that were to go stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kapudf_cli.supervisor.worker_process import WorkerState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from structlog.stdlib import BoundLogger

    from kapudf_cli.config import FunctionSettings
    from kapudf_cli.supervisor.worker_process import WorkerProcess


@dataclass(frozen=True)
class Reloaded:
    """What came of a reload.

    Attributes:
        connections: how many connections the new code serves.
        stay: how many the old code goes on with, for the new one could not take them over.
        problem: why there are no new workers, None if there are.
        code: the new code, in words.
    """

    connections: int = 0
    stay: int = 0
    problem: str | None = None
    code: str = ""


@dataclass(frozen=True)
class Replacement:
    """Workers that are ready to take over.

    Attributes:
        coming: those.
        going: the one that has had its time, if that is the reason and it has not died
            meanwhile.
        settings: of the function from now on, if it is reloaded: all others go then.
    """

    coming: Sequence[WorkerProcess]
    going: WorkerProcess | None
    settings: FunctionSettings | None


class Replacements:
    """The workers of one function that do not serve yet, and those that never will.

    Attributes:
        coming: those that are to take over.
        dismissed: those that were to, are not wanted any more, and have not ended yet.
    """

    def __init__(self, log: BoundLogger) -> None:
        """Begin with none.

        Args:
            log: where it is said why none take over.
        """
        self._log = log
        self.coming: list[WorkerProcess] = []
        self.dismissed: list[WorkerProcess] = []
        self._going: WorkerProcess | None = None
        self._settings: FunctionSettings | None = None
        self._on_reloaded: Callable[[Reloaded], None] | None = None

    def use_log(self, log: BoundLogger) -> None:
        """Log to another logger from now on, for the function has another name."""
        self._log = log

    @property
    def is_under_way(self) -> bool:
        """Whether any are to take over."""
        return bool(self.coming)

    @property
    def is_reload(self) -> bool:
        """Whether those are to take over from all others, with other settings."""
        return self._settings is not None

    @property
    def fills_gap(self) -> bool:
        """Whether one is to take over from one that has died meanwhile."""
        return self.is_under_way and not self.is_reload and self._going is None

    # --- how it begins ---

    def begin_reload(
        self,
        settings: FunctionSettings,
        successors: list[WorkerProcess],
        on_done: Callable[[Reloaded], None] | None,
    ) -> None:
        """Have some that have just been started take over from all others.

        Args:
            settings: of the function, once they have.
            successors: those.
            on_done: called once it is known what came of it.
        """
        self.coming = successors
        self._settings = settings
        self._on_reloaded = on_done

    def begin_recycling(self, worker: WorkerProcess, successor: WorkerProcess) -> None:
        """Have one that has just been started take over from one that has had its time."""
        self.coming = [successor]
        self._going = worker

    # --- how it goes on ---

    def take_ready(self) -> Replacement | None:
        """Return those that take over now, if all of them are ready; they are no longer coming."""
        if not self.coming or any(each.state is not WorkerState.SERVING for each in self.coming):
            return None
        successors = Replacement(self.coming, self._going, self._settings)
        self.coming, self._going, self._settings = [], None, None
        return successors

    def fail(self, problem: str) -> None:
        """Give it up, for one that was to take over cannot, and say so in the log."""
        if self.is_reload:
            self._log.error("reload failed, the old code goes on", error=problem)
            self.give_up(problem)
        else:
            # Who waits for a reload waits for one that was before, and has succeeded.
            self._log.error("worker cannot be recycled", error=problem)
            self._dismiss_coming()

    def give_up(self, problem: str) -> None:
        """Have none take over, if any were to, and tell whoever waits for a reload why."""
        self._dismiss_coming()
        self.tell(Reloaded(problem=problem))

    def dismiss(self, workers: Sequence[WorkerProcess]) -> None:
        """End some that are not wanted after all."""
        for worker in workers:
            worker.kill()
        self.dismissed += workers

    def _dismiss_coming(self) -> None:
        self.dismiss(self.coming)
        self.coming, self._going, self._settings = [], None, None

    def tell(self, reloaded: Reloaded) -> None:
        """Tell whoever waits for a reload, if anybody still does, what came of it."""
        on_done, self._on_reloaded = self._on_reloaded, None
        if on_done is not None:
            on_done(reloaded)

    def forget(self, worker: WorkerProcess) -> None:
        """Let go of one that has died, whether or not it has to do with this."""
        for workers in (self.coming, self.dismissed):
            if worker in workers:
                workers.remove(worker)
        if worker is self._going:
            self._going = None
