"""Read and write literals of TICKscript: strings, numbers, TRUE and FALSE, durations.

The rules are those of Kapacitor's lexer and parser (tick/ast/lex.go and tick/ast/node.go). There
are no exponents and no units below a microsecond, and an integer that begins with 0 is octal.
"""

from __future__ import annotations

import decimal
import math
import re
from typing import TYPE_CHECKING, Final

from kapudf_cli.protocol.udf_pb2 import BOOL, DOUBLE, DURATION, INT, STRING, OptionValue, ValueType

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The units of TICKscript in nanoseconds. `u` and `µ` are the same unit.
_UNITS: Final[Mapping[str, int]] = {
    "u": 10**3,
    "µ": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3_600 * 10**9,
    "d": 86_400 * 10**9,
    "w": 7 * 86_400 * 10**9,
}
#: The units to write with; weeks are hard to read.
_WRITTEN_UNITS: Final = ("d", "h", "m", "s", "ms", "u")

#: The words for each type in messages.
TYPE_WORDS: Final[Mapping[ValueType, str]] = {
    STRING: "a string",
    INT: "a whole number",
    DOUBLE: "a float",
    BOOL: "TRUE or FALSE",
    DURATION: "a duration",
}

_LITERAL = re.compile(
    r"""
    '''(?P<triple>.*?)'''
    | '(?P<single>(?:\\'|[^'])*+)'
    | (?P<minus>-?)\s*(?:
        (?P<count>\d++)(?P<unit>ms|[uµsmhdw])
        | (?P<float>\d*\.\d+ | \d+\.\d*)
        | (?P<int>\d++)
      )
    | (?P<bool>TRUE|FALSE)\b
    """,
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_INT64 = range(-(2**63), 2**63)


def read_literal(text: str, place: int) -> tuple[OptionValue, int]:
    """Return the literal at a place of a text, and the place after it.

    Raises:
        ValueError: there is no literal; the message says what is there.
    """
    found = _LITERAL.match(text, place)
    if found is None:
        raise ValueError(_problem(text, place))
    match found.lastgroup:
        case "triple":
            value = OptionValue(type=STRING, stringValue=found["triple"])
        case "single":
            value = OptionValue(type=STRING, stringValue=found["single"].replace("\\'", "'"))
        case "bool":
            value = OptionValue(type=BOOL, boolValue=found["bool"] == "TRUE")
        case "float":
            value = OptionValue(type=DOUBLE, doubleValue=float(found["minus"] + found["float"]))
        case "unit":
            number = _whole(found["minus"], found["count"], base=10, unit=found["unit"])
            value = OptionValue(type=DURATION, durationValue=number)
        case _:
            digits = found["int"]
            base = 8 if digits.startswith("0") and len(digits) > 1 else 10
            value = OptionValue(type=INT, intValue=_whole(found["minus"], digits, base=base))
    return value, found.end()


def write_literal(value: OptionValue) -> str:
    """Return an option's value as a literal.

    A few values cannot be written in TICKscript. They are shown in a similar form, for messages:
    a duration below a microsecond, a number that is not finite, the smallest integer, and a
    string that has three quotes and ends in a backslash or a quote.
    """
    match value.WhichOneof("value"):
        case "stringValue":
            return _quoted(value.stringValue)
        case "boolValue":
            return str(value.boolValue).upper()
        case "intValue":
            return str(value.intValue)
        case "doubleValue":
            return _positional(value.doubleValue)
        case "durationValue":
            return write_duration(value.durationValue)
        case _:
            return "nothing"


def write_duration(nanoseconds: int) -> str:
    """Return a duration as a whole number of the largest possible unit."""
    for unit in _WRITTEN_UNITS:
        if nanoseconds % _UNITS[unit] == 0:
            return f"{nanoseconds // _UNITS[unit]}{unit}"
    return f"{nanoseconds}ns"


def _whole(minus: str, digits: str, *, base: int, unit: str | None = None) -> int:
    try:
        number = int(digits, base) * (1 if unit is None else _UNITS[unit])
    except ValueError:
        # Invalid octal digits, or more digits than Python reads.
        message = f"'{digits:.40}' is not a number; one that begins with 0 is octal"
        raise ValueError(message) from None
    # The minus is an operator on a number, so the smallest integer cannot be written.
    if number not in _INT64:
        message = f"'{minus}{digits:.40}{unit or ''}' does not fit into 64 bits"
        raise ValueError(message)
    return -number if minus else number


def _quoted(text: str) -> str:
    # A backslash before the closing quote would escape it; three quotes have no escapes.
    if text.endswith("\\") and "'''" not in text:
        return f"'''{text}'''"
    return "'" + text.replace("'", "\\'") + "'"


def _positional(number: float) -> str:
    """Return a float without an exponent, all of its digits, and a point."""
    if not math.isfinite(number):
        return str(number)
    shown = format(decimal.Decimal(repr(number)), "f")
    return shown if "." in shown else f"{shown}.0"


def _problem(text: str, place: int) -> str:
    rest = text[place:]
    if rest.startswith("'"):
        return "a string is not closed"
    if rest.startswith('"'):
        return "a string stands in single quotes: 'text'"
    word = re.match(r"[^\s,()]+", rest)
    if word is None:
        return "a value is missing" if rest[:1] in {"", ",", ")"} else f"'{rest[0]}' is not a value"
    if word[0].upper() in {"TRUE", "FALSE"}:
        return f"'{word[0]}' is not a value; write {word[0].upper()}"
    return f"'{word[0]}' is not a value; a string stands in single quotes: 'text'"
