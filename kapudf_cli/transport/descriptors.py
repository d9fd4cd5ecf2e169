"""Waiting for descriptors, and the sizes of their queues."""

from __future__ import annotations

import fcntl
import select
import struct
import termios


def wait_for(descriptor: int, event: int, *wakes: int, timeout_s: float | None = None) -> bool:
    """Wait for an event of a descriptor, or until one of the others is readable.

    Args:
        descriptor: the descriptor.
        event: the event, as for poll(2).
        wakes: descriptors that end the wait when they are readable.
        timeout_s: how long to wait, in seconds; None for no limit.

    Returns:
        False if nothing happened in time.
    """
    poll = select.poll()
    poll.register(descriptor, event)
    for wake in wakes:
        poll.register(wake, select.POLLIN)
    return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))


def unread_bytes(descriptor: int) -> int:
    """Return how many bytes can be read from a socket or a pipe, 0 if that is unknown.

    For a pipe, either end may be given; see pipe(7).
    """
    return _queue_bytes(descriptor, termios.FIONREAD)


def unsent_bytes(descriptor: int) -> int:
    """Return how many bytes the peer of a socket has not read yet, 0 if that is unknown.

    For a Unix socket, the number may be a little too high; see unix(7).
    """
    return _queue_bytes(descriptor, termios.TIOCOUTQ)


def _queue_bytes(descriptor: int, request: int) -> int:
    try:
        answer = fcntl.ioctl(descriptor, request, b"\0" * 4)
    except OSError:
        return 0
    return int(struct.unpack("i", answer)[0])
