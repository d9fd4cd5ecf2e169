"""A moving average over the last points of each group.

stream
    |from()
        .measurement('cpu')
        .groupBy('host')
    @moving_average()
        .field('usage_idle')
        .size(10)
        .as('idle_avg')
    |alert()
        .crit(lambda: "idle_avg" < 10.0)
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from typing import Annotated

from kapudf_cli import (
    FieldPatch,
    Handler,
    Meta,
    Name,
    Options,
    PerGroup,
    RawPoint,
    State,
    decode_point,
    get_number,
)


class MovingAverageOptions(Options):
    """The field to average, the number of points, and the name of the average."""

    field: Annotated[Name, Meta(description="the field to average")]
    # A million floats take 8 MB per group in memory, and about 20 MB in a snapshot.
    size: Annotated[int, Meta(ge=1, le=1_000_000, description="the number of points")]
    as_: Annotated[Name, Meta(description="the name of the average")] = "avg"


class Window(State, dict=True):
    """The last values of a group, in a ring, with sums that accumulate no rounding error.

    The sum of the ring has two parts: the values written in this round, and the older ones. The
    first part is only added to. The second is looked up in sums that are computed once per round.
    Nothing is subtracted, so a rounding error lasts at most one round.
    """

    size: int = 0
    values: list[float] = []
    oldest: int = 0

    def __post_init__(self) -> None:
        """Compute the sums, which are not in a snapshot: JSON has no infinity.

        Raises:
            ValueError: the snapshot is damaged.
        """
        full = self.oldest == 0 or len(self.values) == self.size
        if not (full and 0 <= self.oldest <= len(self.values) <= self.size):
            message = f"place {self.oldest} of {len(self.values)} values, size {self.size}"
            raise ValueError(message)
        is_ring = 0 < self.size == len(self.values)
        newer = self.values[: self.oldest] if is_ring else self.values
        older = self.values[self.oldest :] if is_ring else []
        self.new_sum: float = functools.reduce(operator.add, newer, 0.0)
        #: For each index, the sum of the values from there to the end of the ring.
        self.old_sums: list[float] = [0.0] * self.oldest + _sums_to_end(older)

    def mean_with(self, value: float, size: int) -> float:
        """Add a value, and return the mean of the last `size` values."""
        if size != self.size:
            self._resize(size)
        values = self.values
        self.new_sum = new_sum = self.new_sum + value
        if len(values) < size:
            values.append(value)
            if len(values) < size:
                return new_sum / len(values)
        else:
            oldest = self.oldest
            values[oldest] = value
            self.oldest = oldest = oldest + 1
            if oldest < size:
                return (new_sum + self.old_sums[oldest]) / size
        self._begin_round()
        return self.old_sums[0] / size

    def _resize(self, size: int) -> None:
        """Keep the last values of a snapshot that was taken with another size."""
        self.values = [*self.values[self.oldest :], *self.values[: self.oldest]][-size:]
        self.size = size
        if len(self.values) == size:
            self._begin_round()
        else:
            self.oldest = 0
            self.new_sum = functools.reduce(operator.add, self.values, 0.0)

    def _begin_round(self) -> None:
        self.oldest = 0
        self.new_sum = 0.0
        self.old_sums = _sums_to_end(self.values)


def _sums_to_end(values: list[float]) -> list[float]:
    return list(itertools.accumulate(reversed(values)))[::-1]


class MovingAverage(Handler):
    """Adds the mean of a field over the last points of its group to each point."""

    options: MovingAverageOptions
    # More groups than this are a mistake, or no longer get points.
    state = PerGroup(Window, limit=100_000)

    def setup(self) -> None:
        """Prepare to add a field to an encoded point."""
        self.average = FieldPatch(self.options.as_)

    def raw_point(self, raw: RawPoint, /) -> RawPoint | FieldPatch:
        """Add the average to a point, which is decoded to be read, but not encoded again.

        A point without a number in the field passes through unchanged.
        """
        point = decode_point(raw)
        value = get_number(point, self.options.field)
        if value is None or not math.isfinite(value):
            return raw
        mean = self.state.of(point).mean_with(value, self.options.size)
        # The sum of huge values may be infinite, which a field must not be.
        return self.average.to(mean) if math.isfinite(mean) else raw
