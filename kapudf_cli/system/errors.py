"""Socket paths that cannot be used."""

from __future__ import annotations

from kapudf_cli.errors import KapudfError


class SocketPathError(KapudfError):
    """A Unix socket cannot be created at a path.

    Attributes:
        path: as the user gave it.
        problem: the reason, without the path.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


class SocketInUseError(SocketPathError):
    """A live process serves the path, which was left unchanged.

    Attributes:
        pid: that process, None if the system does not tell.
    """

    def __init__(self, path: str, pid: int | None) -> None:
        who = "another process" if pid is None else f"process {pid}"
        super().__init__(path, f"{who} already serves this socket; stop it or choose another path")
        self.pid = pid


class StaleSocketError(SocketPathError):
    """A leftover socket exists at the path, and no process serves it."""

    def __init__(self, path: str) -> None:
        super().__init__(
            path,
            "a leftover socket is here that no process serves; to remove it, start "
            "`kapudf serve` with --remove-stale, or set remove_stale: true in its configuration",
        )
