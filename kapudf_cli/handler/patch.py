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

from kapudf_cli.handler.points import get_field, set_field
from kapudf_cli.protocol.codec import decode_point, encode_point
from kapudf_cli.protocol.errors import UndecodableMessageError
from kapudf_cli.protocol.framing import encode_varint
from kapudf_cli.protocol.raw_points import RawPoint, extend_point, extend_points, frame_bytes
from kapudf_cli.protocol.udf_pb2 import Point

if TYPE_CHECKING:
    from collections.abc import Mapping


_DOUBLE = struct.Struct("<d")


class PointPatch:
    """Sets the same fields and tags on any number of points. Create it once, in `setup`."""

    __slots__ = ("_entries", "_fields", "_names", "_only_missing", "_tags")

    def __init__(
        self,
        fields: Mapping[str, object] | None = None,
        tags: Mapping[str, str] | None = None,
        *,
        only_missing: bool = False,
    ) -> None:
        """Create a patch that sets these fields, with the types of their values, and these tags.

        Args:
            fields: the fields.
            tags: the tags.
            only_missing: set only what a point lacks. A field of any type is present, and an
                empty tag is missing.

        Raises:
            FieldValueError: as `set_field` does.
            TypeError, ValueError: the value of a tag is not valid text.
        """
        fields, tags = dict(fields or {}), dict(tags or {})
        patch = Point(tags=tags)
        for name, value in fields.items():
            set_field(patch, name, value)
        self._fields = fields
        self._tags = tags
        self._only_missing = only_missing
        self._entries = patch.SerializeToString()
        self._names = [_Name(name) for name in {**fields, **tags}]

    def apply(self, point: Point) -> None:
        """Set the fields and tags on a decoded point."""
        self._set(point, point)

    def extend(self, raw: RawPoint) -> bytes:
        """Return a point's frame with the fields and tags set.

        If it need not be decoded, it is not checked whether the bytes are a valid point.

        Raises:
            UndecodableMessageError: the bytes are not a valid point.
        """
        for name in self._names:
            # This runs for each point, and rfind() takes less time than find() and `in`.
            if raw.rfind(name.text) >= 0 and name.may_be_in(raw):
                return self._decode_and_extend(raw)
        return extend_point(raw, self._entries)

    def extend_run(self, frames: bytes, max_bytes: int) -> tuple[bytes, int, int]:
        """Return the points of a run with the fields and tags set.

        Args:
            frames: points whose heads are known.
            max_bytes: the longest frame to return. The run ends before a longer one, and before
                one that cannot be decoded although it must be.

        Returns:
            The new frames, their number, and how many bytes of `frames` they took.
        """
        # One search for a name in all points is cheaper than one in each point.
        if any(frames.rfind(name.text) >= 0 and name.may_be_in(frames) for name in self._names):
            return self._extend_each(frames, max_bytes)
        return extend_points(frames, self._entries, max_bytes)

    def _extend_each(self, frames: bytes, max_bytes: int) -> tuple[bytes, int, int]:
        """Do what `extend_run` does for points that may have to be decoded."""
        extended: list[bytes] = []
        start = 0
        while start < len(frames) and (size := frame_bytes(frames, start)) is not None:
            try:
                frame = self.extend(RawPoint(frames[start : start + size]))
            except UndecodableMessageError:
                break
            if len(frame) > max_bytes:
                break
            extended.append(frame)
            start += size
        return b"".join(extended), len(extended), start

    def _decode_and_extend(self, raw: RawPoint) -> bytes:
        point = decode_point(raw)
        if not self._only_missing:
            self.apply(point)
            return encode_point(point)
        missing = Point()
        self._set(missing, point)
        return extend_point(raw, missing.SerializeToString())

    def _set(self, target: Point, point: Point) -> None:
        """Set on `target` what the patch sets on `point`."""
        for name, value in self._fields.items():
            if not self._only_missing or get_field(point, name) is None:
                set_field(target, name, value)
        for name, text in self._tags.items():
            if not self._only_missing or not point.tags.get(name):
                target.tags[name] = text


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
        """Return False only if no field or tag of the point, or of these points, has this name."""
        # Protobuf may omit an empty name.
        common, longer = self._after
        return not self.text or raw.rfind(common) >= 0 or raw.rfind(longer) >= 0
