"""Socket paths that cannot be used."""

from __future__ import annotations

from kapudf_cli.errors import KapudfError


class SocketPathError(KapudfError):
    """A Unix socket cannot be had at a path, for the reason that the message gives.

    Attributes:
        path: the path as the user gave it.
        problem: the reason, without the path.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


class SocketInUseError(SocketPathError):
    """A live process serves the path; it was left alone.

    Attributes:
        pid: that process, or None where the system does not say.
    """

    def __init__(self, path: str, pid: int | None) -> None:
        who = "another process" if pid is None else f"process {pid}"
        super().__init__(path, f"{who} serves this socket already; stop it or choose another path")
        self.pid = pid


class StaleSocketError(SocketPathError):
    """A socket is left over at the path and nobody serves it."""

    def __init__(self, path: str) -> None:
        super().__init__(
            path,
            "a socket is left over here that nobody serves; to have it removed, start "
            "`kapudf serve` with --remove-stale, or set remove_stale: true in its configuration",
        )
