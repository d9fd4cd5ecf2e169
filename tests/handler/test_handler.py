"""Options and state of a handler, tested with an agent."""
# ruff: noqa: RUF012 - the fields of a msgspec struct: their defaults are copied

from __future__ import annotations

import datetime as dt
import json
import logging
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from msgspec import Meta

from kapudf_cli.handler.batch_handler import BatchHandler
from kapudf_cli.handler.errors import OptionsError
from kapudf_cli.handler.handler import Handler
from kapudf_cli.handler.options import Options
from kapudf_cli.handler.points import get_field, get_number, set_field
from kapudf_cli.handler.state import PerGroup, Snapshot, State, dump, inspect_snapshot
from kapudf_cli.protocol.udf_pb2 import (
    BATCH,
    DOUBLE,
    INT,
    STREAM,
    STRING,
    InfoResponse,
    InitRequest,
    InitResponse,
    Option,
    OptionInfo,
    OptionValue,
    Point,
    SnapshotResponse,
)
from kapudf_cli.testing import StartTask, Task, TaskFailedError, grouped, lines

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from decimal import Decimal

    from kapudf_cli.handler.batches import Batch
    from kapudf_cli.protocol.raw_points import RawPoint


LOG = "kapudf_cli.handler.handler"
OVERLAPS = "is set, but point or batch is async, so that calls would still overlap"


class Mirror(Handler):
    """Has neither options nor state."""

    def point(self, point: Point, /) -> None:
        self.agent.write_point(point)


class ScaleOptions(Options):
    field: str
    factor: Annotated[float, Meta(gt=0.0)] = 2.0
    forbidden: str = ""


class Scale(Handler):
    """Multiplies a field."""

    options: ScaleOptions

    def setup(self) -> None:
        if self.options.field == self.options.forbidden:
            message = f".field() must not be '{self.options.forbidden}'; choose another"
            raise OptionsError(message)

    def point(self, point: Point, /) -> None:
        value = get_number(point, self.options.field)
        if value is not None:
            set_field(point, self.options.field, value * self.options.factor)
        self.agent.write_point(point)


class Seen(State):
    count: int = 0
    names: list[str] = []


class Count(Handler):
    """Numbers the points of a task."""

    state: Seen

    def point(self, point: Point, /) -> None:
        self.state.count += 1
        set_field(point, "count", self.state.count)
        self.agent.write_point(point)


class CountGroups(Handler):
    """Numbers the points of each group."""

    state: PerGroup[Seen]

    def point(self, point: Point, /) -> None:
        seen = self.state.of(point)
        seen.count += 1
        set_field(point, "count", seen.count)
        self.agent.write_point(point)


def counts(task: Task, *points: Point) -> list[object]:
    return [get_field(point, "count") for point in task.send(*(points or [Point()])).points]


def foreign(handler: str = "Count", version: int = 0, count: int = 7) -> bytes:
    """Return a snapshot of another handler or version than Count 1."""
    return dump(Seen(count=count), handler=handler, version=version)


# --- options ---


def test_a_handler_without_options_and_state_works(
    udf: StartTask,
) -> None:
    task = udf(Mirror)
    assert task.info() == InfoResponse(wants=STREAM, provides=STREAM)
    assert task.snapshot() == b""
    task.restore(b"whatever there is")
    assert task.send(Point(time=1)).points == [Point(time=1)]


def test_options_are_declared_to_kapacitor(udf: StartTask) -> None:
    info = udf(Scale, ScaleOptions(field="v")).info()
    assert dict(info.options) == {
        "field": OptionInfo(valueTypes=[STRING]),
        "factor": OptionInfo(valueTypes=[DOUBLE]),
        "forbidden": OptionInfo(valueTypes=[STRING]),
    }


def test_options_are_available_at_each_point(udf: StartTask) -> None:
    task = udf(Scale, ScaleOptions(field="v", factor=3.0))
    (point,) = task.send(*lines("m v=1.5")).points
    assert get_field(point, "v") == 4.5
    (point,) = udf(Scale, ScaleOptions(field="v")).send(*lines("m v=2i")).points
    assert get_field(point, "v") == 4.0


