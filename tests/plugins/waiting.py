"""An async handler with state, whose calls end in another order than they begin."""

from __future__ import annotations

import asyncio

from kapudf_cli import Handler, PerGroup, Point, State, set_field


class Sums(State):
    count: int = 0
    total: float = 0.0


class Tally(Handler):
    """Adds to each point the number and the sum of its group so far, after up to 10 ms."""

    state: PerGroup[Sums]

    async def point(self, point: Point, /) -> Point:
        sums = self.state.of(point)
        sums.count += 1
        sums.total += point.fieldsDouble["x"]
        # Before it waits: other points of the group are counted meanwhile.
        set_field(point, "count", sums.count)
        set_field(point, "total", sums.total)
        await asyncio.sleep(point.time * 7 % 11 * 0.001)
        return point


class Unordered(Tally):
    """The same, without an order between groups."""

    ordered = False
