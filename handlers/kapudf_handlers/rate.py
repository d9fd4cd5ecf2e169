"""The rate of change of a field, also of a counter that starts again at 0.

stream
    |from()
        .measurement('net')
        .groupBy('host', 'interface')
    @rate()
        .field('bytes_recv')
        .as('bytes_per_s')
        .counter()
    |alert()
        .crit(lambda: "bytes_per_s" > 100000000.0)
"""

from __future__ import annotations

import datetime as dt
import math
from typing import Annotated

from kapudf_cli import (
    FieldPatch,
    Flag,
    Handler,
    Meta,
    Name,
    Options,
    OptionsError,
    PerGroup,
    RawPoint,
    State,
    decode_point,
    get_field,
)


class RateOptions(Options):
    """The field, the unit of time, and whether the field is a counter."""

    field: Annotated[Name, Meta(description="the field")]
    unit: Annotated[dt.timedelta, Meta(description="the unit of time")] = dt.timedelta(seconds=1)
    as_: Annotated[Name, Meta(description="the name of the rate")] = "rate"
    counter: Annotated[
        Flag,
        Meta(description="a value below the last one is that of a counter that started again at 0"),
    ] = False


class Last(State):
    """The last value of a group, and its time in nanoseconds since the epoch."""

    # An int stays one: as a float, a large counter would lose its last digits.
    value: int | float | None = None
    time: int = 0


class Rate(Handler):
    """Adds how fast a field changes per unit of time."""

    options: RateOptions
    state = PerGroup(Last, limit=100_000, expiry=dt.timedelta(days=1))

    def setup(self) -> None:
        """Check the unit, and prepare to add a field to an encoded point.

        Raises:
            OptionsError: the unit is not above 0.
        """
        if self.options.unit <= dt.timedelta(0):
            raise OptionsError(".unit() expects a duration above 0s")
        self.unit_ns = self.options.unit // dt.timedelta(microseconds=1) * 1000
        self.rate = FieldPatch(self.options.as_)

    def raw_point(self, raw: RawPoint, /) -> RawPoint | FieldPatch:
        """Add the rate since the last point of the group.

        These pass through unchanged: a group's first point, a point that is not later than the
        one before it, and a point without a number in the field.
        """
        point = decode_point(raw)
        value = get_field(point, self.options.field)
        if isinstance(value, str | bool | None) or not math.isfinite(value):
            return raw
        last = self.state.of(point)
        before, elapsed_ns = last.value, point.time - last.time
        last.value, last.time = value, point.time
        if before is None or elapsed_ns <= 0:
            return raw
        has_restarted = self.options.counter and value < before
        change = value if has_restarted else value - before
        rate = change * self.unit_ns / elapsed_ns
        return self.rate.to(rate) if math.isfinite(rate) else raw
