"""The input window: input from the first frame that is not handled on.

A handler that awaits has several frames at once, so more input is read than is handled. The
window keeps these bytes: a checkpoint needs them, and a new handler is given them again.
"""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, NamedTuple

from kapudf_cli.protocol.errors import ProtocolError
from kapudf_cli.protocol.framing import DEFAULT_MAX_FRAME_BYTES
from kapudf_cli.protocol.request_reader import RequestReader

if TYPE_CHECKING:
    from kapudf_cli.protocol.request_reader import ReadRequest


class Frame(NamedTuple):
    """A complete frame of the input.

    Attributes:
        offset: where it starts in the input, in bytes.
        end: where the next frame starts.
        message: its content.
    """

    offset: int
    end: int
    message: ReadRequest


class InputWindow:
    """Splits input into frames, and keeps it until it is handled.

    Attributes:
        offset: where the first frame that is not handled starts in the input, in bytes.
        frames: the complete frames that nothing was done with yet.
        error: why no more frames can be split off; None if they can.
    """

    def __init__(self, max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES) -> None:
        """Begin at offset 0, with a limit for the length of a frame."""
        self._max_frame_bytes = max_frame_bytes
        self._reader = RequestReader(max_frame_bytes)
        self._bytes = bytearray()
        self.offset = 0
        self.frames: collections.deque[Frame] = collections.deque()
        self.error: ProtocolError | None = None

    def feed(self, data: bytes) -> None:
        """Add input, and split the frames off that it completes."""
        self._bytes += data
        self._split(data)

    def advance(self, offset: int) -> None:
        """Forget the input before `offset`: it was handled."""
        del self._bytes[: offset - self.offset]
        self.offset = offset

    def rewind(self) -> None:
        """Split the input from `offset` on again, for a new handler."""
        self._reader = RequestReader(self._max_frame_bytes)
        self._reader.resume_at(self.offset)
        self.frames.clear()
        self.error = None
        self._split(bytes(self._bytes))

    @property
    def rest(self) -> bytes:
        """The input that is not handled."""
        return bytes(self._bytes)

    def resume_at(self, offset: int) -> None:
        """Set the offset of the first byte; call it before anything is fed."""
        self.offset = offset
        self._reader.resume_at(offset)

    def finish(self) -> None:
        """Check that the input ended at the end of a frame.

        Raises:
            TruncatedFrameError: it ended inside a frame.
        """
        self._reader.finish()

    def _split(self, data: bytes) -> None:
        reader = self._reader
        begun: list[tuple[int, ReadRequest]] = []
        try:
            begun.extend((reader.offset, message) for message in reader.feed(data))
        except ProtocolError as error:
            error.offset = reader.offset
            self.error = error
        ends = [*(offset for offset, _ in begun[1:]), reader.offset]
        self.frames.extend(
            Frame(offset, end, message) for (offset, message), end in zip(begun, ends, strict=False)
        )
