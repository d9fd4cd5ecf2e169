"""Groups, compared with those of a real kapacitord, and times as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kapudf_cli import Point
from kapudf_cli.tools.recordings.notation import Grouping, group_id, read_time, write_time
from tests.captured import points_of


@pytest.mark.parametrize(
    ("capture", "grouping"),
    [
        ("stream-01", Grouping(("host",))),
        ("stream-02", Grouping(None, by_name=True)),
    ],
)
def test_groups_are_those_of_kapacitor(capture: str, grouping: Grouping) -> None:
    sent = points_of(capture)
    assert sent
    for point in sent:
        ours = Point()
        ours.CopyFrom(point)
        ours.ClearField("group")
        ours.ClearField("byName")
        del ours.dimensions[:]
        grouping.apply(ours)
        assert ours == point


@pytest.mark.parametrize(
    ("dimensions", "by_name", "group"),
    [
        ([], False, ""),
        ([], True, "cpu"),
        (["host"], False, "host=a"),
        (["cpu", "host"], True, "cpu\ncpu=,host=a"),
    ],
)
def test_a_group_is_named(dimensions: list[str], by_name: bool, group: str) -> None:  # noqa: FBT001 - a parameter of the test
    assert group_id("cpu", {"host": "a"}, dimensions, by_name=by_name) == group


def test_tags_to_group_by_are_sorted() -> None:
    point = Point(name="cpu", tags={"host": "a", "cpu": "0", "x": "y"})
    Grouping(("host", "cpu")).apply(point)
    assert (list(point.dimensions), point.group) == (["cpu", "host"], "cpu=0,host=a")


@given(st.integers(-(2**63), 2**63 - 1))
def test_a_time_that_is_written_reads_back_as_it_was(nanoseconds: int) -> None:
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
    assert read_time(text) == nanoseconds


def test_zeros_at_the_end_of_a_fraction_are_not_written() -> None:
    assert write_time(1_600_000_000_120_000_000) == "2020-09-13T12:26:40.12Z"
    assert write_time(0) == "1970-01-01T00:00:00Z"


@pytest.mark.parametrize(
    "text", ["", "2020-09-13", "2020-09-13T12:26:40", "2020-13-13T12:26:40Z", "1600000000"]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a time|month must be"):
        read_time(text)
