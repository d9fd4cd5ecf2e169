"""The outliers of each batch, by Tukey's fences.

    stream
        |from()
            .measurement('cpu')
            .groupBy('host')
        |window()
            .period(1m)
            .every(1m)
        @outliers()
            .field('usage_idle')
            .scale(1.5)
        |log()

A value is an outlier if it is more than `scale` interquartile ranges below the
first quartile or above the third. Quartiles are those of type 7 of Hyndman and
Fan, "Sample Quantiles in Statistical Packages" (1996): linear interpolation
between the order statistics, as numpy.percentile and spreadsheets have it.
"""

from __future__ import annotations

import math
import operator
from typing import Annotated

from kapudf_cli import Batch, BatchHandler, Meta, Name, Options, Point, get_number

#: The fewest values that have quartiles.
_FEWEST_VALUES = 2


class OutliersOptions(Options):
    """The field to examine, and how far out an outlier lies."""

    field: Annotated[Name, Meta(description="the field to examine")]
    scale: Annotated[float, Meta(ge=1.0, description="the number of interquartile ranges")] = 1.5


class Outliers(BatchHandler):
    """Returns the outlying points of each batch, in time order."""

    options: OutliersOptions

    def batch(self, batch: Batch, /) -> list[Point]:
        """Keep the points outside the fences, without those that have no number in the field."""
        valued = [
            (value, point)
            for point in batch.points
            if (value := get_number(point, self.options.field)) is not None and math.isfinite(value)
        ]
        if len(valued) < _FEWEST_VALUES:
            return []
        low, high = self.fences([value for value, _ in valued])
        outlying = [point for value, point in valued if not low <= value <= high]
        return sorted(outlying, key=operator.attrgetter("time"))

    def fences(self, values: list[float]) -> tuple[float, float]:
        """Return the range of values that are not outliers."""
        ordered = sorted(values)
        first, third = _quartile(ordered, 1), _quartile(ordered, 3)
        reach = self.options.scale * (third - first)
        return first - reach, third + reach


def _quartile(ordered: list[float], number: int) -> float:
    """Interpolate a quantile; unlike `statistics.quantiles`, without a sum that may overflow."""
    place, quarters = divmod((len(ordered) - 1) * number, 4)
    if not quarters:
        return ordered[place]
    low, high = ordered[place], ordered[place + 1]
    # A fraction of a denormal number may round to zero.
    return min(max(low * (1 - quarters / 4) + high * (quarters / 4), low), high)
