"""Fields and tags set on points that are not decoded.

    def setup(self) -> None:
        self.patch = PointPatch(fields={"checked": True}, tags={"by": "mirror"})
        self.raw_point = self.mark

    def mark(self, raw: RawPoint) -> None:
        self.agent.forward(raw, self.patch)

To protobuf, entries of a map that are added to the end of a message's bytes are set in
it. What that cannot do is remove: a field may have been of another type, in another
map. So a point that might have a field or tag of one of the names already is decoded,
changed and encoded.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Self

from kapudf_cli.handler.points import get_fields, set_field
from kapudf_cli.protocol.framing import encode_varint
from kapudf_cli.protocol.raw_points import extend_point
from kapudf_cli.protocol.udf_pb2 import Point

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kapudf_cli.protocol.raw_points import RawPoint


_DOUBLE = struct.Struct("<d")


class PointPatch:
    """Fields and tags to set on any number of points. Make it once, in `setup`."""

    __slots__ = ("_entries", "_names", "_patch")

    def __init__(
        self,
        fields: Mapping[str, object] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Set these fields, each with the type of its value, and these tags.

        Raises:
            FieldValueError: as `set_field` does.
            TypeError, ValueError: a tag is no text that can be sent.
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
        """Return a point's frame with the fields and tags set, None if it must be decoded for that.

        Bytes that are no point are not noticed, as they are not where it is forwarded as it is.
        """
        for name in self._names:
            # For each point; `in` takes three times as long as rfind().
            if raw.rfind(name.text) >= 0 and name.may_be_in(raw):
                return None
        return extend_point(raw, self._entries)


class FieldPatch(PointPatch):
    """One field, to set on each point to a value of its own: `patch.to(value)`."""

    __slots__ = ("_double_entry", "_name", "_value")

    def __init__(self, name: str) -> None:
        """Set the field of this name.

        Raises:
            TypeError, ValueError: it is no name that can be sent.
        """
        super().__init__({name: 0.0})
        self._name = name
        self._value: object = 0.0
        # The entry of a double ends with its eight bytes.
        self._double_entry = self._entries[: -_DOUBLE.size]

    def to(self, value: object) -> Self:
        """Set the value for the points to come, and return the patch itself.

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
    """The name of a field or tag, as it is looked for in bytes."""

    __slots__ = ("_after", "text")

    def __init__(self, name: str) -> None:
        self.text = name.encode()
        # Before any string stands its length. The last byte of that is the same in
        # whatever way the length was written: its highest bits, or, written longer than
        # need be, zero.
        self._after = (encode_varint(len(self.text))[-1:] + self.text, b"\0" + self.text)

    def may_be_in(self, raw: bytes) -> bool:
        """Return False only where no field or tag of a point has this name."""
        # An empty name may be left out altogether.
        return not self.text or any(each in raw for each in self._after)
