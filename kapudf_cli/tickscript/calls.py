"""Calls of a UDF's options in TICKscript: `.field('usage_idle', 42.0).every(10s)`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kapudf_cli.protocol.udf_pb2 import BOOL, Option, OptionValue
from kapudf_cli.tickscript.errors import CallError
from kapudf_cli.tickscript.identifiers import name_problem, nearest
from kapudf_cli.tickscript.literals import TYPE_WORDS, read_literal, write_literal
from kapudf_cli.tickscript.snippets import signatures

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kapudf_cli.protocol.udf_pb2 import InfoResponse

#: The function before the calls. It is ignored: another option of the command selects the UDF.
_FUNCTION = re.compile(r"\s*@\s*\w+\s*\(\s*\)")
_CALL = re.compile(r"\s*\.\s*(\w+)\s*\(")
_BLANK = re.compile(r"\s*")
_SEPARATOR = re.compile(r"\s*([,)])")


@dataclass(frozen=True)
class Call:
    """One call.

    Attributes:
        name: the option.
        values: the arguments.
        columns: the places of the name and of each argument in the text; the first is 1.
    """

    name: str
    values: tuple[OptionValue, ...]
    columns: tuple[int, ...]

    @property
    def option(self) -> Option:
        """The call for an InitRequest."""
        return Option(name=self.name, values=self.values)


def read_calls(text: str) -> list[Call]:
    """Return the calls in a text, which may begin with `@name()`.

    Raises:
        CallError: it has anything else, or an argument is not a literal.
    """
    function = _FUNCTION.match(text)
    place = function.end() if function else 0
    calls = []
    while (place := _skip_blank(text, place)) < len(text):
        call, place = _read_call(text, place)
        calls.append(call)
    return calls


def write_calls(calls: Sequence[Option]) -> str:
    """Return calls as TICKscript."""
    return "".join(
        f".{call.name}({', '.join(write_literal(value) for value in call.values)})"
        for call in calls
    )


def check_calls(calls: Sequence[Call], info: InfoResponse) -> list[Option]:
    """Check calls as Kapacitor checks a TICKscript, and return them for an InitRequest.

    Raises:
        CallError: the UDF declares no such option, or other arguments.
    """
    for call in calls:
        declared = info.options.get(call.name)
        if declared is None:
            known = " ".join(signatures(info)) or "none"
            meant = nearest(call.name, info.options)
            hint = "its options:" if meant is None else f"did you mean .{meant}()? Its options:"
            reason = f"the UDF has no option .{call.name}(); {hint} {known}"
            raise CallError(call.columns[0], reason)
        expected = [TYPE_WORDS.get(kind, "an unknown type") for kind in declared.valueTypes]
        whole = f".{call.name}({', '.join(expected)})"
        if len(call.values) != len(expected):
            count = "1 value" if len(call.values) == 1 else f"{len(call.values)} values"
            reason = f".{call.name}() expects {whole}, got {count}"
            raise CallError(call.columns[0], reason)
        for number, value in enumerate(call.values):
            if value.type != declared.valueTypes[number]:
                which = f" as value {number + 1}" if len(expected) > 1 else ""
                got = write_literal(value)
                if value.type != BOOL:
                    got += f", {TYPE_WORDS[value.type]}"
                reason = f".{call.name}() expects {expected[number]}{which}, got {got}"
                raise CallError(call.columns[number + 1], reason)
    return [call.option for call in calls]


def _read_call(text: str, place: int) -> tuple[Call, int]:
    head = _CALL.match(text, place)
    if head is None:
        reason = f"a call such as .name('text', 1.0) belongs here, not '{text[place:]:.20}'"
        raise CallError(place + 1, reason)
    if (problem := name_problem(head[1])) is not None:
        reason = f"a TICKscript cannot call .{head[1]}(); {problem}"
        raise CallError(head.start(1) + 1, reason)
    values: list[OptionValue] = []
    columns = [head.start(1) + 1]
    place = _skip_blank(text, head.end())
    if text.startswith(")", place):
        return Call(head[1], (), tuple(columns)), place + 1
    while True:
        place = _skip_blank(text, place)
        try:
            value, after = read_literal(text, place)
        except UnicodeEncodeError:
            # Bytes on the command line that are not UTF-8 become lone surrogates.
            raise CallError(place + 1, f".{head[1]}(): a string is not UTF-8") from None
        except ValueError as error:
            raise CallError(place + 1, f".{head[1]}(): {error}") from None
        separator = _SEPARATOR.match(text, after)
        if separator is None:
            rest = text[after:].lstrip()
            follows = f"'{rest:.20}'" if rest else "nothing"
            reason = f".{head[1]}(): a comma or ) belongs after {text[place:after]}, not {follows}"
            raise CallError(after + 1, reason)
        values.append(value)
        columns.append(place + 1)
        place = separator.end()
        if separator[1] == ")":
            return Call(head[1], tuple(values), tuple(columns)), place


def _skip_blank(text: str, place: int) -> int:
    blank = _BLANK.match(text, place)
    return blank.end() if blank else place
