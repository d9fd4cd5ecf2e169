"""Wait for descriptors, read the sizes of their queues, and wait before closing them."""

from __future__ import annotations

import contextlib
import fcntl
import select
import struct
import termios
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

#: How long to wait after the peer has read everything. A kapacitord that still forwards a
#: point when the connection of a disabled task ends can crash ("send on closed channel").
_SETTLE_S: Final = 0.1
#: How often to check whether the peer has read everything; no event reports that.
_POLL_S: Final = 0.01
#: How much input is discarded at a time: what a pipe holds by default, see pipe(7).
_READ_BYTES: Final = 64 * 1024


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


def settle(
    timeout_s: float,
    *,
    requests: int,
    responses: int,
    receive: Callable[[int], bytes],
    unread: Callable[[], int],
    aborted: int | None = None,
) -> int:
    """Wait until the peer has read everything, and a moment longer.

    Args:
        timeout_s: the longest wait, in seconds.
        requests: the descriptor for input.
        responses: the descriptor for output; it may be the same.
        receive: reads up to so many bytes of input.
        unread: returns how many bytes the peer has not read yet.
        aborted: a descriptor that is readable once the wait must end.

    Returns:
        How many bytes of input came meanwhile and were discarded.
    """
    discarded = 0
    started = time.monotonic()
    read_at: float | None = None
    poll = select.poll()
    poll.register(responses, 0)
    poll.register(requests, select.POLLIN)
    if aborted is not None:
        poll.register(aborted, select.POLLIN)
    with contextlib.suppress(OSError):
        while (now := time.monotonic()) - started < timeout_s:
            if unread() > 0:
                read_at = None
            elif read_at is None:
                read_at = now
            elif now - read_at >= _SETTLE_S:
                break
            ready = dict(poll.poll(_POLL_S * 1000))
            if aborted in ready or ready.get(responses, 0) & (select.POLLHUP | select.POLLERR):
                break
            if requests in ready:
                data = receive(_READ_BYTES)
                discarded += len(data)
                if not data:
                    # The peer has sent its last byte, but may still be reading.
                    poll.unregister(requests)
                    poll.register(responses, 0)
    return discarded


def _queue_bytes(descriptor: int, request: int) -> int:
    try:
        answer = fcntl.ioctl(descriptor, request, b"\0" * 4)
    except OSError:
        return 0
    return int(struct.unpack("i", answer)[0])
