"""A UDF that somebody serves on a Unix socket."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kapudf_cli.client.driver import KapacitorSide, why_not_connected
from kapudf_cli.client.errors import TargetError
from kapudf_cli.client.target import Connection, Ending
from kapudf_cli.system.socket_file import peer_credentials

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class SocketTarget:
    """The UDF at a path; see `Target`."""

    path: str

    @property
    def name(self) -> str:
        """The path."""
        return self.path

    @contextlib.contextmanager
    def open(self, *, timeout_s: float) -> Iterator[Connection]:
        """Connect; see `Target.open`."""
        try:
            side = KapacitorSide.connect(self.path, timeout_s=timeout_s)
        except OSError as error:
            raise TargetError(self.path, why_not_connected(self.path, error)) from error
        with side:
            yield Connection(side, _pid(side), _unseen)


def _pid(side: KapacitorSide) -> int | None:
    if not isinstance(side.connection, socket.socket):
        return None
    peer = peer_credentials(side.connection)
    return None if peer is None else peer.pid


def _unseen(timeout_s: float) -> Ending | None:
    """Return nothing: what becomes of another's process is not seen from here."""
    del timeout_s
    return None