def test_two_tasks_have_options_and_state_of_their_own(udf: StartTask) -> None:
    first = udf(Scale, ScaleOptions(field="v", factor=3.0))
    second = udf(Scale, ScaleOptions(field="w"))
    (point,) = first.send(*lines("m v=1,w=1")).points
    assert (get_field(point, "v"), get_field(point, "w")) == (3.0, 1.0)
    (point,) = second.send(*lines("m v=1,w=1")).points
    assert (get_field(point, "v"), get_field(point, "w")) == (1.0, 2.0)
    one, other = udf(Count), udf(Count)
    assert counts(one, Point(), Point()) == [1, 2]
    assert counts(other) == [1]


def test_every_fault_of_the_options_fails_the_task_in_one_sentence_each(
    udf: StartTask,
) -> None:
    del udf
    values = [OptionValue(type=INT, intValue=3)]
    request = InitRequest(options=[Option(name="factor", values=values), Option(name="x")])
    with Task.of(Scale) as task, pytest.raises(TaskFailedError) as caught:
        task.init_raw(request)
    assert str(caught.value) == (
        ".field() is missing; call .field(a string); "
        ".factor() expects a float, above 0.0, got 3; "
        "there is no option .x()"
    )


def test_a_range_is_checked_for_options_made_in_python_too(udf: StartTask) -> None:
    with pytest.raises(TaskFailedError, match=r"^\.factor\(\) expects .* above 0\.0, got -1\.0$"):
        udf(Scale, ScaleOptions(field="v", factor=-1.0))


def test_setup_may_refuse_the_options(udf: StartTask) -> None:
    with pytest.raises(TaskFailedError) as caught:
        udf(Scale, ScaleOptions(field="v", forbidden="v"))
    assert str(caught.value) == ".field() must not be 'v'; choose another"


class BrokenSetup(Mirror):
    def setup(self) -> None:
        raise ValueError("no disk")


def test_setup_that_fails_is_named(udf: StartTask) -> None:
    with pytest.raises(TaskFailedError, match=r"^BrokenSetup\.init raised ValueError: no disk$"):
        udf(BrokenSetup)


class RangeOptions(Options):
    low: float
    high: float

    def __post_init__(self) -> None:
        if self.low >= self.high:
            message = f".low({self.low}) must be below .high({self.high})"
            raise OptionsError(message)


class InRange(Mirror):
    options: RangeOptions


def test_options_that_contradict_each_other_can_refuse_themselves(
    udf: StartTask,
) -> None:
    request = InitRequest(
        options=[
            Option(name=name, values=[OptionValue(type=DOUBLE, doubleValue=value)])
            for name, value in [("low", 2.0), ("high", 1.0)]
        ]
    )
    with Task.of(InRange) as task, pytest.raises(TaskFailedError) as caught:
        task.init_raw(request)
    assert str(caught.value) == ".low(2.0) must be below .high(1.0)"
    udf(InRange, RangeOptions(low=1.0, high=2.0))


class NoOptions(Mirror):
    options: dict[str, str]


class NoState(Mirror):
    state: dict[str, str]


class EdgeAsText(Mirror):
    wants = "batch"  # type: ignore[assignment]  # that is the mistake


class Total(State):
    count: int = 0


class Undecided(Mirror):
    on_state_mismatch = "keep"  # type: ignore[assignment]  # that is the mistake


class AsyncInit(Mirror):
    async def init(self, request: InitRequest, /) -> InitResponse:  # type: ignore[override]  # that is the mistake
        return super().init(request)


class AsyncSetupOnly(Mirror):
    async def setup(self) -> None:
        pass


class ConcurrentMirror(Mirror):
    concurrency = 8


class Waits(Handler):
    async def point(self, point: Point, /) -> Point:
        return point


class WaitsRaw(Waits):
    def raw_point(self, raw: RawPoint, /) -> RawPoint:
        return raw


class WaitsPassed(Waits):
    passes_through = True


class WaitsSnapshot(Waits):
    async def snapshot(self) -> SnapshotResponse:  # type: ignore[override]  # that is the mistake
        return SnapshotResponse()


