"""Write points as InfluxDB's line protocol.

What is written reads back as it was with `line_parser`. Where line protocol has no way to
say a thing, `write` refuses.
"""

from __future__ import annotations

import functools
import math
import re
from typing import TYPE_CHECKING, Final

from kapudf_cli.handler.points import get_fields
from kapudf_cli.tools.errors import LineProtocolError
from kapudf_cli.tools.recordings.line_parser import MAX_KEY_BYTES, MAX_TIME_NS, MIN_TIME_NS

if TYPE_CHECKING:
    from kapudf_cli.handler.points import FieldValue
    from kapudf_cli.protocol.udf_pb2 import Point

#: Names and tags are few, or as many as there are series.
_KNOWN_NAMES = 4096
_IN_NAME = re.compile(r"[, ]")
_IN_KEY = re.compile(r"[,= ]")
_IN_STRING = re.compile(r'["\\]')
#: A backslash there would be taken for one that escapes what follows.
_STRAY_BACKSLASH = re.compile(r'\\(?=[,=" ]|$)')
#: A name cannot hold these, or only in some places.
_UNFIT_BEGINNINGS: Final = {
    "#": "a measurement that begins with # would be a comment",
    "\ufeff": "a measurement that begins with a byte order mark would lose it",
}
_UNFIT = re.compile(r"[\n\r\t\x0b\x0c\0]")


def write(point: Point, *, name: str | None = None) -> str:
    """Return a point as a line, tags and fields by name, the time in nanoseconds.

    Args:
        point: the point.
        name: the measurement of the point's batch; a point in one need not have it.

    Raises:
        LineProtocolError: line protocol has no way to write it.
    """
    parts = [_name(point.name if name is None else name, "measurement", _IN_NAME)]
    for tag, text in sorted(point.tags.items()):
        # InfluxDB knows no empty tag: it is one that is not there.
        if text:
            parts.append(f"{_name(tag, 'tag', _IN_KEY)}={_name(text, tag, _IN_KEY)}")
    series = ",".join(parts)
    if len(series.encode()) > MAX_KEY_BYTES:
        reason = f"measurement and tags take more than {MAX_KEY_BYTES} bytes"
        raise LineProtocolError(series, reason)
    if not MIN_TIME_NS <= point.time <= MAX_TIME_NS:
        raise LineProtocolError(series, f"the time {point.time} is one that InfluxDB reserves")
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
    if isinstance(value, float) and not math.isfinite(value):
        raise LineProtocolError(str(value), f"field {name!r} is {value}, which no line can hold")
    return show_value(value)


@functools.lru_cache(_KNOWN_NAMES)
def _name(text: str, what: str, special: re.Pattern[str]) -> str:
    if not text:
        raise LineProtocolError(text, f"a {what} without a name")
    if _UNFIT.search(text) or _STRAY_BACKSLASH.search(text):
        raise LineProtocolError(
            text,
            f"'{what}': a tab, a line's end, or a backslash at the end or before , = \" or space",
        )
    if what == "measurement" and text[0] in _UNFIT_BEGINNINGS:
        raise LineProtocolError(text, _UNFIT_BEGINNINGS[text[0]])
    return special.sub(r"\\\g<0>", text)
