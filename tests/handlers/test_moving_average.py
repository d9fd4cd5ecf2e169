"""The handler `moving-average`: its results and its state."""

from __future__ import annotations

import itertools
import math
import sys
from fractions import Fraction
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kapudf_handlers.moving_average import MovingAverage, MovingAverageOptions, Window

from kapudf_cli import STREAM, Point, get_field
from kapudf_cli.protocol.udf_pb2 import DOUBLE, INT, STRING, InitRequest, Option, OptionValue
from kapudf_cli.testing import StartTask, Task, TaskFailedError, grouped, lines
from tests.examples import examples
from tests.handlers import recordings

if TYPE_CHECKING:
    from collections.abc import Sequence


#: Far apart in size and of both signs, so that a sum that subtracts shows it.
HARD = st.one_of(
    st.sampled_from([1e16, -1e16, 1.0, -1.0, 0.1, 5e-324, 1e-300, 1e300, -1e300, 0.0, -0.0]),
    st.floats(min_value=-1e300, max_value=1e300),
)
#: No sum of a few of these is over the largest float.
HARD_LISTS = st.lists(HARD, min_size=1, max_size=60)
SIZES = st.integers(min_value=1, max_value=20)


def options(size: int, *, field: str = "value", as_: str = "avg") -> MovingAverageOptions:
    return MovingAverageOptions(field=field, size=size, as_=as_)


def series(values: Sequence[float], *, host: str = "a") -> list[Point]:
    """Return a point for each value, all in the group of a host."""
    points = [
        Point(name="m", time=time, tags={"host": host}, fieldsDouble={"value": value})
        for time, value in enumerate(values)
    ]
    return grouped(points, "host")


def averages(points: Sequence[Point], name: str = "avg") -> list[float | None]:
    return [point.fieldsDouble.get(name) for point in points]


def windows(values: Sequence[float], size: int) -> list[Sequence[float]]:
    """Return the window that ends at each value."""
    return [values[max(end - size, 0) : end] for end in range(1, len(values) + 1)]


def direct(values: Sequence[float], size: int) -> list[float]:
    """Return every average, computed afresh from the window's values and rounded once."""
    return [math.fsum(window) / len(window) for window in windows(values, size)]


def assert_steady(mean: float, window: Sequence[float]) -> None:
    """Assert that a mean has no more error than summing the window's own values may have."""
    exact = sum(map(Fraction, window), Fraction()) / len(window)
    magnitude = sum(map(abs, map(Fraction, window)), Fraction()) / len(window)
    allowed = len(window) * Fraction(sys.float_info.epsilon) * magnitude + Fraction(5e-324)
    assert abs(Fraction(mean) - exact) <= allowed


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 10, 64, 100, 255, 549, 550, 551, 1_000_000])
def test_the_average_is_the_mean_of_the_last_points(udf: StartTask, size: int) -> None:
    points = recordings.read_stream(recordings.STREAM)
    values = [point.fieldsDouble["usage_idle"] for point in points]
    assert len(values) == 550
    out = udf(MovingAverage, options(size)).send(*series(values)).points
    assert averages(out) == pytest.approx(direct(values, size), rel=1e-14, abs=0)


@given(values=HARD_LISTS, size=SIZES)
@example(values=[1e16, 1.0, 1.0, 1.0, 1.0], size=2)
@example(values=[1.0, 1e16, -1e16, 1.0, 1.0, 1.0], size=3)
def test_no_error_outlives_the_values_in_the_window(values: list[float], size: int) -> None:
    window = Window()
    for recent in windows(values, size):
        assert_steady(window.mean_with(recent[-1], size), recent)


@given(size=SIZES, huge=st.sampled_from([1e16, -1e16, 1e300, 1e-300]), before=st.integers(0, 30))
def test_a_value_that_has_gone_leaves_no_trace(size: int, huge: float, before: int) -> None:
    window = Window()
    for _ in range(before):
        window.mean_with(1.0, size)
    window.mean_with(huge, size)
    means = [window.mean_with(1.0, size) for _ in range(3 * size)]
    assert set(means[size - 1 :]) == {1.0}