class WaitsNever(Waits):
    concurrency = 0


class WaitsUnorderedBatch(Waits):
    wants = BATCH
    ordered = False


class UnorderedBatches(Mirror):
    wants = BATCH
    ordered = False


class UnorderedTotal(Mirror):
    state: Total
    ordered = False


class WaitsInTurns(Waits):
    serialize = True


class WaitsNoTime(Waits):
    timeout_s = 0


class WaitsText(Waits):
    timeout_s = "5"  # type: ignore[assignment]  # that is the mistake


class WaitsTrue(Waits):
    timeout_s = True


class WaitsAndYieldsSetup(Waits):
    async def setup(self) -> AsyncIterator[None]:  # type: ignore[override]  # that is the mistake
        yield


class YieldingSetup(Mirror):
    def setup(self) -> Iterator[Point]:  # type: ignore[override]  # that is the mistake
        yield Point()


class AsyncPointOfBatch(BatchHandler):
    async def point(self, point: Point, /) -> None:  # type: ignore[override]  # that is the mistake
        pass

    async def batch(self, batch: Batch, /) -> list[Point]:
        return batch.points


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (NoOptions, "NoOptions.options: dict[str, str] is not a subclass of kapudf_cli.Options"),
        (NoState, "state: dict[str, str] is neither a subclass of State nor PerGroup of one"),
        (EdgeAsText, "EdgeAsText.wants: 'batch' is neither STREAM nor BATCH"),
        (Undecided, "Undecided.on_state_mismatch: 'keep' is neither 'discard' nor 'refuse'"),
        (
            AsyncInit,
            "AsyncInit.init is async; it is called and never awaited, so write a plain def",
        ),
        (
            AsyncSetupOnly,
            "AsyncSetupOnly.setup is async; only with an async point or batch may it be",
        ),
        (
            ConcurrentMirror,
            "ConcurrentMirror.concurrency has no effect; write `async def point`",
        ),
        (WaitsRaw, "WaitsRaw has raw_point, so its async point would never be called"),
        (
            WaitsPassed,
            "WaitsPassed.passes_through is set, so its async point would never be called",
        ),
        (
            WaitsSnapshot,
            "WaitsSnapshot.snapshot is async; it is called and never awaited, so write a plain def",
        ),
        (WaitsNever, "WaitsNever.concurrency is not a number from 1 to 1024"),
        (
            WaitsUnorderedBatch,
            "WaitsUnorderedBatch.ordered is False, and wants and provides are not STREAM",
        ),
        (
            UnorderedBatches,
            "UnorderedBatches.ordered is False, and wants and provides are not STREAM",
        ),
        (
            UnorderedTotal,
            (
                "UnorderedTotal.ordered has no effect: UnorderedTotal is not async, and has one "
                "state for all groups; declare the state as a PerGroup"
            ),
        ),
        (
            WaitsInTurns,
            f"WaitsInTurns.serialize {OVERLAPS}",
        ),
        (WaitsNoTime, "WaitsNoTime.timeout_s is not a positive number of seconds, or None"),
        (WaitsText, "WaitsText.timeout_s is not a positive number of seconds, or None"),
        (WaitsTrue, "WaitsTrue.timeout_s is not a positive number of seconds, or None"),
        (WaitsAndYieldsSetup, "WaitsAndYieldsSetup.setup has a yield and would never run"),
        (
            YieldingSetup,
            "YieldingSetup.setup has a yield and would never run",
        ),
        (AsyncPointOfBatch, "AsyncPointOfBatch.point is async; write `async def batch`"),
    ],
)
def test_an_invalid_class_is_refused_at_the_start(
    udf: StartTask, handler: type[Handler], message: str
) -> None:
    with pytest.raises(TypeError) as caught:
        udf(handler)
    assert str(caught.value) == message


# --- inheritance ---


class DoubleScale(Scale):
    """Inherits options, and adds state."""

    state: Seen

    def point(self, point: Point, /) -> None:
        self.state.count += 1
        super().point(point)


class NarrowOptions(ScaleOptions):
    also: str = "w"


