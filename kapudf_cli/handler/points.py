"""Points without pain: fields of any type, tags, times, and copies of a point's envelope.

A point is the protobuf message itself. It keeps its fields in four maps, one a
type; these functions are for where that is awkward.
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
    """Return a field's value whatever its type, None if the point has no such field."""
    # Where a name is in several maps, Kapacitor takes the bool, then the double, then the int.
    for fields in (point.fieldsBool, point.fieldsDouble, point.fieldsInt, point.fieldsString):
        if name in fields:
            value: FieldValue = fields[name]
            return value
    return None


def get_number(point: Point, name: str) -> float | None:
    """Return a field that is a float or an integer as a float, None if there is none."""
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
    """Set a field with the type of its value; a field of that name of another type goes.

    `bool`, `int`, `float` and `str` are taken, and what numpy has for them.

    Raises:
        FieldValueError: the value has no field type, is an integer over 64 bits,
            or is NaN or infinite. Kapacitor passes on a number that is not
            finite, and then loses the alert that has it, and answers every
            request for the httpOut that has it with an error.
    """
    # Exact types first: they are nearly all there is, and floats most of that.
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
    """Set a field to a value of numpy's, or of a subclass of a type that a field has."""
    kind = type(value)
    of_numpy = kind.__module__ == "numpy" and kind.__name__ != "timedelta64"
    if isinstance(value, str):
        # An enum's own str() is its name.
        _set_string(point, name, str.__str__(value))
    elif isinstance(value, int) or (of_numpy and isinstance(value, numbers.Integral)):
        _set_int(point, name, int(value))
    elif isinstance(value, float) or (of_numpy and isinstance(value, numbers.Real)):
        _set_double(point, name, float(value))
    elif of_numpy and kind.__name__ in {"bool", "bool_"}:
        # The one numpy scalar that no abstract class of numbers knows.
        _set_bool(point, name, bool(value))
    else:
        advice = "no field can hold this type; use bool, int, float or str"
        raise FieldValueError(name, value, advice)


def drop_field(point: Point, name: str) -> None:
    """Remove a field, whatever its type; nothing happens if there is none."""
    for fields in (point.fieldsDouble, point.fieldsInt, point.fieldsString, point.fieldsBool):
        if name in fields:
            del fields[name]


def get_tag(point: Point, name: str, default: str = "") -> str:
    """Return a tag's value, `default` if the point has no such tag."""
    return point.tags.get(name, default)


def like(point: Point, fields: Mapping[str, object] | None = None) -> Point:
    """Return a new point with the envelope of another, and fields of its own.

    The envelope is time, name, database, retention policy, group, dimensions,
    byName and tags: what grouping and joins after the UDF go by.
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
    """Return a point's time in UTC; what is finer than a microsecond is cut off."""
    return _EPOCH + dt.timedelta(microseconds=point.time // 1000)


def set_datetime(point: Point, when: dt.datetime) -> None:
    """Set a point's time.

    Raises:
        ValueError: `when` says nothing of its time zone.
    """
    point.time = time_ns(when)


def time_ns(when: dt.datetime) -> int:
    """Return a time as nanoseconds since the epoch, exactly.

    Raises:
        ValueError: `when` says nothing of its time zone.
    """
    if when.utcoffset() is None:
        message = f"{when} has no time zone; use datetime.now(datetime.UTC), say"
        raise ValueError(message)
    return (when - _EPOCH) // _MICROSECOND * 1000


def _set_double(point: Point, name: str, value: float) -> None:
    if not math.isfinite(value):
        advice = "Kapacitor cannot show or alert on it; leave the field out"
        raise FieldValueError(name, value, advice)
    # Spelt out in each of these four: a loop over the maps takes twice as long.
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
