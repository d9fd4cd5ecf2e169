"""The content of a picture, without a library that draws it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence


class Role(enum.Enum):
    """What a line or a mark shows; drawing gives each its colour."""

    INPUT = "input"
    OUTPUT = "output"
    OTHER_OUTPUT = "other output"
    DROPPED = "dropped"
    KEPT = "came back"
    FLAG = "flag"


@dataclass(frozen=True)
class Line:
    """A line, or marks.

    Attributes:
        label: its name in the legend.
        places: the horizontal places: nanoseconds since the epoch, or numbers.
        values: the vertical places.
        role: what it shows.
        is_marks: whether each point is a mark, without a line between them.
        number: which of the lines of its role it is, in the panel.
    """

    label: str
    places: Sequence[float]
    values: Sequence[float]
    role: Role
    is_marks: bool = False
    number: int = 0


@dataclass(frozen=True)
class Lines:
    """A panel with lines.

    Attributes:
        title: what it shows.
        lines: the lines, the first one lowest.
        place_label: the label of the horizontal axis; None for times.
    """

    title: str
    lines: Sequence[Line]
    place_label: str | None = None


@dataclass(frozen=True)
class Bars:
    """A panel with a horizontal bar for each of some numbers.

    Attributes:
        title: what it shows.
        bars: a label and a number for each bar, from the top.
        muted: the labels of bars that are only there to compare with.
        decimals: how many decimals the numbers are shown with.
    """

    title: str
    bars: Sequence[tuple[str, float]]
    muted: frozenset[str] = frozenset()
    decimals: int = 2


Panel: TypeAlias = "Lines | Bars"


@dataclass(frozen=True)
class Picture:
    """A picture: panels, one below the other.

    Attributes:
        title: what it shows; may be empty.
        panels: the panels; those with times share the horizontal axis.
        notes: what a reader must know, such as what is not drawn.
    """

    title: str
    panels: Sequence[Panel]
    notes: Sequence[str] = field(default=())
