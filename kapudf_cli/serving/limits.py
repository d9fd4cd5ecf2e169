"""What the system lets this process have."""

from __future__ import annotations

import contextlib
import resource


def raise_descriptor_limit() -> None:
    """Allow this process, and those that it starts, as many descriptors as the system would.

    A connection takes five in a worker and three in the supervisor. The usual soft limit of
    1024 is for programs that use select(2), and systemd leaves it at that (its
    documentation of LimitNOFILE= says to raise it so).
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
