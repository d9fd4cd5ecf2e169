"""Set missing fields and tags, as Kapacitor's DefaultNode does.

stream
    |from()
        .measurement('requests')
    @default()
        .field('latency', 0.0)
        .fieldInt('count', 0)
        .fieldString('status', 'unknown')
        .fieldBool('ok', FALSE)
        .tag('host', 'none')
    |log()
"""

from __future__ import annotations

from typing import Annotated

from kapudf_cli import Handler, Meta, Name, Options, PointPatch


class DefaultOptions(Options):
    """The defaults for missing fields and tags; each may be called any number of times."""

    field: Annotated[
        list[tuple[Name, float]], Meta(description="a float to set if the point lacks the field")
    ] = []
    field_int: Annotated[
        list[tuple[Name, int]], Meta(description="an integer to set if the point lacks the field")
    ] = []
    field_string: Annotated[
        list[tuple[Name, str]], Meta(description="a string to set if the point lacks the field")
    ] = []
    field_bool: Annotated[
        list[tuple[Name, bool]],
        Meta(description="TRUE or FALSE to set if the point lacks the field"),
    ] = []
    tag: Annotated[
        list[tuple[Name, str]], Meta(description="a tag to set if the point lacks it")
    ] = []


class Default(Handler):
    """Sets fields and tags on points that lack them; a field of any type counts as present."""

    options: DefaultOptions

    passes_through: bool | PointPatch = True

    def setup(self) -> None:
        """Have the fields and tags set where they are missing, empty tags included."""
        chosen = self.options
        # If an option is called twice for one name, the last call wins, as with DefaultNode.
        fields: dict[str, object] = {
            **dict(chosen.field),
            **dict(chosen.field_int),
            **dict(chosen.field_string),
            **dict(chosen.field_bool),
        }
        if fields or chosen.tag:
            self.passes_through = PointPatch(fields, dict(chosen.tag), only_missing=True)
