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

from kapudf_cli import BATCH, Handler, Options, Point, PointPatch, RawPoint


class MirrorOptions(Options):
    """The fields and tags to set on each point; both may be called any number of times."""

    field: list[tuple[str, float]] = []
    tag: list[tuple[str, str]] = []


class Mirror(Handler):
    """Sends every point back; field(name, value) and tag(name, value) set these on each."""

    options: MirrorOptions

    def setup(self) -> None:
        """Handle encoded points: neither sending nor setting fields needs decoding."""
        self.patch = PointPatch(dict(self.options.field), dict(self.options.tag))
        if self.options.field or self.options.tag:
            self.raw_point = self.mark
        else:
            self.raw_point = self.agent.forward

    def mark(self, raw: RawPoint, /) -> None:
        """Send an encoded point back with the fields and tags set."""
        self.agent.forward(raw, self.patch)

    def point(self, point: Point, /) -> None:
        """Send a decoded point back with the fields and tags set."""
        self.patch.apply(point)
        self.agent.write_point(point)


class BatchMirror(Mirror):
    """Sends every batch back; field(name, value) and tag(name, value) set these on each point."""

    wants = BATCH
    provides = BATCH
