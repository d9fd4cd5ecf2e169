"""Fields of points as numpy arrays. Needs the extra `kapudf[numpy]`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from kapudf_cli.protocol.udf_pb2 import Point


def column(points: Sequence[Point], field: str) -> NDArray[np.float64]:
    """Return a numeric field of each point, float or integer, shape (len(points),).

    The value is NaN for a point without the field, or with one that is not a number.
    """
    nan = float("nan")
    values = np.fromiter(
        (point.fieldsDouble.get(field, nan) for point in points), np.float64, len(points)
    )
    for place in np.flatnonzero(np.isnan(values)).tolist():
        integers = points[place].fieldsInt
        if field in integers:
            values[place] = integers[field]
    return values


def columns(points: Sequence[Point], fields: Sequence[str]) -> NDArray[np.float64]:
    """Return numeric fields as columns, shape (len(points), len(fields)); see `column`."""
    table = np.empty((len(points), len(fields)))
    for number, field in enumerate(fields):
        table[:, number] = column(points, field)
    return table


def times_ns(points: Sequence[Point]) -> NDArray[np.int64]:
    """Return the times in nanoseconds since the epoch, shape (len(points),)."""
    return np.fromiter((point.time for point in points), np.int64, len(points))
