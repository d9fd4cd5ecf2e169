"""Child processes that the supervisor has not started, as PID 1 of a container has them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container


def reap(workers: Container[int]) -> None:
    """Reap children that have ended, other than workers.

    When a worker dies, the processes that its handler has started become children of PID 1.
    That may be the supervisor, and each that ends would stay as a zombie.

    Args:
        workers: process numbers of the workers, which are reaped where they are looked after.
    """
    while True:
        try:
            # Look first: the status of a worker must not be taken away.
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None or ended.si_pid in workers:
            # Others that have ended, too, come after this worker.
            return
        os.waitpid(ended.si_pid, os.WNOHANG)
