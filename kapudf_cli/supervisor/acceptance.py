"""Accepting Kapacitor's connections, and descriptors kept in reserve while there are many."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import time
from typing import TYPE_CHECKING, Final

from kapudf_cli.journal import journal
from kapudf_cli.supervisor.connection import (
    ConnectionRecord,
    SupervisedConnection,
    journal_name,
    socket_name,
)
from kapudf_cli.system.peers import peer_credentials

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from kapudf_cli.config import FunctionSettings
    from kapudf_cli.system.descriptor_store import DescriptorStore
    from kapudf_cli.system.socket_file import SocketFile

#: How many descriptors a connection takes in this process, besides its own.
_DESCRIPTORS_OF_CONNECTION: Final = 3
#: Enough to start some workers (each takes nine for a moment and four for good), and for every
#: control client. With a low limit, the reserve is this share of it.
_RESERVE: Final = 64
_RESERVE_SHARE: Final = 8


def accept(
    socket_file: SocketFile,
    settings: FunctionSettings,
    *,
    function: str,
    numbers: Iterator[int],
    store: DescriptorStore,
) -> SupervisedConnection | None:
    """Accept the next connection and create its journal; None if none waits.

    Args:
        socket_file: where it waits.
        settings: of the function.
        function: its name.
        numbers: gives the connection its name in the log.
        store: keeps the connection's socket and journal for the next supervisor.

    Raises:
        OSError: the system has no descriptor or memory left. Without descriptors, the connection
            waits on; without memory, it is closed.
    """
    # Reserve what its journal needs before it is taken from the queue: one descriptor, and one
    # for each of two mappings. In the queue it waits; accepted and not served, it would fail.
    with contextlib.ExitStack() as reserved:
        for _ in range(_DESCRIPTORS_OF_CONNECTION):
            reserved.callback(os.close, os.dup(socket_file.listener.fileno()))
        connection = socket_file.accept()
    if connection is None:
        return None
    # At once: if this process died before, the connection would be lost.
    number = next(numbers)
    store.put(socket_name(number), connection.fileno())
    return begin(connection, number, settings, function=function, store=store)


def begin(
    connection: socket.socket,
    number: int,
    settings: FunctionSettings,
    *,
    function: str,
    store: DescriptorStore,
) -> SupervisedConnection:
    """Create the journal of a connection that is in the store, and from which nothing was read.

    Raises:
        OSError: the system has no memory left; the connection is closed.
    """
    with contextlib.ExitStack() as undo:
        undo.callback(connection.close)
        undo.callback(store.remove, socket_name(number))
        memory = journal.create(
            connection,
            journal_bytes=settings.journal_bytes,
            max_frame_bytes=settings.max_frame_bytes,
        )
        undo.callback(os.close, memory)
        peer = peer_credentials(connection)
        record = ConnectionRecord(
            number,
            function,
            None if peer is None else peer.pid,
            None if peer is None else peer.uid,
            time.monotonic(),
        )
        supervised = SupervisedConnection(
            record, connection, memory, store, busy_limit_s=settings.busy_limit_s
        )
        supervised.save()
        store.put(journal_name(number), memory)
        undo.pop_all()
    return supervised


class DescriptorReserve:
    """Descriptors that are held open without use, and lent to what needs them.

    Connections are accepted only while the reserve is full, so they never use it up.
    """

    def __init__(self) -> None:
        """Open the descriptors, or as many as there are."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        unlimited = soft == resource.RLIM_INFINITY
        self._wanted = _RESERVE if unlimited else min(_RESERVE, soft // _RESERVE_SHARE)
        self._held: list[int] = []
        self._fill()

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Release the reserve while the context lasts, and refill it afterwards."""
        self.close()
        try:
            yield
        finally:
            self._fill()

    def check(self) -> None:
        """Refill the reserve.

        Raises:
            OSError: there are not enough descriptors.
        """
        if not self._fill():
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def close(self) -> None:
        """Release the reserve for good."""
        while self._held:
            os.close(self._held.pop())

    def _fill(self) -> bool:
        """Open what is missing; return whether the reserve is full."""
        try:
            while len(self._held) < self._wanted:
                # It needs no file and no device.
                if self._held:
                    self._held.append(os.dup(self._held[0]))
                else:
                    self._held.append(os.memfd_create("kapudf-reserve"))
        except OSError:
            return False
        return True
