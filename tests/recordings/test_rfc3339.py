"""Times as text, to the nanosecond."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kapudf_cli.tools.recordings.rfc3339 import read_time, write_time


@given(st.integers(-(2**63), 2**63 - 1))
def test_a_time_that_is_written_reads_back_as_it_was(nanoseconds: int) -> None:
    """Over the whole range that a point's time has."""
    assert read_time(write_time(nanoseconds)) == nanoseconds


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("2020-09-13T12:26:40Z", 1_600_000_000_000_000_000),
        ("2020-09-13T12:26:40.000000001Z", 1_600_000_000_000_000_001),
        ("2020-09-13T14:26:40.5+02:00", 1_600_000_000_500_000_000),
        ("2020-09-13t12:26:40z", 1_600_000_000_000_000_000),
        ("1969-12-31T23:59:59.999999999Z", -1),
    ],
)
def test_each_form_of_a_time(text: str, nanoseconds: int) -> None:
    """Fractions, zones and times before the epoch."""
    assert read_time(text) == nanoseconds


def test_zeros_at_the_end_of_a_fraction_are_not_written() -> None:
    """As Go writes times."""
    assert write_time(1_600_000_000_120_000_000) == "2020-09-13T12:26:40.12Z"
    assert write_time(0) == "1970-01-01T00:00:00Z"


@pytest.mark.parametrize(
    "text", ["", "2020-09-13", "2020-09-13T12:26:40", "2020-13-13T12:26:40Z", "1600000000"]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    """One without a zone as well: nobody knows when it is."""
    with pytest.raises(ValueError, match=r"is not a time|month must be"):
        read_time(text)
