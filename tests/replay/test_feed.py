"""Windows over a stream, compared with those of a real kapacitord."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kapudf_cli import Point
from kapudf_cli.testing import grouped, lines
from kapudf_cli.tools.errors import WindowsTooFullError
from kapudf_cli.tools.replay import feed
from kapudf_cli.tools.replay.feed import Feed, Windows
from tests.captured import data_of, points_of

SECOND = 10**9


@pytest.mark.parametrize(
    ("stream", "batches"), [("stream-01", "batch-01"), ("stream-03", "batch-02")]
)
def test_windows_are_those_of_kapacitor(stream: str, batches: str) -> None:
    """One kapacitord sent the same points as a stream, and as windows of ten seconds.

    There, the groups interleave in another order, as each has its own node.
    """

    def of_group(messages: list[object], group: str) -> list[object]:
        return [each for each in messages if getattr(each, "group", None) == group]

    points = points_of(stream)
    cut = Windows(10 * SECOND)
    ours: list[object] = list(Feed(windows=None).messages(cut.cut(iter(points))))
    theirs: list[object] = list(data_of(batches))
    groups = {point.group for point in points}
    assert len(groups) == 3
    for group in groups:
        assert of_group(ours, group) == of_group(theirs, group)
    assert cut.held == len(points) - len(points_of(batches))


def times(windows_of: Windows, *times_s: int) -> list[tuple[list[int], int]]:
    """Return the times in each window, and its end, of points of one group."""
    points = grouped(lines(*(f"m,host=a x=1.0 {time * SECOND}" for time in times_s)), "host")
    return [
        ([point.time // SECOND for point in batch.points], (batch.tmax_ns or 0) // SECOND)
        for batch in windows_of.cut(points)
    ]


def test_a_window_begins_with_its_first_point() -> None:
    cut = Windows(10 * SECOND)
    assert times(cut, 3, 12, 13, 14, 40) == [([3, 12], 13), ([13, 14], 23)]
    assert cut.held == 1


def test_a_late_point_is_in_the_window_that_is_open() -> None:
    assert times(Windows(10 * SECOND), 20, 5, 30) == [([20, 5], 30)]


@given(st.lists(st.integers(0, 50), max_size=40))
def test_no_point_is_lost_or_doubled(seconds: list[int]) -> None:
    cut = Windows(5 * SECOND)
    windowed = times(cut, *seconds)
    together = [time for inside, _ in windowed for time in inside]
    assert together == seconds[: len(together)]
    assert len(together) + cut.held == len(seconds)


def test_points_of_a_batch_have_time_group_tags_and_fields() -> None:
    points = grouped(lines("m,host=a,cpu=0 x=1i 0", "m,host=a x=2i 9000000000"), "host", "dc")
    (batch,) = Windows(SECOND).cut(points)
    assert batch.points == [
        Point(group="dc=,host=a", tags={"host": "a", "cpu": "0"}, fieldsInt={"x": 1})
    ]
    assert (batch.name, batch.tags, batch.group) == ("m", {"dc": "", "host": "a"}, "dc=,host=a")


def test_windows_that_never_close_do_not_fill_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "MAX_HELD_POINTS", 3)
    with pytest.raises(WindowsTooFullError, match="more than 3 points in open windows; choose"):
        times(Windows(100 * SECOND), 1, 2, 3, 4)
