"""Patches: set fields and tags on points without decoding them.

    def setup(self) -> None:
        self.patch = PointPatch(fields={"checked": True}, tags={"by": "mirror"})

    def raw_point(self, raw: RawPoint) -> PointPatch:
        return self.patch

Protobuf adds map entries that are appended to the bytes of a message to its maps. But
appending cannot remove a field of the same name and another type, which is in another map.
So a point that may already have a field or tag of one of the names is decoded, changed and
encoded.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Self

from kapudf_cli.handler.points import get_fields, set_field
from kapudf_cli.protocol.codec import decode_point, encode_point
from kapudf_cli.protocol.errors import UndecodableMessageError
from kapudf_cli.protocol.framing import encode_varint
from kapudf_cli.protocol.raw_points import (
    KNOWN_FRAMES,
    LONG_HEAD_BYTES,
    SHORT_HEAD_BYTES,
    RawPoint,
    extend_point,
)
from kapudf_cli.protocol.udf_pb2 import Point

if TYPE_CHECKING:
    from collections.abc import Mapping


_DOUBLE = struct.Struct("<d")


class PointPatch:
    """Sets the same fields and tags on any number of points. Create it once, in `setup`."""

    __slots__ = ("_entries", "_names", "_patch")

    def __init__(
        self,
        fields: Mapping[str, object] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Create a patch that sets these fields, with the types of their values, and these tags.

        Raises:
            FieldValueError: as `set_field` does.
            TypeError, ValueError: the value of a tag is not valid text.
        """
        self._patch = Point()
        for name, value in (fields or {}).items():
            set_field(self._patch, name, value)
        for name, text in (tags or {}).items():
            self._patch.tags[name] = text
        self._entries = self._patch.SerializeToString()
        self._names = [_Name(name) for name in {**(fields or {}), **(tags or {})}]

    def apply(self, point: Point) -> None:
        """Set the fields and tags on a decoded point."""
        for name, value in get_fields(self._patch).items():
            set_field(point, name, value)
        for name, text in self._patch.tags.items():
            point.tags[name] = text

    def extend(self, raw: RawPoint) -> bytes | None:
        """Return a point's frame with the fields and tags set, None if it must be decoded.

        Whether the bytes are a valid point is not checked.
        """
        for name in self._names:
            # This runs for each point, and rfind() takes a third of the time of `in`.
            if raw.rfind(name.text) >= 0 and name.may_be_in(raw):
                return None
        return extend_point(raw, self._entries)

    def extend_run(self, frames: bytes, max_bytes: int) -> tuple[list[bytes], int]:
        """Return the points of a run with the fields and tags set, and the bytes they took.

        Args:
            frames: points whose heads are known.
            max_bytes: the longest frame to return. The run ends before a longer one, and before
                one that cannot be decoded although it must be.
        """
        known = KNOWN_FRAMES.get
        patched: list[bytes] = []
        start = 0
        while start < len(frames):
            size = known(frames[start : start + LONG_HEAD_BYTES]) or known(
                frames[start : start + SHORT_HEAD_BYTES]
            )
            if size is None:
                break
            raw = RawPoint(frames[start : start + size])
            frame = self.extend(raw) or self._decode_and_extend(raw)
            if frame is None or len(frame) > max_bytes:
                break
            patched.append(frame)
            start += size
        return patched, start

    def _decode_and_extend(self, raw: RawPoint) -> bytes | None:
        try:
            point = decode_point(raw)
        except UndecodableMessageError:
            return None
        self.apply(point)
        return encode_point(point)


class FieldPatch(PointPatch):
    """Sets one field, to another value for each point: `patch.to(value)`."""

    __slots__ = ("_double_entry", "_name", "_value")

    def __init__(self, name: str) -> None:
        """Create a patch for the field of this name.

        Raises:
            TypeError, ValueError: the name is not valid text.
        """
        super().__init__({name: 0.0})
        self._name = name
        self._value: object = 0.0
        # The map entry of a double ends with the eight bytes of the value.
        self._double_entry = self._entries[: -_DOUBLE.size]

    def to(self, value: object) -> Self:
        """Set the value for the next points, and return the patch.

        Raises:
            FieldValueError: as `set_field` does.
        """
        if type(value) is float and math.isfinite(value):
            self._entries = self._double_entry + _DOUBLE.pack(value)
        else:
            super().__init__({self._name: value})
        self._value = value
        return self

    def apply(self, point: Point) -> None:
        """Set the field on a decoded point."""
        set_field(point, self._name, self._value)


class _Name:
    """The name of a field or tag, to search for in bytes."""

    __slots__ = ("_after", "text")

    def __init__(self, name: str) -> None:
        self.text = name.encode()
        # The length comes before each string. The last byte of the length is its highest bits,
        # or zero if it is encoded with more bytes than necessary.
        self._after = (encode_varint(len(self.text))[-1:] + self.text, b"\0" + self.text)

    def may_be_in(self, raw: bytes) -> bool:
        """Return False only if no field or tag of the point has this name."""
        # Protobuf may omit an empty name.
        return not self.text or any(each in raw for each in self._after)
