"""Finds out why protobuf cannot decode a message.

The decoder reports no reason. There are three: a text that is not UTF-8, bytes that are not
valid protobuf, and a lack of memory. This module reads the bytes again and looks for the
first two. If it finds neither, memory was the reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from google.protobuf.descriptor import FieldDescriptor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from google.protobuf.descriptor import Descriptor

_VARINT: Final = 0
_LENGTH_DELIMITED: Final = 2
#: The length of a value, for the wire types of fixed length.
_FIXED_BYTES: Final[Mapping[int, int]] = {1: 8, 5: 4}
#: The field number of the key in an entry of a map.
_KEY: Final = 1
_LONGEST_VARINT: Final = 10
#: A tag is an unsigned number of 32 bits, a length a signed one.
_MAX_TAG: Final = 2**32 - 1
#: How many bytes to show before and after the first invalid one.
_SHOWN_BEFORE: Final = 24
_SHOWN_AFTER: Final = 8


class _Fault(Exception):  # noqa: N818 - used only in this module
    """The reason why a message is invalid."""


def find_fault(data: bytes, message: Descriptor) -> str | None:
    """Return why the bytes of a message are invalid, None if they are valid."""
    try:
        _read(data, message, message.name)
    except _Fault as fault:
        return str(fault)
    return None


def first_field(data: bytes, message: Descriptor) -> str | None:
    """Return the name of the first field in the bytes of a message, None if it is unknown."""
    try:
        tag, _ = _varint(data, 0)
    except _Fault:
        return None
    field = message.fields_by_number.get(tag >> 3)
    return None if field is None else field.name


def _read(data: bytes, message: Descriptor, path: str) -> None:
    """Read a whole message; `path` is its name in errors.

    Raises:
        _Fault: the message is invalid.
    """
    is_entry = message.GetOptions().map_entry
    key = ""
    for number, content in _fields(data, path):
        field = message.fields_by_number.get(number)
        if field is None or content is None:
            continue
        name = f"{path}.{field.name}"
        if is_entry:
            name = f"a name in {path}" if number == _KEY else f"{path}[{key!r}]"
        if field.type == FieldDescriptor.TYPE_STRING:
            text = _text(content, name)
            key = text if number == _KEY else key
        elif field.message_type is not None:
            _read(content, field.message_type, name)


def _fields(data: bytes, path: str) -> Iterator[tuple[int, bytes | None]]:
    """Yield the number of each field of a message, with its bytes if it has a length.

    Raises:
        _Fault: the bytes are not valid fields.
    """
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        if tag > _MAX_TAG:
            raise _Fault(f"{path} has a field of number {tag >> 3}, which is too high")
        content = None
        wire_type = tag & 7
        if wire_type == _VARINT:
            _, place = _varint(data, place)
        elif wire_type == _LENGTH_DELIMITED:
            size, place = _varint(data, place)
            content = data[place : place + size]
            place += size
        elif wire_type in _FIXED_BYTES:
            place += _FIXED_BYTES[wire_type]
        else:
            raise _Fault(f"{path} has a field of wire type {wire_type}, which does not exist")
        if not tag >> 3:
            raise _Fault(f"{path} has a field of number 0")
        if place > len(data):
            raise _Fault(f"{path} is cut off: {place - len(data)} bytes are missing")
        yield tag >> 3, content


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        start = max(error.start - _SHOWN_BEFORE, 0)
        end = error.start + _SHOWN_AFTER
        shown = repr(content[start:end])
        before, after = "..." if start else "", "..." if end < len(content) else ""
        raise _Fault(f"{name} is not valid UTF-8: {before}{shown}{after}") from None


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """Return a varint and the position after it."""
    value = 0
    for count in range(_LONGEST_VARINT):
        if place + count == len(data):
            break
        byte = data[place + count]
        value |= (byte & 0x7F) << 7 * count
        if byte <= 0x7F:
            return value, place + count + 1
    raise _Fault("a number in it is cut off or too long")
