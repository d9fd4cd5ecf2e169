"""What the checks send: options made from what a UDF declares, and points and batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kapudf_cli.protocol.udf_pb2 import (
    BOOL,
    DOUBLE,
    DURATION,
    INT,
    STRING,
    BeginBatch,
    EndBatch,
    Option,
    OptionValue,
    Point,
    ValueType,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from kapudf_cli.protocol.codec import DataMessage
    from kapudf_cli.protocol.udf_pb2 import InfoResponse

#: The field that generated options name and that every ordinary point has.
FIELD: Final = "value"

#: Values that most options accept, for two attempts: a share or a factor, a larger or smaller
#: count, a field's name.
_GOOD: Final[Sequence[Mapping[ValueType, OptionValue]]] = (
    {
        BOOL: OptionValue(type=BOOL, boolValue=True),
        INT: OptionValue(type=INT, intValue=10),
        DOUBLE: OptionValue(type=DOUBLE, doubleValue=0.5),
        STRING: OptionValue(type=STRING, stringValue=FIELD),
        DURATION: OptionValue(type=DURATION, durationValue=10_000_000_000),
    },
    {
        BOOL: OptionValue(type=BOOL, boolValue=False),
        INT: OptionValue(type=INT, intValue=2),
        DOUBLE: OptionValue(type=DOUBLE, doubleValue=2.0),
        STRING: OptionValue(type=STRING, stringValue=FIELD),
        DURATION: OptionValue(type=DURATION, durationValue=60_000_000_000),
    },
)


def generated(info: InfoResponse) -> list[list[Option]]:
    """Return calls of every declared option, as candidates to try in this order."""
    return [
        [
            # An unknown type is a fault of its own, which another check finds.
            Option(name=name, values=[good.get(kind, good[STRING]) for kind in option.valueTypes])
            for name, option in sorted(info.options.items())
        ]
        for good in _GOOD
    ]


def mistyped(info: InfoResponse) -> list[Option]:
    """Return a call of each declared option with values of other types, and one value too many."""
    return [
        Option(
            name=name,
            values=[
                *(_GOOD[0][INT if kind == STRING else STRING] for kind in option.valueTypes),
                _GOOD[0][BOOL],
            ],
        )
        for name, option in sorted(info.options.items())
    ]


def without_values(info: InfoResponse) -> list[Option]:
    """Return a call of each declared option that takes values, with none."""
    return [Option(name=name) for name, option in sorted(info.options.items()) if option.valueTypes]


def named_fields(options: Sequence[Option]) -> list[str]:
    """Return the names that may be those of fields: every string among the options' values."""
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
    """Yield ordinary points, grouped by host: each field that options name is a double."""
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
            # Similar but not equal values, and an outlier now and then.
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
    """Yield points whose fields are NaN or infinite, as the result of an |eval() can be."""
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
        inside: the points; fields that Kapacitor leaves out of a batch's points are dropped.
        host: the group that the batch is of.
        size: what the begin announces, None for the number of points.
        by_name: whether it is grouped by measurement too.
    """
    group = f"cpu\nhost={host}" if by_name else f"host={host}"
    tags = {"host": host}
    begin = BeginBatch(name="cpu", group=group, tags=tags, byName=by_name)
    begin.size = len(inside) if size is None else size
    yield begin
    last_ns = START_NS
    for point in inside:
        last_ns = point.time
        yield Point(
            time=point.time,
            group=group,
            tags=point.tags,
            fieldsDouble=point.fieldsDouble,
            fieldsInt=point.fieldsInt,
            fieldsString=point.fieldsString,
            fieldsBool=point.fieldsBool,
        )
    yield EndBatch(name="cpu", group=group, tags=tags, tmax=last_ns)


def batches(count: int, length: int, options: Sequence[Option]) -> Iterator[DataMessage]:
    """Yield `count` batches of `length` points each, of several groups in turn."""
    for number in range(count):
        inside = list(points(length, options))
        for point in inside:
            point.time += number * length * _STEP_NS
        yield from batch(inside, host=f"server{number % HOSTS:02}")
