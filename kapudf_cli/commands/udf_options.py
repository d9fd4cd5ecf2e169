"""The options of a UDF, as --json prints them."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

from kapudf_cli.handler.declared import options_class
from kapudf_cli.handler.option_declarations import declarations
from kapudf_cli.protocol.udf_pb2 import DURATION, OptionValue
from kapudf_cli.tickscript.literals import write_literal
from kapudf_cli.tickscript.snippets import type_name

if TYPE_CHECKING:
    from kapudf_cli.commands.schemas import Option
    from kapudf_cli.handler.handler import Handler
    from kapudf_cli.handler.option_declarations import OptionDeclaration
    from kapudf_cli.protocol.udf_pb2 import InfoResponse


def options_of(info: InfoResponse, handler: type[Handler] | None = None) -> list[Option]:
    """Return the options of a UDF, by name.

    Args:
        info: what it declares to Kapacitor.
        handler: its class, if it is a handler in this process.
    """
    declared = {} if handler is None else _declared(handler)
    return [
        _option(name, [type_name(kind) for kind in option.valueTypes], declared.get(name))
        for name, option in sorted(info.options.items())
    ]


def _declared(handler: type[Handler]) -> dict[str, OptionDeclaration]:
    """Return the declarations of a handler's options; none if its `info` has others."""
    options = options_class(handler)
    return {} if options is None else {each.name: each for each in declarations(options)}


def _option(name: str, types: list[str], one: OptionDeclaration | None) -> Option:
    return {
        "name": name,
        "types": types,
        "required": None if one is None else one.required,
        "repeated": None if one is None else one.repeated,
        "default": None if one is None else _default(one.default),
        "doc": None if one is None else one.doc,
    }


def _default(value: object) -> object:
    if isinstance(value, dt.timedelta):
        nanoseconds = value // dt.timedelta(microseconds=1) * 1000
        return write_literal(OptionValue(type=DURATION, durationValue=nanoseconds))
    if isinstance(value, list | tuple):
        return [_default(each) for each in value]
    return value
