"""Options to start a UDF with, made from what it declares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kapudf_cli.protocol.udf_pb2 import (
    BOOL,
    DOUBLE,
    DURATION,
    INT,
    STRING,
    Option,
    OptionValue,
    ValueType,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kapudf_cli.protocol.udf_pb2 import InfoResponse

#: The field that generated options name and that every ordinary point has.
FIELD: Final = "value"

#: Values that most options can do with, for two tries: a share or a factor, a count of
#: some or of few, a field's name.
_GOOD: Final[Sequence[Mapping[ValueType, OptionValue]]] = (
    {
        BOOL: OptionValue(type=BOOL, boolValue=True),
        INT: OptionValue(type=INT, intValue=10),
        DOUBLE: OptionValue(type=DOUBLE, doubleValue=0.5),
        STRING: OptionValue(type=STRING, stringValue=FIELD),
        DURATION: OptionValue(type=DURATION, durationValue=10_000_000_000),
    },
    {
        BOOL: OptionValue(type=BOOL, boolValue=False),
        INT: OptionValue(type=INT, intValue=2),
        DOUBLE: OptionValue(type=DOUBLE, doubleValue=2.0),
        STRING: OptionValue(type=STRING, stringValue=FIELD),
        DURATION: OptionValue(type=DURATION, durationValue=60_000_000_000),
    },
)


def generated(info: InfoResponse) -> list[list[Option]]:
    """Return calls of every declared option, to be tried one after the other."""
    return [
        [
            # A type that is none is a fault of its own, found when it says what it is.
            Option(name=name, values=[good.get(kind, good[STRING]) for kind in option.valueTypes])
            for name, option in sorted(info.options.items())
        ]
        for good in _GOOD
    ]


def mistyped(info: InfoResponse) -> list[Option]:
    """Return a call of each declared option with values of other types, one too many among them."""
    return [
        Option(
            name=name,
            values=[
                *(_GOOD[0][INT if kind == STRING else STRING] for kind in option.valueTypes),
                _GOOD[0][BOOL],
            ],
        )
        for name, option in sorted(info.options.items())
    ]


def without_values(info: InfoResponse) -> list[Option]:
    """Return a call of each declared option that takes values, with none."""
    return [Option(name=name) for name, option in sorted(info.options.items()) if option.valueTypes]


def named_fields(options: Sequence[Option]) -> list[str]:
    """Return the names that options may mean fields by: every string among their values."""
    names = [value.stringValue for option in options for value in option.values]
    return sorted({FIELD, *filter(None, names)})
