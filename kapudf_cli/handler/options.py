"""Options: declared once as typed fields, in two directions.

    class AverageOptions(Options, kw_only=True):
        field: str
        size: Annotated[int, Meta(ge=1)]
        as_: str = "avg"

says that a TICKscript calls `@average().field('usage').size(10)`, perhaps with
`.as('mean')`. From it come the InfoResponse, by which Kapacitor checks the
TICKscript's calls, and the checks of an InitRequest that Kapacitor cannot do.

It builds on msgspec rather than on dataclasses: ranges and patterns are declared
in the annotation, and a configuration file is checked by the same rules.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from kapudf_cli.handler.errors import OptionsError
from kapudf_cli.handler.option_declarations import declarations, expected_words
from kapudf_cli.protocol.udf_pb2 import (
    BOOL,
    DOUBLE,
    DURATION,
    INT,
    STRING,
    Option,
    OptionInfo,
    OptionValue,
    ValueType,
)
from kapudf_cli.tickscript.literals import write_literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kapudf_cli.handler.option_declarations import OptionDeclaration

O = TypeVar("O", bound="Options")  # noqa: E741 - O for Options, as S for Struct


def tickscript_name(attribute: str) -> str:
    """Return how a TICKscript calls an attribute: `window_size` windowSize, `as_` as."""
    first, *others = attribute.rstrip("_").split("_")
    return first + "".join(part.capitalize() for part in others)


class Options(msgspec.Struct, rename=tickscript_name):
    """The options of a handler, one field each. Subclass it with `kw_only=True`.

    | annotation | TICKscript |
    | --- | --- |
    | `str` | `.name('text')` |
    | `int` | `.name(10)` |
    | `float` | `.name(1.5)` |
    | `bool` | `.name(TRUE)` |
    | `datetime.timedelta` | `.name(10s)` |
    | `Literal['a', 'b']` | `.name('a')`, and no other text |
    | `tuple[str, float]` | `.name('text', 1.5)` |
    | `list[...]` of any of these | any number of calls |
    | `Flag` | `.name()`, or not called |

    A field without a default is a call that must be made. `Annotated[int,
    Meta(ge=1)]` declares a range. Names are written the Python way and called
    the TICKscript way; `msgspec.field(name=...)` gives one of its own.
    """


_NANOSECONDS: Final = 1000
#: Which part of an OptionValue holds a value of each type.
_CONTENTS: Final = {
    STRING: "stringValue",
    INT: "intValue",
    DOUBLE: "doubleValue",
    BOOL: "boolValue",
    DURATION: "durationValue",
}
_PLAIN_LITERAL: Final = "write TRUE or FALSE itself, without quotes and without lambda:"


def declare(options: type[Options]) -> dict[str, OptionInfo]:
    """Return what an InfoResponse says of the options, by the name a TICKscript calls.

    Raises:
        TypeError: an annotation is none that an option can have.
    """
    return {one.name: OptionInfo(valueTypes=one.types) for one in declarations(options)}


def parse(options: type[O], request: Iterable[Option]) -> O:
    """Return the options of an InitRequest, checked.

    Raises:
        OptionsError: in words for the TICKscript's author, with every fault.
    """
    calls: dict[str, list[Sequence[OptionValue]]] = {}
    for option in request:
        calls.setdefault(option.name, []).append(option.values)
    faults: list[str] = []
    values: dict[str, Any] = {}
    for one in declarations(options):
        made = calls.pop(one.name, [])
        if made:
            _take(one, made, values, faults)
        elif one.required:
            faults.append(f".{one.name}() is missing; call {one.call}")
        elif one.is_flag:
            values[one.attribute] = one.default
    faults += [f"there is no option .{name}()" for name in calls]
    if faults:
        raise OptionsError("; ".join(faults))
    return options(**values)


def calls_of(options: Options) -> list[Option]:
    """Return the calls that give these options: what `parse` takes back."""
    calls = []
    for one in declarations(type(options)):
        value = getattr(options, one.attribute)
        made = value is not None and value != [] and not (one.is_flag and not value)
        # What must be called and is not is for `parse` to refuse, in its own words.
        if not made and not one.required and value != one.default:
            message = f".{one.name}(): no TICKscript gives {value!r} where the default is another"
            raise ValueError(message)
        if not made:
            continue
        for call in value if one.repeated else [value]:
            arguments = [call] if one.single else list(call) if one.types else []
            pairs = zip(one.types, arguments, strict=True)
            calls.append(Option(name=one.name, values=[_encode(*pair) for pair in pairs]))
    return calls


def _take(
    one: OptionDeclaration,
    made: list[Sequence[OptionValue]],
    values: dict[str, Any],
    faults: list[str],
) -> None:
    """Put the value of the calls made into `values`, or say in `faults` what is wrong."""
    if len(made) > 1 and not one.repeated:
        faults.append(f".{one.name}() is called {len(made)} times; call it once")
        return
    taken = []
    for arguments in made:
        if len(arguments) != len(one.types):
            counted = "1 value" if len(arguments) == 1 else f"{len(arguments)} values"
            faults.append(f".{one.name}() got {counted}; call {one.call}")
            return
        decoded = []
        for place, argument in enumerate(arguments):
            kind, annotation = one.types[place], one.annotations[place]
            try:
                decoded.append(_decode(argument, kind, annotation))
            except ValueError as error:
                which = f" as value {place + 1}" if len(one.types) > 1 else ""
                expected = expected_words(kind, annotation)
                faults.append(f".{one.name}() expects {expected}{which}, got {error}")
        taken.append(decoded[0] if one.single and decoded else tuple(decoded))
    if one.is_flag:
        values[one.attribute] = True
    else:
        values[one.attribute] = taken if one.repeated else taken[0]


def missing_values(request: Iterable[Option]) -> list[str]:
    """Return a fault for each value of an InitRequest that has a type and no content.

    Kapacitor sends such a bool where the TICKscript has something else: a name in double
    quotes, a lambda, a regular expression or a star. Its content would be read as False.
    """
    return [
        f".{option.name}() got nothing as value {place}; {_PLAIN_LITERAL}"
        for option in request
        for place, value in enumerate(option.values, 1)
        if value.WhichOneof("value") is None
    ]


def _decode(value: OptionValue, kind: ValueType, annotation: Any) -> object:
    """Return an argument as Python has it; ValueError says what it is instead."""
    shown = write_literal(value)
    content = value.WhichOneof("value")
    if content is None and kind == BOOL:
        message = f"{shown}; {_PLAIN_LITERAL}"
        raise ValueError(message)
    if value.type != kind or content != _CONTENTS[kind]:
        raise ValueError(shown)
    found: object
    match kind:
        case ValueType.STRING:
            found = value.stringValue
        case ValueType.INT:
            found = value.intValue
        case ValueType.DOUBLE:
            found = value.doubleValue
        case ValueType.BOOL:
            found = value.boolValue
        case _:
            microseconds, finer = divmod(value.durationValue, _NANOSECONDS)
            if finer:
                message = f"{shown}, finer than a microsecond"
                raise ValueError(message)
            found = dt.timedelta(microseconds=microseconds)
    try:
        msgspec.convert(found, type=annotation, strict=True)
    except msgspec.ValidationError:
        raise ValueError(shown) from None
    return found


def _encode(kind: ValueType, value: Any) -> OptionValue:
    match kind:
        case ValueType.STRING:
            return OptionValue(type=STRING, stringValue=value)
        case ValueType.INT:
            return OptionValue(type=INT, intValue=value)
        case ValueType.DOUBLE:
            return OptionValue(type=DOUBLE, doubleValue=value)
        case ValueType.BOOL:
            return OptionValue(type=BOOL, boolValue=value)
        case _:
            microseconds = value // dt.timedelta(microseconds=1)
            return OptionValue(type=DURATION, durationValue=microseconds * _NANOSECONDS)