class NarrowScale(Scale):
    """Has more options than its base class."""

    options: NarrowOptions


class NestedOptions(Handler):
    """Nests its options, and has an annotation for type checkers only."""

    class Options(Options):
        text: str = "default"

    options: Options
    number: Decimal | None = None

    def point(self, point: Point, /) -> None:
        set_field(point, "text", self.options.text)
        self.agent.write_point(point)


def test_a_subclass_inherits_options_and_may_add_state(udf: StartTask) -> None:
    task = udf(DoubleScale, ScaleOptions(field="v"))
    (point,) = task.send(*lines("m v=1")).points
    assert get_field(point, "v") == 2.0
    assert (
        task.snapshot() == b'{"handler":"DoubleScale","version":1,"state":{"count":1,"names":[]}}'
    )


def test_a_subclass_may_have_more_options(udf: StartTask) -> None:
    task = udf(NarrowScale, NarrowOptions(field="v", also="x"))
    assert set(task.info().options) == {"field", "factor", "forbidden", "also"}


def test_options_may_be_nested_in_the_handler(udf: StartTask) -> None:
    task = udf(NestedOptions, NestedOptions.Options(text="mine"))
    assert get_field(task.send(Point()).points[0], "text") == "mine"
    assert set(task.info().options) == {"text"}


# --- state ---


def test_state_is_there_from_the_start_and_comes_back(udf: StartTask) -> None:
    task = udf(Count)
    assert task.snapshot() == b'{"handler":"Count","version":1,"state":{"count":0,"names":[]}}'
    assert counts(task, Point(), Point()) == [1, 2]
    restored = udf(Count)
    restored.restore(task.snapshot())
    assert counts(restored) == [3]


def test_the_state_of_groups_comes_back(udf: StartTask) -> None:
    points = grouped(lines("m,host=a v=1 1", "m,host=b v=1 2", "m,host=a v=1 3"), "host")
    task = udf(CountGroups)
    assert counts(task, *points) == [1, 1, 2]
    restored = udf(CountGroups)
    restored.restore(task.snapshot())
    assert restored.snapshot() == task.snapshot()
    assert counts(restored, *points) == [3, 2, 4]


def test_a_snapshot_says_what_was_before_it(udf: StartTask) -> None:
    one, other = udf(CountGroups), udf(CountGroups)
    points = grouped(lines("m,host=a v=1 1", "m,host=b v=1 2"), "host")
    one.send(*points)
    other.send(*points)
    before = one.snapshot()
    assert before == other.snapshot() == one.snapshot()
    one.send(points[0])
    assert one.snapshot() != before


def test_an_empty_snapshot_leaves_a_fresh_state(
    udf: StartTask, caplog: pytest.LogCaptureFixture
) -> None:
    task = udf(Count)
    with caplog.at_level(logging.DEBUG):
        task.restore(b"")
    assert counts(task) == [1]
    assert not [record for record in caplog.records if record.name == LOG]


class FewGroups(CountGroups):
    state = PerGroup(Seen, limit=2, expiry=dt.timedelta(seconds=10))


def test_a_handler_bounds_its_groups_by_number_and_age(udf: StartTask) -> None:
    points = grouped(
        lines("m,host=a v=1 1", "m,host=b v=1 2", "m,host=c v=1 3"),
        "host",
    )
    task = udf(FewGroups)

    def kept() -> list[str]:
        content = inspect_snapshot(task.snapshot()).content
        return [group for group, _, _ in content["groups"]]

    task.send(*points)
    assert kept() == ["host=b", "host=c"]
    task.send(*grouped(lines("m,host=d v=1 10000000000", "m,host=d v=1 20000000000"), "host"))
    assert kept() == ["host=d"]


class GroupsOptions(Options):
    groups: int


class AsManyAsAsked(CountGroups):
    options: GroupsOptions

    def setup(self) -> None:
        self.state = PerGroup(Seen, limit=self.options.groups)

    def migrate(self, snapshot: Snapshot) -> Any:
        return snapshot.content


