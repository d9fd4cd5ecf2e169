"""The histogram of latencies, compared with exact percentiles."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from kapudf_cli.tools.load.connection import PERCENTILES, Latencies

NANOSECONDS = st.lists(st.integers(0, 10**12), min_size=1, max_size=300)


@given(NANOSECONDS)
def test_a_percentile_is_off_by_less_than_a_hundredth(values: list[int]) -> None:
    latencies = Latencies()
    for value in values:
        latencies.add(value)
    ordered = sorted(values)
    for percent in PERCENTILES:
        exact = ordered[max(math.ceil(len(values) * percent / 100) - 1, 0)]
        assert exact <= latencies.percentile_ns(percent) <= exact * 1.01 + 1
    assert latencies.max_ns == ordered[-1]
    assert latencies.count == len(values)


@given(NANOSECONDS, st.integers(1, 1000))
def test_many_at_once_are_as_many_one_by_one(values: list[int], count: int) -> None:
    at_once, singly = Latencies(), Latencies()
    for value in values:
        at_once.add(value, count)
        for _ in range(count if count < 20 else 1):
            singly.add(value)
    for percent in PERCENTILES:
        assert at_once.percentile_ns(percent) == singly.percentile_ns(percent)


def test_no_latencies_have_percentiles_of_nothing() -> None:
    latencies = Latencies()
    assert [latencies.percentile_ns(percent) for percent in PERCENTILES] == [0, 0, 0, 0]
    assert latencies.max_ns == 0


def test_a_clock_that_goes_back_does_no_harm() -> None:
    latencies = Latencies()
    latencies.add(-5)
    assert (latencies.count, latencies.max_ns) == (1, 0)


def test_memory_does_not_grow_with_the_number_of_values() -> None:
    latencies = Latencies()
    for value in range(1_000_000, 2_000_000, 7):
        latencies.add(value)
    assert len(latencies._buckets) < 300
