"""The handler `default`: missing fields and tags are set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from kapudf_handlers.default import Default, DefaultOptions

from kapudf_cli import STREAM, Point, get_fields
from kapudf_cli.testing import StartTask, grouped, lines
from tests.handlers import recordings

if TYPE_CHECKING:
    from kapudf_cli.handler import FieldValue


#: The option for each type, with a value that line protocol writes as the text.
OPTIONS: dict[str, tuple[DefaultOptions, FieldValue]] = {
    "float": (DefaultOptions(field=[("x", 2.5)]), 2.5),
    "int": (DefaultOptions(field_int=[("x", 2**53 + 1)]), 2**53 + 1),
    "string": (DefaultOptions(field_string=[("x", "two")]), "two"),
    "bool": (DefaultOptions(field_bool=[("x", True)]), True),
}
THERE: dict[str, tuple[str, FieldValue]] = {
    "float": ("0.0", 0.0),
    "int": ("0i", 0),
    "string": ('""', ""),
    "bool": ("false", False),
}


def maps_with(point: Point, name: str) -> int:
    """Return how many of a point's maps have a field of this name."""
    maps = (point.fieldsBool, point.fieldsDouble, point.fieldsInt, point.fieldsString)
    return sum(name in fields for fields in maps)


@pytest.mark.parametrize("kind", OPTIONS)
def test_an_absent_field_is_set_with_its_type(udf: StartTask, kind: str) -> None:
    options, value = OPTIONS[kind]
    (out,) = udf(Default, options).send(*lines("m y=1i 10")).points
    assert get_fields(out) == {"y": 1, "x": value}
    assert type(get_fields(out)["x"]) is type(value)


@pytest.mark.parametrize("present", THERE)
@pytest.mark.parametrize("kind", OPTIONS)
def test_a_field_that_is_there_stays_whatever_its_type(
    udf: StartTask, kind: str, present: str
) -> None:
    text, value = THERE[present]
    (out,) = udf(Default, OPTIONS[kind][0]).send(*lines(f"m x={text} 10")).points
    assert get_fields(out) == {"x": value}
    assert type(get_fields(out)["x"]) is type(value)
    assert maps_with(out, "x") == 1


def test_a_tag_is_set_where_it_is_absent_or_empty(udf: StartTask) -> None:
    without, full, empty = lines("m y=1i 10", "m,host=a y=1i 20", "m,host=a y=1i 30")
    empty.tags["host"] = ""
    out = udf(Default, DefaultOptions(tag=[("host", "none")])).send(without, full, empty)
    assert [point.tags["host"] for point in out.points] == ["none", "a", "none"]


def test_every_option_may_be_repeated(udf: StartTask) -> None:
    options = DefaultOptions(
        field=[("f1", 1.0), ("f2", 2.0)],
        field_int=[("i1", 1), ("i2", 2)],
        field_string=[("s1", "1"), ("s2", "")],
        field_bool=[("b1", True), ("b2", False)],
        tag=[("t1", "1"), ("t2", "2")],
    )
    (out,) = udf(Default, options).send(*lines("m i2=7i 10")).points
    assert dict(out.fieldsDouble) == {"f1": 1.0, "f2": 2.0}
    assert dict(out.fieldsInt) == {"i1": 1, "i2": 7}
    assert dict(out.fieldsString) == {"s1": "1", "s2": ""}
    assert dict(out.fieldsBool) == {"b1": True, "b2": False}
    assert dict(out.tags) == {"t1": "1", "t2": "2"}


def test_points_come_in_their_order_and_each_is_looked_at_alone(udf: StartTask) -> None:
    texts = [f"m {'x' if n % 3 else 'y'}={n}.5 {n}" for n in range(200)]
    out = udf(Default, DefaultOptions(field=[("x", -1.0)])).send(*lines(*texts)).points
    assert [point.time for point in out] == list(range(200))
    assert [point.fieldsDouble["x"] for point in out] == [
        n + 0.5 if n % 3 else -1.0 for n in range(200)
    ]


def test_without_options_nothing_changes(udf: StartTask) -> None:
    points = grouped(recordings.read_stream(recordings.STREAM), "host")
    wanted = [point.SerializeToString(deterministic=True) for point in points]
    out = udf(Default).send(*points).points
    assert [point.SerializeToString(deterministic=True) for point in out] == wanted


def test_it_declares_the_calls_of_each_type(udf: StartTask) -> None:
    info = udf(Default).info()
    assert (info.wants, info.provides) == (STREAM, STREAM)
    assert sorted(info.options) == ["field", "fieldBool", "fieldInt", "fieldString", "tag"]
