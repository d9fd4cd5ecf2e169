"""The time of the handler per point, as the meter of a connection has it."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.handler.batch_handler import BatchHandler
from kapudf_cli.handler.handler import Handler
from kapudf_cli.protocol.udf_pb2 import BATCH, BeginBatch, EndBatch, Point
from kapudf_cli.transport.meter import BOUNDS_NS, HANDLER_NS
from tests.peers import INIT, agent_with, encoded

if TYPE_CHECKING:
    from kapudf_cli.agent.agent import ConnectionSummary
    from kapudf_cli.handler.batches import Batch
    from kapudf_cli.protocol.codec import RequestMessage
    from tests.peers import ServedAgent

POINTS = 3
#: How long a handler takes for a point, at least.
SLOW_S = 0.011
#: The buckets of points that took less than 10 ms.
FAST = BOUNDS_NS.index(10_000_000) + 1
BATCH_OF_POINTS = [BeginBatch(size=POINTS), *[Point()] * POINTS, EndBatch()]


class Fast(Handler):
    """Sends points back."""

    passes_through = True

    def point(self, point: Point, /) -> None:
        raise AssertionError(point)


class Slow(Handler):
    """Takes a while for each point."""

    def point(self, point: Point, /) -> Point:
        time.sleep(SLOW_S)
        return point


class SlowAsync(Handler):
    """Awaits a while for each point."""

    async def point(self, point: Point, /) -> Point:
        await asyncio.sleep(SLOW_S)
        return point


class SlowAtTheEnd(Handler):
    """Takes a while at the end of a batch."""

    wants = provides = BATCH

    def point(self, point: Point, /) -> Point:
        return point

    def end_batch(self, end: EndBatch, /) -> None:
        time.sleep(POINTS * SLOW_S)
        super().end_batch(end)


class SlowBatches(BatchHandler):
    """Takes a while for each batch."""

    def batch(self, batch: Batch, /) -> Batch:
        time.sleep(POINTS * SLOW_S)
        return batch


class SlowAsyncBatches(BatchHandler):
    """Awaits a while for each batch."""

    async def batch(self, batch: Batch, /) -> Batch:
        await asyncio.sleep(POINTS * SLOW_S)
        return batch


def summary_of(served: ServedAgent, messages: list[RequestMessage]) -> ConnectionSummary:
    served.side.send_bytes(encoded(messages))
    served.side.half_close()
    for _ in served.side.responses():
        pass
    return served.summary()


@pytest.mark.parametrize(
    ("handler", "messages"),
    [
        (Slow, [Point()] * POINTS),
        (SlowAsync, [Point()] * POINTS),
        (SlowAtTheEnd, BATCH_OF_POINTS),
        (SlowBatches, BATCH_OF_POINTS),
        (SlowAsyncBatches, BATCH_OF_POINTS),
    ],
)
def test_a_slow_handler_shows_for_each_point(
    handler: type[Handler], messages: list[RequestMessage]
) -> None:
    with agent_with(handler) as served:
        stats = summary_of(served, [INIT, *messages]).stats
        counts = served.meter.counts
    assert stats.points_in == stats.points_out == POINTS
    assert sum(counts[FAST:HANDLER_NS]) == POINTS
    assert counts[HANDLER_NS] >= POINTS * SLOW_S * 1e9
    assert sum(counts[:FAST]) == 0


def test_points_that_pass_through_are_counted() -> None:
    with agent_with(Fast) as served:
        assert summary_of(served, [INIT, *[Point()] * 100]).stats.points_out == 100
    assert sum(served.meter.counts[:HANDLER_NS]) == 100


@pytest.mark.parametrize("messages", [[], [Point(name="raise")]], ids=["closed", "handler_error"])
def test_the_reason_of_the_end_is_noted(messages: list[Point]) -> None:
    class Raises(Handler):
        def point(self, point: Point, /) -> None:
            raise ValueError(point.name)

    with agent_with(Raises) as served:
        reason = summary_of(served, [INIT, *messages]).reason.value
    assert served.meter.end == reason
