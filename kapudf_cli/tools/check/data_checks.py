"""The checks of data, points or batches, and of snapshots."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

from kapudf_cli.client.errors import UdfFaultError
from kapudf_cli.client.session import drain
from kapudf_cli.client.target import HandlerTarget
from kapudf_cli.protocol.udf_pb2 import (
    BATCH,
    STREAM,
    BeginBatch,
    EndBatch,
    Point,
    RestoreRequest,
    RestoreResponse,
)
from kapudf_cli.tools.check.data import (
    START_NS,
    TEXT,
    batch,
    batches,
    every_type,
    extremes,
    not_numbers,
    points,
)
from kapudf_cli.tools.check.trial import Check, NotApplicableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from kapudf_cli.client.session import Session
    from kapudf_cli.protocol.codec import DataMessage
    from kapudf_cli.protocol.udf_pb2 import EdgeType, Option
    from kapudf_cli.tools.check.trial import Trial

# --- data ---

#: InfluxDB limits a field to 64 KiB of text, but an earlier node may have joined several fields.
_LARGE_TEXT: Final = 1 << 20
_MANY: Final = 20_000
#: A handler that writes nothing for so many points of its fields most likely never writes.
_ENOUGH_POINTS: Final = 1_000
#: The sources of rules about all data of an edge.
_SOURCES: Final = {
    STREAM: "The fields of Point in udf.proto; writePoint in udf/server.go",
    BATCH: "BeginBatch, Point and EndBatch of udf.proto; writeBufferedBatch in udf/server.go",
}
_HINT: Final = "The size is a hint, 0 if it is unknown: SizeHint in edge/messages.go"
_HUGE: Final = 20_000


def _check(
    name: str,
    rule: str,
    what: str,
    make: Callable[[Sequence[Option]], Iterable[DataMessage]],
    source: str | None = None,
    *,
    edge: EdgeType,
) -> Check:
    """Return the check that a UDF accepts data and its task continues.

    Args:
        name: see `Check`.
        rule: see `Check`.
        what: the data, for error messages.
        make: makes the data for a task with these options.
        source: see `Check`; None for the source about all data of the edge.
        edge: the edge that the UDF must want.
    """

    def run(trial: Trial) -> None:
        trial.needs(edge)
        with trial.shared() as session:
            drain(session.exchange(make(trial.options or ()), f"a keepalive behind {what}"))

    return Check(name, rule, source or _SOURCES[edge], run)


_stream_check = functools.partial(_check, edge=STREAM)
_batch_check = functools.partial(_check, edge=BATCH)


def _point_with_text(options: Sequence[Option]) -> Iterable[Point]:
    (point,) = points(1, options)
    point.name = point.database = point.retentionPolicy = TEXT
    point.tags[TEXT] = TEXT
    point.dimensions.append(TEXT)
    point.group = f"host=server00,{TEXT}={TEXT}"
    point.fieldsString[TEXT] = TEXT
    return [point]


def _point_without_the_field(options: Sequence[Option]) -> Iterable[Point]:
    (point,) = points(1, options)
    point.fieldsDouble.clear()
    point.fieldsDouble["another"] = 1.0
    return [point]


def _point_of_another_type(options: Sequence[Option]) -> Iterable[Point]:
    (point,) = points(1, options)
    names = list(point.fieldsDouble)
    point.fieldsDouble.clear()
    for name in names:
        point.fieldsString[name] = "no number"
    return [point]


def _large_point(options: Sequence[Option]) -> Iterable[Point]:
    (point,) = points(1, options)
    point.fieldsString["text"] = "x" * _LARGE_TEXT
    return [point]


def _points_out_of_order(options: Sequence[Option]) -> Iterable[Point]:
    return reversed(list(points(20, options)))


STREAM_CHECKS: Final = (
    _stream_check(
        "point-types",
        "A point with a field of each type is accepted.",
        "a point with a field of each type",
        lambda options: [every_type(options)],
    ),
    _stream_check(
        "point-no-tags",
        "A point without tags, dimensions or group is accepted.",
        "a point without tags",
        lambda _: [Point(time=START_NS, name="cpu", fieldsDouble={"value": 1.0})],
        "Most measurements of a task without groupBy: writePoint in udf/server.go",
    ),
    _stream_check(
        "point-no-fields",
        "A point without fields is accepted.",
        "a point without fields",
        lambda _: [Point(time=START_NS, name="cpu", tags={"host": "a"})],
        "|delete().field(…) can leave none: delete.go",
    ),
    _stream_check(
        "point-lacks-field",
        "A point without the field that options name is accepted.",
        "a point without the field that options name",
        _point_without_the_field,
        "Points of one measurement need not have the same fields: InfluxDB's line protocol",
    ),
    _stream_check(
        "point-other-type",
        "A point whose field is of another type than before is accepted.",
        "a point with text in the field that options name",
        _point_of_another_type,
        "Different databases may have different types; kapacitord does not check: writePoint in "
        "udf/server.go",
    ),
    _stream_check(
        "point-text",
        "Text that is not ASCII, and text that needs escapes, is accepted everywhere.",
        "a point with text that is not ASCII",
        _point_with_text,
        "Strings of proto3 are UTF-8",
    ),
    _stream_check(
        "point-extremes",
        "The largest and smallest times, integers and doubles are accepted.",
        "points with the largest and smallest values",
        extremes,
        "int64 and double of udf.proto",
    ),
    _stream_check(
        "point-no-number",
        "Fields that are NaN or infinite are accepted.",
        "points with NaN and infinite fields",
        not_numbers,
        "The result of an |eval() can be such a value: a division by zero",
    ),
    _stream_check(
        "point-large",
        "A point of a megabyte is accepted.",
        "a point of a megabyte",
        _large_point,
        "There is no limit on a message in udf/agent/io.go",
    ),
    _stream_check(
        "point-order",
        "Points that go back in time are accepted.",
        "points that go back in time",
        _points_out_of_order,
        "Kapacitor forwards points in the order in which they were written",
    ),
    _stream_check(
        "point-many",
        f"{_MANY} points at full speed are accepted, while answers are read.",
        f"{_MANY} points at full speed",
        lambda options: points(_MANY, options),
        "The connection is the only flow control: udf/server.go",
    ),
)


def _batch_with_text(options: Sequence[Option]) -> Iterable[DataMessage]:
    (point,) = points(1, options)
    point.tags[TEXT] = TEXT
    point.fieldsString[TEXT] = TEXT
    tags = {TEXT: TEXT}
    group = f"{TEXT}={TEXT}"
    yield BeginBatch(name=TEXT, group=group, tags=tags, size=1)
    yield Point(
        time=point.time, group=group, tags=point.tags,
        fieldsDouble=point.fieldsDouble, fieldsString=point.fieldsString,
    )  # fmt: skip
    yield EndBatch(name=TEXT, group=group, tags=tags, tmax=point.time)


def _bare_batch(options: Sequence[Option]) -> Iterable[DataMessage]:
    yield BeginBatch(name="cpu", size=3)
    for point in points(3, options):
        yield Point(time=point.time)
    yield EndBatch(name="cpu", tmax=1)


def _batch_without_the_field(options: Sequence[Option]) -> Iterable[DataMessage]:
    inside = list(points(3, options))
    for point in inside:
        names = list(point.fieldsDouble)
        point.fieldsDouble.clear()
        point.fieldsString.update(dict.fromkeys(names, "no number"))
    inside[0].fieldsString.clear()
    inside[0].fieldsDouble["another"] = 1.0
    return batch(inside)


BATCH_CHECKS: Final = (
    _batch_check(
        "batch-types",
        "A batch whose points have fields of each type is accepted.",
        "a batch with fields of each type",
        lambda options: batch([every_type(options)] * 3),
    ),
    _batch_check(
        "batch-empty",
        "A batch without points is accepted.",
        "a batch without points",
        lambda _: batch([]),
        "The result of a query without points: writeBufferedBatch in udf/server.go",
    ),
    _batch_check(
        "batch-tiny",
        "A batch of one point is accepted.",
        "a batch of one point",
        lambda options: batch(list(points(1, options))),
    ),
    _batch_check(
        "batch-huge",
        f"A batch of {_HUGE} points is accepted.",
        f"a batch of {_HUGE} points",
        lambda options: batch(list(points(_HUGE, options))),
        "A window of a busy stream has as many; there is no limit in udf/server.go",
    ),
    _batch_check(
        "batch-unknown-size",
        "A batch of points whose begin says size 0 is accepted.",
        "a batch whose size was not known",
        lambda options: batch(list(points(10, options)), size=0),
        _HINT,
    ),
    _batch_check(
        "batch-wrong-size",
        "A batch with more points than its begin says is accepted.",
        "a batch with more points than announced",
        lambda options: batch(list(points(10, options)), size=3),
        _HINT,
    ),
    _batch_check(
        "batch-bare",
        "A batch without group or tags, of points without fields, is accepted.",
        "a batch of points without fields",
        _bare_batch,
        "A task without groupBy has no tags; |delete() can leave no field",
    ),
    _batch_check(
        "batch-lacks-field",
        "A batch whose points lack the field that options name, or have text in it, is accepted.",
        "a batch of points without the field that options name",
        _batch_without_the_field,
        "Points of one measurement need not have the same fields: InfluxDB's line protocol",
    ),
    _batch_check(
        "batch-text",
        "Text that is not ASCII, and text that needs escapes, is accepted everywhere.",
        "a batch with text that is not ASCII",
        _batch_with_text,
        "Strings of proto3 are UTF-8",
    ),
    _batch_check(
        "batch-extremes",
        "The largest and smallest values are accepted, and NaN and infinite ones.",
        "a batch with the largest and smallest values",
        lambda options: batch([*extremes(options), *not_numbers(options)]),
        "int64 and double of udf.proto; the result of an |eval() can be NaN",
    ),
    _batch_check(
        "batch-by-name",
        "A batch that is grouped by measurement is accepted; its end does not say so.",
        "a batch grouped by measurement",
        lambda options: batch(list(points(3, options)), by_name=True),
        "writeEndBatch in udf/server.go leaves byName out",
    ),
    _batch_check(
        "batch-many",
        "Batches of several groups in turn are accepted.",
        "400 batches of several groups",
        lambda options: batches(400, 10, options),
    ),
)


# --- snapshots ---

_ASKED: Final = "Kapacitor asks for one at each snapshot-interval of [task], one minute by default"
_GIVEN_BACK: Final = (
    "Kapacitor restores it when the task starts again; if that fails, the task fails: "
    "Restore in udf/server.go"
)
_SNAPSHOT_POINTS: Final = 100
_AFTER_RESTORE: Final = "a keepalive behind points that followed Restore"


def _before_data(trial: Trial) -> None:
    with trial.started() as session:
        drain(session.snapshot())
        drain(session.exchange())


def _after_data(trial: Trial) -> None:
    with trial.shared() as session:
        drain(
            session.exchange(
                trial.data(_SNAPSHOT_POINTS), f"a keepalive behind {_SNAPSHOT_POINTS} points"
            )
        )
        drain(session.snapshot())
        what = "a keepalive behind points that followed a snapshot"
        drain(session.exchange(trial.data(_SNAPSHOT_POINTS), what))


def _inside_a_batch(trial: Trial) -> None:
    trial.needs(BATCH)
    messages = list(batch(list(points(10, trial.options or ()))))
    with trial.shared() as session:
        session.post(*messages[:5])
        drain(session.snapshot())
        what = "a keepalive after a batch with a snapshot inside"
        drain(session.exchange(messages[5:], what))


def _restores_an_unused_one(trial: Trial) -> None:
    unused, _ = trial.snapshots(_SNAPSHOT_POINTS)
    with trial.started() as session:
        _restore(session, unused)
        drain(session.exchange(trial.data(_SNAPSHOT_POINTS), _AFTER_RESTORE))


def _restores_a_used_one(trial: Trial) -> None:
    _, used = trial.snapshots(_SNAPSHOT_POINTS)
    with trial.started() as session:
        _restore(session, used)
        drain(session.exchange(trial.data(_SNAPSHOT_POINTS), _AFTER_RESTORE))
        drain(session.snapshot())


def _keeps_what_was_restored(trial: Trial) -> None:
    unused, used = trial.snapshots(_SNAPSHOT_POINTS)
    if used == unused:
        raise NotApplicableError("its snapshot is the same before and after data")
    with trial.started() as session:
        _restore(session, used)
        restored = drain(session.snapshot())
    if restored == unused:
        problem = (
            "restored its own snapshot with success, and forgot it: its next one is that of a "
            "task without any data"
        )
        raise UdfFaultError(problem)


def _answers_a_foreign_one(trial: Trial) -> None:
    for snapshot in (b"\xff\xfe no snapshot of this UDF \x00" * 40, b"{}"):
        with trial.started() as session:
            response = _send_restore(session, snapshot)
        if not response.success and not response.error.strip():
            raise UdfFaultError("refused a snapshot of another UDF without a reason")


def _restore(session: Session, snapshot: bytes) -> None:
    """Restore a snapshot of the UDF.

    Raises:
        NotApplicableError: the snapshot is empty.
        UdfFaultError: the UDF refuses it.
    """
    if not snapshot:
        raise NotApplicableError("its snapshot is empty, and Kapacitor never restores an empty one")
    response = _send_restore(session, snapshot)
    if not response.success:
        reason = " ".join(response.error.split()) or "no reason given"
        problem = f"refused its own snapshot of {len(snapshot)} bytes: {reason:.300}"
        raise UdfFaultError(problem)


def _send_restore(session: Session, snapshot: bytes) -> RestoreResponse:
    return drain(session.ask(RestoreRequest(snapshot=snapshot), RestoreResponse, "Restore"))


def _writes_something(trial: Trial) -> None:
    with trial.started() as session:
        data = trial.data(_ENOUGH_POINTS)
        drain(session.exchange(data, f"a keepalive behind {len(data)} messages"))
        # Some write only at the end.
        drain(session.finish())
        if session.counts.messages_received:
            return
    if not isinstance(trial.target, HandlerTarget) or trial.target.handler.may_drop_all:
        raise NotApplicableError("it wrote nothing, which may be right")
    problem = (
        f"wrote nothing for {_ENOUGH_POINTS} points. What `point` and `end_batch` return is "
        "written; set `may_drop_all = True` if nothing can be right"
    )
    raise UdfFaultError(problem)


WRITING_CHECKS: Final = (
    Check(
        "writes",
        "The UDF writes something for its input.",
        "A handler without output most often lacks a `return`, and nothing reports that",
        _writes_something,
    ),
)

SNAPSHOT_CHECKS: Final = (
    Check(
        "snapshot-before-data",
        "The UDF gives a snapshot before any data.",
        _ASKED,
        _before_data,
    ),
    Check("snapshot-after-data", "The UDF gives a snapshot between data.", _ASKED, _after_data),
    Check(
        "snapshot-in-batch",
        "The UDF gives a snapshot inside a batch.",
        f"{_ASKED}; it does not wait for the end of a batch",
        _inside_a_batch,
    ),
    Check(
        "restore-unused",
        "The UDF restores its own snapshot from before any data.",
        _GIVEN_BACK,
        _restores_an_unused_one,
    ),
    Check(
        "restore-used",
        "The UDF restores its own snapshot from after data, and accepts more data.",
        _GIVEN_BACK,
        _restores_a_used_one,
    ),
    Check(
        "restore-keeps",
        "The restored state is used: a snapshot right after Restore is not that of a new task.",
        _GIVEN_BACK,
        _keeps_what_was_restored,
    ),
    Check(
        "restore-foreign",
        "A snapshot of another UDF is accepted, or refused with a reason.",
        "Kapacitor stores snapshots by task and node, so new code gets those of old code: issues "
        "679 and 757 of influxdata/kapacitor",
        _answers_a_foreign_one,
    ),
)
