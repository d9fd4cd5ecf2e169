"""A handler with an option of each form."""

from __future__ import annotations

import datetime as dt
from typing import Annotated

from kapudf_cli import Flag, Handler, Meta, Name, Options, Point


class OptionalOptions(Options):
    """An option of each form."""

    size: Annotated[int, Meta(ge=1, description="how many")]
    field: Annotated[list[tuple[Name, float]], Meta(description="fields to set")] = []  # noqa: RUF012 - msgspec copies it
    window: Annotated[dt.timedelta | None, Meta(description="for how long")] = dt.timedelta(
        seconds=90
    )
    zone: str | None = None
    flag: Flag = False


class Optional(Handler):
    """Sends every point back."""

    options: OptionalOptions

    def point(self, point: Point) -> Point:
        """Send it back."""
        return point
