"""Functions for points: fields, tags, times and copies."""

from __future__ import annotations

import copy
import datetime as dt
import decimal
import enum
import fractions
import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from kapudf_cli.errors import KapudfError
from kapudf_cli.handler.errors import FieldValueError
from kapudf_cli.handler.points import (
    copy_envelope,
    drop_field,
    get_datetime,
    get_field,
    get_fields,
    get_number,
    get_tag,
    set_datetime,
    set_field,
    time_ns,
)
from kapudf_cli.protocol.udf_pb2 import Point

INT64 = st.integers(-(2**63), 2**63 - 1)
VALUES = st.booleans() | INT64 | st.floats(allow_nan=False, allow_infinity=False) | st.text()
INFINITY = math.inf


def maps_with(point: Point, name: str) -> list[str]:
    """Return the names of the maps that contain a field."""
    maps = ["fieldsBool", "fieldsDouble", "fieldsInt", "fieldsString"]
    return [each for each in maps if name in getattr(point, each)]


def full() -> Point:
    """Draw a point with all its fields set."""
    return Point(
        time=123,
        name="cpu",
        database="telegraf",
        retentionPolicy="autogen",
        group="cpu\nhost=a",
        dimensions=["cpu", "host"],
        tags={"host": "a", "cpu": "cpu0"},
        byName=True,
        fieldsDouble={"double": 1.5},
        fieldsInt={"int": 1},
        fieldsString={"string": "s"},
        fieldsBool={"bool": True},
    )


# --- fields ---


class Colour(enum.StrEnum):
    RED = "red"


class Mixed(str, enum.Enum):  # noqa: UP042 - the older way, which people still have
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Metres(float):
    """A subclass of float."""


TAKEN: dict[str, tuple[object, str, object]] = {
    "float": (1.5, "fieldsDouble", 1.5),
    "a whole float": (2.0, "fieldsDouble", 2.0),
    "negative zero": (-0.0, "fieldsDouble", -0.0),
    "the largest float": (1.7976931348623157e308, "fieldsDouble", 1.7976931348623157e308),
    "int": (7, "fieldsInt", 7),
    "the largest int": (2**63 - 1, "fieldsInt", 2**63 - 1),
    "the smallest int": (-(2**63), "fieldsInt", -(2**63)),
    "true": (True, "fieldsBool", True),
    "false": (False, "fieldsBool", False),
    "str": ("text", "fieldsString", "text"),
    "an empty str": ("", "fieldsString", ""),
    "float64": (np.float64(1.5), "fieldsDouble", 1.5),
    "float32": (np.float32(0.1), "fieldsDouble", 0.10000000149011612),
    "float16": (np.float16(0.5), "fieldsDouble", 0.5),
    "longdouble": (np.longdouble(0.5), "fieldsDouble", 0.5),
    "int64": (np.int64(-3), "fieldsInt", -3),
    "uint8": (np.uint8(255), "fieldsInt", 255),
    "uint64": (np.uint64(2**63 - 1), "fieldsInt", 2**63 - 1),
    "bool_": (np.bool_(1), "fieldsBool", True),
    "str_": (np.str_("text"), "fieldsString", "text"),
    "an element of an array": (np.array([1, 2])[1], "fieldsInt", 2),
    "a comparison": (np.array([1.0, 2.0])[1] > 1.0, "fieldsBool", True),
    "StrEnum": (Colour.RED, "fieldsString", "red"),
    "str and Enum": (Mixed.RED, "fieldsString", "red"),
    "IntEnum": (Level.HIGH, "fieldsInt", 3),
    "a subclass of float": (Metres(2.5), "fieldsDouble", 2.5),
}


@pytest.mark.parametrize(("value", "where", "expected"), TAKEN.values(), ids=TAKEN)
def test_a_value_becomes_a_field_of_its_type(value: object, where: str, expected: object) -> None:
    point = Point()
    set_field(point, "f", value)
    assert maps_with(point, "f") == [where]
    found = get_field(point, "f")
    # Compared as text, because zero equals negative zero.
    assert (type(found), repr(found)) == (type(expected), repr(expected))


