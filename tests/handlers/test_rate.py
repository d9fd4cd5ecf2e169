"""The handler `rate`: its results, resets of counters, and its state."""

from __future__ import annotations

import datetime as dt
import math
from fractions import Fraction
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kapudf_handlers.rate import Rate, RateOptions

from kapudf_cli import Point, get_field, set_field
from kapudf_cli.testing import Output, StartTask, Task, TaskFailedError, grouped
from tests.examples import examples

if TYPE_CHECKING:
    from collections.abc import Sequence

SECOND_NS = 1_000_000_000

#: A value, or None for a point without the field, with the time since the last point.
STEPS = st.lists(
    st.tuples(
        st.one_of(
            st.none(),
            st.integers(-(2**63), 2**63 - 1),
            st.floats(min_value=-1e15, max_value=1e15),
        ),
        st.integers(-5, 100),
    ),
    max_size=30,
)


def series(values: Sequence[object], *, host: str = "a", every_s: int = 1) -> list[Point]:
    """Return a point for each value, all in the group of a host."""
    points = []
    for place, value in enumerate(values):
        point = Point(name="m", time=place * every_s * SECOND_NS, tags={"host": host})
        if value is not None:
            set_field(point, "value", value)
        points.append(point)
    return grouped(points, "host")


def rates(output: Output, name: str = "rate") -> list[object]:
    return [get_field(point, name) for point in output.points]


def direct(steps: Sequence[tuple[float | None, int]], *, counter: bool) -> list[float | None]:
    """Return the rates per nanosecond, computed with fractions."""
    found: list[float | None] = []
    last: tuple[Fraction, int] | None = None
    time = 0
    for value, step in steps:
        time += step
        rate = None
        if value is not None:
            exact = Fraction(value)
            if last is not None and time > last[1]:
                change = exact if counter and exact < last[0] else exact - last[0]
                rate = float(change / (time - last[1]))
            last = exact, time
        found.append(rate)
    return found


@examples(30)
@given(STEPS, st.booleans())
def test_the_rate_is_that_of_exact_arithmetic(
    steps: list[tuple[float | None, int]],
    counter: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    points, time = [], 0
    for value, step in steps:
        time += step
        point = Point(name="m", time=time)
        if value is not None:
            set_field(point, "value", value)
        points.append(point)
    options = RateOptions(field="value", unit=dt.timedelta(microseconds=1), counter=counter)
    with Task.of(Rate) as task:
        task.init(options)
        found = rates(task.send(*points))
    expected = direct(steps, counter=counter)
    assert [each is None for each in found] == [each is None for each in expected]
    for one, other in zip(found, expected, strict=True):
        if one is not None and other is not None:
            assert isinstance(one, float)
            # The difference of two floats is rounded, by at most their own precision.
            assert math.isclose(one, other * 1000, rel_tol=1e-12, abs_tol=1e-3)


def test_large_counters_keep_their_last_digits(udf: StartTask) -> None:
    task = udf(Rate, RateOptions(field="value"))
    points = task.send(*series([2**62 + 1, 2**62 + 2, 2**62 + 4]))
    assert rates(points) == [None, 1.0, 2.0]


def test_a_counter_that_falls_has_started_again(udf: StartTask) -> None:
    values = [100, 130, 7, 10]
    assert rates(udf(Rate, RateOptions(field="value")).send(*series(values))) == [
        None, 30.0, -123.0, 3.0,
    ]  # fmt: skip
    counter = RateOptions(field="value", counter=True)
    assert rates(udf(Rate, counter).send(*series(values))) == [None, 30.0, 7.0, 3.0]


def test_the_unit_and_the_name_are_options(udf: StartTask) -> None:
    options = RateOptions(field="value", unit=dt.timedelta(minutes=1), as_="per_minute")
    points = udf(Rate, options).send(*series([1.0, 2.0], every_s=10))
    assert rates(points, "per_minute") == [None, 6.0]


def test_each_group_has_its_own_rate(udf: StartTask) -> None:
    task = udf(Rate, RateOptions(field="value"))
    one, other = series([1, 2]), series([10, 30], host="b")
    assert rates(task.send(one[0], other[0], one[1], other[1])) == [None, None, 1.0, 20.0]


@pytest.mark.parametrize("value", [None, "text", True])
def test_a_point_without_a_number_passes_through_unchanged(udf: StartTask, value: object) -> None:
    task = udf(Rate, RateOptions(field="value"))
    (point,) = series([value])
    assert task.send(point).points == [point]


def test_the_rate_goes_on_after_a_restart(udf: StartTask) -> None:
    options = RateOptions(field="value")
    first, second, third = series([2**62 + 1, 2**62 + 2, 2**62 + 4])
    earlier = udf(Rate, options)
    earlier.send(first, second)
    snapshot = earlier.snapshot()
    later = udf(Rate, options)
    later.restore(snapshot)
    assert rates(later.send(third)) == [2.0]


def test_a_unit_of_nothing_is_refused(udf: StartTask) -> None:
    with pytest.raises(TaskFailedError, match=r"\.unit\(\) expects a duration above 0s"):
        udf(Rate, RateOptions(field="value", unit=dt.timedelta(0)))
