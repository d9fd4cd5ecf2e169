"""The handler `seasonal-baseline`: its results, the local clock, and its state."""

from __future__ import annotations

import datetime as dt
import math
import zoneinfo
from collections import defaultdict
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kapudf_handlers.seasonal_baseline import SeasonalBaseline, SeasonalBaselineOptions

from kapudf_cli import Point, get_field
from kapudf_cli.testing import Output, StartTask, Task, TaskFailedError, grouped
from tests.examples import examples

if TYPE_CHECKING:
    from collections.abc import Sequence

HOUR_NS = 3600 * 1_000_000_000
#: A Monday, 00:00 UTC.
MONDAY = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
MONDAY_NS = int(MONDAY.timestamp()) * 1_000_000_000
WEEK_H = 168


def at(hour: float, value: float, *, host: str = "a") -> Point:
    """Return a point `hour` hours after the Monday."""
    time = MONDAY_NS + int(hour * HOUR_NS)
    point = Point(name="m", time=time, tags={"host": host}, fieldsDouble={"value": value})
    return grouped([point], "host")[0]


def added(output: Output) -> list[tuple[object, object]]:
    return [
        (get_field(point, "expected"), get_field(point, "deviation")) for point in output.points
    ]


def direct(
    values: Sequence[tuple[int, float]], season_h: int, memory: int
) -> list[tuple[float, float] | None]:
    """Return mean and standard deviation for each (hour, value), from all earlier values."""
    seen: dict[int, dict[int, list[float]]] = defaultdict(dict)
    found: list[tuple[float, float] | None] = []
    for hour, value in values:
        season, slot = divmod(hour, season_h)
        seasons = seen[slot]
        earlier = [seasons[each] for each in sorted(seasons) if each != season]
        weighted = [
            ((1 - 1 / memory) ** (len(earlier) - 1 - place), each)
            for place, one in enumerate(earlier)
            for each in one
        ]
        total = math.fsum(weight for weight, _ in weighted)
        if total:
            mean = math.fsum(weight * each for weight, each in weighted) / total
            square = math.fsum(weight * (each - mean) ** 2 for weight, each in weighted) / total
            found.append((mean, math.sqrt(square)))
        else:
            found.append(None)
        seasons.setdefault(season, []).append(value)
    return found


@examples(30)
@given(
    st.lists(st.tuples(st.integers(0, 6 * WEEK_H), st.floats(-1e6, 1e6)), max_size=60),
    st.sampled_from(["week", "day"]),
    st.integers(1, 6),
)
def test_the_baseline_is_that_of_a_direct_computation(
    values: list[tuple[int, float]], season: str, memory: int
) -> None:
    # Few hours, so that slots have several seasons with several values each.
    values = sorted((hour // 24 * 24 + hour % 3, value) for hour, value in values)
    options = SeasonalBaselineOptions(field="value", season=season, memory=memory)  # type: ignore[arg-type]
    with Task.of(SeasonalBaseline) as task:
        task.init(options)
        found = added(task.send(*(at(hour, value) for hour, value in values)))
    expected = direct(values, 24 if season == "day" else WEEK_H, memory)
    for (_, value), (mean, deviation), usual in zip(values, found, expected, strict=True):
        if usual is None:
            assert (mean, deviation) == (None, None)
            continue
        assert isinstance(mean, float)
        assert math.isclose(mean, usual[0], rel_tol=1e-9, abs_tol=1e-6)
        if usual[1] > 1e-3:
            assert isinstance(deviation, float)
            far = (value - usual[0]) / usual[1]
            assert math.isclose(deviation, far, rel_tol=1e-6, abs_tol=1e-6)


def test_the_first_season_has_nothing_to_compare_with(udf: StartTask) -> None:
    task = udf(SeasonalBaseline, SeasonalBaselineOptions(field="value"))
    sent = [at(hour, float(hour)) for hour in range(WEEK_H)]
    assert task.send(*sent).points == sent
    # In the second one, each hour has one earlier value, which has no spread.
    assert added(task.send(at(WEEK_H + 3, 7.0))) == [(3.0, None)]


def test_the_deviation_is_in_standard_deviations(udf: StartTask) -> None:
    task = udf(SeasonalBaseline, SeasonalBaselineOptions(field="value", season="day"))
    task.send(at(9, 10.0), at(9.5, 14.0))
    assert added(task.send(at(24 + 9, 18.0))) == [(12.0, 3.0)]


def test_hours_are_those_of_the_local_clock(udf: StartTask) -> None:
    zone = zoneinfo.ZoneInfo("Europe/Berlin")
    options = SeasonalBaselineOptions(field="value", zone="Europe/Berlin")
    task = udf(SeasonalBaseline, options)
    # The clocks change between these two weeks: 09:00 is 08:00 UTC, and then 07:00 UTC.
    points = []
    for day in (27, 34):
        local = dt.datetime(2024, 3, 1, 9, tzinfo=zone) + dt.timedelta(days=day - 1)
        time = int(local.timestamp()) * 1_000_000_000
        points.append(Point(name="m", time=time, fieldsDouble={"value": float(day)}))
    assert added(task.send(*points)) == [(None, None), (27.0, None)]


def test_each_group_has_its_own_baseline(udf: StartTask) -> None:
    task = udf(SeasonalBaseline, SeasonalBaselineOptions(field="value"))
    task.send(at(0, 1.0), at(0, 5.0, host="b"))
    later = task.send(at(WEEK_H, 0.0), at(WEEK_H, 0.0, host="b"))
    assert added(later) == [(1.0, None), (5.0, None)]


def test_the_baseline_survives_a_restart(udf: StartTask) -> None:
    options = SeasonalBaselineOptions(field="value", season="day")
    earlier = udf(SeasonalBaseline, options)
    earlier.send(at(9, 10.0), at(9.5, 14.0), at(33, 11.0))
    snapshot = earlier.snapshot()
    later = udf(SeasonalBaseline, options)
    later.restore(snapshot)
    points = [at(33.5, 18.0), at(57, 12.0)]
    assert added(later.send(*points)) == added(earlier.send(*points))


def test_values_that_overflow_do_not_spoil_the_state(udf: StartTask) -> None:
    options = SeasonalBaselineOptions(field="value", season="day")
    task = udf(SeasonalBaseline, options)
    task.send(at(9, 1.0), at(9.1, 1e300), at(9.2, -1e300), at(33, 1e308))
    assert added(task.send(at(57, 2.0)))[0][0] is not None
    udf(SeasonalBaseline, options).restore(task.snapshot())


@pytest.mark.parametrize("text", [None, "fast"])
def test_a_point_without_a_number_passes_through_unchanged(
    udf: StartTask, text: str | None
) -> None:
    task = udf(SeasonalBaseline, SeasonalBaselineOptions(field="value"))
    point = Point(name="m", time=MONDAY_NS)
    if text is not None:
        point.fieldsString["value"] = text
    assert task.send(point).points == [point]


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "../etc/passwd"])
def test_an_unknown_zone_is_refused(udf: StartTask, zone: str) -> None:
    with pytest.raises(TaskFailedError, match=r"\.zone\(\) expects a time zone such as"):
        udf(SeasonalBaseline, SeasonalBaselineOptions(field="value", zone=zone))
