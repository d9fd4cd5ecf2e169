"""Parse InfluxDB's line protocol exactly as Kapacitor 1.5 does.

The facts are those of `ParsePointsWithPrecision` in influxdb 1.x (models/points.go), which
Kapacitor calls for what is written to it and for what it replays. tests/recordings/lines.json
holds lines and what that function makes of them. The module does no I/O: text in, points out.

Odd behaviour that is kept, because Kapacitor has it:

- Outside of strings, a backslash escapes the next character only where that is special. In
  a measurement or a tag, a backslash before a comma escapes it even if the backslash
  follows another one; in a field it does not.
- Of fields with the same name the last one counts. Tags with the same key are an error.
- What follows a string's closing quote, up to the next comma or space, becomes part of
  the string, and its last character is dropped.

Kapacitor panics on a few malformed lines; here they raise LineProtocolError like all others.
"""

from __future__ import annotations

import functools
import math
import re
from typing import TYPE_CHECKING, Final

from kapudf_cli.protocol.udf_pb2 import Point
from kapudf_cli.tools.errors import LineProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from kapudf_cli.handler.points import FieldValue

#: The unit of a timestamp, by InfluxDB's name for it, in nanoseconds.
PRECISIONS: Final[Mapping[str, int]] = {
    "ns": 1,
    "u": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
#: The longest measurement with its tags, as written, in bytes.
MAX_KEY_BYTES: Final = 65535

# Recordings have few series, and each of them many times.
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
#: Fields for which all rules agree, up to the space or the end after them. Almost all are.
_PLAIN_FIELDS = re.compile(rf"{_FIELDS}(?= |\Z)", re.DOTALL)
#: A whole line of such fields, for whose key all rules agree as well.
_PLAIN_LINE = re.compile(rf'(?:[^ \\"]++|\\[, =])++ {_FIELDS}(?: [-0-9 ]*+)?\r?\Z', re.DOTALL)
#: What the scanners stop at; a backslash takes the next character with it.
_MARK = re.compile(r'\\.?|["=, ]', re.DOTALL)
_STRING_MARK = re.compile(r'\\["\\]|[",]')
_VALUE_END = re.compile(r"[, ]|\Z")

_BOOLEANS: Final[Mapping[str, bool]] = {
    **dict.fromkeys(("t", "T", "true", "True", "TRUE"), True),
    **dict.fromkeys(("f", "F", "false", "False", "FALSE"), False),
}
_FLOAT_ENDS: Final = frozenset("0123456789.")
_is_float = re.compile(r"-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?").fullmatch
_UNSIGNED = re.compile(r"[0-9]+u")

_FORM: Final = "a line is: measurement,tag=value field=1.0 timestamp"


def parse(line: str, *, precision: str = "ns", default_time_ns: int = 0) -> Point:
    """Return the point that a line holds.

    Args:
        line: one record: a line, or several where a string holds line feeds.
        precision: the unit of its timestamp, one of PRECISIONS.
        default_time_ns: the time of a point without a timestamp; it is rounded down to
            the precision.

    Raises:
        LineProtocolError: Kapacitor would refuse the line.
    """
    try:
        return _parse(line.removesuffix("\n"), PRECISIONS[precision], default_time_ns)
    except _MalformedError as error:
        raise LineProtocolError(line, str(error)) from error


class RecordEnd:
    """Finds the line that ends a record, as a string may hold line feeds.

    Feed it the lines of one record; it costs time in proportion to their length.
    """

    def __init__(self) -> None:
        """Begin at the start of a record."""
        self._quoted = False
        self._in_fields = False
        self._equals = 0
        self._commas = 0

    def goes_on_after(self, line: str) -> bool:
        """Return whether the record goes on in the line after this one.

        It does after an open quote, and after a backslash at the end, even in a comment.
        """
        if '"' not in line:
            if line.endswith("\\"):
                return self._scan(line)
            if self._quoted:
                return True
        elif not self._in_fields and _PLAIN_LINE.match(line):
            return False
        return self._scan(line)

    def _scan(self, line: str) -> bool:
        escaped_end = False
        for found in _MARK.finditer(line):
            mark = found[0]
            if mark == " ":
                self._in_fields = True
            elif mark == "\\":
                escaped_end = True
            elif not self._in_fields:
                continue
            elif mark == '"':
                if self._equals > self._commas:
                    self._quoted = not self._quoted
            elif self._quoted:
                continue
            elif mark == "=":
                self._equals += 1
            elif mark == ",":
                self._commas += 1
        return self._quoted or escaped_end


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
    """Return where a character is that no backslash precedes, -1 if nowhere."""
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
    """Return the tags, given as triples of key, equals sign and value; all still escaped."""
    tags: dict[str, str] = {}
    for tag, _, value in parts:
        if not tag:
            raise _MalformedError("a tag has no key")
        if not value:
            raise _MalformedError(f"tag {tag!r:.80} has no value")
        # An equals sign right after the first one is read as part of the value.
        if "=" in value and _UNESCAPED_EQUALS.search(value, 1):
            raise _MalformedError(f"tag {tag!r:.80}: an '=' in its value has no backslash")
        if tag in tags:
            raise _MalformedError(f"there are two tags {tag!r:.80}")
        tags[tag] = value
    return tags


def _unescaped_tag(text: str) -> str:
    return text.replace("\\,", ",").replace("\\ ", " ").replace("\\=", "=")


def _unescaped_name(text: str) -> str:
    """Return a measurement or a field's key, which may have escaped quotes as well."""
    return _unescaped_tag(text).replace('\\"', '"')


def _escaped_tag(part: str) -> tuple[str, str, str]:
    found = _UNESCAPED_EQUALS.search(part)
    if found is None:
        return part, "", ""
    return part[: found.start()], "=", part[found.end() :]


# --- fields ---


def _scan_fields(text: str, start: int) -> int:
    """Check the fields and return where they end. Only fields that are not plain come here."""
    place = start
    quoted = False
    equals = commas = 0
    while (found := _MARK.search(text, place)) is not None:
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
    """Check the field that starts there and has a number or a boolean; return its end."""
    _check_field_key(text, equals)
    found = _VALUE_END.search(text, equals + 1)
    assert found is not None, "the end of the text matches"
    end = found.start()
    if end == equals + 1:
        raise _MalformedError(f"field {text[start:equals]!r:.80} has no value")
    _bare_value(text[start:equals], text[equals + 1 : end])
    return end


def _split_fields(block: str) -> Iterator[tuple[str, FieldValue]]:
    """Yield the fields of a block that was checked, by the slightly different rules for that."""
    place = 0
    while place < len(block):
        equals = _find_unescaped(block, "=", place)
        if equals < 0:
            # The key has swallowed its value, and Kapacitor drops such a field.
            return
        key = _unescaped_name(block[place:equals])
        end = _string_end(block, equals + 1)
        value = block[equals + 1 : end]
        if key and value:
            yield key, _quoted_value(key, value) if value[0] == '"' else _bare_value(key, value)
        place = end + 1


def _string_end(block: str, place: int) -> int:
    """Return where a value ends: at the next comma outside of quotes."""
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
        # Kapacitor drops the last byte only, which leaves a string that is not UTF-8.
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
    """Return a whole number, None if it is none; one of many digits as any beyond 64 bits."""
    digits = text.removeprefix("-")
    if not (digits.isdigit() and digits.isascii()):
        return None
    if len(digits) > _INT64_DIGITS:
        # Python refuses thousands of digits, even if they are zeros.
        text = text[: -len(digits)] + (digits.lstrip("0")[: _INT64_DIGITS + 1] or "0")
    return int(text)
