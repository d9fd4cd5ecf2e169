"""Options for a task on any UDF, made from the options that the UDF declares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kapudf_cli.client.errors import UdfFaultError
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
from kapudf_cli.tickscript.calls import write_calls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from kapudf_cli.protocol.udf_pb2 import InfoResponse, InitResponse

#: Two sets of values that most options accept: a share or a factor, a larger or smaller count. A
#: string is the name of a field.
_GOOD: Final[Sequence[Mapping[ValueType, OptionValue]]] = (
    {
        BOOL: OptionValue(type=BOOL, boolValue=True),
        INT: OptionValue(type=INT, intValue=10),
        DOUBLE: OptionValue(type=DOUBLE, doubleValue=0.5),
        DURATION: OptionValue(type=DURATION, durationValue=10_000_000_000),
    },
    {
        BOOL: OptionValue(type=BOOL, boolValue=False),
        INT: OptionValue(type=INT, intValue=2),
        DOUBLE: OptionValue(type=DOUBLE, doubleValue=2.0),
        DURATION: OptionValue(type=DURATION, durationValue=60_000_000_000),
    },
)


def good_value(kind: ValueType, field: str, *, choice: int = 0) -> OptionValue:
    """Return a value that most options of this type accept.

    Args:
        kind: the type. For an unknown one, which a check reports, the value is a string.
        field: the name of a field.
        choice: which of two values, 0 or 1.
    """
    good = _GOOD[choice].get(kind)
    return OptionValue(type=STRING, stringValue=field) if good is None else good


def generated(info: InfoResponse, field: str) -> list[list[Option]]:
    """Return calls of the declared options: several candidates, best first.

    Args:
        info: the declaration.
        field: the name of a field, which each string is.
    """
    candidates = [
        [
            Option(
                name=name,
                values=[good_value(kind, field, choice=choice) for kind in option.valueTypes],
            )
            for name, option in sorted(info.options.items())
        ]
        for choice in range(len(_GOOD))
    ]
    # An option may have a format of its own, such as a time zone, and a default.
    return [*candidates, *([each] for each in candidates[0])]


def first_accepted(
    candidates: Iterable[Sequence[Option]],
    init: Callable[[Sequence[Option]], InitResponse],
    *,
    are_generated: bool,
) -> Sequence[Option]:
    """Return the first options that a UDF accepts.

    Args:
        candidates: options to try.
        init: starts a task with options, on a connection of its own.
        are_generated: whether the user could give better ones.

    Raises:
        UdfFaultError: it refused all.
    """
    refusals = []
    for options in candidates:
        response = init(options)
        if response.success:
            return options
        reason = " ".join(response.error.split()) or "no reason given"
        refusals.append(f"refused {write_calls(options) or 'no options'}: {reason:.300}")
    others = " (and others)" if len(refusals) > 1 else ""
    hint = "; give valid ones with --options" if are_generated else ""
    raise UdfFaultError(f"{refusals[0]}{others}{hint}")