@pytest.mark.long
def test_nothing_drifts_in_ten_million_points() -> None:
    size, rounds = 1000, 100
    # 100,003 is a prime: the cycle and the window's rounds never fall together.
    cycle = [math.sin(n) * (1e9 if n % 10_007 == 0 else 1.0) + 0.1 for n in range(100_003)]
    window, running, worst = Window(), 0.0, 0.0
    recent = [0.0] * size
    for _ in range(rounds):
        for gone, value in zip(itertools.chain(recent, cycle), cycle, strict=False):
            mean = window.mean_with(value, size)
            running += value - gone
        recent = cycle[-size:]
        worst = max(worst, abs(mean - math.fsum(recent) / size))
    # A window's values are below 1.2 here, so its own sums are exact to 1e-12.
    assert max(map(abs, recent)) < 1.2
    assert worst < 1e-15
    assert abs(running / size - mean) > 1e-10


@given(
    values=HARD_LISTS,
    size=SIZES,
    cut=st.integers(min_value=0, max_value=60),
)
@examples(0.6)
def test_a_restored_task_goes_on_as_an_undisturbed_one(
    values: list[float], size: int, cut: int
) -> None:
    points = series(values)
    with Task.of(MovingAverage) as task:
        task.init(options(size))
        undisturbed = averages(task.send(*points).points)
    with Task.of(MovingAverage) as task:
        task.init(options(size))
        before = averages(task.send(*points[:cut]).points)
        snapshot = task.snapshot()
    with Task.of(MovingAverage) as task:
        task.init(options(size))
        task.restore(snapshot)
        assert before + averages(task.send(*points[cut:]).points) == undisturbed


@given(
    values=st.lists(st.integers(-1000, 1000).map(float), min_size=1, max_size=40),
    sizes=st.tuples(SIZES, SIZES),
    more=st.lists(st.integers(-1000, 1000).map(float), min_size=1, max_size=40),
)
@example(values=[1.0, 2.0, 3.0, 4.0, 5.0], sizes=(3, 2), more=[6.0, 7.0, 8.0])
@example(values=[1.0, 2.0, 3.0, 4.0, 5.0], sizes=(3, 5), more=[6.0, 7.0, 8.0])
@examples(0.6)
def test_another_size_goes_on_with_the_last_values(
    values: list[float], sizes: tuple[int, int], more: list[float]
) -> None:
    old, new = sizes
    with Task.of(MovingAverage) as task:
        task.init(options(old))
        task.send(*series(values))
        snapshot = task.snapshot()
    kept = values[-min(old, new) :]
    with Task.of(MovingAverage) as task:
        task.init(options(new))
        task.restore(snapshot)
        out = averages(task.send(*series(more)).points)
    # The sums of these are whole numbers, and so exact.
    assert out == direct([*kept, *more], new)[len(kept) :]


def test_sums_too_large_for_a_float_leave_the_average_out(udf: StartTask) -> None:
    huge = sys.float_info.max
    values = [1.0, huge, huge, 2.0, 2.0, 2.0, -huge, -huge, 3.0, 3.0, 3.0]
    out = udf(MovingAverage, options(2)).send(*series(values)).points
    assert [point.fieldsDouble["value"] for point in out] == values
    segment = huge / 2
    assert averages(out) == [
        1.0, segment, None, segment, 2.0, 2.0, -segment, None, -segment, 3.0, 3.0,
    ]  # fmt: skip


@pytest.mark.parametrize("cut", range(1, 8))
def test_a_snapshot_of_an_infinite_sum_is_taken_back(udf: StartTask, cut: int) -> None:
    huge = sys.float_info.max
    points = series([1.0, huge, huge, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0])
    other = series([10.0, 20.0, 30.0], host="b")
    undisturbed = averages(udf(MovingAverage, options(3)).send(*points).points)

    task = udf(MovingAverage, options(3))
    before = averages(task.send(*points[:cut]).points)
    task.send(*other[:2])
    restored = udf(MovingAverage, options(3))
    restored.restore(task.snapshot())
    assert averages(restored.send(other[2]).points) == [20.0]
    assert before + averages(restored.send(*points[cut:]).points) == undisturbed


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_passes_and_does_not_count(udf: StartTask, odd: float) -> None:
    out = udf(MovingAverage, options(2)).send(*series([1.0, odd, 3.0, 5.0])).points
    assert averages(out) == [1.0, None, 2.0, 4.0]
    assert out[1].fieldsDouble["value"] == pytest.approx(odd, nan_ok=True)


def test_integers_are_averaged_too(udf: StartTask) -> None:
    points = lines("m value=1i 10", "m value=2i 20", "m value=4.5 30")
    out = udf(MovingAverage, options(2)).send(*points).points
    assert averages(out) == [1.0, 1.5, 3.25]
    assert [point.fieldsInt.get("value") for point in out] == [1, 2, None]


