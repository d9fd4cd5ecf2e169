"""Resource limits of this process: raise, check and explain them."""

from __future__ import annotations

import contextlib
import errno
import resource
from typing import TYPE_CHECKING, Final

from kapudf_cli.errors import ConfigError, describe
from kapudf_cli.journal import journal

if TYPE_CHECKING:
    from kapudf_cli.config import Settings

#: The address space of a worker with a small handler and one connection, without its journal.
_WORKER_BYTES: Final = 130_000_000


def raise_descriptor_limit() -> None:
    """Raise the descriptor limit of this process and its children to the hard limit.

    A connection takes five in a worker and three in the supervisor. The usual soft limit of
    1024 is for programs that use select(2); systemd's documentation of LimitNOFILE=
    advises others to raise it like this.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def check_journals(settings: Settings, *, source: str) -> None:
    """Check that the limits of this process leave room for the journal of a connection.

    Args:
        settings: the functions, which are served by workers.
        source: the settings file, for the error.

    Raises:
        ConfigError: it names each function for which they leave no room.
    """
    faults = []
    for name, function in settings.functions.items():
        size = journal.size(
            journal_bytes=function.journal_bytes, max_frame_bytes=function.max_frame_bytes
        )
        for limit, flag, directive, needed in (
            (resource.RLIMIT_FSIZE, "-f", "FSIZE", size),
            (resource.RLIMIT_AS, "-v", "AS", size + _WORKER_BYTES),
        ):
            soft, _ = resource.getrlimit(limit)
            if soft != resource.RLIM_INFINITY and soft < needed:
                faults.append(
                    f"functions.{name}: RLIMIT_{directive} is {soft} bytes, and a connection needs "
                    f"{needed}, mostly without using memory; raise it (ulimit {flag}, "
                    f"Limit{directive}=), or lower journal_mb and max_frame_bytes"
                )
    if faults:
        raise ConfigError(source, faults)


def explained(error: Exception) -> str:
    """Return the text of an error, with the limit of this process that may have caused it."""
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, MemoryError):
        number = errno.ENOMEM
    causes = {
        errno.ENOMEM: (resource.RLIMIT_AS, "RLIMIT_AS", "bytes"),
        errno.EFBIG: (resource.RLIMIT_FSIZE, "RLIMIT_FSIZE", "bytes"),
        errno.EMFILE: (resource.RLIMIT_NOFILE, "RLIMIT_NOFILE", "descriptors"),
    }
    if number in causes:
        limit, name, unit = causes[number]
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY:
            return f"{describe(error)} ({name} is {soft} {unit})"
    return str(error) or describe(error)
