"""What the streams ask the system about their descriptors."""

from __future__ import annotations

import fcntl
import select
import struct


def wait_for(descriptor: int, event: int, *wakes: int, patience_s: float | None = None) -> bool:
    """Wait for an event of one descriptor, or for one of the others to be readable.

    Args:
        descriptor: which one.
        event: as for poll(2).
        wakes: what ends the waiting besides.
        patience_s: how long to wait, None for ever.

    Returns:
        Whether anything came in time.
    """
    poll = select.poll()
    poll.register(descriptor, event)
    for wake in wakes:
        poll.register(wake, select.POLLIN)
    return bool(poll.poll(None if patience_s is None else patience_s * 1000))


def waiting_bytes(descriptor: int, which: int) -> int:
    """Return how many bytes wait in one direction, 0 where that is not known.

    Args:
        descriptor: a socket, or either end of a pipe.
        which: FIONREAD, or for a socket's other direction TIOCOUTQ; see unix(7), pipe(7).
    """
    try:
        answer = fcntl.ioctl(descriptor, which, b"\0" * 4)
    except OSError:
        return 0
    return int(struct.unpack("i", answer)[0])
