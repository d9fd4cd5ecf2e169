"""A function that is served: its workers, and the sockets that it is reached at."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kapudf_cli.config import CONTROL_SUFFIX
from kapudf_cli.system.errors import SocketPathError
from kapudf_cli.system.socket_file import SocketFile

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger

    from kapudf_cli.config import FunctionSettings
    from kapudf_cli.supervisor.pool import Pool


class FunctionSockets:
    """The sockets at one path: Kapacitor's, and the control socket beside it.

    A reload may pass them from one function to another; they stay bound meanwhile.

    Attributes:
        socket_file: where Kapacitor connects.
        control_file: where status and reload are asked for, None if it cannot be bound.
        user: the function that takes the connections, None before the first.
        listens: whether connections are taken from `socket_file`.
        access: the permission bits and the group.
    """

    def __init__(self, name: str, settings: FunctionSettings, log: BoundLogger) -> None:
        """Bind the sockets.

        Args:
            name: of the function that they are for.
            settings: of that function.
            log: where it is said that there is no control socket.

        Raises:
            SocketPathError: the path for Kapacitor cannot be bound.
        """
        self.user: ServedFunction | None = None
        self.listens = False
        self.access: tuple[int, str | None] | None = (settings.mode, settings.group)
        self.socket_file = SocketFile.bind(
            settings.socket,
            mode=settings.mode,
            group=settings.group,
            remove_stale=settings.remove_stale,
            # Kapacitor tries again for minutes where it is refused, and waits only for its
            # timeout where it is connected and not answered.
            listens=False,
        )
        self.control_file: SocketFile | None = None
        try:
            self.control_file = self.socket_file.bind_beside(
                CONTROL_SUFFIX, mode=settings.mode, group=settings.group
            )
        except SocketPathError as error:
            log.warning("no status and reload by socket", function=name, error=str(error))

    def __str__(self) -> str:
        """Return the name of the function that uses them, for the log."""
        return self.socket_file.path if self.user is None else self.user.pool.name

    def is_at(self, path: str) -> bool:
        """Return whether a path, however it is spelled, is that of these sockets."""
        return os.path.realpath(path) == os.path.realpath(self.socket_file.path)

    def set_access(self, access: tuple[int, str | None]) -> None:
        """Change the permission bits and the group of the sockets.

        Raises:
            SocketPathError: there is no such group, or it may not be given.
        """
        if access != self.access:
            for socket_file in (self.socket_file, self.control_file):
                if socket_file is not None:
                    socket_file.set_access(*access)
            self.access = access

    def restore_access(self, access: tuple[int, str | None] | None) -> None:
        """Undo `set_access`, also where only one of the sockets was changed."""
        self.access = None
        if access is not None:
            with contextlib.suppress(SocketPathError):
                self.set_access(access)

    def release(self) -> None:
        """Close the sockets and remove their paths."""
        if self.control_file is not None:
            self.control_file.release()
        self.socket_file.release()


@dataclass(eq=False)
class ServedFunction:
    """A function's workers, and where it is to be reached.

    Attributes:
        pool: the workers.
        sockets: where it is to be reached, None if it is no longer in the settings. Another
            function is their user until the workers of this one are ready.
    """

    pool: Pool
    sockets: FunctionSockets | None
