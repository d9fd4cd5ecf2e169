"""What lets a handler be made anew: what Kapacitor said to it, and its last snapshot.

A handler's state follows from Init, the last snapshot and the input since. Whoever keeps
these can replace the handler, after an exception or on another worker. Here is what an
agent asks of such a keeper, and the simple one, which keeps no input: with it, a new
handler goes on from the last snapshot.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection

    from kapudf_cli.transport.commit import ConnectionStats

#: Protobuf takes no longer message.
MAX_MESSAGE_BYTES: Final = 2**31 - 1

#: The default of snapshot_interval_s.
DEFAULT_SNAPSHOT_INTERVAL_S = 10.0


@dataclass(frozen=True)
class ResumePlan:
    """How an agent takes a connection over from another agent.

    Attributes:
        history: requests that rebuild the handler's state; output over them was sent.
        sent: how many messages over the input after the history were sent already.
        in_batch: whether the last message sent belongs to a batch that has not ended.
        stats: what the connection had done by then.
        careful_until: the last agent died over a frame before this offset in the input. Up to
            there, frames are handled one at a time, each recorded before and after.
        poison: offsets of frames that killed workers and are not given to the handler.
        waits: whether the other agent is paused and could go on. Otherwise it died.
        give_up: why the connection is failed instead of resumed, None if it is not.
        task: the names of the task and the node, as far as they are known.
    """

    history: bytes
    sent: int
    in_batch: bool
    stats: ConnectionStats
    careful_until: int = 0
    poison: Collection[int] = ()
    waits: bool = False
    give_up: str | None = None
    task: tuple[str, str] = ("", "")


class Checkpoints(Protocol):
    """Keeps what makes a handler's state."""

    def is_due(self, now_s: float, *, stateless: bool, snapshot_requested: bool) -> bool:
        """Return whether a cut is wanted.

        Args:
            now_s: the monotonic clock's time, in seconds.
            stateless: whether the handler has no state, so that input which has been
                dealt with need not be kept.
            snapshot_requested: whether Kapacitor has asked for a snapshot since then.
        """

    def compact(self, prefix: bytes, remainder: bytes) -> bool:
        """Forget the input that has been dealt with.

        Args:
            prefix: Init, and a Restore where there is a snapshot, as frames: what leads
                to the state as it is now.
            remainder: what was received after that: the frame in hand and what follows it,
                or one that is not whole.

        Returns:
            Whether it is forgotten; there may be no room for what is to take its place.
        """

    @property
    def max_prefix_bytes(self) -> int:
        """The longest prefix that there is ever room for."""

    def postpone(self) -> None:
        """Ask for no cut for a while: the state could not be had."""

    def history(self, until: int) -> bytes:
        """Return requests, as frames, that lead to the state at an offset in the input."""

    def send_rest(self) -> None:
        """Send what another agent has noted as sent and could not send.

        Raises:
            OSError: the connection broke.
        """

    def record_current_frame(self, offset: int | None) -> None:
        """Say which frame the handler is given, before it is; None for one of the history."""

    def record_seen_frame(self, offset: int | None) -> None:
        """Say which frame was seen with the handler, None for none, from another thread.

        It is called regularly, which shows that Python code runs in this process.
        """


class NoCheckpoints:
    """Keeps nothing, where no handler is made anew."""

    def is_due(self, now_s: float, *, stateless: bool, snapshot_requested: bool) -> bool:
        """Ask for no cut."""
        del now_s, stateless, snapshot_requested
        return False

    def compact(self, prefix: bytes, remainder: bytes) -> bool:
        """Keep nothing."""
        del prefix, remainder
        return True

    @property
    def max_prefix_bytes(self) -> int:
        """As long as a message may be."""
        return MAX_MESSAGE_BYTES

    def postpone(self) -> None:
        """Go on asking for nothing."""

    def history(self, until: int) -> bytes:
        """Return nothing."""
        del until
        return b""

    def send_rest(self) -> None:
        """Send nothing: no other agent had the connection."""

    def record_current_frame(self, offset: int | None) -> None:
        """Note nothing: when this process dies, so does the note."""

    def record_seen_frame(self, offset: int | None) -> None:
        """Note nothing, likewise."""


class LastSnapshot(NoCheckpoints):
    """Keeps the last snapshot, for a handler that is made anew in the same process."""

    def __init__(self, snapshot_interval_s: float = DEFAULT_SNAPSHOT_INTERVAL_S) -> None:
        """Ask for a snapshot every `snapshot_interval_s` seconds."""
        self._snapshot_interval_s = snapshot_interval_s
        self._prefix = b""
        self.postpone()

    def is_due(self, now_s: float, *, stateless: bool, snapshot_requested: bool) -> bool:
        """Return whether the last one is old; see `Checkpoints.is_due`."""
        return not stateless and (snapshot_requested or now_s >= self._due_s)

    def compact(self, prefix: bytes, remainder: bytes) -> bool:
        """Keep Init and the snapshot; see `Checkpoints.cut`."""
        del remainder
        self.postpone()
        self._prefix = prefix
        return True

    def postpone(self) -> None:
        """Keep the last one for a while; see `Checkpoints.postpone`."""
        self._due_s = time.monotonic() + self._snapshot_interval_s

    def history(self, until: int) -> bytes:
        """Return Init and the last snapshot; what came since is not kept."""
        del until
        return self._prefix
