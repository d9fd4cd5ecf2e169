"""Whether a batch differs from what came before it, by Welch's two-sample t-test.

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
    Options,
    PerGroup,
    Point,
    State,
    get_number,
    set_field,
)

try:
    from scipy import stats
except ImportError as error:
    message = "it needs scipy: pip install 'kapudf[stats]'"
    raise ImportError(message) from error

#: One value has no variance.
_FEWEST_VALUES = 2


class TTestOptions(Options, kw_only=True):
    """The field to test, how many values to remember, and how sure to be."""

    field: str
    size: Annotated[int, Meta(ge=2, le=1_000_000)]
    alpha: Annotated[float, Meta(gt=0.0, lt=1.0)]


class History(State):
    """The last values of a group that were nothing out of the ordinary."""

    values: list[float] = []


class TTest(BatchHandler):
    """Sends a point with t, p and df for each batch that differs from the history."""

    provides = STREAM
    options: TTestOptions
    state: PerGroup[History]
    # More series than this are a mistake, or have died.
    state_limit = 100_000

    def batch(self, batch: Batch, /) -> list[Point] | None:
        """Test a batch against its group's history."""
        numbers = [get_number(point, self.options.field) for point in batch.points]
        values = [value for value in numbers if value is not None and math.isfinite(value)]
        history = self.state.at(batch.group, batch.end_ns)
        if min(len(values), len(history.values)) >= _FEWEST_VALUES:
            result = stats.ttest_ind(history.values, values, equal_var=False)
            # Two constants that are equal give NaN, which is below nothing.
            if result.pvalue < self.options.alpha:
                point = Point(time=batch.end_ns)
                for name, value in (
                    ("t", result.statistic),
                    ("p", result.pvalue),
                    ("df", result.df),
                ):
                    # Two constants that differ give an infinite t, which no field may be.
                    if math.isfinite(value):
                        set_field(point, name, value)
                return [point]
        history.values = [*history.values, *values][-self.options.size :]
        return None
