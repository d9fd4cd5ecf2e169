"""Read and write InfluxDB's line protocol, a line at a time, exactly as Kapacitor 1.5 does.

The rules are those of `ParsePointsWithPrecision` of influxdb 1.x (models/points.go). Kapacitor
calls it for each write, and when it replays a recording. tests/recordings/lines.jsonl has lines
with the results of that function.

Kapacitor has some odd rules, which are kept:

- Outside of strings, a backslash escapes the next character only if that is special. In a
  measurement or a tag, a backslash before a comma escapes the comma even if another backslash
  precedes it; in a field it does not.
- If two fields have the same name, the last one counts. Two tags with the same key are an error.
- Text between the closing quote of a string and the next comma or space becomes part of the
  string, and its last character is dropped.

On a few malformed lines Kapacitor panics; here they raise LineProtocolError, as all others do.

A point that is written reads back unchanged. If line protocol cannot express a point, `write`
raises an error.
"""

from __future__ import annotations

import functools
import math
import re
from typing import TYPE_CHECKING, Final

from kapudf_cli.handler.points import get_fields
from kapudf_cli.protocol.udf_pb2 import Point
from kapudf_cli.tools.errors import LineProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from kapudf_cli.handler.points import FieldValue

#: InfluxDB's units of timestamps, in nanoseconds.
PRECISIONS: Final[Mapping[str, int]] = {
    "ns": 1,
    "u": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
#: The maximum length of a measurement with its tags, as written, in bytes.
MAX_KEY_BYTES: Final = 65535

# A recording has many points of few series.
_CACHED_KEYS: Final = 4096
_MAX_CACHED_KEY: Final = 1024

_WHITESPACE: Final = " \t\0"
_INT64_DIGITS: Final = 19
#: The range of times; InfluxDB reserves the two lowest of 64 bits and the highest one.
MIN_TIME_NS: Final = -(2**63) + 2
MAX_TIME_NS: Final = 2**63 - 2

_UNESCAPED_COMMA = re.compile(r"(?<!\\),")
_UNESCAPED_EQUALS = re.compile(r"(?<!\\)=")
_ESCAPED_IN_STRING = re.compile(r'\\(["\\])')

_FIELD_KEY: Final = r'(?:[^\\",= ]++|\\[, =])++'
_STRING: Final = r'[^"\\]*+(?:\\.[^"\\]*+)*+'
_BARE: Final = r'[^\\",= ]++'
_FIELD = re.compile(rf'({_FIELD_KEY})=(?:"({_STRING})"|({_BARE}))', re.DOTALL)
_FIELDS: Final = rf'{_FIELD_KEY}=(?:"{_STRING}"|{_BARE})(?:,{_FIELD_KEY}=(?:"{_STRING}"|{_BARE}))*+'
#: Fields without odd cases, up to the next space or the end of the text. Most fields are plain.
_PLAIN_FIELDS = re.compile(rf"{_FIELDS}(?= |\Z)", re.DOTALL)
#: A whole line without odd cases.
PLAIN_LINE = re.compile(rf'(?:[^ \\"]++|\\[, =])++ {_FIELDS}(?: [-0-9 ]*+)?\r?\Z', re.DOTALL)
#: A special character. A match of a backslash includes the next character.
MARK = re.compile(r'\\.?|["=, ]', re.DOTALL)
_STRING_MARK = re.compile(r'\\["\\]|[",]')
_VALUE_END = re.compile(r"[, ]|\Z")

_BOOLEANS: Final[Mapping[str, bool]] = {
    **dict.fromkeys(("t", "T", "true", "True", "TRUE"), True),
    **dict.fromkeys(("f", "F", "false", "False", "FALSE"), False),
}
_FLOAT_ENDS: Final = frozenset("0123456789.")
_is_float = re.compile(r"-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?").fullmatch
_UNSIGNED = re.compile(r"[0-9]+u")

_CACHED_NAMES: Final = 4096
_IN_NAME = re.compile(r"[, ]")
_IN_KEY = re.compile(r"[,= ]")
_IN_STRING = re.compile(r'["\\]')
#: A backslash that would be read as an escape of the next character.
_STRAY_BACKSLASH = re.compile(r'\\(?=[,=" ]|$)')
#: A measurement cannot begin with these.
_UNFIT_BEGINNINGS: Final = {
    "#": "a measurement that begins with # would be a comment",
    "\ufeff": "a measurement that begins with a byte order mark would lose it",
}
#: Characters that no name can hold.
_UNFIT = re.compile(r"[\n\r\t\x0b\x0c\0]")

_FORM: Final = "a line is: measurement,tag=value field=1.0 timestamp"


def parse(line: str, *, precision: str = "ns", default_time_ns: int = 0) -> Point:
    """Return the point in a line.

    Args:
        line: one record: a line, or several lines if a string contains line feeds.
        precision: the unit of the timestamp, one of PRECISIONS.
        default_time_ns: the time of a point without a timestamp, rounded down to the precision.

    Raises:
        LineProtocolError: Kapacitor would refuse the line.
    """
    try:
        return _parse(line.removesuffix("\n"), PRECISIONS[precision], default_time_ns)
    except _MalformedError as error:
        raise LineProtocolError(line, str(error)) from error


class _MalformedError(ValueError):
    """A line is malformed; the message is the reason alone."""


def _parse(text: str, unit_ns: int, default_time_ns: int) -> Point:
    text = text.lstrip(_WHITESPACE)
    if not text:
        raise _MalformedError(f"there is no point; {_FORM}")
    if text[0] == "#":
        raise _MalformedError("a comment holds no point")
    key_end = _find_unescaped(text, " ", 1)
    if key_end < 0:
        raise _MalformedError(f"there is no field; {_FORM}")
    key = text[:key_end]
    name, tags = _cached_key(key) if key_end <= _MAX_CACHED_KEY else _read_key(key)

    start = key_end
    while text[start : start + 1] in {" ", "\t", "\0"}:
        start += 1
    plain = _PLAIN_FIELDS.match(text, start)
    if plain is not None:
        end = plain.end()
        fields: dict[str, FieldValue] = {
            _unescaped_name(field) if "\\" in field else field: (
                _bare_value(field, bare) if bare else _unescaped_string(string)
            )
            for field, string, bare in _FIELD.findall(text, start, end)
        }
    else:
        end = _scan_fields(text, start)
        fields = dict(_split_fields(text[start:end]))
    time = _read_time(text[end:], unit_ns, default_time_ns)

    point = Point(name=name, time=time, tags=tags)
    _set_fields(point, fields)
    return point


def _find_unescaped(text: str, character: str, start: int) -> int:
    """Return the place of the next character without a backslash before it, -1 if none."""
    place = text.find(character, start)
    while place > 0 and text[place - 1] == "\\":
        place = text.find(character, place + 1)
    return place


def _set_fields(point: Point, fields: Mapping[str, FieldValue]) -> None:
    doubles = point.fieldsDouble
    for field, value in fields.items():
        if isinstance(value, float):
            doubles[field] = value
        elif isinstance(value, str):
            point.fieldsString[field] = value
        elif isinstance(value, bool):
            point.fieldsBool[field] = value
        else:
            point.fieldsInt[field] = value


# --- measurement and tags ---


def _read_key(key: str) -> tuple[str, dict[str, str]]:
    """Return the measurement and the tags."""
    if key[0] == ",":
        raise _MalformedError("there is no measurement before the comma")
    if len(key) > MAX_KEY_BYTES or len(key.encode(errors="surrogatepass")) > MAX_KEY_BYTES:
        raise _MalformedError(f"measurement and tags take more than {MAX_KEY_BYTES} bytes")
    if "\\" not in key:
        name, *parts = key.split(",")
        return name, _read_tags(part.partition("=") for part in parts)
    name, *parts = _UNESCAPED_COMMA.split(key)
    tags = _read_tags(map(_escaped_tag, parts))
    return _unescaped_name(name), {
        _unescaped_tag(tag): _unescaped_tag(value) for tag, value in tags.items()
    }


_cached_key = functools.lru_cache(_CACHED_KEYS)(_read_key)


def _read_tags(parts: Iterable[tuple[str, str, str]]) -> dict[str, str]:
    """Return the tags from triples of key, equals sign and value; all are still escaped."""
    tags: dict[str, str] = {}
    for tag, _, value in parts:
        if not tag:
            raise _MalformedError("a tag has no key")
        if not value:
            raise _MalformedError(f"tag {tag!r:.80} has no value")
        # A second equals sign directly after the first one is part of the value.
        if "=" in value and _UNESCAPED_EQUALS.search(value, 1):
            raise _MalformedError(f"tag {tag!r:.80}: an '=' in its value has no backslash")
        if tag in tags:
            raise _MalformedError(f"there are two tags {tag!r:.80}")
        tags[tag] = value
    return tags


def _unescaped_tag(text: str) -> str:
    return text.replace("\\,", ",").replace("\\ ", " ").replace("\\=", "=")


def _unescaped_name(text: str) -> str:
    """Unescape a measurement or a field's key, in which quotes may be escaped too."""
    return _unescaped_tag(text).replace('\\"', '"')


def _escaped_tag(part: str) -> tuple[str, str, str]:
    found = _UNESCAPED_EQUALS.search(part)
    if found is None:
        return part, "", ""
    return part[: found.start()], "=", part[found.end() :]


# --- fields ---


def _scan_fields(text: str, start: int) -> int:
    """Check fields that are not plain, and return their end."""
    place = start
    quoted = False
    equals = commas = 0
    while (found := MARK.search(text, place)) is not None:
        mark = found[0]
        place = found.start()
        if mark == '"' and equals > commas:
            quoted = not quoted
        elif mark == "=" and not quoted:
            equals += 1
            if text[place + 1 : place + 2] != '"':
                place = _check_bare_value(text, start, place)
                continue
            _check_field_key(text, place)
        elif mark == "," and not quoted:
            commas += 1
            start = place + 1
        elif mark == " " and not quoted:
            break
        place = found.end()
    else:
        place = len(text)
    if quoted:
        raise _MalformedError("a string is not closed")
    if equals == 0:
        raise _MalformedError(f"there is no field; {_FORM}")
    if commas != equals - 1:
        raise _MalformedError("a field is not of the form key=value")
    return place


def _check_field_key(text: str, equals: int) -> None:
    if text[equals - 1] in {" ", ","} and text[equals - 2] != "\\":
        raise _MalformedError("a field has no key")


def _check_bare_value(text: str, start: int, equals: int) -> int:
    """Check the field at `start`, which has a number or a boolean; return its end."""
    _check_field_key(text, equals)
    found = _VALUE_END.search(text, equals + 1)
    assert found is not None, "the end of the text matches"
    end = found.start()
    if end == equals + 1:
        raise _MalformedError(f"field {text[start:equals]!r:.80} has no value")
    _bare_value(text[start:equals], text[equals + 1 : end])
    return end


def _split_fields(block: str) -> Iterator[tuple[str, FieldValue]]:
    """Yield the fields of a checked block, by Kapacitor's slightly different rules for this."""
    place = 0
    while place < len(block):
        equals = _find_unescaped(block, "=", place)
        if equals < 0:
            # The rest is all key and has no value. Kapacitor drops such a field.
            return
        key = _unescaped_name(block[place:equals])
        end = _string_end(block, equals + 1)
        value = block[equals + 1 : end]
        if key and value:
            yield key, _quoted_value(key, value) if value[0] == '"' else _bare_value(key, value)
        place = end + 1


def _string_end(block: str, place: int) -> int:
    """Return the end of a value: the next comma outside of quotes."""
    quoted = False
    while (found := _STRING_MARK.search(block, place)) is not None:
        mark = found[0]
        if mark == '"':
            quoted = not quoted
        elif mark == "," and not quoted:
            return found.start()
        place = found.end()
    return len(block)


def _quoted_value(key: str, value: str) -> str:
    if len(value) == 1:
        raise _MalformedError(f"field {key!r:.80}: a string is not closed")
    if not value[-1].isascii():
        # Kapacitor drops only the last byte, so the string would not be UTF-8.
        raise _MalformedError(f"field {key!r:.80}: there is text after the closing quote")
    return _unescaped_string(value[1:-1])


def _unescaped_string(string: str) -> str:
    if "\\" not in string:
        return string
    if "\\\\" not in string:
        return string.replace('\\"', '"')
    return _ESCAPED_IN_STRING.sub(r"\1", string)


def _bare_value(key: str, text: str) -> FieldValue:
    """Return a number or a boolean."""
    last = text[-1]
    if last in _FLOAT_ENDS and _is_float(text):
        number = float(text)
        if not math.isinf(number):
            return number
        raise _MalformedError(f"field {key!r:.80}: {text!r:.80} is out of range")
    if last == "i" and (integer := _integer(text[:-1])) is not None:
        if -(2**63) <= integer < 2**63:
            return integer
        raise _MalformedError(f"field {key!r:.80}: {text!r:.80} does not fit into 64 bits")
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if _UNSIGNED.fullmatch(text):
        raise _MalformedError(
            f"field {key!r:.80}: {text!r:.80}: Kapacitor 1.5 refuses unsigned integers; "
            "write it with an i"
        )
    raise _MalformedError(
        f"field {key!r:.80}: {text!r:.80} is not a number, a boolean or a string in double quotes"
    )


# --- time ---


def _read_time(rest: str, unit_ns: int, default_time_ns: int) -> int:
    stamp, _, tail = rest.lstrip(_WHITESPACE).partition(" ")
    if not stamp:
        return default_time_ns - default_time_ns % unit_ns
    count = _integer(stamp)
    if count is None or (tail and tail.strip(" ")):
        raise _MalformedError(
            f"{f'{stamp} {tail}'.strip()!r:.80} is not a timestamp, which is a whole number"
        )
    time = count * unit_ns
    if not MIN_TIME_NS <= time <= MAX_TIME_NS:
        raise _MalformedError("the time is out of range; is the precision right?")
    return time


def _integer(text: str) -> int | None:
    """Return a whole number, None if it is not one. One over 64 bits may be inexact."""
    digits = text.removeprefix("-")
    if not (digits.isdigit() and digits.isascii()):
        return None
    if len(digits) > _INT64_DIGITS:
        # Python refuses to read thousands of digits, even zeros.
        text = text[: -len(digits)] + (digits.lstrip("0")[: _INT64_DIGITS + 1] or "0")
    return int(text)


# --- writing ---


def write(point: Point, *, name: str | None = None) -> str:
    """Return a point as a line, with sorted tags and fields, and the time in nanoseconds.

    Args:
        point: the point.
        name: the measurement of the point's batch; points in a batch may lack it.

    Raises:
        LineProtocolError: line protocol cannot express the point.
    """
    parts = [_name(point.name if name is None else name, "measurement", _IN_NAME)]
    for tag, text in sorted(point.tags.items()):
        # InfluxDB treats an empty tag as missing.
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
    """Return a field's value as in line protocol; also `nan` and `inf`, which it cannot express."""
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


@functools.lru_cache(_CACHED_NAMES)
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