REFUSED: dict[str, tuple[object, str]] = {
    "None": (None, "NoneType None: no field can hold this type; use bool, int, float or str"),
    "list": ([1], "list [1]: no field can hold this type; use bool, int, float or str"),
    "bytes": (b"x", "bytes b'x': no field can hold this type; use bool, int, float or str"),
    "complex": (1j, "complex 1j: no field can hold this type; use bool, int, float or str"),
    "Decimal": (decimal.Decimal(1), "Decimal Decimal('1'): no field can hold this type"),
    "Fraction": (fractions.Fraction(1, 2), "Fraction Fraction(1, 2): no field can hold this type"),
    "an array": (np.array(1.0), "ndarray array(1.): no field can hold this type"),
    "complex128": (
        np.complex128(1),
        f"complex128 {np.complex128(1)!r}: no field can hold this type",
    ),
    "bytes_": (np.bytes_(b"x"), f"bytes_ {np.bytes_(b'x')!r}: no field can hold this type"),
    "datetime64": (np.datetime64("2026-01-01"), "datetime64 "),
    "timedelta64": (np.timedelta64(5, "s"), "timedelta64 "),
    "timedelta64 of no unit": (np.timedelta64(5), "timedelta64 "),
    "NaN": (math.nan, "float nan: Kapacitor cannot show or alert on it; leave the field out"),
    "infinity": (INFINITY, "float inf: Kapacitor cannot show or alert on it; leave the field out"),
    "minus infinity": (-INFINITY, "float -inf: Kapacitor cannot show or alert on it"),
    "NaN of numpy": (np.float32("nan"), "float nan: Kapacitor cannot show or alert on it"),
    "a longdouble past a float": (np.longdouble("1e4000"), "float inf: Kapacitor cannot"),
    "an int too large": (2**63, "int 9223372036854775808: an integer field has 64 bits"),
    "an int too small": (-(2**63) - 1, "int -9223372036854775809: an integer field has 64 bits"),
    "a uint64 too large": (np.uint64(2**63), "int 9223372036854775808: an integer field has 64"),
    "half a surrogate pair": ("\ud800", "str '\\ud800': "),
}


@pytest.mark.parametrize(("value", "message"), REFUSED.values(), ids=REFUSED)
def test_a_value_that_no_field_can_have_is_refused_by_the_fields_name(
    value: object, message: str
) -> None:
    point = Point(fieldsInt={"f": 1}, fieldsDouble={"g": 2.0})
    with pytest.raises(FieldValueError) as caught:
        set_field(point, "f", value)
    assert str(caught.value).startswith(f"field 'f': {message}")
    assert caught.value.field == "f"
    assert point == Point(fieldsInt={"f": 1}, fieldsDouble={"g": 2.0})


def test_a_refused_value_can_be_caught_as_either_kind() -> None:
    assert issubclass(FieldValueError, KapudfError)
    assert issubclass(FieldValueError, ValueError)


