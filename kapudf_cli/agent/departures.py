"""Frames that may leave, joined into few writes, and what is counted of them."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Final

from kapudf_cli.errors import ConnectionClosedError

if TYPE_CHECKING:
    from kapudf_cli.streams import Stream
    from kapudf_cli.streams.progress import Progress

#: As much as a read brings. Enough to make a write call cheap beside the points in it, and
#: the most that is kept for a peer that does not read: past it, whoever writes waits.
FLUSH_BYTES: Final = 96 * 1024


class Departures:
    """What is on its way to a stream.

    The outbox's owner adds points at any time, without a lock: a deque takes an item
    whole. Everybody else, and whoever flushes, holds the outbox's lock.

    Attributes:
        frames: what has not been flushed yet.
        size: bytes in them; not exact where several threads write, and it need not be.
        owner_points: points that the owner has added, one by one or in runs.
        bytes: bytes handed to the stream, here or by the outboxes that had it before.
        broken: why the stream can no longer be written to, None while it can.
    """

    __slots__ = (
        "_owner_beyond_frames",
        "_stream",
        "broken",
        "bytes",
        "frames",
        "owner_points",
        "size",
    )

    def __init__(self, stream: Stream) -> None:
        """Write to `stream`."""
        self._stream = stream
        self.frames: collections.deque[bytes] = collections.deque()
        self.size = 0
        self.owner_points = 0
        # By how many the owner's messages in `frames` are more than these: each frame is one,
        # but for runs, and for what others have added.
        self._owner_beyond_frames = 0
        self.bytes = 0
        self.broken: OSError | None = None

    def add(self, frame: bytes, *, by_owner: bool) -> None:
        """Add a frame, which counts as a message if it is the owner's."""
        self.frames.append(frame)
        self.size += len(frame)
        self._owner_beyond_frames -= not by_owner

    def add_run(self, frames: bytes, count: int) -> None:
        """Add points of the owner's in one piece."""
        self.frames.append(frames)
        self.size += len(frames)
        self.owner_points += count
        self._owner_beyond_frames += count - 1

    def flush(
        self,
        progress: Progress | None = None,
        *,
        in_batch: bool,
        muted: int,
        forgets: bool,
    ) -> None:
        """Hand everything to the stream, waiting while the peer does not read.

        Args:
            progress: how much input has been dealt with, None in the midst of it.
            in_batch: whether a batch is begun, and not ended.
            muted: how many of the messages that come next were sent before.
            forgets: whether the handler needs none of the input again.

        Raises:
            ConnectionClosedError: the connection broke.
        """
        # The owner may add while another thread takes: only what was there is taken, and only
        # that is counted. Were this process to die, what was counted too much would be lost.
        self.size = 0
        taken = [self.frames.popleft() for _ in range(len(self.frames))]
        messages = len(taken) + self._owner_beyond_frames
        self._owner_beyond_frames = 0
        data = b"".join(taken)
        try:
            if self.broken is not None:
                raise self.broken
            if data or progress is not None:
                self._stream.write(
                    data,
                    messages if progress is None else muted,
                    in_batch=in_batch,
                    progress=progress,
                    forgets=forgets,
                )
        except OSError as error:
            self.broken = error
            problem = f"Kapacitor closed the connection ({error.strerror or error})"
            raise ConnectionClosedError(problem) from error
        self.bytes += len(data)
