"""A connection taken from a function's socket, with all that it takes to be served."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from kapudf_cli.journal import journal
from kapudf_cli.supervisor.connection import SupervisedConnection
from kapudf_cli.system.socket_file import peer_credentials

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kapudf_cli.config import FunctionSettings
    from kapudf_cli.system.socket_file import SocketFile

#: That many descriptors does a connection take here, besides its own.
_DESCRIPTORS_OF_CONNECTION: Final = 3


def accept(
    socket_file: SocketFile, settings: FunctionSettings, numbers: Iterator[int]
) -> SupervisedConnection | None:
    """Return the next connection, None if none waits.

    Args:
        socket_file: where it waits.
        settings: of the function.
        numbers: the next of them is what the log calls it.

    Raises:
        OSError: the system has no descriptor or memory left. The connection waits on if it is
            descriptors, and is closed otherwise.
    """
    # What it needs besides is had before it is taken from the queue, where it is safer
    # than with somebody who cannot serve it: a memory, mapped once for good and, while
    # it is made, once more.
    with contextlib.ExitStack() as reserved:
        for _ in range(_DESCRIPTORS_OF_CONNECTION):
            reserved.callback(os.close, os.dup(socket_file.listener.fileno()))
        connection = socket_file.accept()
    if connection is None:
        return None
    with contextlib.ExitStack() as undo:
        undo.callback(connection.close)
        memory = journal.create(
            connection,
            journal_bytes=settings.journal_bytes,
            max_frame_bytes=settings.max_frame_bytes,
        )
        undo.callback(os.close, memory)
        served = SupervisedConnection(
            next(numbers),
            connection,
            memory,
            peer_credentials(connection),
            busy_limit_s=settings.busy_limit_s,
        )
        undo.pop_all()
    return served
