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

from kapudf_cli import Handler, Name, Options, Point, get_field, set_field


class DefaultOptions(Options):
    """The defaults for missing fields and tags; each may be called any number of times."""

    field: list[tuple[Name, float]] = []
    field_int: list[tuple[Name, int]] = []
    field_string: list[tuple[Name, str]] = []
    field_bool: list[tuple[Name, bool]] = []
    tag: list[tuple[Name, str]] = []


class Default(Handler):
    """Sets fields and tags on points that lack them; a field of any type counts as present."""

    options: DefaultOptions

    def setup(self) -> None:
        """Combine the fields of all types into one list."""
        chosen = self.options
        # If an option is called twice for one name, the last call wins, as with DefaultNode.
        self._fields: dict[str, object] = {
            **dict(chosen.field),
            **dict(chosen.field_int),
            **dict(chosen.field_string),
            **dict(chosen.field_bool),
        }
        self._tags = dict(chosen.tag)

    def point(self, point: Point, /) -> Point:
        """Set missing fields and tags."""
        for name, value in self._fields.items():
            if get_field(point, name) is None:
                set_field(point, name, value)
        for name, text in self._tags.items():
            # DefaultNode treats an empty tag as missing.
            if not point.tags.get(name):
                point.tags[name] = text
        return point
