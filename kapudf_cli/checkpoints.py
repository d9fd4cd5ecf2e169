"""What lets a handler be made anew: what Kapacitor said to it, and its last snapshot.

A handler's state follows from Init, the last snapshot and the input since. Whoever keeps
these can replace the handler, after an exception or on another worker. Here is what an
agent asks of such a keeper, and the simple one, which keeps no input: with it, a new
handler goes on from the last snapshot.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection

    from kapudf_cli.account import Progress

#: The default of snapshot_interval_s.
DEFAULT_SNAPSHOT_INTERVAL_S = 10.0


@dataclass(frozen=True)
class Resumption:
    """Where an agent takes a connection over from another that served it.

    Attributes:
        history: requests that lead to the handler's state; what they bring was sent.
        sent: how many messages were sent, beyond those, of what the next input brings.
        in_batch: whether the last message sent is of a batch that has not ended.
        progress: what the connection had done by then.
        until: up to this offset, frames are dealt with one at a time, each noted before
            and after: the last agent died over one of them.
        poison: the offsets of frames that are not given to the handler, for they killed
            workers.
    """

    history: bytes
    sent: int
    in_batch: bool
    progress: Progress
    until: int = 0
    poison: Collection[int] = ()


class Checkpoints(Protocol):
    """Keeps what makes a handler's state.

    Attributes:
        stateless: whether the handler has no state, so that input which is dealt with
            need not be kept. The agent sets it at Init.
    """

    stateless: bool

    def is_due(self, now_s: float) -> bool:
        """Return whether a cut is wanted; `now_s` is of the monotonic clock."""

    def cut(self, prefix: bytes, remainder: bytes) -> None:
        """Forget the input that has been dealt with.

        Args:
            prefix: Init, and a Restore where there is a snapshot, as frames: what leads
                to the state as it is now.
            remainder: the unfinished frame that was received after that.
        """

    def history(self, until: int) -> bytes:
        """Return requests, as frames, that lead to the state at an offset in the input."""

    def note_in_hand(self, offset: int | None) -> None:
        """Say which frame the handler is given, before it is; None for one of the history."""


class LastSnapshot:
    """Keeps the last snapshot, for a handler that is made anew in the same process."""

    def __init__(self, snapshot_interval_s: float = DEFAULT_SNAPSHOT_INTERVAL_S) -> None:
        """Ask for a snapshot every `snapshot_interval_s` seconds."""
        self.stateless = False
        self._snapshot_interval_s = snapshot_interval_s
        self._due_s = 0.0
        self._prefix = b""

    def is_due(self, now_s: float) -> bool:
        """Return whether the last one is old; see `Checkpoints.is_due`."""
        return now_s >= self._due_s and not (self.stateless and self._prefix)

    def cut(self, prefix: bytes, remainder: bytes) -> None:
        """Keep Init and the snapshot; see `Checkpoints.cut`."""
        del remainder
        self._due_s = time.monotonic() + self._snapshot_interval_s
        self._prefix = prefix

    def history(self, until: int) -> bytes:
        """Return Init and the last snapshot; what came since is not kept."""
        del until
        return self._prefix

    def note_in_hand(self, offset: int | None) -> None:
        """Note nothing: when this process dies, so does the note."""
