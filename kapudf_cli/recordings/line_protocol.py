"""InfluxDB's line protocol: a point as a line of text, read and written.

Read by line-protocol-parser, written here, so that what is written reads back as it
was. Where line protocol has no way to say a thing, `write` refuses rather than
writes another thing.

What cannot be read though InfluxDB would: a float nearer to 0 than 2.2e-308, and a
NUL byte.
"""

from __future__ import annotations

import functools
import math
import re
from typing import TYPE_CHECKING, Any, Final

from line_protocol_parser import LineFormatError, parse_line

from kapudf_cli.errors import LineProtocolError
from kapudf_cli.kit.points import get_fields
from kapudf_cli.wire.udf_pb2 import Point

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kapudf_cli.kit.points import FieldValue

#: What a timestamp counts, by the names that InfluxDB has for it, in nanoseconds.
PRECISIONS: Final[Mapping[str, int]] = {
    "ns": 1,
    "u": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
#: Names and tags are few, or as many as there are series.
_KNOWN_NAMES = 4096
_INT64 = range(-(2**63), 2**63)

_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_UNSIGNED = re.compile(r"=\d+u(?=[,\s]|$)")
#: What stands before the fields: up to the first space that no backslash precedes.
_SERIES = re.compile(r"\s*(?:\\.|[^\\\s])*\s", re.DOTALL)

_IN_NAME = re.compile(r"[, ]")
_IN_KEY = re.compile(r"[,= ]")
_IN_STRING = re.compile(r'["\\]')
#: A backslash there would be taken for one that escapes what follows.
_STRAY_BACKSLASH = re.compile(r"\\(?=[,= ]|$)")
#: A name cannot hold these, whatever escapes it.
_UNFIT = re.compile(r"[\n\r\t\x0b\x0c\0]")


def parse(line: str, *, precision: str = "ns", default_time_ns: int = 0) -> Point:
    """Return the point of a line.

    Args:
        line: one line, which may hold line feeds in a string.
        precision: what its timestamp counts, one of PRECISIONS.
        default_time_ns: the time of a point whose line has none.

    Raises:
        LineProtocolError: it is none, or has an unsigned integer, on which
            Kapacitor panics (`fieldsToTypedMaps` in udf/server.go).
    """
    try:
        parsed = parse_line(line)
    except (LineFormatError, ValueError) as error:
        raise LineProtocolError(line, _reason(line, str(error))) from error
    if parsed is None:
        raise LineProtocolError(line, "a comment holds no point")
    # The parser takes unsigned integers for integers.
    if "u" in line and _UNSIGNED.search(_QUOTED.sub('""', line)):
        raise LineProtocolError(line, "Kapacitor has no unsigned integers, and panics on one")
    stamp = parsed["time"]
    time = default_time_ns if stamp is None else stamp * PRECISIONS[precision]
    if time not in _INT64:
        raise LineProtocolError(line, f"the time is out of range; is its precision {precision}?")
    # The parser gives each name once, and nothing that no field can hold.
    point = Point(name=parsed["measurement"], time=time, tags=parsed["tags"])
    for name, value in parsed["fields"].items():
        _fields_of(point, type(value))[name] = value
    return point


def _fields_of(point: Point, kind: type) -> Any:
    if kind is float:
        return point.fieldsDouble
    if kind is int:
        return point.fieldsInt
    return point.fieldsBool if kind is bool else point.fieldsString


def is_unfinished(line: str) -> bool:
    """Return whether a line ends inside a string, which goes on in the next line."""
    series = _SERIES.match(line)
    return series is not None and '"' in _QUOTED.sub("", line[series.end() :])


def write(point: Point, *, name: str | None = None) -> str:
    """Return a point as a line, tags and fields by name, the time in nanoseconds.

    Args:
        point: the point.
        name: the measurement of the point's batch; a point in one need not have it.

    Raises:
        LineProtocolError: line protocol has no way to write it.
    """
    series = _name(point.name if name is None else name, "measurement", _IN_NAME)
    for tag, text in sorted(point.tags.items()):
        # InfluxDB knows no empty tag: it is one that is not there.
        if text:
            series += f",{_name(tag, 'tag', _IN_KEY)}={_name(text, tag, _IN_KEY)}"
    fields = get_fields(point)
    if not fields:
        raise LineProtocolError(series, "a point without fields cannot be written")
    written = [
        f"{_name(key, 'field', _IN_KEY)}={_value(key, fields[key])}" for key in sorted(fields)
    ]
    return f"{series} {','.join(written)} {point.time}"


def show_value(value: FieldValue) -> str:
    """Return a field's value as line protocol has it, and `nan` and `inf`, which it has not."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value}i"
    if isinstance(value, str):
        return '"' + _IN_STRING.sub(r"\\\g<0>", value) + '"'
    return repr(value)


def _value(name: str, value: FieldValue) -> str:
    if isinstance(value, str) and "\0" in value:
        raise LineProtocolError(value, f"field {name!r} has a NUL byte")
    if isinstance(value, float) and not math.isfinite(value):
        raise LineProtocolError(str(value), f"field {name!r} is {value}, which no line can hold")
    return show_value(value)


@functools.lru_cache(_KNOWN_NAMES)
def _name(text: str, what: str, special: re.Pattern[str]) -> str:
    if not text:
        raise LineProtocolError(text, f"a {what} without a name")
    if _UNFIT.search(text) or _STRAY_BACKSLASH.search(text):
        raise LineProtocolError(
            text, f"'{what}': a tab, a line's end, or a backslash at the end or before , = or space"
        )
    if what == "measurement" and text.startswith("#"):
        raise LineProtocolError(text, "a measurement that begins with # would be a comment")
    return special.sub(r"\\\g<0>", text)


def _reason(line: str, problem: str) -> str:
    if is_unfinished(line):
        return "a string is not closed"
    if "=" not in line:
        return "there is no field; a line is: measurement,tag=value field=1.0 timestamp"
    return problem[:1].lower() + problem[1:].rstrip(".")
