"""Options of a handler, declared as typed fields.

    class AverageOptions(Options):
        field: str
        size: Annotated[int, Meta(ge=1)]
        as_: str = "avg"

declares that a TICKscript calls `@average().field('usage').size(10)`, optionally with
`.as('mean')`. The declaration is the source of the InfoResponse, with which Kapacitor checks
the TICKscript, and of the checks of an InitRequest that Kapacitor cannot do.

It is based on msgspec: annotations can declare ranges and patterns, and a configuration file
is checked by the same rules.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, Final, TypeVar, dataclass_transform

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
from kapudf_cli.tickscript.identifiers import nearest
from kapudf_cli.tickscript.literals import write_literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kapudf_cli.handler.option_declarations import OptionDeclaration

O = TypeVar("O", bound="Options")  # noqa: E741 - O for Options, as S for Struct


def tickscript_name(attribute: str) -> str:
    """Return the TICKscript name of an attribute: `windowSize` for `window_size`."""
    first, *others = attribute.rstrip("_").split("_")
    return first + "".join(part.capitalize() for part in others)


class _KeywordOnlyMeta(msgspec.StructMeta):
    """Makes the fields of each subclass keyword-only: in msgspec, `kw_only` is not inherited."""

    def __new__(
        cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], /, **settings: Any
    ) -> _KeywordOnlyMeta:
        return super().__new__(cls, name, bases, namespace, **{"kw_only": True, **settings})


@dataclass_transform(kw_only_default=True, field_specifiers=(msgspec.field,))
class Options(msgspec.Struct, metaclass=_KeywordOnlyMeta, rename=tickscript_name):
    """The base class of a handler's options. A subclass has a field for each option.

    | annotation | TICKscript |
    | --- | --- |
    | `str` | `.name('text')` |
    | `int` | `.name(10)` |
    | `float` | `.name(1.5)` |
    | `bool` | `.name(TRUE)` |
    | `datetime.timedelta` | `.name(10s)` |
    | `Literal['a', 'b']` | `.name('a')` or `.name('b')` |
    | `tuple[str, float]` | `.name('text', 1.5)` |
    | `list[...]` of any of these | any number of calls |
    | `Name` | `.name('text')`, where the text is not empty |
    | `Flag` | `.name()`, or not called |

    A field without a default is required. Fields are keyword-only, so they may have any order.
    `Annotated[int, Meta(ge=1)]` declares a range. The TICKscript name is the attribute's name
    in camel case; `msgspec.field(name=...)` sets another one.
    """


_NANOSECONDS: Final = 1000
#: The part of an OptionValue that holds the value, by its type.
_CONTENTS: Final = {
    STRING: "stringValue",
    INT: "intValue",
    DOUBLE: "doubleValue",
    BOOL: "boolValue",
    DURATION: "durationValue",
}
_PLAIN_LITERAL: Final = "write TRUE or FALSE itself, without quotes and without lambda:"


def declare(options: type[Options]) -> dict[str, OptionInfo]:
    """Return the options for an InfoResponse, by their TICKscript names.

    Raises:
        TypeError: an annotation is not valid for an option.
    """
    return {one.name: OptionInfo(valueTypes=one.types) for one in declarations(options)}


def parse(options: type[O], request: Iterable[Option]) -> O:
    """Return the checked options of an InitRequest.

    Raises:
        OptionsError: all faults, for the author of the TICKscript.
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
    for name in calls:
        meant = nearest(name, [one.name for one in declarations(options)])
        hint = "" if meant is None else f" (did you mean .{meant}()?)"
        faults.append(f"there is no option .{name}(){hint}")
    if faults:
        raise OptionsError("; ".join(faults))
    return options(**values)


def calls_of(options: Options) -> list[Option]:
    """Return the calls that set these options, the reverse of `parse`."""
    calls = []
    for one in declarations(type(options)):
        value = getattr(options, one.attribute)
        made = value is not None and value != [] and not (one.is_flag and not value)
        # A missing required option is reported by `parse`.
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
    """Add the value of the calls to `values`, or what is wrong with them to `faults`."""
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
    """Return a fault for each value of an InitRequest that has a type but no content.

    Kapacitor sends such a value where the TICKscript has a name in double quotes, a lambda, a
    regular expression or a star instead of a bool. It would be read as False.
    """
    return [
        f".{option.name}() got nothing as value {place}; {_PLAIN_LITERAL}"
        for option in request
        for place, value in enumerate(option.values, 1)
        if value.WhichOneof("value") is None
    ]


def _decode(value: OptionValue, kind: ValueType, annotation: Any) -> object:
    """Return an argument as a Python value; raise ValueError with what it is instead."""
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
