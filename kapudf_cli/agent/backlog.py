"""Messages that are written and cannot leave yet, up to a limit; sans-I/O."""

from __future__ import annotations

from typing import Final

#: The most that is kept of what cannot leave yet, in bytes.
BACKLOG_BYTES: Final = 1024 * 1024


class Backlog:
    """Frames in the order in which they were written.

    Attributes:
        size: bytes in them.
    """

    __slots__ = ("_frames", "size")

    def __init__(self) -> None:
        """Begin with nothing."""
        self._frames: list[tuple[bytes, bool]] = []
        self.size = 0

    def __bool__(self) -> bool:
        """Whether there is anything in it."""
        return bool(self._frames)

    @property
    def is_full(self) -> bool:
        """Whether nothing more is to be added; what comes last may pass the limit."""
        return self.size >= BACKLOG_BYTES

    def add(self, frame: bytes, *, own: bool) -> None:
        """Add a frame at the end; `own` is given back with it."""
        self._frames.append((frame, own))
        self.size += len(frame)

    def take(self) -> list[tuple[bytes, bool]]:
        """Return all frames, each with whose it is, and forget them."""
        frames, self._frames = self._frames, []
        self.size = 0
        return frames
