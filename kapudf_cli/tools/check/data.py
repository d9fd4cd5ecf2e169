"""What the checks send: wrong options, points and batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kapudf_cli.handler.batches import Batch
from kapudf_cli.protocol.udf_pb2 import (
    BOOL,
    INT,
    STRING,
    BeginBatch,
    Option,
    Point,
)
from kapudf_cli.tools.options import good_value
from kapudf_cli.tools.recordings.notation import group_id, in_batch, messages_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kapudf_cli.protocol.codec import DataMessage
    from kapudf_cli.protocol.udf_pb2 import InfoResponse

#: The field that generated options name, and that each ordinary point has.
FIELD: Final = "value"


def mistyped(info: InfoResponse) -> list[Option]:
    """Return a call of each declared option with wrong types, and one value too many."""
    return [
        Option(
            name=name,
            values=[
                *(
                    good_value(INT if kind == STRING else STRING, FIELD)
                    for kind in option.valueTypes
                ),
                good_value(BOOL, FIELD),
            ],
        )
        for name, option in sorted(info.options.items())
    ]


def without_values(info: InfoResponse) -> list[Option]:
    """Return a call without values of each declared option that takes values."""
    return [Option(name=name) for name, option in sorted(info.options.items()) if option.valueTypes]


def named_fields(options: Sequence[Option]) -> list[str]:
    """Return all strings among the options' values, as each may name a field; and FIELD."""
    names = [value.stringValue for option in options for value in option.values]
    return sorted({FIELD, *filter(None, names)})


#: 2023-11-14 22:13:20 UTC.
START_NS: Final = 1_700_000_000_000_000_000
_STEP_NS: Final = 10_000_000_000
#: Text with characters of one to four bytes, and some that need escapes.
TEXT: Final = 'plain, ="quoted" \\ \n ä ß 日本語 🌡️'
HOSTS: Final = 4
_OUTLIER_EVERY: Final = 100


def points(count: int, options: Sequence[Option]) -> Iterator[Point]:
    """Yield ordinary points, grouped by host, with a double for each field that options name."""
    names = named_fields(options)
    for number in range(count):
        host = f"server{number % HOSTS:02}"
        yield Point(
            time=START_NS + number * _STEP_NS,
            name="cpu",
            database="telegraf",
            retentionPolicy="autogen",
            group=f"host={host}",
            dimensions=["host"],
            tags={"host": host, "cpu": "cpu-total"},
            # Similar but unequal values, with a few outliers.
            fieldsDouble=dict.fromkeys(names, _double(number)),
        )


def _double(number: int) -> float:
    return 1000.0 if number % _OUTLIER_EVERY == _OUTLIER_EVERY - 1 else number % 7 + 0.5


def every_type(options: Sequence[Option]) -> Point:
    """Return a point with a field of each type."""
    (point,) = points(1, options)
    point.fieldsDouble["a_double"] = 1.5
    point.fieldsInt["an_int"] = 7
    point.fieldsString["a_string"] = "text"
    point.fieldsBool["a_bool"] = True
    return point


def extremes(options: Sequence[Option]) -> Iterator[Point]:
    """Yield points with the largest and smallest times, integers and doubles."""
    for time_ns, double, number in (
        (0, 0.0, 0),
        (-1, -0.0, -1),
        (2**63 - 1, 1.7976931348623157e308, 2**63 - 1),
        (-(2**63), 5e-324, -(2**63)),
    ):
        (point,) = points(1, options)
        point.time = time_ns
        point.fieldsDouble["a_double"] = double
        for name in named_fields(options):
            point.fieldsDouble[name] = double
        point.fieldsInt["an_int"] = number
        point.fieldsString["a_string"] = ""
        point.fieldsBool["a_bool"] = False
        yield point


def not_numbers(options: Sequence[Option]) -> Iterator[Point]:
    """Yield points with NaN and infinite fields, like results of an |eval()."""
    for value in (float("nan"), float("inf"), float("-inf")):
        (point,) = points(1, options)
        for name in named_fields(options):
            point.fieldsDouble[name] = value
        yield point


def batch(
    inside: Sequence[Point],
    *,
    host: str = "server00",
    size: int | None = None,
    by_name: bool = False,
) -> Iterator[DataMessage]:
    """Yield points as a batch.

    Args:
        inside: the points.
        host: the group of the batch.
        size: the size in the BeginBatch, None for the number of points.
        by_name: whether the batch is grouped by measurement too.
    """
    tags = {"host": host}
    group = group_id("cpu", tags, ["host"], by_name=by_name)
    bare = [in_batch(point, group) for point in inside]
    tmax_ns = inside[-1].time if inside else START_NS
    for message in messages_of(Batch("cpu", bare, tags, group, tmax_ns, by_name)):
        if isinstance(message, BeginBatch) and size is not None:
            message.size = size
        yield message


def batches(count: int, length: int, options: Sequence[Option]) -> Iterator[DataMessage]:
    """Yield `count` batches of `length` points each, whose groups take turns."""
    for number in range(count):
        inside = list(points(length, options))
        for point in inside:
            point.time += number * length * _STEP_NS
        yield from batch(inside, host=f"server{number % HOSTS:02}")
