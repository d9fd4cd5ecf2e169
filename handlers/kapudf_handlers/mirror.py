"""Send everything back, with the fields and tags that the task sets.

    stream
        |from()
            .measurement('cpu')
        @mirror()
            .field('mycustom_field', 42.0)
            .tag('checked', 'yes')
        |log()

`@batch_mirror()` takes the same options and goes behind a batch, as in
`|window().period(10s).every(10s)`.
"""

from __future__ import annotations

from typing import Annotated

from kapudf_cli import BATCH, Handler, Meta, Name, Options, PointPatch


class MirrorOptions(Options):
    """The fields and tags to set on each point; both may be called any number of times."""

    field: Annotated[
        list[tuple[Name, float]],
        Meta(description="a field to set on each point, replacing one of that name"),
    ] = []
    tag: Annotated[list[tuple[Name, str]], Meta(description="a tag to set on each point")] = []


class Mirror(Handler):
    """Sends every point back; field(name, value) and tag(name, value) set these on each."""

    options: MirrorOptions

    passes_through: bool | PointPatch = True

    def setup(self) -> None:
        """Have the fields and tags set on each point."""
        if self.options.field or self.options.tag:
            self.passes_through = PointPatch(dict(self.options.field), dict(self.options.tag))


class BatchMirror(Mirror):
    """Sends every batch back; field(name, value) and tag(name, value) set these on each point."""

    wants = BATCH
    provides = BATCH
