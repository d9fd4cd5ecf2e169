"""A handler that is called once per batch."""

from __future__ import annotations

import abc
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, ClassVar

from kapudf_cli.handler.batches import Batch
from kapudf_cli.handler.errors import BatchTooLongError, InvalidReturnError
from kapudf_cli.handler.handler import Handler
from kapudf_cli.handler.output import is_async_function, take_returned, write_returned
from kapudf_cli.protocol.udf_pb2 import BATCH, BeginBatch, EndBatch, Point

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from kapudf_cli.handler.output import MaybeAsync, Writer


class BatchHandler(Handler, abc.ABC):
    """A handler that is called with each batch as a whole. Implement `batch`.

    Points that it returns are written as a batch like the one received, or as points of a
    stream if `provides` is STREAM.
    """

    wants = BATCH
    provides = BATCH
    #: A batch with more points fails the task, to limit memory. A point takes about 1 KB.
    max_batch_points: ClassVar[int] = 1_000_000

    def __init__(self, agent: Writer) -> None:
        """Create a handler without a batch."""
        super().__init__(agent)
        self._begin = BeginBatch()
        self._points: list[Point] = []

    @abc.abstractmethod
    def batch(self, batch: Batch, /) -> MaybeAsync:
        """Handle a batch and return what is written: points, batches, or None.

        It may be async. Then up to `concurrency` batches are handled at once.
        It may be a generator of points or of batches, but not of both.
        """

    def begin_batch(self, begin: BeginBatch, /) -> None:
        """Start to collect points."""
        self._begin = begin
        self._points = []

    def point(self, point: Point, /) -> None:
        """Collect a point."""
        if len(self._points) >= self.max_batch_points:
            raise BatchTooLongError(
                f"a batch of more than {self.max_batch_points} points; "
                "use a shorter period, or raise max_batch_points of the handler"
            )
        self._points.append(point)

    def end_batch(self, end: EndBatch, /) -> Coroutine[Any, Any, None] | None:
        """Call `batch` and write what it returns."""
        batch = Batch(
            name=end.name,
            points=self._points,
            tags=dict(end.tags),
            group=end.group,
            tmax_ns=end.tmax,
            # Kapacitor sets byName in BeginBatch only.
            by_name=self._begin.byName,
        )
        self._points = []
        if is_async_function(self.batch):
            return self._await_batch(batch)
        self._write_result(batch, self.batch(batch))
        return None

    async def _await_batch(self, batch: Batch) -> None:
        # Called here, so that nothing is left to await if this never runs.
        result = self.batch(batch)
        if isinstance(result, AsyncIterator):
            self._write_result(batch, [item async for item in result])
        else:
            self._write_result(batch, await result)  # type: ignore[misc]  # it is a coroutine

    def _write_result(self, batch: Batch, result: object) -> None:
        for outgoing in _outgoing(batch, result):
            if self.provides == BATCH:
                self.agent.write_batch(outgoing)
            else:
                write_returned(self.agent, "batch", outgoing.as_stream(outgoing.points))


def _outgoing(batch: Batch, returned: object) -> list[Batch]:
    """Return the result of `BatchHandler.batch` as batches; points become a copy of `batch`.

    Raises:
        InvalidReturnError: it contains other objects, or both points and batches.
    """
    points: list[Point] = []
    batches: list[Batch] = []

    take_returned("batch", returned, points.append, batches.append)
    if points and batches:
        problem = "returned points beside batches; put the points into a Batch"
        raise InvalidReturnError("batch", problem)
    if returned is None or batches:
        return batches
    return [batch.copy_with(points)]
