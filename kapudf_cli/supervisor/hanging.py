"""Workers whose handlers hang: each is asked where, and then killed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger

    from kapudf_cli.supervisor.connection import SupervisedConnection
    from kapudf_cli.supervisor.worker_process import WorkerProcess

#: How long a worker that hangs has to write where.
_DUMP_PAUSE_S: Final = 0.3


class HungWorkers:
    """Those that were asked where they hang, and are yet to be killed."""

    def __init__(self, log: BoundLogger) -> None:
        """Begin with none.

        Args:
            log: where it is said which handler hangs.
        """
        self._log = log
        self._asked_s: dict[WorkerProcess, float] = {}

    def use_log(self, log: BoundLogger) -> None:
        """Log to another logger from now on, for the function has another name."""
        self._log = log

    @property
    def is_empty(self) -> bool:
        """Whether none is to be killed."""
        return not self._asked_s

    def note(self, served: SupervisedConnection, worker: WorkerProcess, now_s: float) -> None:
        """Have a worker write where it hangs, before it is killed.

        Args:
            served: the connection whose handler hangs; each is told of once.
            worker: who serves it.
            now_s: a monotonic clock's time, in seconds.
        """
        if served.is_neglected or not served.is_at_work:
            self.note_frozen(served, worker, now_s)
            return
        if served.number in worker.hung:
            return
        self._ask(worker, now_s)
        worker.hung.add(served.number)
        task_id, node_id = served.header.task
        self._log.error(
            "handler hangs, its worker is replaced",
            connection=served.number,
            task_id=task_id,
            node_id=node_id,
            worker=worker.number,
            pid=worker.pid,
            busy_s=round(served.watch.busy_s, 1),
        )

    def note_frozen(
        self, served: SupervisedConnection, worker: WorkerProcess, now_s: float
    ) -> None:
        """Have a worker killed that does nothing, though nothing keeps it waiting.

        It was stopped, or another thread of its process keeps the interpreter: no frame of
        this connection is to blame.

        Args:
            served: the connection of which that is seen.
            worker: who serves it.
            now_s: a monotonic clock's time, in seconds.
        """
        if worker in self._asked_s:
            return
        self._ask(worker, now_s)
        self._log.error(
            "worker is frozen, it is replaced",
            connection=served.number,
            worker=worker.number,
            pid=worker.pid,
            not_reading_s=round(served.watch.busy_s, 1),
        )

    def _ask(self, worker: WorkerProcess, now_s: float) -> None:
        if worker not in self._asked_s:
            worker.ask_for_stacks()
            self._asked_s[worker] = now_s

    def kill_due(self, now_s: float) -> None:
        """Kill those that have had a moment to write where they hang."""
        for worker, asked_s in list(self._asked_s.items()):
            if now_s - asked_s >= _DUMP_PAUSE_S:
                del self._asked_s[worker]
                worker.kill("a handler hung" if worker.hung else "it was frozen")

    def forget(self, worker: WorkerProcess) -> None:
        """Let go of one that has died, hanging or not."""
        self._asked_s.pop(worker, None)
