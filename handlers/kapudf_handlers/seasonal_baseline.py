"""What is usual at this hour of the week, and how far a value is from it.

    stream
        |from()
            .measurement('requests')
            .groupBy('service')
        @seasonal_baseline()
            .field('per_s')
            .zone('Europe/Berlin')
        |alert()
            .crit(lambda: isPresent("deviation") AND abs("deviation") > 4.0)

A season is a week or a day, and has a slot for each of its hours. The baseline of a slot is the
mean and the standard deviation of its values in earlier seasons; older seasons count less.
"""

from __future__ import annotations

import datetime as dt
import math
import zoneinfo
from typing import Annotated, Literal

from kapudf_cli import (
    Handler,
    Meta,
    Name,
    Options,
    OptionsError,
    PerGroup,
    Point,
    State,
    get_number,
    set_field,
)

_DAYS = {"week": 7, "day": 1}
_NANOSECONDS = 1_000_000_000


class SeasonalBaselineOptions(Options):
    """The field, the season, and the names of what is added."""

    field: Annotated[Name, Meta(description="the field")]
    season: Annotated[
        Literal["week", "day"],
        Meta(description="'week' for each hour of the week, 'day' for each hour of the day"),
    ] = "week"
    zone: Annotated[str, Meta(description="the time zone of the hours")] = "UTC"
    # With n, a season counts (n - 1) / n as much as the one after it.
    memory: Annotated[int, Meta(ge=1, le=1000, description="how long earlier seasons count")] = 4
    as_: Annotated[Name, Meta(description="the name of the mean")] = "expected"
    deviation: Annotated[Name, Meta(description="the name of the deviation")] = "deviation"


class Sample(State, array_like=True):
    """How many values there are, their mean, and the sum of their squared distances from it."""

    weight: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def with_value(self, value: float) -> Sample:
        """Return the sample with one more value."""
        return self.joined(Sample(weight=1.0, mean=value), 1.0)

    def joined(self, other: Sample, share: float) -> Sample:
        """Return both samples as one, in which this one counts `share` as much as the other.

        The formula is that of Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm
        for Computing Sample Variances" (1979).
        """
        ours = self.weight * share
        weight = ours + other.weight
        if weight == 0.0:
            return other
        apart = other.mean - self.mean
        between = apart * apart * (ours / weight) * other.weight
        return Sample(
            weight=weight,
            mean=self.mean + apart * (other.weight / weight),
            squares=self.squares * share + other.squares + between,
        )

    def is_finite(self) -> bool:
        """Return whether it can be in a snapshot: JSON has no infinity."""
        return math.isfinite(self.mean) and math.isfinite(self.squares)


class Slot(State, array_like=True):
    """The values of one hour: those of the current season, and those of earlier ones."""

    season: int
    current: Sample
    earlier: Sample


class Baseline(State):
    """The slots of a group, by the hour of the season."""

    slots: dict[int, Slot] = {}


class SeasonalBaseline(Handler):
    """Adds the usual value at this hour, and the deviation from it in standard deviations."""

    options: SeasonalBaselineOptions
    # A group takes up to 40 KB in memory, and 15 KB in a snapshot.
    state = PerGroup(Baseline, limit=2_000)

    def setup(self) -> None:
        """Find the time zone.

        Raises:
            OptionsError: there is none of that name.
        """
        self.zone = _zone(self.options.zone)
        self.days = _DAYS[self.options.season]
        self.share = 1 - 1 / self.options.memory

    def point(self, point: Point, /) -> Point:
        """Add what earlier seasons say of this hour, and learn the value.

        A point without a number in the field passes through unchanged.
        """
        value = get_number(point, self.options.field)
        if value is None or not math.isfinite(value):
            return point
        season, hour = self.season_and_hour(point.time)
        slots = self.state.of(point).slots
        slot = slots.get(hour)
        if slot is None:
            slot = slots[hour] = Slot(season=season, current=Sample(), earlier=Sample())
        elif slot.season != season:
            joined = slot.earlier.joined(slot.current, self.share)
            slot.season, slot.current = season, Sample()
            # Huge values are not learnt.
            slot.earlier = joined if joined.is_finite() else slot.earlier
        self.compare(point, value, slot.earlier)
        current = slot.current.with_value(value)
        slot.current = current if current.is_finite() else slot.current
        return point

    def season_and_hour(self, time_ns: int) -> tuple[int, int]:
        """Return the number of the season of a time, and the hour in it, by the local clock."""
        local = dt.datetime.fromtimestamp(time_ns // _NANOSECONDS, self.zone)
        # Day 1 is a Monday.
        season, day = divmod(local.toordinal() - 1, self.days)
        return season, day * 24 + local.hour

    def compare(self, point: Point, value: float, usual: Sample) -> None:
        """Set the fields of a point, as far as there are values to compare with."""
        if usual.weight == 0.0:
            return
        set_field(point, self.options.as_, usual.mean)
        spread = math.sqrt(usual.squares / usual.weight)
        if spread > 0.0 and math.isfinite(deviation := (value - usual.mean) / spread):
            set_field(point, self.options.deviation, deviation)


def _zone(name: str) -> dt.tzinfo:
    if name == "UTC":  # It needs no database of time zones, which small images lack.
        return dt.UTC
    try:
        return zoneinfo.ZoneInfo(name)
    except (OSError, ValueError, KeyError) as error:
        problem = f".zone() expects a time zone such as 'Europe/Berlin', got '{name}'"
        if not zoneinfo.available_timezones():
            problem += ", and this system knows none: pip install tzdata"
        raise OptionsError(problem) from error
