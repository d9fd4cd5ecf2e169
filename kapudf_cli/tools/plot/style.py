"""The look of all pictures: colours, sizes, and how times are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kapudf_cli.tools.plot.picture import Lines, Role
from kapudf_cli.tools.recordings.notation import write_time

if TYPE_CHECKING:
    from kapudf_cli.tools.plot.picture import Line, Picture

_COLOURS: Final = {
    Role.INPUT: ("#9a9a9a",),
    Role.OUTPUT: ("#2a6f97",),
    Role.OTHER_OUTPUT: ("#e08e2b", "#5b8e5a", "#8d6cab", "#3fa7a3"),
    Role.DROPPED: ("#c1292e",),
    Role.KEPT: ("#2a6f97",),
    Role.FLAG: ("#c1292e", "#e08e2b", "#8d6cab", "#5b8e5a", "#3fa7a3", "#6b4f3a", "#333333"),
}
BAR: Final = "#2a6f97"
#: Bars that are only there to compare with.
MUTED_BAR: Final = "#9a9a9a"
GRID: Final = "#e6e6e6"
NOTE: Final = "#555555"
#: A line with at most this many points shows each of them.
DOTTED: Final = 60
#: Times within less than this have an axis that counts from the first one.
_SHORT_NS: Final = 10**9
_UNITS: Final = ((10**6, "ms"), (10**3, "µs"), (1, "ns"))
#: The fewest units of an axis that counts.
_FEWEST_UNITS: Final = 10


def colour(line: Line) -> str:
    """Return the colour of a line."""
    colours = _COLOURS[line.role]
    return colours[line.number % len(colours)]


class TimeAxis:
    """The time axis of a picture: dates, or a count from the first time if all times are close.

    Attributes:
        unit_ns: the nanoseconds of a unit of the count; 0 for dates.
        label: the label of the axis; empty for dates.
    """

    def __init__(self, picture: Picture) -> None:
        """Find the range of times of all panels."""
        lines = [
            line
            for panel in picture.panels
            if isinstance(panel, Lines) and panel.place_label is None
            for line in panel.lines
            if line.places
        ]
        self._start_ns = int(min((line.places[0] for line in lines), default=0))
        span_ns = int(max((line.places[-1] for line in lines), default=0)) - self._start_ns
        self.unit_ns = 0
        self.label = ""
        if span_ns < _SHORT_NS:
            fitting = [each for each in _UNITS if span_ns >= _FEWEST_UNITS * each[0]]
            self.unit_ns, word = (fitting or _UNITS[-1:])[0]
            self.label = f"{word} after {write_time(self._start_ns)}"

    def counted(self, line: Line) -> list[float]:
        """Return the times of a line as counts from the first time."""
        return [(place - self._start_ns) / self.unit_ns for place in line.places]
