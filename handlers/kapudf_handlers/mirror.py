"""The mirror: every point comes back, with fields set on it where the task asks for them.

stream
    |from()
        .measurement('cpu')
    @mirror()
        .field('mycustom_field', 42.0)
    |log()
"""

from __future__ import annotations

from kapudf_cli import (
    DOUBLE,
    STRING,
    Handler,
    InfoResponse,
    InitRequest,
    InitResponse,
    OptionInfo,
    Point,
    Writer,
)


class Mirror(Handler):
    """Sends every point back; field(name, value) sets a field on each."""

    def __init__(self, agent: Writer) -> None:
        """Start with no field to set."""
        super().__init__(agent)
        self._fields: dict[str, float] = {}

    def info(self) -> InfoResponse:
        """Declare field(name STRING, value DOUBLE), which may be repeated."""
        info = super().info()
        info.options["field"].CopyFrom(OptionInfo(valueTypes=[STRING, DOUBLE]))
        return info

    def init(self, request: InitRequest, /) -> InitResponse:
        """Take the fields to set."""
        for option in request.options:
            if option.name != "field":
                return InitResponse(error=f"unknown option {option.name}(), known is field()")
            if [value.type for value in option.values] != [STRING, DOUBLE]:
                return InitResponse(error="field() takes a string and a float: field('name', 1.0)")
            name, value = option.values
            self._fields[name.stringValue] = value.doubleValue
        return InitResponse(success=True)

    def point(self, point: Point, /) -> None:
        """Set the fields, whatever type one of that name had, and send the point on."""
        for name, value in self._fields.items():
            point.fieldsInt.pop(name, None)
            point.fieldsString.pop(name, None)
            point.fieldsBool.pop(name, None)
            point.fieldsDouble[name] = value
        self.agent.write_point(point)
