"""Show a UDF's edges and options, as a TICKscript calls them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapudf_cli.protocol.udf_pb2 import BOOL, DOUBLE, DURATION, INT, STRING, EdgeType, ValueType
from kapudf_cli.tickscript.identifiers import identifier

if TYPE_CHECKING:
    from kapudf_cli.protocol.udf_pb2 import InfoResponse, OptionInfo

#: A literal of each type, for the reader to replace.
_PLACEHOLDERS = {BOOL: "TRUE", INT: "0", DOUBLE: "0.0", STRING: "'…'", DURATION: "10s"}


def edge_name(edge: EdgeType) -> str:
    """Return `stream` or `batch`."""
    # proto3 enums are open: a UDF may send a number that has no name.
    return EdgeType.Name(edge).lower() if edge in EdgeType.values() else f"unknown edge {edge}"


def signatures(info: InfoResponse) -> list[str]:
    """Return each option with its types, by name: `field(STRING, DOUBLE)`."""
    return [
        f"{name}({', '.join(type_name(kind) for kind in option.valueTypes)})"
        for name, option in sorted(info.options.items())
    ]


def snippet(function: str, info: InfoResponse) -> str:
    """Return a call to paste: `@mirror().field('…', 0.0)`."""
    calls = [f".{name}({_arguments(option)})" for name, option in sorted(info.options.items())]
    return f"@{identifier(function)}(){''.join(calls)}"


def _arguments(option: OptionInfo) -> str:
    return ", ".join(_PLACEHOLDERS.get(kind, "…") for kind in option.valueTypes)


def type_name(kind: ValueType) -> str:
    """Return `STRING` or another name of the protocol."""
    # A UDF may send a number that has no name.
    return ValueType.Name(kind) if kind in ValueType.values() else f"unknown type {kind}"
