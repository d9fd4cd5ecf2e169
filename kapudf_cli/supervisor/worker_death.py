"""A worker's end: what it was, and whether it was to be expected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kapudf_cli.supervisor.worker_process import WorkerState
from kapudf_cli.worker import stacks as dumps

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger

    from kapudf_cli.supervisor.worker_process import WorkerProcess

#: How a worker ends that has nothing left to do.
_DONE = "exit status 0"


@dataclass(frozen=True)
class WorkerDeath:
    """What a worker left behind.

    Attributes:
        worker: its number.
        pid: that of the process.
        state: what it was good for.
        how: the death, in words.
        stacks: what faulthandler wrote of its threads, if it was a fault or it was asked to.
        reason: why the supervisor killed it, if it did and the log does not say so already.
        was_overdue: whether it was killed only because its exit took too long.
    """

    worker: int
    pid: int
    state: WorkerState
    how: str
    stacks: str
    reason: str | None = None
    was_overdue: bool = False

    @classmethod
    def of(cls, worker: WorkerProcess) -> WorkerDeath:
        """Return the death of a worker that has ended, and close what is left of it."""
        state = worker.state
        how = worker.reap()
        stacks = worker.stacks()
        worker.close()
        return cls(
            worker.number,
            worker.pid,
            state,
            how,
            stacks,
            reason=worker.killed_for,
            was_overdue=worker.exit_overdue,
        )

    def is_expected(self, *, stopping: bool) -> bool:
        """Return whether it ended as it was told to, or while it served nobody at a stop.

        Args:
            stopping: whether every worker was told to end.
        """
        told = stopping or self.state in {WorkerState.RETIRING, WorkerState.DEAD}
        was_idle = stopping and self.state is WorkerState.STARTING
        return was_idle or (told and (self.how == _DONE or self.was_overdue))

    def log(self, log: BoundLogger, *, connections: int) -> None:
        """Log one that was not expected.

        Args:
            log: where.
            connections: how many the worker has left alone.
        """
        log.error(
            "worker died",
            worker=self.worker,
            pid=self.pid,
            how=self.how,
            connections=connections,
            **({"reason": self.reason} if self.reason else {}),
            **({"stacks": dumps.beginning(self.stacks)} if self.stacks else {}),
        )
