"""What methods of a handler return, and handlers that pass points through."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from kapudf_cli.handler.batches import Batch
from kapudf_cli.handler.errors import OptionsError
from kapudf_cli.handler.handler import Handler
from kapudf_cli.handler.patch import PointPatch
from kapudf_cli.handler.points import get_field, set_field
from kapudf_cli.protocol.codec import decode_point
from kapudf_cli.protocol.udf_pb2 import BATCH, BeginBatch, EndBatch, Point
from kapudf_cli.testing import StartTask, Task, TaskFailedError, lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kapudf_cli.protocol.raw_points import RawPoint

POINTS = lines("m,h=a x=1.5 10", "m,h=b y=2i 20", 'm s="t" 30', "m,t=v x=7i 40", "m z=true 50")


class One(Handler):
    def point(self, point: Point) -> Point:
        return point


class Some(Handler):
    def point(self, point: Point) -> Point | None:
        return point if point.time != 20 else None


class Listed(Handler):
    def point(self, point: Point) -> list[Point]:
        return [point, point]


class Mapped(Handler):
    def point(self, point: Point) -> Iterable[Point]:
        return map(lambda _: point, range(2))  # noqa: C417 - an iterator without a length


class Yielding(Handler):
    def point(self, point: Point) -> Iterator[Point]:
        for _ in range(2):
            yield point


class Mixing(Handler):
    """Writes one point itself, before the one that it returns."""

    def point(self, point: Point) -> Point:
        self.agent.write_point(point)
        return point


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (One, POINTS),
        (Some, [POINTS[0], *POINTS[2:]]),
        (Listed, [point for point in POINTS for _ in range(2)]),
        (Mapped, [point for point in POINTS for _ in range(2)]),
        (Yielding, [point for point in POINTS for _ in range(2)]),
        (Mixing, [point for point in POINTS for _ in range(2)]),
    ],
)
def test_what_point_returns_is_written(
    udf: StartTask, handler: type[Handler], expected: list[Point]
) -> None:
    assert udf(handler).send(*POINTS).points == expected


def test_a_point_is_written_as_it_is_yielded(udf: StartTask) -> None:
    class Reuses(Handler):
        def point(self, point: Point) -> Iterator[Point]:
            for number in range(3):
                point.time = number
                yield point

    assert [point.time for point in udf(Reuses).send(Point()).points] == [0, 1, 2]


class InBatches(Handler):
    """Returns each point as a batch of its own."""

    provides = BATCH

    def point(self, point: Point) -> Batch:
        return Batch("m", [point], tmax_ns=point.time)


def test_point_may_return_a_batch(udf: StartTask) -> None:
    out = udf(InBatches).send(*POINTS)
    assert out.batches == [Batch("m", [point], tmax_ns=point.time) for point in POINTS]


class Summary(Handler):
    """Returns a point for each begin and two for each end of a batch."""

    wants = BATCH

    def begin_batch(self, begin: BeginBatch) -> Point:
        self.count = 0
        return Point(name=begin.name)

    def point(self, point: Point) -> None:
        del point
        self.count += 1

    def end_batch(self, end: EndBatch) -> Iterator[Point]:
        yield Point(time=end.tmax)
        yield Point(time=self.count)


def test_begin_batch_and_end_batch_may_return_points(udf: StartTask) -> None:
    out = udf(Summary).send(Batch("m", POINTS, tmax_ns=99))
    assert out.points == [Point(name="m"), Point(time=99), Point(time=len(POINTS))]


# --- what may not be returned ---

ADVICE = "return a Point, a Batch, an iterable of these, or None"


class Foreign:
    """A point of another library."""


Foreign.__name__ = "Point"


@pytest.mark.parametrize(
    ("returned", "problem"),
    [
        ("text", f"returned a str; {ADVICE}"),
        (b"raw", f"returned a bytes; {ADVICE}"),
        (True, f"returned a bool; {ADVICE}"),
        (1, f"returned an int; {ADVICE}"),
        ({"x": 1.0}, f"returned a dict; {ADVICE}"),
        (PointPatch(), f"returned a PointPatch; {ADVICE}"),
        (Foreign(), f"returned a {__name__}.Point; {ADVICE}"),
        ([Point(), "x"], f"returned a list with a str in it; {ADVICE}"),
        ((Point(), None), f"returned a tuple with a NoneType in it; {ADVICE}"),
        (iter([{}]), f"returned a list_iterator with a dict in it; {ADVICE}"),
    ],
)
def test_what_cannot_be_written_is_one_sentence_of_the_error(
    udf: StartTask, returned: object, problem: str
) -> None:
    class Wrong(Handler):
        def point(self, point: Point) -> Any:
            del point
            return returned

    with pytest.raises(TaskFailedError) as caught:
        udf(Wrong).send(Point())
    assert str(caught.value) == f"Wrong.point {problem}"


def test_a_generator_may_yield_only_points_and_batches(udf: StartTask) -> None:
    class Wrong(Handler):
        def point(self, point: Point) -> Any:
            yield point
            yield point.time

    with pytest.raises(TaskFailedError) as caught:
        udf(Wrong).send(Point())
    assert str(caught.value) == "Wrong.point yielded an int; yield only points and batches"


def test_a_generator_that_also_returns_a_point_is_refused(udf: StartTask) -> None:
    class Wrong(Handler):
        def point(self, point: Point) -> Any:
            if point.time:
                yield point
            return point

    with pytest.raises(TaskFailedError) as caught:
        udf(Wrong).send(Point())
    assert str(caught.value) == "Wrong.point has a yield and returned a Point; yield it instead"


def test_a_generator_is_closed_when_its_point_cannot_be_written(udf: StartTask) -> None:
    closed = []

    class Wrong(Handler):
        provides = BATCH

        def point(self, point: Point) -> Iterator[Point]:
            try:
                yield point
            finally:
                closed.append(point.time)

    with pytest.raises(TaskFailedError, match=r"Wrong\.point raised InvalidWriteError"):
        udf(Wrong).send(Point(time=7))
    assert closed == [7]


def test_an_end_of_a_batch_is_named_in_the_error(udf: StartTask) -> None:
    class Wrong(Summary):
        def end_batch(self, end: EndBatch) -> Any:
            del end
            return 7

    with pytest.raises(TaskFailedError) as caught:
        udf(Wrong).send(Batch("m", []))
    assert str(caught.value) == f"Wrong.end_batch returned an int; {ADVICE}"


# --- raw_point ---

PATCH = PointPatch({"x": 0.5}, {"t": "u"})


def patched(point: Point) -> Point:
    copy = Point()
    copy.CopyFrom(point)
    PATCH.apply(copy)
    return copy


class Chooses(Handler):
    """Returns something else for each point."""

    def raw_point(self, raw: RawPoint) -> Any:
        point = decode_point(raw)
        return {10: raw, 20: PATCH, 30: point, 40: [raw, PATCH, point], 50: None}[point.time]


def test_raw_point_returns_the_point_a_patch_or_points(udf: StartTask) -> None:
    first, second, third, fourth, _ = POINTS
    expected = [first, patched(second), third, fourth, patched(fourth), fourth]
    assert udf(Chooses).send(*POINTS).points == expected


def test_raw_point_decodes_by_default(udf: StartTask) -> None:
    class Some(Handler):
        def raw_point(self, raw: RawPoint) -> Any:
            return raw if raw.find(b"h") >= 0 else super().raw_point(raw)

        def point(self, point: Point) -> Point:
            return patched(point)

    expected = [*POINTS[:2], *map(patched, POINTS[2:])]
    assert udf(Some).send(*POINTS).points == expected


@pytest.mark.parametrize(
    ("returned", "problem"),
    [(True, "returned a bool"), (b"other bytes", "returned a bytes"), ([7], "with an int in it")],
)
def test_raw_point_may_not_return_anything_else(
    udf: StartTask, returned: object, problem: str
) -> None:
    class Wrong(Handler):
        def raw_point(self, raw: RawPoint) -> Any:
            del raw
            return returned

    expected = f"{problem}; return raw, a PointPatch, a Point, a Batch, an iterable of these"
    with pytest.raises(TaskFailedError, match=re.escape(expected)):
        udf(Wrong).send(*POINTS)


def test_an_assigned_raw_point_works_and_is_deprecated() -> None:
    class Forwards(One):
        def setup(self) -> None:
            self.raw_point = self.agent.forward  # type: ignore[method-assign]  # the old form

    class Patches(One):
        def setup(self) -> None:
            self.raw_point = self.patch  # type: ignore[method-assign]  # the old form

        def patch(self, raw: RawPoint) -> None:
            self.agent.forward(raw, PATCH)

    class Decodes(One):
        def setup(self) -> None:
            self.raw_point = None  # type: ignore[method-assign,assignment]  # the old form

    for handler, expected in [
        (Forwards, POINTS),
        (Patches, [*map(patched, POINTS)]),
        (Decodes, POINTS),
    ]:
        with Task.of(handler) as task:
            with pytest.warns(DeprecationWarning, match="override the method raw_point") as warned:
                task.init()
            assert task.send(*POINTS).points == expected
        assert [warning.filename for warning in warned] == [__file__]


# --- passes_through ---


class PassesAll(Handler):
    passes_through = True


class PassesPatched(Handler):
    passes_through: bool | PointPatch = PATCH


class Decides(Handler):
    """Decides in `setup`, and tries to change that with the first point."""

    passes_through: bool | PointPatch = True

    def setup(self) -> None:
        self.passes_through = False

    def point(self, point: Point) -> Point:
        self.passes_through = True
        return patched(point)


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (PassesAll, POINTS),
        (PassesPatched, [*map(patched, POINTS)]),
        (Decides, [*map(patched, POINTS)]),
    ],
)
def test_points_pass_through(udf: StartTask, handler: type[Handler], expected: list[Point]) -> None:
    task = udf(handler)
    assert task.send(*POINTS).points == expected
    # A point without fields, and one that is longer than what is known of lengths.
    others = [Point(), Point(time=1, fieldsString={"text": "x" * 20_000})]
    others += [Point(time=time, tags={"t": "x" * time}) for time in range(200)]
    passes = [patched(point) if expected != POINTS else point for point in others]
    assert task.send(*others).points == passes


def test_a_batch_passes_through(udf: StartTask) -> None:
    handler = type("Batches", (PassesPatched,), {"wants": BATCH, "provides": BATCH})
    batch = Batch("m", POINTS, tmax_ns=99)
    assert udf(handler).send(batch, batch).batches == [batch.copy_with(map(patched, POINTS))] * 2


@pytest.mark.parametrize(
    ("attributes", "problem"),
    [
        ({"passes_through": "yes"}, "is of type str; set True, False or a PointPatch"),
        ({"passes_through": None}, "is of type NoneType; set True, False or a PointPatch"),
        (
            {"passes_through": True, "provides": BATCH},
            "is set, but wants and provides differ; write points instead",
        ),
    ],
)
def test_passes_through_is_checked_at_load_and_after_setup(
    udf: StartTask, attributes: dict[str, object], problem: str
) -> None:
    handler = type("Wrong", (One,), attributes)
    with pytest.raises(TypeError, match=rf"^Wrong\.passes_through {problem}$"):
        udf(handler)

    value = attributes.pop("passes_through")

    def setup(self: Handler) -> None:
        self.passes_through = value  # type: ignore[assignment]  # that is the mistake

    handler = type("Wrong", (One,), {**attributes, "setup": setup})
    with pytest.raises(TaskFailedError, match=rf"Wrong\.passes_through {problem}"):
        udf(handler)


def test_a_refusal_in_setup_comes_before_the_check(udf: StartTask) -> None:
    class Refuses(One):
        def setup(self) -> None:
            self.passes_through = "yes"  # type: ignore[assignment]  # that is a mistake
            raise OptionsError("not today")

    with pytest.raises(TaskFailedError, match=r"^not today$"):
        udf(Refuses)


def test_a_handler_needs_a_method_for_points(udf: StartTask) -> None:
    class Nothing(Handler):
        """Has neither."""

    with pytest.raises(TypeError, match=r"Nothing does not define point\(\)"):
        udf(Nothing)


def test_a_returned_point_may_be_changed_first(udf: StartTask) -> None:
    class Sets(Handler):
        def point(self, point: Point) -> Point:
            set_field(point, "new", 1)
            return point

    assert [get_field(point, "new") for point in udf(Sets).send(*POINTS).points] == [1] * 5
