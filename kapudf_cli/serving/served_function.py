"""A function that is served: its sockets and its workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapudf_cli.config import CONTROL_SUFFIX
from kapudf_cli.errors import SocketPathError
from kapudf_cli.serving.socket_file import SocketFile

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.stdlib import BoundLogger

    from kapudf_cli.config import FunctionSettings
    from kapudf_cli.serving.pool import Pool
    from kapudf_cli.serving.succession import Reloaded


class ServedFunction:
    """A function's sockets and its pool of workers.

    Attributes:
        pool: the workers.
        socket_file: where Kapacitor connects.
        control_file: where status and reload are asked for, None where no path is to be had.
        listens: whether connections are taken from `socket_file`.
    """

    def __init__(self, pool: Pool, log: BoundLogger) -> None:
        """Bind the sockets, with the pool's settings.

        Args:
            pool: of workers, not started yet.
            log: where it is said that there is no control socket.

        Raises:
            SocketPathError: the path for Kapacitor cannot be had.
        """
        settings = pool.settings
        self.pool = pool
        self.socket_file = SocketFile.bind(
            settings.socket,
            mode=settings.mode,
            group=settings.socket_group,
            remove_stale=settings.remove_stale,
        )
        self.control_file: SocketFile | None = None
        self.listens = False
        try:
            self.control_file = self.socket_file.bind_beside(
                CONTROL_SUFFIX, mode=settings.mode, group=settings.socket_group
            )
        except SocketPathError as error:
            log.warning("no status and reload by socket", function=pool.name, error=str(error))

    def reload(
        self, settings: FunctionSettings, on_done: Callable[[Reloaded], None] | None = None
    ) -> None:
        """Have it served by new code and with these settings, at the same paths.

        Args:
            settings: with the path that it has.
            on_done: see `Pool.reload`.

        Raises:
            SocketPathError: the access rights cannot be what they are to be.
            OSError: the system has no process, memory or descriptor left.
        """
        old = self.pool.settings
        if (settings.mode, settings.socket_group) != (old.mode, old.socket_group):
            for socket_file in (self.socket_file, self.control_file):
                if socket_file is not None:
                    socket_file.set_access(settings.mode, settings.socket_group)
        self.pool.reload(settings, on_done)

    def release(self) -> None:
        """Give the sockets' paths up."""
        if self.control_file is not None:
            self.control_file.release()
        self.socket_file.release()
