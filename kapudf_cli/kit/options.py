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
import functools
import types
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias, TypeVar

import msgspec

from kapudf_cli.errors import OptionsError
from kapudf_cli.tickscript.literals import TYPE_WORDS, write_literal
from kapudf_cli.wire.udf_pb2 import (
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

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_FLAG: Final = "a flag: an option that takes no value"

#: The type of an option that takes no value: called, it is True.
Flag: TypeAlias = Annotated[bool, _FLAG]

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

_TYPES: Final[Mapping[type, ValueType]] = {
    str: STRING,
    int: INT,
    float: DOUBLE,
    bool: BOOL,
    dt.timedelta: DURATION,
}


@dataclass(frozen=True)
class _Declared:
    """One option, read off its annotation.

    Attributes:
        name: what a TICKscript calls.
        attribute: the field of the struct.
        default: its value where it is not called; of a flag, False unless another is declared.
        types: the type of each argument.
        annotations: the annotation of each argument, ranges included.
        single: whether the value is the one argument itself, and no tuple.
        repeated: whether it may be called any number of times.
        required: whether it must be called.
    """

    name: str
    attribute: str
    default: object
    types: tuple[ValueType, ...]
    annotations: tuple[Any, ...]
    single: bool
    repeated: bool
    required: bool

    @property
    def is_flag(self) -> bool:
        """Whether it takes no value."""
        return not self.types

    @property
    def call(self) -> str:
        """The call in words: `.field(a string, a float)`."""
        words = (
            _expected(kind, note) for kind, note in zip(self.types, self.annotations, strict=True)
        )
        return f".{self.name}({', '.join(words)})"


def declare(options: type[Options]) -> dict[str, OptionInfo]:
    """Return what an InfoResponse says of the options, by the name a TICKscript calls.

    Raises:
        TypeError: an annotation is none that an option can have.
    """
    return {one.name: OptionInfo(valueTypes=one.types) for one in _declared(options)}


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
    for one in _declared(options):
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
    for one in _declared(type(options)):
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
    one: _Declared,
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
                expected = _expected(kind, annotation)
                faults.append(f".{one.name}() expects {expected}{which}, got {error}")
        taken.append(decoded[0] if one.single and decoded else tuple(decoded))
    if one.is_flag:
        values[one.attribute] = True
    else:
        values[one.attribute] = taken if one.repeated else taken[0]


def _decode(value: OptionValue, kind: ValueType, annotation: Any) -> object:
    """Return an argument as Python has it; ValueError says what it is instead."""
    shown = write_literal(value)
    if value.type != kind:
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


def _characters(count: int) -> str:
    return "1 character" if count == 1 else f"{count} characters"


def _expected(kind: ValueType, annotation: Any) -> str:
    """Return in words what an argument must be: `a whole number, at least 1`."""
    base, metas = _unwrap(annotation)
    if typing.get_origin(base) is Literal:
        return " or ".join(f"'{choice}'" for choice in typing.get_args(base))
    words = TYPE_WORDS[kind]
    for meta in metas:
        limits = [
            f"at least {meta.ge}" if meta.ge is not None else "",
            f"above {meta.gt}" if meta.gt is not None else "",
            f"at most {meta.le}" if meta.le is not None else "",
            f"below {meta.lt}" if meta.lt is not None else "",
            f"a multiple of {meta.multiple_of}" if meta.multiple_of is not None else "",
            f"{_characters(meta.min_length)} or more" if meta.min_length is not None else "",
            f"{_characters(meta.max_length)} or less" if meta.max_length is not None else "",
            f"matching {meta.pattern}" if meta.pattern is not None else "",
        ]
        if any(limits):
            words = f"{words}, {' and '.join(filter(None, limits))}"
    return words


@functools.cache
def _declared(options: type[Options]) -> tuple[_Declared, ...]:
    return tuple(_read(options, field) for field in msgspec.structs.fields(options))


def _read(options: type[Options], field: msgspec.structs.FieldInfo) -> _Declared:
    """Read an option off its field."""
    annotation = _without_none(field.type)
    base, limits = _unwrap(annotation)
    repeated = typing.get_origin(base) is list
    if repeated:
        _refuse_limits(options, field.name, limits)
        (annotation,) = typing.get_args(base)
        base, limits = _unwrap(annotation)
    single = typing.get_origin(base) is not tuple
    if not single:
        _refuse_limits(options, field.name, limits)
    annotations: tuple[Any, ...] = (annotation,) if single else typing.get_args(base)
    is_flag = _is_flag(annotation)
    if not annotations or (is_flag and repeated) or any(map(_is_flag, annotations[1:])):
        raise _unfit(options, field.name, annotation)
    if is_flag:
        annotations = ()
    default = None if field.required else _default(field)
    return _Declared(
        name=field.encode_name,
        attribute=field.name,
        default=bool(default) if is_flag else default,
        types=tuple(_value_type(options, field.name, each) for each in annotations),
        annotations=annotations,
        single=single and not is_flag,
        repeated=repeated,
        required=field.required and not is_flag,
    )


def _default(field: msgspec.structs.FieldInfo) -> object:
    if field.default_factory is not msgspec.NODEFAULT:
        made: object = field.default_factory()
        return made
    default: object = field.default
    return default


def _is_flag(annotation: Any) -> bool:
    return _FLAG in getattr(annotation, "__metadata__", ())


def _refuse_limits(options: type[Options], attribute: str, limits: list[msgspec.Meta]) -> None:
    """Refuse a limit on how many values there are, which is not checked."""
    if any(_limited(limit) for limit in limits):
        message = f"{options.__name__}.{attribute}: declare limits on the values, not on the list"
        raise TypeError(message)


def _limited(limit: msgspec.Meta) -> bool:
    checked = ("gt", "ge", "lt", "le", "multiple_of", "pattern", "min_length", "max_length", "tz")
    return any(getattr(limit, name) is not None for name in checked)


def _value_type(options: type[Options], attribute: str, annotation: Any) -> ValueType:
    base, _ = _unwrap(annotation)
    kind = _TYPES.get(base) if isinstance(base, type) else None
    if typing.get_origin(base) is Literal and all(
        isinstance(choice, str) for choice in typing.get_args(base)
    ):
        kind = STRING
    if kind is None or _is_flag(annotation):
        raise _unfit(options, attribute, annotation)
    try:
        # A limit that does not go with the type would show at a task's Init only.
        msgspec.json.Decoder(annotation)
    except TypeError as error:
        message = f"{options.__name__}.{attribute}: {error}"
        raise TypeError(message) from None
    return kind


def _unfit(options: type[Options], attribute: str, annotation: Any) -> TypeError:
    return TypeError(
        f"{options.__name__}.{attribute}: {annotation!r} is not a type of option; "
        "use str, int, float, bool, timedelta, Literal, a tuple or a list of these, or Flag"
    )


def _unwrap(annotation: Any) -> tuple[Any, list[msgspec.Meta]]:
    """Return an annotation without what is annotated, and that."""
    if typing.get_origin(annotation) is Annotated:
        base, *notes = typing.get_args(annotation)
        return base, [note for note in notes if isinstance(note, msgspec.Meta)]
    return annotation, []


def _without_none(annotation: Any) -> Any:
    if typing.get_origin(annotation) in {typing.Union, types.UnionType}:
        others = [each for each in typing.get_args(annotation) if each is not type(None)]
        if len(others) == 1:
            return others[0]
    return annotation
