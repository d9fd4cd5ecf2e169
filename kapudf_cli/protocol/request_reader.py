"""What Kapacitor sends, read as the handler takes it: points decoded, raw, or as whole runs.

The loop over the points of a piece of input, where each line is paid for by each
point. Whatever is not plainly a point goes the general way of `FrameReader`.
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
    point_run,
)
from kapudf_cli.protocol.udf_pb2 import Point

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from kapudf_cli.protocol.codec import RequestMessage

#: Is offered `count` points that follow each other, as they came, and returns whether it
#: took them.
TakeRun: TypeAlias = "Callable[[bytes, int], bool]"

#: A run is cut here, so that what it leaves in can be flushed in between. As much as a read
#: brings: a frame that was begun before it makes two of it.
_MAX_RUN_BYTES = 96 * 1024


#: What a frame holds.
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
    """Cuts what Kapacitor sends into messages; see `FrameReader`.

    In place of a frame that cannot be decoded, it yields the error, and goes on after it.

    Attributes:
        take_run: is offered the runs of points before they are cut into points; None
            where nobody wants them. It counts from the next point on.
    """

    __slots__ = ("_raw", "take_run")

    def __init__(self, max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES) -> None:
        """Decode everything, until told otherwise."""
        super().__init__(_decode, max_frame_bytes)
        self._raw = False
        self.take_run: TakeRun | None = None

    @property
    def raw(self) -> bool:
        """Whether points are left undecoded; a change counts from the next point on."""
        return self._raw

    @raw.setter
    def raw(self, raw: bool) -> None:
        self._raw = raw
        self.decode = _raw_or_decode if raw else _decode

    def _take_known(
        self, data: bytes, start: int, end: int, base: int
    ) -> Generator[ReadRequest, None, int]:
        if self._limit < MAX_KNOWN_FRAME_BYTES:
            return start  # Each length is to be looked at.
        known = KNOWN_FRAMES.get
        decode = Point.FromString
        while True:
            if self.take_run is not None:
                following, count = point_run(data, start, min(end, start + _MAX_RUN_BYTES))
                if count:
                    self.offset = base + start
                    if self.take_run(data[start:following], count):
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
                yield RawPoint(data[start:following])
            else:
                place = SHORT_HEAD_BYTES if size <= MAX_SHORT_FRAME_BYTES else LONG_HEAD_BYTES
                try:
                    point = decode(data[start + place : following])
                except DecodeError:
                    return start  # The general way tells the error.
                yield point
            start = following
