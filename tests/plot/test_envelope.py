"""Lines in bounded memory."""

from __future__ import annotations

import random

import hypothesis.strategies as st
from hypothesis import given

from kapudf_cli.tools.plot.envelope import COLUMNS, Envelope

POINTS = st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.floats(-1e9, 1e9)), min_size=1)


@given(POINTS)
def test_few_points_are_kept_in_the_order_of_time(points: list[tuple[int, float]]) -> None:
    """Of several points of one time, the lowest and the highest."""
    envelope = Envelope()
    for point in points:
        envelope.add(*point)
    expected = set()
    for time, _ in points:
        values = [value for other, value in points if other == time]
        expected |= {(time, min(values)), (time, max(values))}
    kept = list(zip(*envelope.points(), strict=True))
    assert sorted(kept) == kept
    assert set(kept) == expected
    assert envelope.count == len(points)


@given(POINTS, st.integers(2, 8))
def test_many_points_are_joined_and_the_extremes_are_exact(
    points: list[tuple[int, float]], columns: int
) -> None:
    envelope = Envelope(columns)
    for point in points:
        envelope.add(*point)
    times, values = envelope.points()
    assert len(times) <= 2 * columns
    assert set(zip(times, values, strict=True)) <= set(points)
    lowest, highest = min(v for _, v in points), max(v for _, v in points)
    assert envelope.span == (min(values), max(values)) == (lowest, highest)


def test_no_pixel_of_a_picture_lacks_its_extremes() -> None:
    """Each spike is there, at its exact time, in whatever order the points come."""
    chance = random.Random(1)  # noqa: S311 - the same points in every run
    points = [(time, chance.random()) for time in range(60_000)]
    spikes = [(time, 100.0 + time) for time in range(17, 60_000, 300)]
    pits = [(time + 1, -100.0 - time) for time, _ in spikes]
    points += spikes + pits
    chance.shuffle(points)
    envelope = Envelope()
    for point in points:
        envelope.add(*point)
    kept = set(zip(*envelope.points(), strict=True))
    assert COLUMNS // 2 <= len(kept) <= 2 * COLUMNS
    assert envelope.is_joined
    assert kept >= {*spikes, *pits}
