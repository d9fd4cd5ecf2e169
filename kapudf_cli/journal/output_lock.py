"""Who may send on a connection: its worker at any time, the supervisor only between two messages.

The supervisor sends heartbeats while a handler is busy. None may end up inside a message, so both
lock the journal's memory (fcntl(2)) while they send. The system releases the lock of a process that
dies. As each call costs as much as several points, the worker locks only if the supervisor may be
about to send:

    worker                              supervisor

    commit output to the journal        set locks_output
    if locks_output is set: lock        wait for a barrier
    send the output                     lock
    if it has locked: unlock            if no committed output is unsent: send a heartbeat
                                        unlock, reset locks_output

After the barrier (see `kapudf_cli.journal.kernel`), the worker sees `locks_output`, or the
supervisor sees the commit and sends nothing. On a system without barriers, `locks_output` is
always set. What a worker has left unsent, the supervisor may send only after the worker's death.
"""

from __future__ import annotations

import contextlib
import fcntl
from typing import TYPE_CHECKING

from kapudf_cli.journal import kernel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kapudf_cli.journal.header import Header


@contextlib.contextmanager
def locked_for_worker(memory: int) -> Iterator[None]:
    """Lock the memory, and wait while the supervisor has locked it."""
    fcntl.lockf(memory, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.lockf(memory, fcntl.LOCK_UN)


@contextlib.contextmanager
def locked_for_supervisor(memory: int, header: Header) -> Iterator[None]:
    """Lock the memory.

    Raises:
        OSError: the worker has locked it.
    """
    header.locks_output = 1
    has_barriers = kernel.barrier()
    try:
        fcntl.lockf(memory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            yield
        finally:
            fcntl.lockf(memory, fcntl.LOCK_UN)
    finally:
        header.locks_output = int(not has_barriers)
