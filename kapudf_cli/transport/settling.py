"""The wait before a connection is closed."""

from __future__ import annotations

import contextlib
import select
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
