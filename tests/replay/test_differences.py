"""Differences: how points are paired, and how each is reported."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kapudf_cli import Point, set_field
from kapudf_cli.handler import drop_field
from kapudf_cli.handler.batches import Batch, batch_messages
from kapudf_cli.protocol import BeginBatch, EndBatch
from kapudf_cli.testing import grouped, lines
from kapudf_cli.tools.replay import differences
from kapudf_cli.tools.replay.formats import DifferenceFormat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kapudf_cli.protocol.codec import DataMessage
    from kapudf_cli.tools.replay.differences import Fate


def differing(sent: Iterable[DataMessage], received: Iterable[DataMessage]) -> list[str]:
    """Return the lines for points that were sent and points that came back."""
    told: list[str] = []
    shown = DifferenceFormat(told.append, lambda text, _: text)
    for message in sent:
        shown.differences.sent(message)
    for message in received:
        shown.take(message)
    shown.finish()
    return told


def stream(*texts: str) -> list[Point]:
    return grouped(lines(*texts), "host")


def changed(point: Point, change: Callable[[Point], object]) -> Point:
    after = copy.deepcopy(point)
    change(after)
    return after


POINTS = stream("m,host=a x=1.0 1", "m,host=b x=2.0 1", "m,host=a x=3.0 2", "m,host=b x=4.0 2")


def test_what_comes_back_as_it_was() -> None:
    assert differing(POINTS[:2], POINTS[:2]) == [
        "= m,host=a 1970-01-01T00:00:00.000000001Z",
        "= m,host=b 1970-01-01T00:00:00.000000001Z",
        "# 2 as they were",
    ]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda p: set_field(p, "avg", 1.5), "+avg=1.5"),
        (lambda p: set_field(p, "x", 2.0), "x: 1.0 → 2.0"),
        (lambda p: set_field(p, "x", 1), "x: 1.0 → 1i"),
        (lambda p: set_field(p, "x", "a\nb"), 'x: 1.0 → "a\\nb"'),
        (lambda p: drop_field(p, "x"), "-x"),
        (lambda p: p.tags.update({"dc": "1"}), "+tag dc=1"),
        (lambda p: setattr(p, "database", "other"), "database: telegraf → other"),
        (lambda p: setattr(p, "retentionPolicy", ""), "retention policy: autogen → (none)"),
        (lambda p: p.dimensions.append("dc"), "dimensions: host → host,dc"),
        (lambda p: setattr(p, "name", "n"), "name: m → n"),
        (lambda p: setattr(p, "byName", True), "by name: (none) → yes"),
        (lambda p: p.ClearField("dimensions"), "dimensions: host → (none)"),
        (lambda p: p.ClearField("group"), None),
    ],
)
def test_each_change_is_told(change: Callable[[Point], object], told: str | None) -> None:
    (line, count) = differing(POINTS[:1], [changed(POINTS[0], change)])
    if told is None:
        assert (line[0], count) == ("=", "# 1 as they were")
    else:
        assert line.startswith("~ ")
        assert line.split("  ", 1)[1] == told
        assert count == "# 1 changed"


def test_several_changes_of_a_point_stand_in_one_line() -> None:
    after = changed(POINTS[0], lambda p: p.tags.update({"dc": "1"}))
    set_field(after, "y", 1)
    (line, _) = differing(POINTS[:1], [after])
    assert line == "~ m,dc=1,host=a 1970-01-01T00:00:00.000000001Z  +tag dc=1  +y=1i"


def test_a_point_that_is_dropped_stands_where_it_was() -> None:
    told = differing(POINTS, [POINTS[1], POINTS[2]])
    assert [line[:10] for line in told] == [
        "= m,host=b",
        "- m,host=a",
        "= m,host=a",
        "- m,host=b",
        "# 2 as the",
    ]
    assert told[-1] == "# 2 as they were, 2 did not come back"


def test_a_point_that_was_not_sent_is_new() -> None:
    (new,) = stream("m,host=a mean=1.0 99")
    assert differing(POINTS[:1], [POINTS[0], new])[1:] == [
        "+ m,host=a 1970-01-01T00:00:00.000000099Z  mean=1.0",
        "# 1 as they were, 1 new",
    ]


def test_points_of_one_time_without_groups_are_told_apart_by_their_tags() -> None:
    points = lines("m,host=a x=1.0 1", "m,host=b x=2.0 1", "m,host=c x=3.0 1")
    back = [changed(point, lambda p: p.tags.update({"dc": "1"})) for point in points[1:]]
    time = "1970-01-01T00:00:00.000000001Z"
    assert differing(points, back) == [
        f"- m,host=a {time}",
        f"~ m,dc=1,host=b {time}  +tag dc=1",
        f"~ m,dc=1,host=c {time}  +tag dc=1",
        "# 2 changed, 1 did not come back",
    ]


# --- batches ---


def batch(host: str, tmax: int, *times: int) -> Batch:
    points = [Point(time=time, group=f"host={host}", tags={"host": host}) for time in times]
    for point in points:
        set_field(point, "x", float(point.time))
    return Batch("m", points, {"host": host}, f"host={host}", tmax)


def test_what_did_not_come_back_of_a_batch_stands_before_its_end() -> None:
    sent = batch("a", 9, 1, 2, 3, 4)
    back = sent.copy_with([sent.points[3], sent.points[1]])
    told = differing(batch_messages(sent), batch_messages(back))
    time = "1970-01-01T00:00:00.00000000"
    assert told == [
        "# begin m,host=a",
        f"= m,host=a {time}4Z",
        f"= m,host=a {time}2Z",
        f"- m,host=a {time}1Z",
        f"- m,host=a {time}3Z",
        f"# end m,host=a tmax={time}9Z",
        "# 2 as they were, 2 did not come back",
    ]


def test_batches_of_groups_are_told_apart() -> None:
    one, other, lost, last = (
        batch("a", 9, 1, 2),
        batch("b", 9, 1, 2),
        batch("a", 19, 11),
        batch("a", 29, 21),
    )
    sent = [message for each in (one, other, lost, last) for message in batch_messages(each)]
    received = [message for each in (other, one, last) for message in batch_messages(each)]
    told = differing(sent, received)
    assert [line[:10] for line in told] == [
        "# begin m,",
        "= m,host=b",
        "= m,host=b",
        "# end m,ho",
        "# begin m,",
        "= m,host=a",
        "= m,host=a",
        "# end m,ho",
        "# begin m,",
        "= m,host=a",
        "- m,host=a",
        "# end m,ho",
        "# 5 as the",
    ]
    assert told[-1] == "# 5 as they were, 1 did not come back"


def test_a_batch_that_becomes_a_point() -> None:
    new = Point(name="m", time=9, tags={"host": "a"}, dimensions=["host"], group="host=a")
    set_field(new, "t", 1.5)
    told = differing(batch_messages(batch("a", 8, 1, 9)), [new])
    assert [line[0] for line in told] == ["+", "-", "-", "#"]
    assert told[0] == "+ m,host=a 1970-01-01T00:00:00.000000009Z  t=1.5"


def test_points_of_a_batch_that_become_a_stream() -> None:
    sent = batch("a", 9, 1, 2)
    told = differing(batch_messages(sent), sent.as_stream(sent.points))
    assert [line[0] for line in told] == ["=", "=", "#"]


def test_a_point_of_another_series_is_none_of_those_sent() -> None:
    (other,) = stream("m,host=c x=1.0 1")
    assert [line[0] for line in differing(POINTS[:1], [other])] == ["+", "-", "#"]


# --- bounds ---


def test_what_is_under_way_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(differences, "MAX_PENDING", 3)
    told: list[str] = []
    shown = DifferenceFormat(told.append, lambda text, _: text)
    for point in stream(*(f"m,host=a x=1.0 {time}" for time in range(5))):
        shown.differences.sent(point)
    assert [line[0] for line in told] == ["-", "-"]
    assert len(shown.differences._all) == 3


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 5), st.booleans()), max_size=30))
def test_nothing_is_kept_of_what_is_over(sent: list[tuple[str, int, bool]]) -> None:
    points = stream(*(f"m,host={host} x=1.0 {time}" for host, time, _ in sent))
    kept = [point for point, (_, _, keep) in zip(points, sent, strict=True) if keep]
    told: list[str] = []
    shown = DifferenceFormat(told.append, lambda text, _: text)
    for point in points:
        shown.differences.sent(point)
    for point in kept:
        shown.take(point)
    shown.finish()
    pairs = shown.differences
    assert pairs.counts[differences.Fate.LOST] + pairs.counts[differences.Fate.SAME] == len(points)
    assert pairs.counts[differences.Fate.SAME] + pairs.counts[differences.Fate.NEW] == len(kept)
    tables = (pairs._all, pairs._groups, pairs._of_time, pairs._of_group_and_time)
    assert list(map(len, tables)) == [0, 0, 0, 0]


def test_colours_are_the_caller_s() -> None:
    painted: list[tuple[str, Fate | None]] = []

    def paint(text: str, fate: Fate | None) -> str:
        painted.append((text, fate))
        return text

    shown = DifferenceFormat(lambda _: None, paint)
    for point in POINTS[:2]:
        shown.differences.sent(point)
    shown.take(changed(POINTS[0], lambda p: set_field(p, "y", 1.0)))
    shown.finish()
    fates = differences.Fate
    assert painted[0] == ("+y=1.0", fates.CHANGED)
    assert painted[1] == ("- m,host=b 1970-01-01T00:00:00.000000001Z", fates.LOST)
    assert painted[2] == ("# 1 changed, 1 did not come back", None)


def test_begin_and_end_are_messages_of_their_own() -> None:
    told = differing([], [BeginBatch(name="m"), EndBatch(name="m", tmax=0)])
    assert told == ["# begin m", "# end m tmax=1970-01-01T00:00:00Z"]


@pytest.mark.timeout(20)
def test_an_end_that_no_batch_had_costs_no_search_through_all_batches() -> None:
    sent = [
        message
        for time in range(8000)
        for message in (
            BeginBatch(name="m", group="g"),
            Point(time=time, group="g", fieldsDouble={"x": 1.0}),
            EndBatch(name="m", group="g", tmax=time),
        )
    ]
    ends = [
        message
        for time in range(8000)
        for message in (
            BeginBatch(name="m", group="g"),
            EndBatch(name="m", group="g", tmax=10_000 + time),
        )
    ]
    assert differing(sent, ends)[-1] == "# 8,000 did not come back"
