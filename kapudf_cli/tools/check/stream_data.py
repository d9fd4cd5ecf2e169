"""Checks of points, for a UDF that wants a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kapudf_cli.protocol.udf_pb2 import Point
from kapudf_cli.tools.check.data import (
    START_NS,
    TEXT,
    every_type,
    extremes,
    not_numbers,
    points,
)
from kapudf_cli.tools.check.model import Check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from kapudf_cli.protocol.udf_pb2 import Option
    from kapudf_cli.tools.check.trial import Trial

_ANY_POINT: Final = "The fields of Point in udf.proto; writePoint in udf/server.go"
#: As much text as InfluxDB takes in a field is 64 KiB; a node before may have joined several.
_LARGE_TEXT: Final = 1 << 20
_MANY: Final = 20_000


def _check(
    name: str, rule: str, what: str, make: Callable[[Sequence[Option]], Iterable[Point]],
    source: str = _ANY_POINT,
) -> Check:  # fmt: skip
    """Return the check that points are taken, and the task lives on."""

    def run(trial: Trial) -> None:
        trial.needs_stream()
        with trial.started() as conversation:
            conversation.exchange(make(trial.options or ()), f"a keepalive behind {what}")

    return Check(name, rule, source, run)


def _text_everywhere(options: Sequence[Option]) -> Iterable[Point]:
    (point,) = points(1, options)
    point.name = point.database = point.retentionPolicy = TEXT
    point.tags[TEXT] = TEXT
    point.dimensions.append(TEXT)
    point.group = f"host=server00,{TEXT}={TEXT}"
    point.fieldsString[TEXT] = TEXT
    return [point]


def _without_the_field(options: Sequence[Option]) -> Iterable[Point]:
    (point,) = points(1, options)
    point.fieldsDouble.clear()
    point.fieldsDouble["another"] = 1.0
    return [point]


def _of_another_type(options: Sequence[Option]) -> Iterable[Point]:
    (point,) = points(1, options)
    names = list(point.fieldsDouble)
    point.fieldsDouble.clear()
    for name in names:
        point.fieldsString[name] = "no number"
    return [point]


def _large(options: Sequence[Option]) -> Iterable[Point]:
    (point,) = points(1, options)
    point.fieldsString["text"] = "x" * _LARGE_TEXT
    return [point]


def _out_of_order(options: Sequence[Option]) -> Iterable[Point]:
    return reversed(list(points(20, options)))


CHECKS: Final = (
    _check(
        "point-types",
        "A point with a field of each type is taken.",
        "a point with a field of each type",
        lambda options: [every_type(options)],
    ),
    _check(
        "point-no-tags",
        "A point without tags, dimensions or group is taken.",
        "a point without tags",
        lambda _: [Point(time=START_NS, name="cpu", fieldsDouble={"value": 1.0})],
        "Most measurements of a task without groupBy: writePoint in udf/server.go",
    ),
    _check(
        "point-no-fields",
        "A point without fields is taken.",
        "a point without fields",
        lambda _: [Point(time=START_NS, name="cpu", tags={"host": "a"})],
        "|delete().field(…) can leave none: delete.go",
    ),
    _check(
        "point-lacks-field",
        "A point without the field that options name is taken.",
        "a point without the field that options name",
        _without_the_field,
        "Points of one measurement need not have the same fields: InfluxDB's line protocol",
    ),
    _check(
        "point-other-type",
        "A point whose field is of another type than before is taken.",
        "a point with text in the field that options name",
        _of_another_type,
        "Different databases may have different types; kapacitord does not check: writePoint in "
        "udf/server.go",
    ),
    _check(
        "point-text",
        "Text that is not ASCII, and text that needs escapes, is taken everywhere.",
        "a point with text that is not ASCII",
        _text_everywhere,
        "Strings of proto3 are UTF-8",
    ),
    _check(
        "point-extremes",
        "The largest and smallest times, integers and doubles are taken.",
        "points with the largest and smallest values",
        extremes,
        "int64 and double of udf.proto",
    ),
    _check(
        "point-no-number",
        "Fields that are NaN or infinite are taken.",
        "points with NaN and infinite fields",
        not_numbers,
        "An |eval() can give them: a lambda's division by zero",
    ),
    _check(
        "point-large",
        "A point of a megabyte is taken.",
        "a point of a megabyte",
        _large,
        "There is no limit on a message in udf/agent/io.go",
    ),
    _check(
        "point-order",
        "Points that go back in time are taken.",
        "points that go back in time",
        _out_of_order,
        "Kapacitor passes points on as they are written: no order is promised",
    ),
    _check(
        "point-many",
        f"{_MANY} points at full speed are taken, while answers are read.",
        f"{_MANY} points at full speed",
        lambda options: points(_MANY, options),
        "There is no flow control but that of the connection: udf/server.go",
    ),
)
