"""The mirror: everything comes back, with fields and tags set where the task asks for them.

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

from kapudf_cli import BATCH, Handler, Options, Point, set_field


class MirrorOptions(Options):
    """What to set on each point; both may be called any number of times."""

    field: list[tuple[str, float]] = []
    tag: list[tuple[str, str]] = []


class Mirror(Handler):
    """Sends every point back; field(name, value) and tag(name, value) set these on each."""

    options: MirrorOptions

    def setup(self) -> None:
        """Where there is nothing to set, points need not even be decoded."""
        if not self.options.field and not self.options.tag:
            self.raw_point = self.agent.forward

    def point(self, point: Point, /) -> None:
        """Set what is to be set, and send the point on."""
        for name, value in self.options.field:
            set_field(point, name, value)
        for name, text in self.options.tag:
            point.tags[name] = text
        self.agent.write_point(point)


class BatchMirror(Mirror):
    """Sends every batch back; field(name, value) and tag(name, value) set these on each point."""

    wants = BATCH
    provides = BATCH
