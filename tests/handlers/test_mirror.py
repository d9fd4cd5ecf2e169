"""The handlers `mirror` and `batch-mirror`."""

from __future__ import annotations

import pytest
from kapudf_handlers.mirror import BatchMirror, Mirror, MirrorOptions

from kapudf_cli import BATCH, STREAM, Handler, Point, get_field, get_fields
from kapudf_cli.handler.batches import Batch
from kapudf_cli.protocol.udf_pb2 import INT, STRING, InitRequest, Option, OptionValue
from kapudf_cli.testing import StartTask, Task, TaskFailedError, grouped, lines
from tests.handlers import recordings

ALL_TYPES = 'cpu,host=a f=0.25,i=9007199254740993i,s="text",b=true 1700000000000000000'


def copies(points: list[Point]) -> list[Point]:
    """Return copies, so that nothing that happens to the points happens to these."""
    return [Point.FromString(point.SerializeToString()) for point in points]


def batch_of(*texts: str) -> Batch:
    """Return a batch of points in line protocol."""
    points = [Point(time=p.time, tags=p.tags, fieldsDouble=p.fieldsDouble) for p in lines(*texts)]
    return Batch("cpu", points, {"host": "a"}, "host=a", 99, by_name=True)


def test_a_recorded_stream_comes_back_equal(udf: StartTask) -> None:
    points = grouped(recordings.read_stream(recordings.STREAM), "host")
    wanted = copies(points)
    assert len(wanted) == 550
    assert udf(Mirror).send(*points).points == wanted


def test_recorded_batches_come_back_equal(udf: StartTask) -> None:
    batches = recordings.read_batches(recordings.BATCH)
    wanted = recordings.read_batches(recordings.BATCH)
    assert len(wanted) == 30
    out = udf(BatchMirror).send(*batches)
    assert out.batches == wanted
    assert out.points == []


def test_a_batch_without_points_comes_back(udf: StartTask) -> None:
    batch = Batch("cpu", [], {"host": "a"}, "host=a", 1_600_000_000_000_000_001)
    assert udf(BatchMirror).send(batch).batches == [batch]


@pytest.mark.parametrize("name", ["f", "i", "s", "b", "new"])
def test_a_field_is_a_float_whatever_had_its_name(udf: StartTask, name: str) -> None:
    (point,) = lines(ALL_TYPES)
    wanted = {**get_fields(point), name: 42.0}
    (out,) = udf(Mirror, MirrorOptions(field=[(name, 42.0)])).send(point).points
    assert get_fields(out) == wanted
    assert out.fieldsDouble[name] == 42.0
    maps = (out.fieldsBool, out.fieldsDouble, out.fieldsInt, out.fieldsString)
    assert sum(name in fields for fields in maps) == 1


def test_a_tag_is_set_over_the_one_that_was_there(udf: StartTask) -> None:
    options = MirrorOptions(tag=[("host", "b"), ("new", "ü")])
    (out,) = udf(Mirror, options).send(*lines("cpu,host=a,rack=1 f=1.0 10")).points
    assert dict(out.tags) == {"host": "b", "rack": "1", "new": "ü"}


def test_fields_and_tags_may_be_set_together_and_repeatedly(udf: StartTask) -> None:
    options = MirrorOptions(
        field=[("x", 1.0), ("y", -0.5), ("x", 2.0)], tag=[("t", "1"), ("u", "2"), ("t", "3")]
    )
    (out,) = udf(Mirror, options).send(*lines("cpu n=7i 10")).points
    assert get_fields(out) == {"n": 7, "x": 2.0, "y": -0.5}
    assert dict(out.tags) == {"t": "3", "u": "2"}


def test_without_options_a_point_is_untouched(udf: StartTask) -> None:
    points = grouped(lines(ALL_TYPES), "host")
    wanted = copies(points)
    assert udf(Mirror).send(*points).points == wanted


def test_a_batch_mirror_sets_both_on_each_point_and_keeps_the_batch(udf: StartTask) -> None:
    batch = batch_of("cpu,host=a f=1.0 10", "cpu,host=a f=2.0 20")
    options = MirrorOptions(field=[("x", 0.5)], tag=[("checked", "yes")])
    (out,) = udf(BatchMirror, options).send(batch).batches
    assert [get_fields(point) for point in out.points] == [{"f": f, "x": 0.5} for f in (1.0, 2.0)]
    assert [dict(point.tags) for point in out.points] == [{"host": "a", "checked": "yes"}] * 2
    assert [point.time for point in out.points] == [10, 20]
    assert out.copy_with([]) == batch.copy_with([])


@pytest.mark.parametrize(("handler", "edge"), [(Mirror, STREAM), (BatchMirror, BATCH)])
def test_a_mirror_declares_its_edges_and_options(
    udf: StartTask, handler: type[Handler], edge: int
) -> None:
    info = udf(handler).info()
    assert (info.wants, info.provides) == (edge, edge)
    assert sorted(info.options) == ["field", "tag"]


@pytest.mark.parametrize("handler", [Mirror, BatchMirror])
def test_a_field_that_is_no_float_is_refused_in_words(handler: type[Handler]) -> None:
    values = [OptionValue(type=STRING, stringValue="x"), OptionValue(type=INT, intValue=42)]
    with Task.of(handler) as task, pytest.raises(TaskFailedError) as failure:
        task.init_raw(InitRequest(options=[Option(name="field", values=values)]))
    assert str(failure.value) == ".field() expects a float as value 2, got 42"


def test_state_is_neither_kept_nor_needed(udf: StartTask) -> None:
    task = udf(Mirror)
    assert task.snapshot() == b""
    task.restore(b"state")
    (out,) = task.send(*lines("cpu f=1.0 10")).points
    assert get_field(out, "f") == 1.0
