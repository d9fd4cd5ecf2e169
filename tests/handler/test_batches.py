"""Handlers of whole batches: batch to batch, batch to stream, stream to batch."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, ClassVar

import hypothesis.strategies as st
import pytest
from hypothesis import given

from kapudf_cli.client.target import served
from kapudf_cli.handler.batch_handler import BatchHandler
from kapudf_cli.handler.batches import Batch, batch_messages
from kapudf_cli.handler.errors import BatchTooLongError
from kapudf_cli.handler.handler import Handler
from kapudf_cli.handler.output import write_batch
from kapudf_cli.handler.points import copy_envelope, get_field, get_number, set_field
from kapudf_cli.handler.state import State
from kapudf_cli.protocol.udf_pb2 import (
    BATCH,
    STREAM,
    BeginBatch,
    EndBatch,
    InitRequest,
    InitResponse,
    Point,
    SnapshotRequest,
    SnapshotResponse,
)
from kapudf_cli.testing import StartTask, TaskFailedError, grouped, lines
from tests.peers import responses_to
from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from kapudf_cli.handler.output import Writer
    from kapudf_cli.protocol.codec import RequestMessage, ResponseMessage

#: As Kapacitor sends it after a window node: EndBatch has no byName.
BEGIN = BeginBatch(name="cpu", group="cpu\nhost=a", tags={"host": "a"}, size=3, byName=True)
END = EndBatch(name="cpu", group="cpu\nhost=a", tags={"host": "a"}, tmax=1_000)


def batch_points(*values: float) -> list[Point]:
    """Return points as Kapacitor sends them in a batch: without name and dimensions."""
    return [
        Point(time=10 * place, group="cpu\nhost=a", tags={"host": "a"}, fieldsDouble={"v": value})
        for place, value in enumerate(values)
    ]


def exchange(handler: type[Handler], *requests: RequestMessage) -> list[ResponseMessage]:
    """Return all responses of a handler after Init."""
    with served(handler, timeout_s=PATIENCE_S) as one:
        answers = list(responses_to(one.side, [InitRequest(), *requests]))
    assert answers[0] == InitResponse(success=True)
    return answers[1:]


class Returning(BatchHandler):
    """Returns what the test has set."""

    result: ClassVar[Callable[[Batch], Any]]

    def batch(self, batch: Batch, /) -> Iterable[Point] | Batch | None:
        result: Iterable[Point] | Batch | None = type(self).result(batch)
        return result


def returning(
    result: Callable[[Batch], Iterable[Point] | Batch | None], **attributes: Any
) -> type[BatchHandler]:
    return type("Made", (Returning,), {"result": staticmethod(result), **attributes})


# --- batch to batch ---


def test_a_batch_comes_with_all_that_its_begin_and_end_say() -> None:
    seen: list[Batch] = []
    points = batch_points(1.0, 2.0, 3.0)
    exchange(returning(seen.append), BEGIN, *points, END)
    assert seen == [
        Batch(
            name="cpu",
            points=points,
            tags={"host": "a"},
            group="cpu\nhost=a",
            tmax_ns=1_000,
            by_name=True,
        )
    ]


def test_begin_and_end_are_written_around_what_is_returned() -> None:
    first, _, third = points = batch_points(1.0, 2.0, 3.0)
    handler = returning(lambda batch: [batch.points[0], batch.points[2]])
    assert exchange(handler, BEGIN, *points, END) == [
        BeginBatch(name="cpu", group="cpu\nhost=a", tags={"host": "a"}, size=2, byName=True),
        first,
        third,
        EndBatch(name="cpu", group="cpu\nhost=a", tags={"host": "a"}, tmax=1_000, byName=True),
    ]


def without_second(points: list[Point]) -> list[Point]:
    del points[1]
    return points


RESULTS: dict[str, Callable[[Batch], Iterable[Point]]] = {
    "a list": lambda batch: [point for point in batch.points if get_number(point, "v") != 2.0],
    "a generator": lambda batch: (p for p in batch.points if get_number(p, "v") != 2.0),
    "an iterator": lambda batch: filter(lambda p: get_number(p, "v") != 2.0, batch.points),
    "a tuple": lambda batch: (batch.points[0], batch.points[2]),
    "the batch's own list": lambda batch: without_second(batch.points),
}


@pytest.mark.parametrize("result", RESULTS.values(), ids=RESULTS)
@pytest.mark.parametrize("provides", [BATCH, STREAM], ids=["to batch", "to stream"])
def test_points_may_be_returned_in_any_iterable(
    udf: StartTask, result: Callable[[Batch], Iterable[Point]], provides: int
) -> None:
    task = udf(returning(result, provides=provides))
    output = task.send(Batch(name="cpu", points=batch_points(1.0, 2.0, 3.0)))
    points = output.batches[0].points if provides == BATCH else output.points
    assert [get_number(point, "v") for point in points] == [1.0, 3.0]


def test_the_size_of_a_generators_batch_is_known() -> None:
    handler = returning(lambda batch: (point for point in batch.points))
    begin = exchange(handler, BEGIN, *batch_points(1.0, 2.0), END)[0]
    assert isinstance(begin, BeginBatch)
    assert begin.size == 2


class Generating(BatchHandler):
    """Implements `batch` as a generator function."""

    def batch(self, batch: Batch, /) -> Iterable[Point]:
        for point in batch.points:
            yield copy_envelope(point, {"double": 2 * (get_number(point, "v") or 0.0)})


def test_batch_may_be_a_generator_function(udf: StartTask) -> None:
    output = udf(Generating).send(Batch(name="cpu", points=batch_points(1.0, 2.5)))
    assert [get_field(point, "double") for point in output.batches[0].points] == [2.0, 5.0]


def test_none_writes_nothing() -> None:
    assert exchange(returning(lambda _: None), BEGIN, *batch_points(1.0), END) == []


def test_no_points_write_an_empty_batch() -> None:
    assert exchange(returning(lambda _: []), BEGIN, *batch_points(1.0), END) == [
        BeginBatch(name="cpu", group="cpu\nhost=a", tags={"host": "a"}, size=0, byName=True),
        EndBatch(name="cpu", group="cpu\nhost=a", tags={"host": "a"}, tmax=1_000, byName=True),
    ]


def test_an_empty_batch_is_handled() -> None:
    handler = returning(lambda batch: [Point(time=len(batch.points))])
    assert len(exchange(handler, BEGIN, END)) == 3


def test_another_batch_is_written_as_it_is() -> None:
    other = Batch(
        name="other", points=[Point(time=5)], tags={"a": "b"}, group="a=b", tmax_ns=77, by_name=True
    )
    assert exchange(returning(lambda _: other), BEGIN, *batch_points(1.0), END) == [
        BeginBatch(name="other", group="a=b", tags={"a": "b"}, size=1, byName=True),
        Point(time=5),
        EndBatch(name="other", group="a=b", tags={"a": "b"}, tmax=77, byName=True),
    ]


def test_a_batch_of_a_later_time_keeps_it_where_only_points_change() -> None:
    batch = Batch("cpu", batch_points(1.0), {"host": "a"}, "host=a", tmax_ns=99, by_name=True)
    points = batch_points(5.0)
    assert batch.copy_with(iter(points)) == Batch(
        "cpu", points, {"host": "a"}, "host=a", tmax_ns=99, by_name=True
    )


@given(st.lists(st.integers(-(2**62), 2**62), max_size=5), st.none() | st.integers(0, 2**62))
def test_a_batch_ends_when_it_says_or_with_its_latest_point(
    times: list[int], tmax_ns: int | None
) -> None:
    batch = Batch(points=[Point(time=time) for time in times], tmax_ns=tmax_ns)
    expected = tmax_ns if tmax_ns is not None else max(times, default=0)
    assert batch.end_ns == expected
    begin, *points, end = batch_messages(batch)
    assert begin == BeginBatch(size=len(times))
    assert points == batch.points
    assert end == EndBatch(tmax=expected)


def test_batches_are_independent(udf: StartTask) -> None:
    first = Batch("cpu", batch_points(1.0, 2.0), {"host": "a"}, "host=a", tmax_ns=5, by_name=True)
    second = Batch("mem", batch_points(3.0), tmax_ns=6)
    output = udf(returning(lambda batch: batch.points)).send(first, second, first)
    assert output.batches == [first, second, first]
    assert output.points == []


def test_a_returned_number_is_no_batch(udf: StartTask) -> None:
    task = udf(returning(lambda _: 3))  # type: ignore[arg-type,return-value]  # that is the mistake
    with pytest.raises(TaskFailedError, match=r"^Made\.batch returned an int; return a Point"):
        task.send(Batch())


# --- batch to stream ---


def test_points_for_a_stream_get_name_tags_and_dimensions() -> None:
    handler = returning(lambda batch: [Point(time=batch.end_ns)], provides=STREAM)
    (answer,) = exchange(handler, BEGIN, *batch_points(1.0), END)
    assert answer == Point(
        time=1_000, name="cpu", tags={"host": "a"}, dimensions=["host"], byName=True
    )


def test_points_of_the_batch_may_go_to_the_stream() -> None:
    points = [Point(time=3, tags={"host": "a", "cpu": "0"}, fieldsInt={"v": 1})]
    batch = Batch("cpu", points, tags={"zone": "z", "host": "a"}, group="host=a,zone=z")
    assert batch.as_stream(points) == [
        Point(
            time=3,
            name="cpu",
            tags={"host": "a", "cpu": "0", "zone": "z"},
            dimensions=["host", "zone"],
            fieldsInt={"v": 1},
        )
    ]
    assert points == [Point(time=3, tags={"host": "a", "cpu": "0"}, fieldsInt={"v": 1})]


def test_points_for_a_stream_keep_what_they_have() -> None:
    own = Point(
        name="own",
        database="db",
        retentionPolicy="rp",
        group="g",
        tags={"host": "b", "x": "y"},
        dimensions=["x"],
        fieldsString={"s": "t"},
    )
    batch = Batch("cpu", tags={"host": "a"}, by_name=True)
    assert batch.as_stream([own]) == [own]


def test_a_points_own_tag_counts_more_than_the_batchs() -> None:
    (point,) = Batch("cpu", tags={"host": "a"}).as_stream([Point(tags={"host": "b"})])
    assert dict(point.tags) == {"host": "b"}


def test_a_batch_that_is_not_grouped_gives_a_stream_that_is_not() -> None:
    assert Batch("cpu").as_stream([Point(time=1)]) == [Point(time=1, name="cpu")]


def test_another_batchs_points_go_to_the_stream_with_its_envelope(
    udf: StartTask,
) -> None:
    other = Batch("other", [Point(time=5)], tags={"a": "b"})
    output = udf(returning(lambda _: other, provides=STREAM)).send(Batch("cpu"))
    assert output.points == [Point(time=5, name="other", tags={"a": "b"}, dimensions=["a"])]
    assert output.batches == []


# --- stream to batch ---


class Pairs(Handler):
    """Writes a batch of every two points of the stream."""

    provides = BATCH

    def __init__(self, agent: Writer) -> None:
        super().__init__(agent)
        self._kept: list[Point] = []

    def point(self, point: Point, /) -> None:
        self._kept.append(point)
        if len(self._kept) == 2:
            self._write()

    def teardown(self) -> None:
        if self._kept:
            self._write()

    def _write(self) -> None:
        first = self._kept[0]
        batch = Batch(first.name, self._kept, dict(first.tags), first.group)
        write_batch(self.agent, batch)
        self._kept = []


def test_a_stream_becomes_batches(udf: StartTask) -> None:
    points = grouped(lines("cpu,host=a v=1 10", "cpu,host=a v=2 20", "cpu,host=a v=3 30"), "host")
    task = udf(Pairs)
    output = task.send(*points)
    envelope = {"name": "cpu", "tags": {"host": "a"}, "group": "host=a"}
    assert output.batches == [Batch(points=points[:2], tmax_ns=20, **envelope)]  # type: ignore[arg-type]  # mixed
    assert task.finish().batches == [Batch(points=points[2:], tmax_ns=30, **envelope)]  # type: ignore[arg-type]  # mixed


class Wrong(Pairs):
    """Declares a stream, and writes batches."""

    provides = STREAM


def test_a_batch_from_a_handler_that_provides_a_stream_is_refused(
    udf: StartTask,
) -> None:
    task = udf(Wrong)
    with pytest.raises(TaskFailedError, match="declare that it provides BATCH"):
        task.send(Point(), Point())


# --- errors ---


class Short(BatchHandler):
    """Has a low limit of points."""

    max_batch_points = 3

    def batch(self, batch: Batch, /) -> list[Point]:
        return batch.points


def test_a_batch_of_too_many_points_fails_the_task(udf: StartTask) -> None:
    task = udf(Short)
    assert len(task.send(Batch(points=batch_points(1.0, 2.0, 3.0))).batches[0].points) == 3
    with pytest.raises(TaskFailedError) as caught:
        task.send(Batch(points=batch_points(1.0, 2.0, 3.0, 4.0)))
    assert str(caught.value) == (
        "Short.point raised BatchTooLongError: a batch of more than 3 points; "
        "use a shorter period, or raise max_batch_points of the handler"
    )


class Lenient(BatchHandler):
    """Catches the error of a batch that is too long; the limit is two points."""

    max_batch_points = 3

    def batch(self, batch: Batch, /) -> list[Point]:
        if len(batch.points) == 2:
            raise ValueError("two")
        return batch.points

    def point(self, point: Point, /) -> None:
        with contextlib.suppress(BatchTooLongError):
            super().point(point)

    def end_batch(self, end: EndBatch, /) -> None:
        with contextlib.suppress(ValueError):
            super().end_batch(end)


def test_points_of_a_batch_that_failed_are_not_in_the_next(udf: StartTask) -> None:
    batches = [
        Batch(name=name, points=batch_points(*values), tmax_ns=9)
        for name, values in [("long", (1.0, 2.0, 3.0, 4.0)), ("two", (1.0, 2.0)), ("one", (5.0,))]
    ]
    output = udf(Lenient).send(*batches)
    assert [batch.name for batch in output.batches] == ["long", "one"]
    assert [get_field(p, "v") for p in output.batches[0].points] == [1.0, 2.0, 3.0]
    assert output.batches[1] == batches[2]


class Counted(State):
    batches: int = 0


class Counting(BatchHandler):
    """Numbers batches, also across restarts."""

    state: Counted

    def batch(self, batch: Batch, /) -> list[Point]:
        self.state.batches += 1
        for point in batch.points:
            set_field(point, "number", self.state.batches)
        return batch.points


def test_a_snapshot_in_the_middle_of_a_batch_disturbs_neither() -> None:
    first, second = batch_points(1.0, 2.0)
    answers = exchange(
        Counting, BEGIN, END, BEGIN, first, SnapshotRequest(), second, END, SnapshotRequest()
    )
    kinds = [BeginBatch, EndBatch, SnapshotResponse, BeginBatch, Point, Point, EndBatch]
    assert [type(answer) for answer in answers] == [*kinds, SnapshotResponse]
    assert b'{"batches":1}' in answers[2].snapshot  # type: ignore[union-attr]  # told above
    assert b'{"batches":2}' in answers[-1].snapshot  # type: ignore[union-attr]  # told above
    assert [get_field(each, "number") for each in answers if isinstance(each, Point)] == [2, 2]


class Nothing(BatchHandler):
    """Lacks the method `batch`."""


def test_a_batch_handler_must_have_a_batch_method() -> None:
    with pytest.raises(TypeError, match=r"abstract method '?batch"):
        Nothing(None)  # type: ignore[abstract,arg-type]  # that is the mistake


class ByHost(BatchHandler):
    """Yields a batch for each host."""

    def batch(self, batch: Batch, /) -> Iterator[Batch]:
        for host in ("a", "b"):
            points = [point for point in batch.points if point.tags["host"] == host]
            yield Batch(batch.name, points, {"host": host}, f"host={host}", batch.tmax_ns)


def test_a_batch_may_become_several(udf: StartTask) -> None:
    points = [Point(time=time, tags={"host": host}) for time, host in enumerate("abb")]
    output = udf(ByHost).send(Batch("m", points, tmax_ns=9))
    assert output.batches == [
        Batch("m", points[:1], {"host": "a"}, "host=a", 9),
        Batch("m", points[1:], {"host": "b"}, "host=b", 9),
    ]


ADVICE = "return a Point, a Batch, an iterable of these, or None"


class Confused(BatchHandler):
    """Returns a wrong value, selected by the field `kind` of the first point."""

    def batch(self, batch: Batch, /) -> Any:
        match get_field(batch.points[0], "kind"):
            case "none":
                return [None]
            case "text":
                return "points"
            case "both":
                return [*batch.points, batch]
            case _:
                return iter(batch.points)


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("none", f"returned a list with a NoneType in it; {ADVICE}"),
        ("text", f"returned a str; {ADVICE}"),
        ("both", "returned points beside batches; put the points into a Batch"),
    ],
)
def test_a_wrong_return_value_of_batch_raises(udf: StartTask, kind: str, problem: str) -> None:
    point = Point(fieldsString={"kind": kind})
    with pytest.raises(TaskFailedError) as caught:
        udf(Confused).send(Batch("m", [point]))
    assert str(caught.value) == f"Confused.batch {problem}"


def test_points_may_come_from_any_iterable(udf: StartTask) -> None:
    output = udf(Confused).send(Batch("m", [Point(time=1), Point(time=2)]))
    assert [point.time for point in output.batches[0].points] == [1, 2]


def test_a_batch_with_anything_but_points_is_not_written(udf: StartTask) -> None:

    class Filled(BatchHandler):
        def batch(self, batch: Batch, /) -> Batch:
            return batch.copy_with([None])  # type: ignore[list-item]  # that is the mistake

    with pytest.raises(TaskFailedError, match="a NoneType instead of a Point"):
        udf(Filled).send(Batch("m"))