def test_a_limit_from_the_options_outlives_a_restart(udf: StartTask) -> None:
    points = grouped(lines(*[f"m,host={host} v=1 1" for host in "abcd"]), "host")
    before, of_another = udf(AsManyAsAsked, GroupsOptions(groups=9)), udf(CountGroups)
    before.send(*points)
    of_another.send(*points)
    for snapshot in before.snapshot(), of_another.snapshot():
        task = udf(AsManyAsAsked, GroupsOptions(groups=2))
        task.restore(snapshot)
        content = inspect_snapshot(task.snapshot()).content
        assert [group for group, _, _ in content["groups"]] == ["host=c", "host=d"]
        assert counts(task, *points) == [1, 1, 1, 1]


FOREIGN: dict[str, tuple[bytes, str]] = {
    "another handler": (
        foreign(handler="Other"),
        "the snapshot is of handler Other, not Count",
    ),
    "another version": (foreign(), "the snapshot is of version 0, not 1"),
    "another state": (
        b'{"handler":"Count","version":1,"state":{"count":"x"}}',
        "the snapshot does not fit the state: Expected `int`, got `str` - at `$.count`",
    ),
    "older code": (
        b"17",
        "the snapshot is not one that a State wrote: Expected `object`, got `int`",
    ),
    "another encoding": (
        b'{"handler":"C\xf6unt","version":1,"state":{}}',
        "the snapshot is not one",
    ),
    "deep": (
        b'{"handler":"Count","version":1,"state":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        "the snapshot ",
    ),
}


@pytest.mark.parametrize(("snapshot", "reason"), FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_snapshot_is_discarded_with_a_logged_reason(
    udf: StartTask, caplog: pytest.LogCaptureFixture, snapshot: bytes, reason: str
) -> None:
    task = udf(Count)
    with caplog.at_level(logging.INFO):
        task.restore(snapshot)
    assert counts(task) == [1]
    (record,) = [record for record in caplog.records if record.name == LOG]
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"snapshot discarded, starting afresh: {reason}")


