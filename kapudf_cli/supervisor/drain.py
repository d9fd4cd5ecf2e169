"""The end of serving: what is done, step by step, for connections that do not end by themselves."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

from kapudf_cli.supervisor.worker_death import beginning
from kapudf_cli.worker import channel as orders

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from structlog.stdlib import BoundLogger

    from kapudf_cli.supervisor.pool import Pool

#: How long a connection may take to end after it was aborted.
_ABORT_WAIT_S: Final = 1.0
#: How long a worker has to write where it hangs.
_DUMP_WAIT_S: Final = 0.25


class Drain:
    """Lets every connection finish, and presses those that do not; without a clock."""

    def __init__(
        self,
        pools: Sequence[Pool],
        *,
        grace_period_s: float,
        now_s: float,
        attempt: Callable[[Callable[[], None]], object],
        log: BoundLogger,
    ) -> None:
        """Tell every worker to process what has arrived, and to end.

        Args:
            pools: whose workers.
            grace_period_s: how long they have for it.
            now_s: a monotonic clock's time, in seconds.
            attempt: does one step, and does not raise if it fails.
            log: where it is said which of them hang at the end.
        """
        self._pools = pools
        self._attempt = attempt
        self._log = log
        self._due_s = now_s + grace_period_s
        # What is done next, and how long it may take.
        self._measures: list[tuple[Callable[[Pool], None], float]] = [
            (_abort, _ABORT_WAIT_S),
            (_ask_for_stacks, _DUMP_WAIT_S),
            (self._log_hanging, 0.0),
        ]
        for pool in pools:
            attempt(pool.stop)

    def wait_s(self, now_s: float) -> float | None:
        """Return how long to wait for what happens meanwhile; None once it is over.

        It is over once no worker is left, or nothing is left to be done. What is due is done.
        """
        if all(pool.is_empty for pool in self._pools):
            return None
        if now_s >= self._due_s:
            if not self._measures:
                return None
            measure, patience_s = self._measures.pop(0)
            for pool in self._pools:
                self._attempt(functools.partial(measure, pool))
            self._due_s = now_s + patience_s
        return self._due_s - now_s

    def _log_hanging(self, pool: Pool) -> None:
        """Log where each worker is that does not even break its connections."""
        for worker in pool.all_workers():
            self._log.error(
                "worker hangs at the end, and is killed",
                function=pool.name,
                worker=worker.number,
                pid=worker.pid,
                connections=pool.connections_of(worker),
                stacks=beginning(worker.stacks()),
            )


def _abort(pool: Pool) -> None:
    """Have the connections broken that are left."""
    for worker in pool.all_workers():
        worker.send(orders.Abort())


def _ask_for_stacks(pool: Pool) -> None:
    """Have every worker write where it is."""
    for worker in pool.all_workers():
        worker.ask_for_stacks()
