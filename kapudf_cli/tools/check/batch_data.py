"""Checks of batches, for a UDF that wants them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kapudf_cli.protocol.udf_pb2 import BeginBatch, EndBatch, Point
from kapudf_cli.tools.check.data import (
    TEXT,
    batch,
    batches,
    every_type,
    extremes,
    not_numbers,
    points,
)
from kapudf_cli.tools.check.model import Check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from kapudf_cli.protocol.codec import DataMessage
    from kapudf_cli.protocol.udf_pb2 import Option
    from kapudf_cli.tools.check.trial import Trial

_ANY_BATCH: Final = (
    "BeginBatch, Point and EndBatch of udf.proto; writeBufferedBatch in udf/server.go"
)
_HINT: Final = "It is a hint, 0 where it is not known: SizeHint in edge/messages.go"
_HUGE: Final = 20_000


def _check(
    name: str, rule: str, what: str, make: Callable[[Sequence[Option]], Iterable[DataMessage]],
    source: str = _ANY_BATCH,
) -> Check:  # fmt: skip
    """Return the check that batches are taken, and the task lives on."""

    def run(trial: Trial) -> None:
        trial.needs_batches()
        with trial.started() as conversation:
            conversation.exchange(make(trial.options or ()), f"a keepalive behind {what}")

    return Check(name, rule, source, run)


def _text_everywhere(options: Sequence[Option]) -> Iterable[DataMessage]:
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


def _bare(options: Sequence[Option]) -> Iterable[DataMessage]:
    yield BeginBatch(name="cpu", size=3)
    for point in points(3, options):
        yield Point(time=point.time)
    yield EndBatch(name="cpu", tmax=1)


def _without_the_field(options: Sequence[Option]) -> Iterable[DataMessage]:
    inside = list(points(3, options))
    for point in inside:
        names = list(point.fieldsDouble)
        point.fieldsDouble.clear()
        point.fieldsString.update(dict.fromkeys(names, "no number"))
    inside[0].fieldsString.clear()
    inside[0].fieldsDouble["another"] = 1.0
    return batch(inside)


CHECKS: Final = (
    _check(
        "batch-types",
        "A batch whose points have fields of each type is taken.",
        "a batch with fields of each type",
        lambda options: batch([every_type(options)] * 3),
    ),
    _check(
        "batch-empty",
        "A batch without points is taken.",
        "a batch without points",
        lambda _: batch([]),
        "A query that finds nothing gives one: writeBufferedBatch in udf/server.go",
    ),
    _check(
        "batch-tiny",
        "A batch of one point is taken.",
        "a batch of one point",
        lambda options: batch(list(points(1, options))),
    ),
    _check(
        "batch-huge",
        f"A batch of {_HUGE} points is taken.",
        f"a batch of {_HUGE} points",
        lambda options: batch(list(points(_HUGE, options))),
        "A window of a busy stream has as many; there is no limit in udf/server.go",
    ),
    _check(
        "batch-unknown-size",
        "A batch of points whose begin says size 0 is taken.",
        "a batch whose size was not known",
        lambda options: batch(list(points(10, options)), size=0),
        _HINT,
    ),
    _check(
        "batch-wrong-size",
        "A batch with more points than its begin says is taken.",
        "a batch with more points than announced",
        lambda options: batch(list(points(10, options)), size=3),
        _HINT,
    ),
    _check(
        "batch-bare",
        "A batch without group or tags, of points without fields, is taken.",
        "a batch of points without fields",
        _bare,
        "A task without groupBy has no tags; |delete() can leave no field",
    ),
    _check(
        "batch-lacks-field",
        "A batch whose points lack the field that options name, or have text in it, is taken.",
        "a batch of points without the field that options name",
        _without_the_field,
        "Points of one measurement need not have the same fields: InfluxDB's line protocol",
    ),
    _check(
        "batch-text",
        "Text that is not ASCII, and text that needs escapes, is taken everywhere.",
        "a batch with text that is not ASCII",
        _text_everywhere,
        "Strings of proto3 are UTF-8",
    ),
    _check(
        "batch-extremes",
        "The largest and smallest values are taken, and NaN and infinite ones.",
        "a batch with the largest and smallest values",
        lambda options: batch([*extremes(options), *not_numbers(options)]),
        "int64 and double of udf.proto; an |eval() can give what is no number",
    ),
    _check(
        "batch-by-name",
        "A batch that is grouped by measurement is taken; its end does not say so.",
        "a batch grouped by measurement",
        lambda options: batch(list(points(3, options)), by_name=True),
        "writeEndBatch in udf/server.go leaves byName out",
    ),
    _check(
        "batch-many",
        "Batches of several groups in turn are taken.",
        "400 batches of several groups",
        lambda options: batches(400, 10, options),
    ),
)
