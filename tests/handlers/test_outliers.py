"""The handler `outliers`: quartiles, fences and returned batches."""

from __future__ import annotations

import itertools
import math
import sys
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kapudf_handlers.outliers import Outliers, OutliersOptions

from kapudf_cli import BATCH, Point, get_fields
from kapudf_cli.handler.batches import Batch
from kapudf_cli.testing import StartTask, Task, TaskFailedError
from tests.examples import examples
from tests.handlers import recordings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kapudf_cli.handler import Writer


VALUES = st.lists(
    st.floats(min_value=-1e150, max_value=1e150, allow_subnormal=False), min_size=2, max_size=80
)
#: Their quarters and products with these scales are exact, and so is every fence.
WHOLE_VALUES = st.lists(st.integers(-1000, 1000), min_size=2, max_size=60)
EXACT_SCALES = st.sampled_from([1.0, 1.5, 2.0, 3.0])


def fences(values: list[float], scale: float) -> tuple[float, float]:
    """Return what the handler holds for the fences of values."""
    handler = Outliers(cast("Writer", None))  # nothing is written
    handler.options = OutliersOptions(field="value", scale=scale)
    return handler.fences(values)


def numpy_fences(values: Sequence[float], scale: float) -> tuple[float, float]:
    first, third = (float(each) for each in np.percentile(values, [25, 75], method="linear"))
    return first - scale * (third - first), third + scale * (third - first)


def batch_of(*values: float) -> Batch:
    """Return a batch with a point for each value, one nanosecond after another."""
    points = [
        Point(time=time, group="host=a", tags={"host": "a"}, fieldsDouble={"value": value})
        for time, value in enumerate(values)
    ]
    return Batch("cpu", points, {"host": "a"}, "host=a", 1_600_000_000_000_000_001, by_name=True)


def outlying(task: Task, batch: Batch) -> list[float]:
    """Return the values that come back of a batch."""
    (out,) = task.send(batch).batches
    return [point.fieldsDouble["value"] for point in out.points]


@given(values=VALUES)
@example(values=[0.0, 1.0])
@example(values=[1.0, 2.0, 3.0])
@example(values=[1e150, -1e150, 1e-150])
def test_the_quartiles_are_those_of_numpy(values: list[float]) -> None:
    # With a scale of 0, which no TICKscript may ask for, the fences are the quartiles.
    first, third = (float(each) for each in np.percentile(values, [25, 75]))
    rounding = 8 * sys.float_info.epsilon * max(map(abs, values))
    assert fences(values, 0.0) == pytest.approx((first, third), rel=0, abs=rounding)


@given(values=WHOLE_VALUES, scale=EXACT_SCALES)
@example(values=[1, 2, 3, 4, 100], scale=1.5)
@examples(0.6)
def test_the_outlying_are_those_beyond_numpy_s_fences(values: list[int], scale: float) -> None:
    low, high = numpy_fences(values, scale)
    with Task.of(Outliers) as task:
        task.init(OutliersOptions(field="value", scale=scale))
        found = outlying(task, batch_of(*map(float, values)))
    assert found == [value for value in values if value < low or value > high]


@pytest.mark.parametrize(
    ("beyond", "found"),
    [(7.0, []), (math.nextafter(7.0, 8.0), [math.nextafter(7.0, 8.0)]), (-1.0, [])],
)
def test_a_value_on_a_fence_is_no_outlier(
    udf: StartTask, beyond: float, found: list[float]
) -> None:
    # The quartiles of 2, 2, 4, 4 and one beyond are 2 and 4; the fences -1 and 7.
    assert numpy_fences([2.0, 2.0, 4.0, 4.0, beyond], 1.5) == (-1.0, 7.0)
    task = udf(Outliers, OutliersOptions(field="value"))
    assert outlying(task, batch_of(2.0, 2.0, beyond, 4.0, 4.0)) == found


@pytest.mark.parametrize(
    ("scale", "found"), [(1.0, [6.5, 7.5, 8.5]), (1.5, [7.5, 8.5]), (2.0, [8.5]), (3.0, [])]
)
def test_a_larger_scale_moves_the_fences_out(
    udf: StartTask, scale: float, found: list[float]
) -> None:
    values = [2.0] * 20 + [3.0] * 20 + [4.0] * 20 + [6.5, 7.5, 8.5]
    assert np.percentile(values, [25, 75]).tolist() == [2.0, 4.0]
    task = udf(Outliers, OutliersOptions(field="value", scale=scale))
    assert outlying(task, batch_of(*values)) == found


@pytest.mark.parametrize("scale", [math.nextafter(1.0, 0.0), 0.0, -1.5, math.nan])
def test_a_scale_below_one_is_refused_in_words(udf: StartTask, scale: float) -> None:
    with pytest.raises(TaskFailedError) as failure:
        udf(Outliers, OutliersOptions(field="value", scale=scale))
    assert str(failure.value) == f".scale() expects a float, at least 1.0, got {scale}"