@pytest.mark.parametrize(("snapshot", "reason"), FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_snapshot_is_refused_where_the_handler_says_so(
    udf: StartTask, snapshot: bytes, reason: str
) -> None:
    task = udf(type("Count", (Count,), {"on_state_mismatch": "refuse"}))
    with pytest.raises(TaskFailedError) as caught:
        task.restore(snapshot)
    assert str(caught.value).startswith(reason)


class NewSeen(Seen, version=2):
    pass


class NewCount(Count):
    """Version 2; migrates version 1, which had another name and stored only a number."""

    state = NewSeen()

    def migrate(self, snapshot: Snapshot) -> Any:
        match (snapshot.handler, snapshot.version):
            case ("Count", 1):
                return {"count": snapshot.content["count"] * 100}
            case ("Count", 2):
                return NewSeen(count=snapshot.content["count"] * 1000)
            case (None, None):
                return {"count": int(snapshot.raw)}
            case ("Count", 0):
                return {"count": "no number"}
            case ("Count", 9):
                return object()
            case ("Other", _):
                raise LookupError("no such\nhandler")
        return None


def test_a_snapshot_can_be_migrated(udf: StartTask, caplog: pytest.LogCaptureFixture) -> None:
    task = udf(NewCount)
    with caplog.at_level(logging.INFO):
        task.restore(foreign(version=1))
    assert counts(task) == [701]
    (record,) = [record for record in caplog.records if record.name == LOG]
    assert (record.levelno, record.getMessage()) == (
        logging.INFO,
        "snapshot migrated: the snapshot is of handler Count, not NewCount",
    )


def test_a_snapshot_of_ones_own_needs_no_migration(udf: StartTask) -> None:
    task = udf(NewCount)
    task.send(Point())
    restored = udf(NewCount)
    restored.restore(task.snapshot())
    assert counts(restored) == [2]


@pytest.mark.parametrize(
    ("snapshot", "reason"),
    [
        (foreign(version=5), "the snapshot is of handler Count, not NewCount"),
        (foreign(version=0), "the snapshot does not fit the state: Expected `int`, got `str`"),
        (foreign(version=9), "the snapshot "),
        (
            foreign(handler="Other"),
            (
                "the snapshot is of handler Other, not NewCount; "
                "its migration failed: LookupError: no such handler"
            ),
        ),
    ],
    ids=["none", "does not fit", "no JSON", "raises"],
)
@pytest.mark.parametrize("decision", ["discard", "refuse"])
def test_a_failed_migration_is_like_a_missing_one(
    udf: StartTask,
    caplog: pytest.LogCaptureFixture,
    snapshot: bytes,
    reason: str,
    decision: str,
) -> None:
    task = udf(type("NewCount", (NewCount,), {"on_state_mismatch": decision}))
    if decision == "refuse":
        with pytest.raises(TaskFailedError) as caught:
            task.restore(snapshot)
        assert str(caught.value).startswith(reason)
        return
    with caplog.at_level(logging.WARNING):
        task.restore(snapshot)
    assert counts(task) == [1]
    *_, record = [record for record in caplog.records if record.name == LOG]
    assert record.getMessage().startswith(f"snapshot discarded, starting afresh: {reason}")


def test_a_migration_that_raises_leaves_its_traceback_in_the_log(
    udf: StartTask, caplog: pytest.LogCaptureFixture
) -> None:
    task = udf(NewCount)
    with caplog.at_level(logging.INFO):
        task.restore(foreign(handler="Other"))
    first, *_ = [record for record in caplog.records if record.name == LOG]
    assert first.getMessage() == "migration of a snapshot failed"
    assert first.exc_info is not None
    assert first.exc_info[0] is LookupError


class NewGroups(CountGroups):
    """Doubles the counts of version 1."""

    state = PerGroup(NewSeen, limit=5)

    def migrate(self, snapshot: Snapshot) -> Any:
        if snapshot.handler is None:
            groups = PerGroup(NewSeen)
            for name, count in json.loads(snapshot.raw).items():
                groups.at(name, 1).count = count
            return groups
        for _, _, each in snapshot.content["groups"]:
            each["count"] *= 2
        return snapshot.content


def test_the_state_of_groups_can_be_migrated(udf: StartTask) -> None:
    points = grouped(lines("m,host=a v=1 1", "m,host=b v=1 2", "m,host=a v=1 3"), "host")
    task = udf(CountGroups)
    task.send(*points)
    restored = udf(NewGroups)
    restored.restore(task.snapshot())
    assert counts(restored, *points) == [5, 3, 6]


def test_a_snapshot_of_another_program_can_be_migrated(udf: StartTask) -> None:
    task = udf(NewCount)
    task.restore(b"41")
    assert counts(task) == [42]
    points = grouped(lines("m,host=a v=1 1", "m,host=b v=1 2"), "host")
    task = udf(NewGroups)
    task.restore(b'{"host=a": 5}')
    assert counts(task, *points) == [6, 1]


def test_a_migration_may_return_a_state(udf: StartTask) -> None:
    task = udf(NewCount)
    task.restore(foreign(version=2))
    assert counts(task) == [7001]


def test_each_handler_has_its_own_state(udf: StartTask) -> None:
    class Starts(Count):
        state = Seen(count=5, names=["x"])

    for _ in range(2):
        assert counts(udf(Starts), Point(), Point()) == [6, 7]
        assert counts(udf(NewGroups), Point(), Point()) == [1, 2]


def test_a_restored_state_takes_the_place_of_the_one_before(udf: StartTask) -> None:
    points = grouped(lines("m,host=a v=1 1", "m,host=b v=1 2"), "host")
    task = udf(CountGroups)
    task.send(points[0])
    snapshot = task.snapshot()
    task.send(points[1])
    task.restore(snapshot)
    assert task.snapshot() == snapshot


class Unready(State):
    number: complex = 0j


class Unsnapshotted(Mirror):
    state: Unready


def test_a_state_that_json_cannot_represent_is_named(udf: StartTask) -> None:
    with pytest.raises(TaskFailedError, match=r"^Unsnapshotted\.\w+ raised TypeError: .*complex"):
        udf(Unsnapshotted).snapshot()
