"""Groups, compared with those that a real kapacitord formed."""

from __future__ import annotations

import pytest

from kapudf_cli import Point
from kapudf_cli.tools.recordings.grouping import Grouping, group_id
from tests.captured import points_of


@pytest.mark.parametrize(
    ("capture", "grouping"),
    [
        ("stream-01", Grouping(("host",))),
        ("stream-02", Grouping(None, by_name=True)),
    ],
)
def test_groups_are_those_of_kapacitor(capture: str, grouping: Grouping) -> None:
    """Group, dimensions and byName of every point that it sent, non-ASCII and escaped ones too."""
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
    """After ToGroupID of Kapacitor's models/point.go; a tag that is absent is empty."""
    assert group_id("cpu", {"host": "a"}, dimensions, by_name=by_name) == group


def test_tags_to_group_by_are_sorted() -> None:
    """As Kapacitor does, whatever the order in the TICKscript."""
    point = Point(name="cpu", tags={"host": "a", "cpu": "0", "x": "y"})
    Grouping(("host", "cpu")).apply(point)
    assert (list(point.dimensions), point.group) == (["cpu", "host"], "cpu=0,host=a")
