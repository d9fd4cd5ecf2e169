"""Functions for points: fields of any type, tags, times, and copies.

A point is the protobuf message, with its fields in four maps, one for each type. These
functions handle the four maps.
"""

from __future__ import annotations

import datetime as dt
import math
import numbers
from typing import TYPE_CHECKING, TypeAlias

from kapudf_cli.handler.errors import FieldValueError
from kapudf_cli.protocol.udf_pb2 import Point

if TYPE_CHECKING:
    from collections.abc import Mapping

FieldValue: TypeAlias = float | int | str | bool

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)
_INT64 = range(-(2**63), 2**63)


def get_field(point: Point, name: str) -> FieldValue | None:
    """Return a field's value of any type, None if the point has no such field."""
    # If a name is in several maps, Kapacitor uses the bool, then the double, then the int.
    for fields in (point.fieldsBool, point.fieldsDouble, point.fieldsInt, point.fieldsString):
        if name in fields:
            value: FieldValue = fields[name]
            return value
    return None


def get_number(point: Point, name: str) -> float | None:
    """Return a numeric field as a float, None if the point has no such field."""
    doubles = point.fieldsDouble
    if name in doubles:
        return doubles[name]
    integers = point.fieldsInt
    return float(integers[name]) if name in integers else None


def get_fields(point: Point) -> dict[str, FieldValue]:
    """Return all fields, by name."""
    return {
        **point.fieldsString,
        **point.fieldsInt,
        **point.fieldsDouble,
        **point.fieldsBool,
    }


def set_field(point: Point, name: str, value: object) -> None:
    """Set a field with the type of its value, and remove a field of that name of another type.

    The value is a `bool`, `int`, `float` or `str`, or the numpy equivalent.

    Raises:
        FieldValueError: the value has another type, is an integer over 64 bits, or is NaN or
            infinite. With such a number, Kapacitor loses alerts and its httpOut node answers
            each request with an error.
    """
    # Exact types first, because they are the most frequent; of these, floats.
    kind = type(value)
    if kind is float:
        _set_double(point, name, value)  # type: ignore[arg-type]  # a float it is
    elif kind is int:
        _set_int(point, name, value)  # type: ignore[arg-type]  # an int it is
    elif kind is str:
        _set_string(point, name, value)  # type: ignore[arg-type]  # a str it is
    elif kind is bool:
        _set_bool(point, name, value)  # type: ignore[arg-type]  # a bool it is
    else:
        _set_uncommon(point, name, value)


def _set_uncommon(point: Point, name: str, value: object) -> None:
    """Set a field to a numpy value, or to an instance of a subclass of a field type."""
    kind = type(value)
    of_numpy = kind.__module__ == "numpy" and kind.__name__ != "timedelta64"
    if isinstance(value, str):
        # str() of an enum would return its name.
        _set_string(point, name, str.__str__(value))
    elif isinstance(value, int) or (of_numpy and isinstance(value, numbers.Integral)):
        _set_int(point, name, int(value))
    elif isinstance(value, float) or (of_numpy and isinstance(value, numbers.Real)):
        _set_double(point, name, float(value))
    elif of_numpy and kind.__name__ in {"bool", "bool_"}:
        # numpy's bool is not registered with the abstract classes of `numbers`.
        _set_bool(point, name, bool(value))
    else:
        advice = "no field can hold this type; use bool, int, float or str"
        raise FieldValueError(name, value, advice)


def drop_field(point: Point, name: str) -> None:
    """Remove a field of any type; do nothing if there is none."""
    for fields in (point.fieldsDouble, point.fieldsInt, point.fieldsString, point.fieldsBool):
        if name in fields:
            del fields[name]


def get_tag(point: Point, name: str, default: str = "") -> str:
    """Return a tag's value, `default` if the point has no such tag."""
    return point.tags.get(name, default)


def copy_envelope(point: Point, fields: Mapping[str, object] | None = None) -> Point:
    """Return a point with the envelope of another, and with other fields.

    The envelope is all but the fields: time, name, database, retention policy, group,
    dimensions, byName and tags. Later nodes of the task use these to group and join points.
    """
    copy = Point(
        time=point.time,
        name=point.name,
        database=point.database,
        retentionPolicy=point.retentionPolicy,
        group=point.group,
        dimensions=point.dimensions,
        tags=point.tags,
        byName=point.byName,
    )
    for name, value in (fields or {}).items():
        set_field(copy, name, value)
    return copy


def get_datetime(point: Point) -> dt.datetime:
    """Return a point's time in UTC, rounded down to microseconds."""
    return _EPOCH + dt.timedelta(microseconds=point.time // 1000)


def set_datetime(point: Point, when: dt.datetime) -> None:
    """Set a point's time.

    Raises:
        ValueError: `when` has no time zone.
    """
    point.time = time_ns(when)


def time_ns(when: dt.datetime) -> int:
    """Return a time in nanoseconds since the epoch.

    Raises:
        ValueError: `when` has no time zone.
    """
    if when.utcoffset() is None:
        message = f"{when} has no time zone; use datetime.now(datetime.UTC), say"
        raise ValueError(message)
    return (when - _EPOCH) // _MICROSECOND * 1000


def _set_double(point: Point, name: str, value: float) -> None:
    if not math.isfinite(value):
        advice = "Kapacitor cannot show or alert on it; leave the field out"
        raise FieldValueError(name, value, advice)
    # Without a loop over the maps, in each of these four functions: it takes half the time.
    if name in point.fieldsInt:
        del point.fieldsInt[name]
    if name in point.fieldsString:
        del point.fieldsString[name]
    if name in point.fieldsBool:
        del point.fieldsBool[name]
    point.fieldsDouble[name] = value


def _set_int(point: Point, name: str, value: int) -> None:
    if value not in _INT64:
        raise FieldValueError(name, value, "an integer field has 64 bits; use a float")
    if name in point.fieldsDouble:
        del point.fieldsDouble[name]
    if name in point.fieldsString:
        del point.fieldsString[name]
    if name in point.fieldsBool:
        del point.fieldsBool[name]
    point.fieldsInt[name] = value


def _set_string(point: Point, name: str, value: str) -> None:
    try:
        point.fieldsString[name] = value
    except ValueError as error:
        raise FieldValueError(name, value, f"it cannot be sent: {error}") from error
    if name in point.fieldsDouble:
        del point.fieldsDouble[name]
    if name in point.fieldsInt:
        del point.fieldsInt[name]
    if name in point.fieldsBool:
        del point.fieldsBool[name]


def _set_bool(point: Point, name: str, value: bool) -> None:  # noqa: FBT001 - the value is the point
    if name in point.fieldsDouble:
        del point.fieldsDouble[name]
    if name in point.fieldsInt:
        del point.fieldsInt[name]
    if name in point.fieldsString:
        del point.fieldsString[name]
    point.fieldsBool[name] = value
