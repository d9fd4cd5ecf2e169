"""Points and batches to send, as Kapacitor would send them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kapudf_cli.protocol.udf_pb2 import BeginBatch, EndBatch, Point
from kapudf_cli.tools.check.options import named_fields

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kapudf_cli.protocol.codec import DataMessage
    from kapudf_cli.protocol.udf_pb2 import Option

#: 2023-11-14 22:13:20 UTC.
START_NS: Final = 1_700_000_000_000_000_000
_STEP_NS: Final = 10_000_000_000
#: Text that takes one, two, three and four bytes a character, and needs escapes in places.
TEXT: Final = 'plain, ="quoted" \\ \n ä ß 日本語 🌡️'
HOSTS: Final = 4
_FAR_OUT_EVERY: Final = 100


def points(count: int, options: Sequence[Option]) -> Iterator[Point]:
    """Yield ordinary points: a double in each field that options name, grouped by host."""
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
            # Alike and not equal, and now and then far out, for whoever looks for that.
            fieldsDouble=dict.fromkeys(names, _double(number)),
        )


def _double(number: int) -> float:
    return 1000.0 if number % _FAR_OUT_EVERY == _FAR_OUT_EVERY - 1 else number % 7 + 0.5


def every_type(options: Sequence[Option]) -> Point:
    """Return a point with a field of each type."""
    (point,) = points(1, options)
    point.fieldsDouble["a_double"] = 1.5
    point.fieldsInt["an_int"] = 7
    point.fieldsString["a_string"] = "text"
    point.fieldsBool["a_bool"] = True
    return point


def extremes(options: Sequence[Option]) -> Iterator[Point]:
    """Yield points with the largest and smallest values, and with those that are no numbers."""
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
    """Yield points whose fields are not finite, as a quotient in an |eval() can be."""
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
        inside: the points; what Kapacitor leaves out of a batch's points is left out.
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
    """Yield so many batches of so many points, of several groups in turn."""
    for number in range(count):
        inside = list(points(length, options))
        for point in inside:
            point.time += number * length * _STEP_NS
        yield from batch(inside, host=f"server{number % HOSTS:02}")
