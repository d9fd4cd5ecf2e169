"""Option declarations: read from the annotated fields of an `Options` class."""

from __future__ import annotations

import datetime as dt
import functools
import types
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias

import msgspec

from kapudf_cli.handler.errors import DefinitionError
from kapudf_cli.protocol.udf_pb2 import BOOL, DOUBLE, DURATION, INT, STRING, ValueType
from kapudf_cli.tickscript.identifiers import name_problem
from kapudf_cli.tickscript.literals import TYPE_WORDS

if TYPE_CHECKING:
    from collections.abc import Mapping

_FLAG: Final = "a flag: an option that takes no value"

#: The type of an option without a value: True if the TICKscript calls it.
Flag: TypeAlias = Annotated[bool, _FLAG]

#: The type of an option for the name of a field, a tag or a measurement.
Name: TypeAlias = Annotated[str, msgspec.Meta(min_length=1)]

_TYPES: Final[Mapping[type, ValueType]] = {
    str: STRING,
    int: INT,
    float: DOUBLE,
    bool: BOOL,
    dt.timedelta: DURATION,
}


@dataclass(frozen=True)
class OptionDeclaration:
    """One option, read from its annotation.

    Attributes:
        name: its name in a TICKscript.
        attribute: its field in the class.
        default: its value if it is not called; False for a flag, if no default is declared.
        types: the type of each argument.
        annotations: the annotation of each argument, with ranges.
        single: whether the value is the argument itself, not a tuple.
        repeated: whether it may be called several times.
        required: whether it must be called.
        doc: the description in its `Meta`; None if it has none.
    """

    name: str
    attribute: str
    default: object
    types: tuple[ValueType, ...]
    annotations: tuple[Any, ...]
    single: bool
    repeated: bool
    required: bool
    doc: str | None = None

    @property
    def is_flag(self) -> bool:
        """Whether it takes no value."""
        return not self.types

    @property
    def call(self) -> str:
        """The call in words: `.field(a string, a float)`."""
        words = (
            expected_words(kind, note)
            for kind, note in zip(self.types, self.annotations, strict=True)
        )
        return f".{self.name}({', '.join(words)})"


@functools.cache
def declarations(options: type[msgspec.Struct]) -> tuple[OptionDeclaration, ...]:
    """Return the options that the fields of a class declare.

    Raises:
        DefinitionError: an annotation or a name is not valid for an option.
    """
    return tuple(_read(options, field) for field in msgspec.structs.fields(options))


def _characters(count: int) -> str:
    return "1 character" if count == 1 else f"{count} characters"


def expected_words(kind: ValueType, annotation: Any) -> str:
    """Describe the values that an argument may have: `a whole number, at least 1`."""
    base, metas = _unwrap(annotation)
    if typing.get_origin(base) is Literal:
        return " or ".join(f"'{choice}'" for choice in typing.get_args(base))
    words = TYPE_WORDS[kind]
    for meta in metas:
        if meta.min_length == 1:
            words = f"{words} that is not empty"
        limits = [
            f"at least {meta.ge}" if meta.ge is not None else "",
            f"above {meta.gt}" if meta.gt is not None else "",
            f"at most {meta.le}" if meta.le is not None else "",
            f"below {meta.lt}" if meta.lt is not None else "",
            f"a multiple of {meta.multiple_of}" if meta.multiple_of is not None else "",
            f"{meta.min_length} characters or more" if (meta.min_length or 0) > 1 else "",
            f"{_characters(meta.max_length)} or less" if meta.max_length is not None else "",
            f"matching {meta.pattern}" if meta.pattern is not None else "",
        ]
        if any(limits):
            words = f"{words}, {' and '.join(filter(None, limits))}"
    return words


def _read(options: type[msgspec.Struct], field: msgspec.structs.FieldInfo) -> OptionDeclaration:
    """Return the declaration of a field."""
    if (problem := name_problem(field.encode_name)) is not None:
        message = (
            f"{options.__name__}.{field.name}: no TICKscript can call .{field.encode_name}(); "
            f"{problem}"
        )
        raise DefinitionError(message)
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
    _, notes = _unwrap(_without_none(field.type))
    docs = [note.description for note in notes if note.description]
    return OptionDeclaration(
        name=field.encode_name,
        attribute=field.name,
        default=bool(default) if is_flag else default,
        types=tuple(_value_type(options, field.name, each) for each in annotations),
        annotations=annotations,
        single=single and not is_flag,
        repeated=repeated,
        required=field.required and not is_flag,
        doc=docs[-1] if docs else None,
    )


def _default(field: msgspec.structs.FieldInfo) -> object:
    if field.default_factory is not msgspec.NODEFAULT:
        made: object = field.default_factory()
        return made
    default: object = field.default
    return default


def _is_flag(annotation: Any) -> bool:
    return _FLAG in getattr(annotation, "__metadata__", ())


def _refuse_limits(
    options: type[msgspec.Struct], attribute: str, limits: list[msgspec.Meta]
) -> None:
    """Raise DefinitionError for a limit on the number of values, which would not be checked."""
    if any(_limited(limit) for limit in limits):
        message = f"{options.__name__}.{attribute}: declare limits on the values, not on the list"
        raise DefinitionError(message)


def _limited(limit: msgspec.Meta) -> bool:
    checked = ("gt", "ge", "lt", "le", "multiple_of", "pattern", "min_length", "max_length", "tz")
    return any(getattr(limit, name) is not None for name in checked)


def _value_type(options: type[msgspec.Struct], attribute: str, annotation: Any) -> ValueType:
    base, _ = _unwrap(annotation)
    kind = _TYPES.get(base) if isinstance(base, type) else None
    if typing.get_origin(base) is Literal and all(
        isinstance(choice, str) for choice in typing.get_args(base)
    ):
        kind = STRING
    if kind is None or _is_flag(annotation):
        raise _unfit(options, attribute, annotation)
    try:
        # Otherwise a limit that does not fit the type would only fail at a task's Init.
        msgspec.json.Decoder(annotation)
    except TypeError as error:
        message = f"{options.__name__}.{attribute}: {error}"
        raise DefinitionError(message) from None
    return kind


def _unfit(options: type[msgspec.Struct], attribute: str, annotation: Any) -> DefinitionError:
    return DefinitionError(
        f"{options.__name__}.{attribute}: {annotation!r} is not a type of option; "
        "use str, int, float, bool, timedelta, Literal, a tuple or a list of these, or Flag"
    )


def _unwrap(annotation: Any) -> tuple[Any, list[msgspec.Meta]]:
    """Return the type of an annotation, and its limits."""
    if typing.get_origin(annotation) is Annotated:
        base, *notes = typing.get_args(annotation)
        return base, [note for note in notes if isinstance(note, msgspec.Meta)]
    return annotation, []


def _without_none(annotation: Any) -> Any:
    if typing.get_origin(annotation) is Annotated:
        base, *notes = typing.get_args(annotation)
        return Annotated[_without_none(base), *notes]
    if typing.get_origin(annotation) in {typing.Union, types.UnionType}:
        others = [each for each in typing.get_args(annotation) if each is not type(None)]
        if len(others) == 1:
            return others[0]
    return annotation
