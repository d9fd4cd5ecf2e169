"""Write a picture as SVG or PNG, with matplotlib."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from kapudf_cli.tools.plot import style
from kapudf_cli.tools.plot.picture import Bars, Lines, Picture, Role

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from kapudf_cli.tools.plot.picture import Line

_SETTINGS: Final[Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.formatter.useoffset": False,
    # Names come from data, in which a dollar begins no formula.
    "text.parse_math": False,
    "svg.fonttype": "none",
    # The same data gives the same file.
    "svg.hashsalt": "kapudf",
}
_WIDTH_IN: Final = 10.0
_PANEL_IN: Final = 2.0
_BAR_IN: Final = 0.24
_BAR_PANEL_IN: Final = 0.5
_TITLE_IN: Final = 0.6
_NOTE_IN: Final = 0.18
_DOTS_PER_IN: Final = 110
#: These have no types.
_Locator: Final[Any] = AutoDateLocator
_Formatter: Final[Any] = ConciseDateFormatter
_SHAPES: Final = {Role.DROPPED: "x", Role.KEPT: "o", Role.FLAG: "v"}


def write(picture: Picture, path: str) -> None:
    """Write a picture to a file that ends with .svg or .png.

    Raises:
        OSError: the file cannot be written.
    """
    heights = [
        _PANEL_IN if isinstance(panel, Lines) else _BAR_PANEL_IN + _BAR_IN * len(panel.bars)
        for panel in picture.panels
    ]
    title_in = _TITLE_IN if picture.title else 0.0
    height = sum(heights) + title_in + _NOTE_IN * len(picture.notes)
    with mpl.rc_context(_SETTINGS), warnings.catch_warnings():
        # A font may lack a character of a name; it is then drawn as a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(_WIDTH_IN, height), layout="constrained")
        if picture.title:
            figure.suptitle(picture.title, x=0.01, ha="left", fontsize=12)
        _draw_panels(figure, picture, heights)
        if picture.notes:
            notes = "\n".join(picture.notes)
            figure.supxlabel(notes, x=0.01, ha="left", fontsize=8, color=style.NOTE)
        metadata: Any = {"Date": None, "Creator": None} if path.lower().endswith(".svg") else {}
        figure.savefig(path, dpi=_DOTS_PER_IN, facecolor="white", metadata=metadata)


def _draw_panels(figure: Figure, picture: Picture, heights: Sequence[float]) -> None:
    if not picture.panels:
        return
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    axis = style.TimeAxis(picture)
    last: Axes | None = None
    for number, panel in enumerate(picture.panels):
        if isinstance(panel, Bars):
            _draw_bars(figure.add_subplot(grid[number]), panel)
        elif panel.place_label is not None:
            axes = figure.add_subplot(grid[number])
            _draw_lines(axes, panel, None)
            axes.set_xlabel(panel.place_label)
            axes.set_ylim(bottom=0)
        else:
            if last is not None:
                last.tick_params(labelbottom=False)
            last = figure.add_subplot(grid[number], sharex=last)
            _draw_lines(last, panel, axis)
    if last is not None:
        last.set_xlabel(axis.label)


def _draw_lines(axes: Axes, panel: Lines, axis: style.TimeAxis | None) -> None:
    for line in panel.lines:
        axes.plot(
            _places(line, axis),
            line.values,
            color=style.colour(line),
            label=line.label,
            **_look(line),
        )
    axes.set_title(panel.title)
    axes.grid(visible=True, color=style.GRID, linewidth=0.6)
    axes.margins(x=0.01, y=0.12)
    axes.yaxis.set_major_formatter("{x:,.10g}")
    if axis is not None and not axis.unit_ns:
        locator = _Locator()
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(_Formatter(locator))
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)


def _places(line: Line, axis: style.TimeAxis | None) -> Any:
    if axis is None:
        return line.places
    return axis.counted(line) if axis.unit_ns else np.array(line.places, dtype="datetime64[ns]")


def _look(line: Line) -> dict[str, Any]:
    few = len(line.values) <= style.DOTTED
    if line.is_marks:
        shape = _SHAPES[line.role]
        return {"linestyle": "none", "marker": shape, "markersize": 6 if few else 4}
    width = 0.8 if line.role is Role.INPUT else 1.2
    return {"linewidth": width, "marker": "." if few else None}


def _draw_bars(axes: Axes, panel: Bars) -> None:
    labels = [label for label, _ in panel.bars]
    numbers = [number for _, number in panel.bars]
    colours = [style.MUTED_BAR if label in panel.muted else style.BAR for label in labels]
    bars = axes.barh(range(len(labels)), numbers, color=colours, height=0.72)
    axes.bar_label(bars, [f"{number:,.{panel.decimals}f}" for number in numbers], padding=3)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.margins(x=0.1)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(left=False, bottom=False, labelbottom=False)
    axes.set_title(panel.title)
