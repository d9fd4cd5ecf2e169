"""Reads requests from Kapacitor: points decoded, as raw bytes, or as runs of frames.

The loop over the points of a read is here; each of its lines costs time for each point.
Frames that are not recognised as points are decoded by `FrameReader` in the general way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from google.protobuf.message import DecodeError

from kapudf_cli.protocol.codec import REQUESTS, raw_or_decode_in
from kapudf_cli.protocol.errors import UndecodableMessageError
from kapudf_cli.protocol.framing import DEFAULT_MAX_FRAME_BYTES, FrameReader
from kapudf_cli.protocol.raw_points import (
    KNOWN_FRAMES,
    LONG_HEAD_BYTES,
    MAX_KNOWN_FRAME_BYTES,
    MAX_SHORT_FRAME_BYTES,
    SHORT_HEAD_BYTES,
    RawPoint,
)
from kapudf_cli.protocol.udf_pb2 import Point

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from kapudf_cli.protocol.codec import RequestMessage

#: Gets `data[start:end]`, which starts with a frame. Returns where the first frame starts that it
#: has not handled: `start` if it has handled none, and then this frame is yielded.
TakeRun: TypeAlias = "Callable[[bytes, int, int], int]"

#: The longest run, so that output can be flushed between two. It is the size of a read; with a
#: frame that began in the previous read there are two runs.
_MAX_RUN_BYTES = 96 * 1024

#: The content of a frame.
ReadRequest: TypeAlias = "RequestMessage | RawPoint | UndecodableMessageError"


def _decode(data: bytes, start: int, end: int) -> ReadRequest:
    try:
        return REQUESTS.decode_in(data, start, end)
    except UndecodableMessageError as error:
        return error


def _raw_or_decode(data: bytes, start: int, end: int) -> ReadRequest:
    try:
        return raw_or_decode_in(data, start, end)
    except UndecodableMessageError as error:
        return error


class RequestReader(FrameReader["ReadRequest"]):
    """Splits the input from Kapacitor into requests; see `FrameReader`.

    For a frame that cannot be decoded, it yields the error and goes on.

    Attributes:
        take_run: gets points before they are split; None to split them all. A change applies from
            the next point on.
    """

    __slots__ = ("_raw", "take_run")

    def __init__(self, max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES) -> None:
        """Create a reader that decodes points."""
        super().__init__(_decode, max_frame_bytes)
        self._raw = False
        self.take_run: TakeRun | None = None

    @property
    def raw(self) -> bool:
        """Whether points are yielded as raw bytes; a change applies from the next point on."""
        return self._raw

    @raw.setter
    def raw(self, raw: bool) -> None:
        self._raw = raw
        self.decode = _raw_or_decode if raw else _decode

    def _decode_known(
        self, data: bytes, start: int, end: int, base: int
    ) -> Generator[ReadRequest, None, int]:
        if self._limit < MAX_KNOWN_FRAME_BYTES:
            return start  # The limit must be checked for each frame.
        known = KNOWN_FRAMES.get
        decode = Point.FromString
        while start < end:
            if self.take_run is not None:
                self.offset = base + start
                following = self.take_run(data, start, min(end, start + _MAX_RUN_BYTES))
                if following > start:
                    start = following
                    continue
            size = known(data[start : start + LONG_HEAD_BYTES]) or known(
                data[start : start + SHORT_HEAD_BYTES]
            )
            if size is None:
                return start
            following = start + size
            if following > end:
                return start
            self.offset = base + start
            if self._raw:
                yield data[start:following]  # type: ignore[misc]  # RawPoint() is a call
            else:
                head_bytes = SHORT_HEAD_BYTES if size <= MAX_SHORT_FRAME_BYTES else LONG_HEAD_BYTES
                try:
                    point = decode(data[start + head_bytes : following])
                except DecodeError:
                    return start  # The general way raises the error.
                yield point
            start = following
        return start