def test_a_long_value_is_shown_in_short() -> None:
    with pytest.raises(FieldValueError) as caught:
        set_field(Point(), "f", list(range(10_000)))
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("old", [True, 1, 1.5, "text"], ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("new", [False, 2, 2.5, "other"], ids=lambda value: type(value).__name__)
def test_a_new_value_replaces_the_old_one_whatever_the_types(
    old: bool | float | str,  # noqa: FBT001 - a field's value
    new: bool | float | str,  # noqa: FBT001
) -> None:
    point = full()
    set_field(point, "f", old)
    set_field(point, "f", new)
    assert len(maps_with(point, "f")) == 1
    assert get_field(point, "f") == new
    drop_field(point, "f")
    assert point == full()


def test_a_field_in_several_maps_is_read_as_kapacitor_reads_it() -> None:
    maps = {
        "fieldsBool": True,
        "fieldsDouble": 1.5,
        "fieldsInt": 1,
        "fieldsString": "s",
    }
    point = Point()
    for name, value in maps.items():
        getattr(point, name)["f"] = value
    for name, value in maps.items():
        assert get_field(point, "f") == value
        assert get_fields(point) == {"f": value}
        del getattr(point, name)["f"]
    assert get_field(point, "f") is None


def test_a_set_field_is_gone_from_all_other_maps() -> None:
    point = Point(fieldsBool={"f": True}, fieldsInt={"f": 1}, fieldsString={"f": "s"})
    set_field(point, "f", 1.5)
    assert point == Point(fieldsDouble={"f": 1.5})


def test_a_dropped_field_is_gone_from_every_map() -> None:
    point = Point(fieldsBool={"f": True}, fieldsInt={"f": 1, "g": 2}, fieldsString={"f": "s"})
    drop_field(point, "f")
    drop_field(point, "nothing")
    assert point == Point(fieldsInt={"g": 2})


def test_reading_a_missing_field_adds_nothing() -> None:
    point = Point()
    assert get_field(point, "f") is None
    assert get_number(point, "f") is None
    assert get_tag(point, "t") == ""
    assert get_fields(point) == {}
    assert point == Point()


@pytest.mark.parametrize(
    ("value", "number"),
    [(1.5, 1.5), (3, 3.0), (0, 0.0), (0.0, 0.0), (True, None), ("3", None)],
)
def test_a_number_is_a_float_or_an_int(
    value: bool | float | str,  # noqa: FBT001 - a field's value
    number: float | None,
) -> None:
    point = Point()
    set_field(point, "f", value)
    found = get_number(point, "f")
    assert found == number
    assert found is None or type(found) is float


@given(st.dictionaries(st.text(), VALUES))
def test_any_fields_come_back_as_they_were_set(fields: dict[str, bool | float | str]) -> None:
    point = Point()
    for name, value in fields.items():
        set_field(point, name, value)
    arrived = Point.FromString(point.SerializeToString())
    found = get_fields(arrived)
    assert found == fields
    assert {name: type(value) for name, value in found.items()} == {
        name: type(value) for name, value in fields.items()
    }
    assert all(get_field(arrived, name) == value for name, value in fields.items())


@given(st.lists(st.tuples(st.sampled_from("ab"), st.none() | VALUES)))
def test_setting_and_dropping_is_as_in_a_dict(
    steps: list[tuple[str, bool | float | str | None]],
) -> None:
    point = Point()
    model: dict[str, bool | float | str] = {}
    for name, value in steps:
        if value is None:
            drop_field(point, name)
            model.pop(name, None)
        else:
            set_field(point, name, value)
            model[name] = value
    assert get_fields(point) == model
    assert all(len(maps_with(point, name)) == 1 for name in model)


# --- tags ---


def test_a_tag_has_a_default() -> None:
    point = Point(tags={"host": "a", "empty": ""})
    assert get_tag(point, "host", "b") == "a"
    assert get_tag(point, "region") == ""
    assert get_tag(point, "region", "eu") == "eu"
    assert get_tag(point, "empty", "eu") == ""


# --- envelopes ---


def test_a_point_like_another_has_its_envelope_and_no_field() -> None:
    expected = full()
    for fields in ("fieldsDouble", "fieldsInt", "fieldsString", "fieldsBool"):
        expected.ClearField(fields)
    assert copy_envelope(full()) == expected


def test_the_envelope_is_all_that_a_point_has_besides_its_fields() -> None:
    named = {field.name for field, _ in full().ListFields()}
    assert named == {field.name for field in Point.DESCRIPTOR.fields}


def test_a_point_like_another_has_fields_of_its_own() -> None:
    copied = copy_envelope(full(), {"mean": np.float64(1.5), "count": 3, "ok": True, "why": "so"})
    assert get_fields(copied) == {"mean": 1.5, "count": 3, "ok": True, "why": "so"}
    assert copied.fieldsDouble == {"mean": 1.5}


def test_a_point_like_another_shares_nothing_with_it() -> None:
    original = full()
    copied = copy_envelope(original)
    before = copy.deepcopy(copied)
    original.tags["host"] = "changed"
    original.dimensions.append("more")
    original.time = 0
    assert copied == before
    original = full()
    copied = copy_envelope(original)
    copied.tags.clear()
    del copied.dimensions[:]
    set_field(copied, "double", 2.0)
    assert original == full()


def test_an_invalid_field_is_named_in_a_copy_too() -> None:
    with pytest.raises(FieldValueError, match=r"^field 'mean': float nan: "):
        copy_envelope(full(), {"mean": math.nan})


# --- times ---


@pytest.mark.parametrize(
    ("when", "nanoseconds"),
    [
        (dt.datetime(1970, 1, 1, tzinfo=dt.UTC), 0),
        (dt.datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=dt.UTC), -1_000),
        (dt.datetime(1900, 1, 1, tzinfo=dt.UTC), -2_208_988_800_000_000_000),
        (dt.datetime(2026, 10, 3, 4, 5, 6, 123_457, tzinfo=dt.UTC), 1_791_000_306_123_457_000),
        (dt.datetime(2262, 4, 11, 23, 47, 16, 854_775, tzinfo=dt.UTC), 9_223_372_036_854_775_000),
        (
            dt.datetime(2026, 1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=5, minutes=30))),
            1_767_209_400_000_000_000,
        ),
    ],
    ids=["epoch", "just before", "long ago", "now", "the last", "another zone"],
)
def test_a_datetime_is_exact(when: dt.datetime, nanoseconds: int) -> None:
    point = Point()
    set_datetime(point, when)
    assert point.time == nanoseconds == time_ns(when)
    back = get_datetime(point)
    assert back == when
    assert back.tzinfo is dt.UTC


@given(st.datetimes(dt.datetime(1678, 1, 1), dt.datetime(2262, 1, 1), timezones=st.timezones()))  # noqa: DTZ001 - its limits are to be naive
def test_any_datetime_comes_back(when: dt.datetime) -> None:
    point = Point()
    set_datetime(point, when)
    assert get_datetime(point) == when.astimezone(dt.UTC)


@given(INT64)
def test_any_time_is_a_datetime_to_the_microsecond(nanoseconds: int) -> None:
    found = get_datetime(Point(time=nanoseconds))
    assert time_ns(found) == nanoseconds // 1000 * 1000


class Zoneless(dt.tzinfo):
    """A time zone without an offset. Python treats times in it as naive."""

    def utcoffset(self, when: dt.datetime | None, /) -> None:
        del when

    def dst(self, when: dt.datetime | None, /) -> None:
        del when

    def tzname(self, when: dt.datetime | None, /) -> str:
        del when
        return "nowhere"


@pytest.mark.parametrize("zone", [None, Zoneless()], ids=["none", "unknown"])
def test_a_time_without_a_zone_is_refused(zone: dt.tzinfo | None) -> None:
    point = Point(time=5)
    with pytest.raises(ValueError, match=r"has no time zone; use datetime\.now\(datetime\.UTC\)"):
        set_datetime(point, dt.datetime(2026, 1, 1, tzinfo=zone))
    assert point.time == 5


def test_a_time_past_64_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="range"):
        set_datetime(Point(), dt.datetime.max.replace(tzinfo=dt.UTC))
