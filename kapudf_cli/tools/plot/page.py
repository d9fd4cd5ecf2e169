"""Write a picture as a page with zoom and hover, with bokeh. The page contains all it needs.

A page has about 1.5 MB, most of it the code of bokeh. plotly would be an alternative with more
users, but its pages take 5 MB, and bokeh shares numpy, pillow and contourpy with matplotlib.
"""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bokeh.embed import file_html
from bokeh.layouts import column
from bokeh.models import ColumnDataSource, HoverTool
from bokeh.models.widgets import Div
from bokeh.plotting import figure
from bokeh.resources import INLINE

from kapudf_cli import __version__
from kapudf_cli.tools.plot import style
from kapudf_cli.tools.plot.picture import Bars, Lines, Picture, Role
from kapudf_cli.tools.recordings.notation import write_time

if TYPE_CHECKING:
    from kapudf_cli.tools.plot.picture import Line

_SHAPES: Final = {Role.DROPPED: "x", Role.KEPT: "circle", Role.FLAG: "inverted_triangle"}
_NS_PER_MS: Final = 10**6


def write(picture: Picture, path: str) -> None:
    """Write a picture to a file.

    Raises:
        OSError: the file cannot be written.
    """
    axis = style.TimeAxis(picture)
    parts: list[Any] = [Div(text=f"<h2>{html.escape(picture.title)}</h2>")]
    shared: Any = None
    for panel in picture.panels:
        if isinstance(panel, Bars):
            parts.append(_bars(panel))
        elif panel.place_label is not None:
            parts.append(_lines(panel, None, None))
        else:
            parts.append(_lines(panel, axis, shared))
            # A zoom changes all panels.
            shared = shared or parts[-1].x_range
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in picture.notes)
    parts.append(Div(text=f"{notes}<p>kapudf {__version__}</p>"))
    page = column(*parts, sizing_mode="stretch_width")
    Path(path).write_text(file_html(page, INLINE, title=picture.title), encoding="utf-8")


def _lines(panel: Lines, axis: style.TimeAxis | None, shared: Any) -> Any:
    has_dates = axis is not None and not axis.unit_ns
    drawn: Any = figure(
        title=panel.title,
        height=260,
        sizing_mode="stretch_width",
        x_axis_type="datetime" if has_dates else "linear",
        x_axis_label=panel.place_label if axis is None else axis.label,
        tools="xpan,xwheel_zoom,box_zoom,reset,save",
        active_scroll="xwheel_zoom",
    )
    if shared is not None:
        drawn.x_range = shared
    for line in panel.lines:
        source = ColumnDataSource(_columns(line, axis))
        look = {"source": source, "color": style.colour(line), "legend_label": line.label}
        if line.is_marks:
            glyph = drawn.scatter("x", "y", size=7, marker=_SHAPES[line.role], **look)
        else:
            glyph = drawn.line("x", "y", line_width=1.2, **look)
            if len(line.values) <= style.DOTTED:
                drawn.scatter("x", "y", size=4, **look)
        tips = [(line.label, "@y{0,0.[000000]}"), ("at", "@at")]
        drawn.add_tools(HoverTool(renderers=[glyph], tooltips=tips))
    if drawn.legend:
        drawn.legend.click_policy = "hide"
        drawn.add_layout(drawn.legend[0], "right")
    return drawn


def _columns(line: Line, axis: style.TimeAxis | None) -> dict[str, Any]:
    values = list(line.values)
    if axis is None:
        return {"x": list(line.places), "y": values, "at": [f"{at:g}" for at in line.places]}
    places = axis.counted(line) if axis.unit_ns else [place / _NS_PER_MS for place in line.places]
    return {"x": places, "y": values, "at": [write_time(int(place)) for place in line.places]}


def _bars(panel: Bars) -> Any:
    labels = [label for label, _ in panel.bars]
    from_bottom: Any = labels[::-1]
    drawn: Any = figure(
        title=panel.title,
        y_range=from_bottom,
        height=60 + 26 * len(labels),
        sizing_mode="stretch_width",
        tools="",
        toolbar_location=None,
        tooltips=[("@label", "@number{0,0.[000]}")],
    )
    colours = [style.MUTED_BAR if label in panel.muted else style.BAR for label in labels]
    source = {"label": labels, "number": [n for _, n in panel.bars], "colour": colours}
    drawn.hbar(
        y="label", right="number", height=0.7, color="colour", source=ColumnDataSource(source)
    )
    drawn.x_range.start = 0
    return drawn
