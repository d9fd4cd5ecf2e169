"""How a connection is given time to settle before it is closed."""

from __future__ import annotations

import contextlib
import select
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

#: How long a peer may take to pass on what it has read before its connection is
#: closed. A kapacitord that still forwards a point when it sees the connection of a
#: disabled task end can crash ("send on closed channel").
_SETTLE_S: Final = 0.1
#: How often is looked whether the peer has read everything; nothing wakes for that.
_LOOK_S: Final = 0.01
#: How much input is thrown away at a time: what a pipe holds by default, see pipe(7).
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
    """Wait until a peer has read everything, and had a moment to pass it on.

    Args:
        timeout_s: how long at the most.
        requests: the descriptor that input comes from.
        responses: the one that the peer reads from; it may be the same.
        receive: takes up to so many bytes of input.
        unread: says how many bytes the peer has not read yet.
        aborted: a descriptor that is readable once nothing is to be waited for.

    Returns:
        How many bytes of input came meanwhile, and were thrown away.
    """
    thrown_away = 0
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
            ready = dict(poll.poll(_LOOK_S * 1000))
            if aborted in ready or ready.get(responses, 0) & (select.POLLHUP | select.POLLERR):
                break
            if requests in ready:
                data = receive(_READ_BYTES)
                thrown_away += len(data)
                if not data:
                    # The end of its input says nothing of whether it reads.
                    poll.unregister(requests)
                    poll.register(responses, 0)
    return thrown_away