@pytest.mark.parametrize("fields", ["other=1.0", 'value="12"', "value=true"])
def test_a_point_without_a_number_passes_untouched(udf: StartTask, fields: str) -> None:
    first, last = lines("m,host=a value=1.0 10", "m,host=a value=3.0 30")
    (untouched,) = lines(f"m,host=a {fields},avg=7i 20")
    wanted = untouched.SerializeToString(deterministic=True)
    out = udf(MovingAverage, options(5)).send(first, untouched, last).points
    assert out[1].SerializeToString(deterministic=True) == wanted
    assert (get_field(out[0], "avg"), get_field(out[2], "avg")) == (1.0, 2.0)


def test_groups_have_windows_of_their_own(udf: StartTask) -> None:
    hosts = {"a": [1.0, 3.0, 5.0, 7.0], "b": [100.0, 300.0, 500.0, 700.0]}
    mixed = [
        point
        for pair in zip(*(series(values, host=host) for host, values in hosts.items()), strict=True)
        for point in pair
    ]
    out = udf(MovingAverage, options(2)).send(*mixed).points
    for host, values in hosts.items():
        found = averages([point for point in out if point.tags["host"] == host])
        assert found == direct(values, 2)


def test_the_average_has_the_name_that_was_asked_for(udf: StartTask) -> None:
    points = lines('m value=1.0,mean="old" 10', "m value=3.0,mean=7i 20")
    out = udf(MovingAverage, options(2, as_="mean")).send(*points).points
    assert averages(out, "mean") == [1.0, 2.0]
    assert not any(point.fieldsString or point.fieldsInt for point in out)
    assert averages(out, "avg") == [None, None]


def test_the_average_may_take_the_place_of_its_field(udf: StartTask) -> None:
    points = lines("m value=2i 10", "m value=4i 20", "m value=6i 30", "m value=8i 40")
    out = udf(MovingAverage, options(3, as_="value")).send(*points).points
    assert averages(out, "value") == [2.0, 3.0, 4.0, 6.0]
    assert not any(point.fieldsInt for point in out)


@pytest.mark.parametrize("snapshot", [b"", b"state", b'{"handler":"Other","version":1,"state":{}}'])
def test_a_snapshot_of_something_else_is_a_fresh_start(udf: StartTask, snapshot: bytes) -> None:
    task = udf(MovingAverage, options(2))
    task.restore(snapshot)
    assert averages(task.send(*series([4.0])).points) == [4.0]


def string(name: str, value: str) -> Option:
    return Option(name=name, values=[OptionValue(type=STRING, stringValue=value)])


def integer(name: str, value: int) -> Option:
    return Option(name=name, values=[OptionValue(type=INT, intValue=value)])


SIZE = "a whole number, at least 1 and at most 1000000"
NO_FIELD = ".field() is missing; call .field(a string that is not empty)"
NO_SIZE = f".size() is missing; call .size({SIZE})"


@pytest.mark.parametrize(
    ("calls", "sentence"),
    [
        ([integer("size", 2)], NO_FIELD),
        ([string("field", "x")], NO_SIZE),
        (
            [string("field", "x"), integer("size", 0)],
            f".size() expects {SIZE}, got 0",
        ),
        (
            [string("field", "x"), integer("size", -3)],
            f".size() expects {SIZE}, got -3",
        ),
        (
            [string("field", "x"), integer("size", 1_000_001)],
            f".size() expects {SIZE}, got 1000001",
        ),
        (
            [
                string("field", "x"),
                Option(name="size", values=[OptionValue(type=DOUBLE, doubleValue=2.5)]),
            ],
            f".size() expects {SIZE}, got 2.5",
        ),
        (
            [string("field", "x"), string("field", "y"), integer("size", 2)],
            ".field() is called 2 times; call it once",
        ),
        (
            [string("as", "a"), integer("window", 3)],
            f"{NO_FIELD}; {NO_SIZE}; there is no option .window()",
        ),
    ],
    ids=["field", "size", "zero", "negative", "million", "float", "twice", "several"],
)
def test_wrong_options_are_refused_in_words(calls: list[Option], sentence: str) -> None:
    with Task.of(MovingAverage) as task, pytest.raises(TaskFailedError) as failure:
        task.init_raw(InitRequest(options=calls))
    assert str(failure.value) == sentence


def test_it_declares_a_stream_and_three_options(udf: StartTask) -> None:
    info = udf(MovingAverage, options(1)).info()
    assert (info.wants, info.provides) == (STREAM, STREAM)
    assert sorted(info.options) == ["as", "field", "size"]
