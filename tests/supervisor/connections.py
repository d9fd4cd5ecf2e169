"""Connections as the supervisor keeps them, for tests without workers."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from kapudf_cli.supervisor.connection import ConnectionRecord, SupervisedConnection
from kapudf_cli.system import logs
from kapudf_cli.system.descriptor_store import DescriptorStore
from tests.journal.connections import JournaledConnection

if TYPE_CHECKING:
    from collections.abc import Iterator


def unkept() -> DescriptorStore:
    """Return a store that keeps nothing beyond this process."""
    return DescriptorStore(keeps=False, log=logs.get_logger())


def supervised(
    kept: JournaledConnection, number: int = 7, *, busy_limit_s: float = 10.0
) -> SupervisedConnection:
    """Return the supervisor's side of a connection, with descriptors of its own."""
    return SupervisedConnection(
        ConnectionRecord(number, "f", None, None, time.monotonic()),
        kept.connection.dup(),
        os.dup(kept.memory),
        unkept(),
        busy_limit_s=busy_limit_s,
    )


@contextlib.contextmanager
def two_supervised() -> Iterator[tuple[SupervisedConnection, SupervisedConnection]]:
    """Give the connections 1 and 2."""
    with contextlib.ExitStack() as ends:
        first, second = (JournaledConnection() for _ in range(2))
        for kept in (first, second):
            ends.callback(kept.close)
        both = supervised(first, 1), supervised(second, 2)
        for each in both:
            ends.callback(each.close)
        yield both