def test_the_scale_may_be_one(udf: StartTask) -> None:
    assert udf(Outliers, OutliersOptions(field="value", scale=1.0)).info().wants == BATCH


def test_outliers_come_in_time_order(udf: StartTask) -> None:
    batch = batch_of(*[1.0, 2.0, 3.0] * 10, 100.0, -100.0, 200.0, -200.0)
    for point, time in zip(batch.points[-4:], (900, 500, 100, 500), strict=True):
        point.time = time
    assert outlying(udf(Outliers, OutliersOptions(field="value")), batch) == [
        200.0, -100.0, -200.0, 100.0,
    ]  # fmt: skip


@pytest.mark.parametrize("values", [[], [1e9], [1.0, 2.0], [1.0, 1e9]])
def test_of_few_values_none_is_an_outlier(udf: StartTask, values: list[float]) -> None:
    batch = batch_of(*values)
    (out,) = udf(Outliers, OutliersOptions(field="value")).send(batch).batches
    assert out == batch.copy_with([])


@given(
    value=st.floats(min_value=-1e300, max_value=1e300),
    count=st.integers(min_value=2, max_value=20),
)
def test_of_equal_values_none_is_an_outlier(value: float, count: int) -> None:
    low, high = fences([value] * count, 1.0)
    assert low <= value <= high


@pytest.mark.parametrize("value", [sys.float_info.max, -1e308])
def test_of_equal_huge_values_none_is_an_outlier(udf: StartTask, value: float) -> None:
    out = udf(Outliers, OutliersOptions(field="value")).send(
        *(batch_of(*[value] * count) for count in range(2, 8))
    )
    assert [len(batch.points) for batch in out.batches] == [0] * 6


@pytest.mark.parametrize("odd", [4.0, -1e308])
def test_a_batch_with_huge_values_loses_nothing(udf: StartTask, odd: float) -> None:
    task = udf(Outliers, OutliersOptions(field="value"))
    assert outlying(task, batch_of(*[1e308] * 9, odd)) == [odd]


def test_one_that_differs_from_equal_values_is_an_outlier(udf: StartTask) -> None:
    task = udf(Outliers, OutliersOptions(field="value"))
    assert outlying(task, batch_of(*[0.1] * 7, 0.2)) == [0.2]


def test_points_without_a_number_take_no_part(udf: StartTask) -> None:
    batch = batch_of(1.0, 2.0, 3.0, 4.0, 1000.0)
    others: list[dict[str, dict[str, object]]] = [
        {"fieldsDouble": {"other": 1e9}},
        {"fieldsString": {"value": "1e9"}},
        {"fieldsBool": {"value": True}},
        {"fieldsDouble": {"value": math.nan}},
        {"fieldsDouble": {"value": math.inf}},
    ]
    for fields in itertools.chain.from_iterable([others] * 3):
        point = Point(time=50)
        for kind, content in fields.items():
            getattr(point, kind).update(content)
        batch.points.insert(2, point)
    task = udf(Outliers, OutliersOptions(field="value"))
    assert outlying(task, batch) == [1000.0]


def test_integers_are_values_too(udf: StartTask) -> None:
    batch = batch_of()
    for time, number in enumerate([1, 2, 3, 4, 2**53 + 1]):
        batch.points.append(
            Point(time=time, fieldsInt={"value": number}, fieldsString={"note": f"n{number}"})
        )
    (out,) = udf(Outliers, OutliersOptions(field="value")).send(batch).batches
    assert [get_fields(point) for point in out.points] == [
        {"value": 2**53 + 1, "note": f"n{2**53 + 1}"}
    ]


def test_the_batch_around_the_outliers_is_kept(udf: StartTask) -> None:
    batch = batch_of(1.0, 2.0, 3.0, 4.0, 100.0)
    (out,) = udf(Outliers, OutliersOptions(field="value")).send(batch).batches
    assert out == batch.copy_with(batch.points[-1:])


def test_batches_are_looked_at_one_by_one(udf: StartTask) -> None:
    low, high = batch_of(1.0, 2.0, 3.0, 4.0), batch_of(101.0, 102.0, 103.0, 104.0)
    out = udf(Outliers, OutliersOptions(field="value")).send(low, high, low)
    assert [batch.points for batch in out.batches] == [[], [], []]


def test_the_outliers_of_the_recording_are_found(udf: StartTask) -> None:
    batches = recordings.read_batches(recordings.BATCH)
    out = udf(Outliers, OutliersOptions(field="usage_idle", scale=2.0)).send(*batches)
    wanted = []
    for batch in recordings.read_batches(recordings.BATCH):
        values = [point.fieldsDouble["usage_idle"] for point in batch.points]
        low, high = numpy_fences(values, 2.0)
        pairs = zip(values, batch.points, strict=True)
        wanted.append(batch.copy_with([p for value, p in pairs if not low <= value <= high]))
    assert out.batches == wanted
    assert sum(len(batch.points) for batch in wanted) > 0
