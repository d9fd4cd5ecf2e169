"""Report batches that differ from earlier ones, by Welch's two-sample t-test.

    stream
        |from()
            .measurement('temperature')
            .groupBy('hotend')
        |window()
            .period(5m)
            .every(5m)
            .align()
        @ttest()
            .field('value')
            .size(3600)
            .alpha(0.001)
        |alert()
            .crit(lambda: TRUE)

Each group has a history of the last `size` values. A batch that differs from it,
with a probability of less than `alpha` that this is chance, gives a point with
the fields `t`, `p` and `df`, the degrees of freedom; any other batch becomes part of
the history. Needs scipy: pip install 'kapudf[stats]'
"""

from __future__ import annotations

import math
from typing import Annotated

from kapudf_cli import (
    STREAM,
    Batch,
    BatchHandler,
    Meta,
    Name,
    Options,
    PerGroup,
    Point,
    State,
    get_number,
    set_field,
)

try:
    import numpy as np
    from scipy import special
except ImportError as error:
    message = "it needs scipy: pip install 'kapudf[stats]'"
    raise ImportError(message) from error

#: The fewest values that have a variance.
_FEWEST_VALUES = 2


class TTestOptions(Options):
    """The field to test, the size of the history, and the significance level."""

    field: Annotated[Name, Meta(description="the field to test")]
    size: Annotated[
        int, Meta(ge=2, le=1_000_000, description="the number of values in the history")
    ]
    alpha: Annotated[float, Meta(gt=0.0, lt=1.0, description="the significance level")]


class History(State):
    """The last values of a group, without batches that differed."""

    values: list[float] = []


class TTest(BatchHandler):
    """Sends a point with t, p and df for each batch that differs from the history."""

    provides = STREAM
    options: TTestOptions
    may_drop_all = True
    # More groups than this are a mistake, or no longer get points.
    state = PerGroup(History, limit=100_000)

    def batch(self, batch: Batch, /) -> Point | None:
        """Test a batch against its group's history."""
        numbers = [get_number(point, self.options.field) for point in batch.points]
        values = [value for value in numbers if value is not None and math.isfinite(value)]
        history = self.state.at(batch.group, batch.end_ns)
        if min(len(values), len(history.values)) >= _FEWEST_VALUES:
            t, p, df = welch(history.values, values)
            # If the variance overflows, p is NaN, which is not below alpha.
            if p < self.options.alpha:
                point = Point(time=batch.end_ns)
                for name, value in (("t", t), ("p", p), ("df", df)):
                    # Two different constants give an infinite t, which a field must not be.
                    if math.isfinite(value):
                        set_field(point, name, value)
                return point
        history.values = [*history.values, *values][-self.options.size :]
        return None


def welch(history: list[float], values: list[float]) -> tuple[float, float, float]:
    """Return t, p and the degrees of freedom.

    scipy's own test takes constants of different lengths for different, for the
    rounding of their means, and warns of them.
    """
    (one, of_one), (other, of_other) = _mean_and_error(history), _mean_and_error(values)
    error = of_one + of_other
    if error == 0.0:
        t = 0.0 if one == other else math.copysign(math.inf, one - other)
        return t, float(one == other), 1.0
    t = (one - other) / math.sqrt(error)
    share = of_one / error
    df = 1 / (share * share / (len(history) - 1) + (1 - share) ** 2 / (len(values) - 1))
    return t, 2 * float(special.stdtr(df, -abs(t))), df


def _mean_and_error(values: list[float]) -> tuple[float, float]:
    """Return the mean and the square of its standard error, exactly 0 for constants."""
    with np.errstate(over="ignore", invalid="ignore"):
        apart = np.asarray(values) - values[0]
        return values[0] + float(apart.mean()), float(apart.var(ddof=1)) / len(values)
