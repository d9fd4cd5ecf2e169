"""A batch's fields as numpy columns."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from kapudf_cli.handler.columns import column, columns, times_ns
from kapudf_cli.handler.points import get_number, set_field
from kapudf_cli.protocol.udf_pb2 import Point

NAMES = st.sampled_from(["a", "b", "c"])
VALUES = (
    st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-(2**63), 2**63 - 1)
    | st.booleans()
    | st.text(max_size=3)
)


def made(fields: dict[str, bool | float | str], time: int = 0) -> Point:
    point = Point(time=time)
    for name, value in fields.items():
        set_field(point, name, value)
    return point


POINTS = st.lists(
    st.builds(made, st.dictionaries(NAMES, VALUES), st.integers(-(2**63), 2**63 - 1)), max_size=20
)


def plainly(points: list[Point], field: str) -> list[float]:
    """Return a column by a plain loop."""
    numbers = (get_number(point, field) for point in points)
    return [math.nan if number is None else number for number in numbers]


def test_floats_and_integers_share_a_column() -> None:
    """What has no such field, or one that is no number, is NaN."""
    points = [made({"a": value}) for value in (1.5, 2, True, "3")] + [made({}), made({"b": 1.0})]
    expected = np.array([1.5, 2.0, *[math.nan] * 4])
    found = column(points, "a")
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.float64
    assert found.shape == (6,)


def test_a_column_of_integers_is_of_floats() -> None:
    """For numeric work they are all the same."""
    found = column([made({"a": number}) for number in range(5)], "a")
    np.testing.assert_array_equal(found, np.arange(5.0))
    assert found.dtype == np.float64


def test_a_field_that_nobody_has_is_all_nan() -> None:
    """And looking for it adds it to no point."""
    points = [made({"a": 1.0}), made({"b": 1})]
    before = [Point.FromString(point.SerializeToString()) for point in points]
    assert np.isnan(column(points, "c")).tolist() == [True, True]
    assert points == before


@given(POINTS)
def test_a_column_is_as_a_plain_loop_has_it(points: list[Point]) -> None:
    """Whatever the fields and their types."""
    np.testing.assert_array_equal(column(points, "a"), plainly(points, "a"))


@given(POINTS, st.lists(NAMES, min_size=1, max_size=4))
def test_columns_are_as_a_plain_loop_has_them(points: list[Point], fields: list[str]) -> None:
    """A row for each point, a column for each field, in the order asked for."""
    found = columns(points, fields)
    assert found.shape == (len(points), len(fields))
    assert found.dtype == np.float64
    for place, field in enumerate(fields):
        np.testing.assert_array_equal(found[:, place], plainly(points, field))


@given(POINTS)
def test_times_are_exact(points: list[Point]) -> None:
    """As integers, for a float has no nanoseconds."""
    found = times_ns(points)
    assert found.dtype == np.int64
    assert found.tolist() == [point.time for point in points]


def test_no_points_are_empty_columns() -> None:
    """With the right shapes and types."""
    assert column([], "a").shape == times_ns([]).shape == (0,)
    assert column([], "a").dtype == np.float64
    assert times_ns([]).dtype == np.int64
    assert columns([], ["a", "b"]).shape == (0, 2)


def test_no_fields_are_no_columns() -> None:
    """A row for each point all the same, as the shape says."""
    assert columns([made({}), made({})], []).shape == (2, 0)


def test_a_hundred_thousand_points_work() -> None:
    """Floats, integers and gaps; nothing is lost on the way."""
    points = [
        Point(time=number, fieldsDouble={"a": number / 8})
        if number % 3
        else Point(time=number, fieldsInt={"a": number})
        for number in range(100_000)
    ]
    del points[50_000].fieldsDouble["a"]
    numbers = np.arange(100_000)
    expected = np.where(numbers % 3, numbers / 8, numbers)
    expected[50_000] = math.nan
    np.testing.assert_array_equal(column(points, "a"), expected)
    np.testing.assert_array_equal(times_ns(points), numbers)
