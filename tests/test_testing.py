"""Tests without Kapacitor: the task that a test plays, and points from text."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.handler.batch_handler import BatchHandler
from kapudf_cli.handler.batches import Batch
from kapudf_cli.handler.handler import Handler
from kapudf_cli.handler.options import Options
from kapudf_cli.handler.points import copy_envelope, get_field, get_fields, set_field
from kapudf_cli.protocol.udf_pb2 import (
    BATCH,
    STREAM,
    STRING,
    BeginBatch,
    EndBatch,
    InfoResponse,
    InitRequest,
    InitResponse,
    Option,
    OptionInfo,
    OptionValue,
    Point,
    RestoreRequest,
    RestoreResponse,
    SnapshotResponse,
)
from kapudf_cli.testing import Output, StartTask, Task, TaskFailedError, grouped, lines
from tests.run_kapudf import PYTEST

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class MarkOptions(Options):
    text: str = "marked"


class Mark(Handler):
    """Does what its points ask for, and writes them back with a mark."""

    options: MarkOptions

    def point(self, point: Point, /) -> None:
        match point.name:
            case "raise":
                raise ValueError("bad\npoint")
            case "exit":
                raise SystemExit(3)
            case "swallow":
                return
        set_field(point, "mark", self.options.text)
        self.agent.write_point(point)

    def teardown(self) -> None:
        self.agent.write_point(Point(name="flushed"))


class Copies(Handler):
    """Answers each point with a thousand."""

    def point(self, point: Point, /) -> None:
        for number in range(1000):
            self.agent.write_point(copy_envelope(point, {"number": number}))


class Echo(Handler):
    """Writes each point back."""

    def point(self, point: Point, /) -> None:
        self.agent.write_point(point)


class EchoBatches(BatchHandler):
    """Writes each batch back."""

    def batch(self, batch: Batch, /) -> Batch:
        return batch


# --- a task ---


def test_points_go_in_and_what_comes_of_them_comes_out(udf: StartTask) -> None:
    task = udf(Mark, MarkOptions(text="x"))
    output = task.send(Point(time=1), Point(name="swallow"), Point(time=2))
    assert output == Output(
        points=[Point(time=time, fieldsString={"mark": "x"}) for time in (1, 2)]
    )
    assert [point.time for point in task.send(Point(time=3)).points] == [3]
    assert task.send(Point(name="swallow")) == Output()


def test_sending_nothing_gives_nothing(udf: StartTask) -> None:
    task = udf(Mark)
    assert task.send() == Output()
    assert task.send() == Output()
    assert len(task.send(Point()).points) == 1


def test_what_is_sent_stays_as_it_was(udf: StartTask) -> None:
    point = Point(time=1)
    udf(Mark).send(point)
    assert point == Point(time=1)


def test_the_rest_comes_at_the_end(udf: StartTask) -> None:
    task = udf(Mark)
    task.send(Point())
    assert task.finish() == Output(points=[Point(name="flushed")])


def test_a_task_says_what_the_handler_declares(udf: StartTask) -> None:
    expected = InfoResponse(
        wants=STREAM, provides=STREAM, options={"text": OptionInfo(valueTypes=[STRING])}
    )
    assert udf(Mark).info() == expected
    with Task.of(Mark) as task:
        assert task.info() == expected


def test_a_task_can_be_had_without_the_fixture() -> None:
    with Task.of(Mark) as task:
        task.init(MarkOptions(text="y"))
        assert task.send(Point()).points == [Point(fieldsString={"mark": "y"})]


def test_a_task_can_be_started_with_calls_as_kapacitor_sends_them() -> None:
    value = OptionValue(type=STRING, stringValue="z")
    with Task.of(Mark) as task:
        task.init_raw(InitRequest(options=[Option(name="text", values=[value])]))
        assert task.send(Point()).points == [Point(fieldsString={"mark": "z"})]
    with Task.of(Mark) as task, pytest.raises(TaskFailedError) as caught:
        task.init_raw(InitRequest(options=[Option(name="txet", values=[value])]))
    assert str(caught.value) == "there is no option .txet() (did you mean .text()?)"


def test_several_tasks_run_side_by_side(udf: StartTask) -> None:
    tasks = [udf(Mark, MarkOptions(text=str(number))) for number in range(5)]
    record = [get_field(task.send(Point()).points[0], "mark") for task in tasks]
    assert record == ["0", "1", "2", "3", "4"]


# --- batches ---


def test_a_batch_goes_in_and_comes_out_whole(udf: StartTask) -> None:
    batch = Batch("cpu", [Point(time=1)], {"host": "a"}, "host=a", tmax_ns=9, by_name=True)
    assert udf(EchoBatches).send(batch, Batch(tmax_ns=0)) == Output(
        batches=[batch, Batch(tmax_ns=0)]
    )


def test_a_batch_of_many_points_comes_out_whole(udf: StartTask) -> None:
    batch = Batch("cpu", [Point(time=time) for time in range(10_000)], tmax_ns=10_000)
    assert udf(EchoBatches).send(batch).batches == [batch]


class EndSays(Handler):
    """Writes a batch whose end says other than its begin."""

    provides = BATCH

    def point(self, point: Point, /) -> None:
        self.agent.write_begin_batch(BeginBatch(name="begin", group="b", tags={"b": "b"}))
        self.agent.write_point(point)
        self.agent.write_end_batch(EndBatch(name="end", group="e", tags={"e": "e"}, tmax=3))


def test_of_begin_and_end_the_ends_word_counts(udf: StartTask) -> None:
    assert udf(EndSays).send(Point(time=1)).batches == [
        Batch("end", [Point(time=1)], {"e": "e"}, "e", tmax_ns=3)
    ]


class BatchOverPoints(Handler):
    """Begins a batch at one point and ends it at the next."""

    provides = BATCH

    def point(self, point: Point, /) -> None:
        if point.time % 2:
            self.agent.write_begin_batch(BeginBatch(name="m"))
            self.agent.write_point(point)
        else:
            self.agent.write_end_batch(EndBatch(name="m", tmax=point.time))


def test_a_batch_may_be_begun_in_one_call_and_ended_in_another(udf: StartTask) -> None:
    task = udf(BatchOverPoints)
    assert task.send(Point(time=1)) == Output()
    assert task.send(Point(time=2)).batches == [Batch("m", [Point(time=1)], tmax_ns=2)]


def test_a_point_outside_a_batch_is_in_none(udf: StartTask) -> None:
    batch = Batch("m", [Point(time=1)], tmax_ns=2)
    assert udf(EchoBatches).send(Point(time=9), batch) == Output(batches=[batch])


# --- much data ---


def test_a_handler_that_answers_each_point_with_a_thousand_does_not_hang(
    udf: StartTask,
) -> None:
    output = udf(Copies).send(*[Point(time=time) for time in range(100)])
    assert [point.time for point in output.points[::1000]] == list(range(100))
    assert [get_field(point, "number") for point in output.points[-1000:]] == list(range(1000))


@pytest.mark.parametrize("as_batch", [False, True], ids=["points", "a batch"])
def test_large_points_do_not_hang(monkeypatch: pytest.MonkeyPatch, as_batch: bool) -> None:  # noqa: FBT001 - a parameter
    monkeypatch.setattr("kapudf_cli.testing._TIMEOUT_S", 5.0)
    points = [Point(time=time, tags={"host": "x" * 65_536}) for time in range(100)]
    with Task.of(Echo) as task:
        task.init()
        output = task.send(Batch(points=points)) if as_batch else task.send(*points)
    assert output == Output(points=points)


# --- snapshots ---


class Counts(Handler):
    """Numbers its points, with a snapshot of its own making."""

    count = 0

    def point(self, point: Point, /) -> None:
        self.count += 1
        set_field(point, "count", self.count)
        self.agent.write_point(point)

    def snapshot(self) -> SnapshotResponse:
        return SnapshotResponse(snapshot=str(self.count).encode())

    def restore(self, request: RestoreRequest, /) -> RestoreResponse:
        if not request.snapshot.isdigit():
            return RestoreResponse(error="no number")
        self.count = int(request.snapshot)
        return RestoreResponse(success=True)


def test_a_snapshot_is_given_back(udf: StartTask) -> None:
    task = udf(Counts)
    task.send(Point(), Point())
    assert task.snapshot() == b"2"
    other = udf(Counts)
    other.restore(b"2")
    assert get_field(other.send(Point()).points[0], "count") == 3


def test_a_refused_restore_fails_the_task(udf: StartTask) -> None:
    with pytest.raises(TaskFailedError, match=r"^no number$"):
        udf(Counts).restore(b"x")


class WritesAnytime(Counts):
    """Writes a point in each of its methods."""

    def setup(self) -> None:
        self.agent.write_point(Point(name="setup"))

    def snapshot(self) -> SnapshotResponse:
        self.agent.write_point(Point(name="snapshot"))
        return super().snapshot()

    def restore(self, request: RestoreRequest, /) -> RestoreResponse:
        self.agent.write_point(Point(name="restore"))
        return super().restore(request)


def test_no_point_is_lost_whenever_it_is_written(udf: StartTask) -> None:
    task = udf(WritesAnytime)
    task.restore(b"1")
    task.snapshot()
    points = [*task.send(Point(name="point")).points, *task.finish().points]
    assert [point.name for point in points] == ["setup", "restore", "snapshot", "point"]


# --- failures ---


def test_a_handler_that_raises_fails_the_task(udf: StartTask) -> None:
    with pytest.raises(TaskFailedError) as caught:
        udf(Mark).send(Point(), Point(name="raise"), Point())
    assert str(caught.value) == "Mark.point raised ValueError: bad point"


def test_a_handler_that_exits_fails_the_task(udf: StartTask) -> None:
    with pytest.raises(TaskFailedError, match=r"^Mark\.point raised SystemExit: 3$"):
        udf(Mark).send(Point(name="exit"))


def test_a_handler_that_raises_early_in_much_data_fails_the_task(udf: StartTask) -> None:
    points = [Point(name="raise"), *[Point()] * 10_000]
    with pytest.raises(TaskFailedError, match=r"^Mark\.point raised ValueError"):
        udf(Mark).send(*points)


class FailsIn(Echo):
    """Raises in one of its methods."""

    where = ""

    def setup(self) -> None:
        self._fail("setup")

    def info(self) -> InfoResponse:
        self._fail("info")
        return super().info()

    def snapshot(self) -> SnapshotResponse:
        self._fail("snapshot")
        return super().snapshot()

    def restore(self, request: RestoreRequest, /) -> RestoreResponse:
        self._fail("restore")
        return super().restore(request)

    def teardown(self) -> None:
        self._fail("teardown")

    def _fail(self, method: str) -> None:
        if method == self.where:
            raise ValueError("no good")


CALLS: dict[str, tuple[str, Callable[[Task], object]]] = {
    "setup": ("init", Task.init),
    "info": ("info", Task.info),
    "snapshot": ("snapshot", Task.snapshot),
    "restore": ("restore", lambda task: task.restore(b"")),
    "teardown": ("teardown", Task.finish),
}


@pytest.mark.parametrize(
    ("where", "method", "call"), [(k, *v) for k, v in CALLS.items()], ids=CALLS
)
def test_a_failure_in_any_method_is_told(
    where: str, method: str, call: Callable[[Task], object]
) -> None:
    handler = type("Fails", (FailsIn,), {"where": where})
    with Task.of(handler) as task:
        if where not in {"setup", "info"}:
            task.init()
        with pytest.raises(TaskFailedError) as caught:
            call(task)
    assert str(caught.value) == f"Fails.{method} raised ValueError: no good"


class Refuses(Echo):
    def init(self, request: InitRequest, /) -> InitResponse:
        return InitResponse(error=f"no {request.taskID}")


def test_a_refused_init_fails_the_task(udf: StartTask) -> None:
    with pytest.raises(TaskFailedError, match=r"^no test$"):
        udf(Refuses)


class Unmade(Echo):
    def __init__(self, agent: object) -> None:
        del agent
        raise ValueError("not today")


def test_a_handler_that_cannot_be_made_fails_the_task(udf: StartTask) -> None:
    with pytest.raises(TaskFailedError, match=r"^Unmade\.__init__ raised ValueError: not today$"):
        udf(Unmade)


@pytest.mark.parametrize(
    "call",
    [lambda task: task.send(Point()), Task.snapshot, Task.info, lambda task: task.restore(b"")],
    ids=["send", "snapshot", "info", "restore"],
)
def test_whatever_follows_a_failure_fails_as_well(
    udf: StartTask, call: Callable[[Task], object]
) -> None:
    task = udf(Mark)
    with pytest.raises(TaskFailedError):
        task.send(Point(name="raise"))
    for _ in range(3):
        with pytest.raises(TaskFailedError):
            call(task)


def test_a_task_that_has_ended_takes_no_more(udf: StartTask) -> None:
    task = udf(Mark)
    task.finish()
    with pytest.raises(TaskFailedError):
        task.send(Point())


def test_data_before_init_fails_the_task() -> None:
    with Task.of(Mark) as task, pytest.raises(TaskFailedError, match="a Point may not come before"):
        task.send(Point())


# --- points from text ---


def test_a_line_becomes_a_point() -> None:
    (point,) = lines('cpu,host=a,region=eu usage=0.5,count=3i,up=true,note="so so" 1000')
    assert point == Point(
        time=1000,
        name="cpu",
        database="telegraf",
        retentionPolicy="autogen",
        tags={"host": "a", "region": "eu"},
        fieldsDouble={"usage": 0.5},
        fieldsInt={"count": 3},
        fieldsBool={"up": True},
        fieldsString={"note": "so so"},
    )


def test_database_and_retention_policy_can_be_given() -> None:
    points = lines("m v=1", "m v=2", database="db", retention_policy="rp")
    assert {(point.database, point.retentionPolicy) for point in points} == {("db", "rp")}


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("m v=1", {"v": 1.0}),
        ("m v=-1.5e3", {"v": -1500.0}),
        ("m v=1i", {"v": 1}),
        ("m v=-9223372036854775808i", {"v": -(2**63)}),
        ("m v=t,w=T,x=true,y=True,z=TRUE", dict.fromkeys("vwxyz", True)),
        ("m v=f,w=F,x=false,y=False,z=FALSE", dict.fromkeys("vwxyz", False)),
        ('m v=""', {"v": ""}),
        ('m v="1"', {"v": "1"}),
        ('m v="é ☃"', {"v": "é ☃"}),
        ('m v="a # b"', {"v": "a # b"}),
        ('m v="say \\"so\\", \\\\"', {"v": 'say "so", \\'}),
        ("m a\\ b=1,c\\,d=2,e\\=f=3", {"a b": 1.0, "c,d": 2.0, "e=f": 3.0}),
        ('m v="a\u2028b\x85c\x0bd"', {"v": "a\u2028b\x85c\x0bd"}),
    ],
)
def test_a_field_has_its_type_and_its_text(text: str, fields: dict[str, object]) -> None:
    (point,) = lines(text)
    found = get_fields(point)
    assert found == fields
    assert {name: type(value) for name, value in found.items()} == {
        name: type(value) for name, value in fields.items()
    }


def test_escapes_in_measurement_and_tags_are_undone() -> None:
    (point,) = lines("c\\,pu\\ x,a\\ b=c\\,d\\=e v=1 1")
    assert point.name == "c,pu x"
    assert dict(point.tags) == {"a b": "c,d=e"}


def test_a_line_without_a_time_is_at_0() -> None:
    assert [point.time for point in lines("m v=1", "m v=1 0", "m v=1 -5")] == [0, 0, -5]


def test_lines_may_stand_in_one_text_or_in_several() -> None:
    points = lines(
        """
        m v=1 1

        # a comment, as in a file of line protocol
        m v=2 2
        """,
        "m v=3 3\r\nm v=4 4",
        "",
    )
    assert [(point.name, point.time) for point in points] == [
        ("m", 1),
        ("m", 2),
        ("m", 3),
        ("m", 4),
    ]
    assert lines() == []


@pytest.mark.parametrize(
    "line",
    [
        "m",
        "m v",
        "m v=",
        "m v=x",
        'm v="open',
        "m,host v=1",
        "m,host= v=1",
        "m v=1 soon",
        "m v=1 1 2",
        "m v=nan",
        "m v=1e400",
        "m v=9223372036854775808i",
        "m v=1 9223372036854775808",
        "m,host=a,host=b v=1",
        " ,host=a v=1",
    ],
)
def test_what_is_no_line_protocol_is_refused_with_the_line(line: str) -> None:
    with pytest.raises(ValueError, match="not line protocol: ") as caught:
        lines("m v=1", line)
    assert repr(line.strip()) in str(caught.value)


@pytest.mark.parametrize("line", ["m v=1u", "m v=18446744073709551615u"])
def test_an_unsigned_integer_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="v"):
        lines(line)


# --- groups ---


def test_points_are_grouped_as_kapacitor_groups_them() -> None:
    points = grouped(lines("m,host=a,cpu=0 v=1", "m,host=b,cpu=1 v=2"), "host")
    assert [point.group for point in points] == ["host=a", "host=b"]
    assert [list(point.dimensions) for point in points] == [["host"], ["host"]]
    points = grouped(points, "host", "cpu")
    assert [point.group for point in points] == ["cpu=0,host=a", "cpu=1,host=b"]
    assert [list(point.dimensions) for point in points] == [["cpu", "host"]] * 2


def test_points_can_be_ungrouped() -> None:
    points = grouped(grouped(lines("m,host=a v=1"), "host"))
    assert [(point.group, list(point.dimensions)) for point in points] == [("", [])]


def test_grouping_by_a_tag_that_is_absent_adds_none() -> None:
    (point,) = grouped(lines("m,host=a v=1"), "region")
    assert point.group == "region="
    assert list(point.dimensions) == ["region"]
    assert dict(point.tags) == {"host": "a"}


# --- the plugin ---


TEST_FILE = """
from kapudf_cli import Handler, Point
from kapudf_cli.testing import lines


class Mirror(Handler):
    def point(self, point: Point) -> None:
        if point.name == "bad":
            raise ValueError("no good")
        self.agent.write_point(point)


def test_it_mirrors(udf):
    task = udf(Mirror)
    assert task.send(*lines("m v=1 1")).points == lines("m v=1 1")


def test_it_fails(udf):
    udf(Mirror).send(*lines("bad v=1"))


def test_unfinished(udf):
    udf(Mirror)
"""


def run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PYTEST, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


def test_the_fixture_is_there_without_an_import(tmp_path: Path) -> None:
    (tmp_path / "test_mirror.py").write_text(TEST_FILE, encoding="utf-8")
    run = run_pytest(tmp_path, "-W", "error")
    assert "1 failed, 2 passed" in run.stdout, run.stdout + run.stderr
    assert "TaskFailedError: Mirror.point raised ValueError: no good" in run.stdout


def test_the_fixture_is_listed_with_what_it_does(tmp_path: Path) -> None:
    run = run_pytest(tmp_path, "--fixtures")
    assert "Start tasks: `udf(Handler, options)` returns a Task that is past Init." in run.stdout
