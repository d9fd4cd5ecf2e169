"""Points of a given shape."""

from __future__ import annotations

import pytest

from kapudf_cli.protocol.codec import REQUESTS
from kapudf_cli.protocol.udf_pb2 import BeginBatch, EndBatch, Point
from kapudf_cli.tools.load.work import Shape, Work


def test_the_default_is_telegrafs_cpu() -> None:
    points = list(Shape().points(100))
    assert {len(point.fieldsDouble) for point in points} == {10}
    assert {tuple(sorted(point.tags)) for point in points} == {("cpu", "host")}
    assert len({point.group for point in points}) == 8
    assert points[0].group == "cpu=cpu-total,host=server00"
    assert 300 < len(REQUESTS.encode(points[0])) < 450


def test_points_are_the_same_in_every_run() -> None:
    assert list(Shape().points(50)) == list(Shape().points(50))


@pytest.mark.parametrize("fields", [1, 3, 10, 25])
@pytest.mark.parametrize("tags", [0, 1, 2, 5])
def test_a_point_has_as_many_fields_and_tags_as_asked_for(fields: int, tags: int) -> None:
    point = next(Shape(fields=fields, tags=tags, groups=3).points(1))
    assert len(point.fieldsDouble) == fields
    assert len(point.tags) == tags
    assert list(point.dimensions) == sorted(point.tags)


def test_batches_are_whole_and_of_one_group_each() -> None:
    messages = list(Shape(groups=3).batches(30, 10))
    begins = [message for message in messages if isinstance(message, BeginBatch)]
    ends = [message for message in messages if isinstance(message, EndBatch)]
    assert [begin.size for begin in begins] == [10, 10, 10]
    assert [begin.group for begin in begins] == [end.group for end in ends]
    assert len({begin.group for begin in begins}) == 3
    assert isinstance(messages[0], BeginBatch)
    last = messages[10]
    assert isinstance(last, Point)
    assert ends[0].tmax == last.time


def test_what_is_due_at_one_moment_is_a_point_or_a_whole_batch() -> None:
    shape = Shape()
    points = Work(list(shape.points(5)))
    assert [unit.points for unit in points.units] == [1] * 5
    batches = Work(list(shape.batches(20, 10)))
    assert [(unit.points, len(unit.frames)) for unit in batches.units] == [(10, 12)] * 2
    assert b"".join(unit.data for unit in batches.units) == b"".join(
        map(REQUESTS.encode, batches.messages)
    )
    assert (points.points, batches.points) == (5, 20)
