"""An async handler whose calls end when a test says so."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

from kapudf_cli.handler.handler import Handler
from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from kapudf_cli.protocol.udf_pb2 import Point


class Gate:
    """Holds the calls of handlers until the test lets each of them go on.

    Attributes:
        started: the times of all points whose calls have begun, in that order.
        ended: the times of the points whose calls have ended, however.
    """

    def __init__(self) -> None:
        self.started: list[int] = []
        self.ended: list[int] = []
        self._open = False
        self._waiting: dict[int, tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = {}
        self._changed = threading.Condition()

    # --- for the test ---

    def await_started(self, *times: int) -> None:
        """Wait until a call waits for each of these points."""
        with self._changed:
            assert self._changed.wait_for(lambda: set(times) <= set(self._waiting), PATIENCE_S)

    def await_ended(self, *times: int) -> None:
        """Wait until the calls for these points have ended."""
        with self._changed:
            assert self._changed.wait_for(lambda: set(times) <= set(self.ended), PATIENCE_S)

    def finish(self, *times: int) -> None:
        """Let the calls for these points go on, one after the other, once they wait."""
        for time in times:
            self.await_started(time)
            self._resume(time, lambda future: future.set_result(None))
            self.await_ended(time)

    def fail(self, time: int, error: BaseException) -> None:
        """Have the call for a point raise."""
        self.await_started(time)
        self._resume(time, lambda future: future.set_exception(error))
        self.await_ended(time)

    def open(self) -> None:
        """Let all calls go on, now and from now on."""
        with self._changed:
            self._open = True
            for time in list(self._waiting):
                self._resume(time, lambda future: future.set_result(None))

    def _resume(self, time: int, action: Callable[[asyncio.Future[None]], None]) -> None:
        loop, future = self._waiting.pop(time)
        loop.call_soon_threadsafe(lambda: None if future.done() else action(future))

    # --- for the handler ---

    async def passage(self, time: int) -> None:
        """Wait until the test lets the call for the point go on."""
        loop = asyncio.get_running_loop()
        with self._changed:
            self.started.append(time)
            if self._open:
                self.ended.append(time)
                return
            future: asyncio.Future[None] = loop.create_future()
            self._waiting[time] = (loop, future)
            self._changed.notify_all()
        try:
            await future
        finally:
            with self._changed:
                self._waiting.pop(time, None)
                self.ended.append(time)
                self._changed.notify_all()


class Gated(Handler):
    """Sends each point back when the gate lets it pass."""

    gate: Gate

    async def point(self, point: Point, /) -> Any:
        await self.gate.passage(point.time)
        return point


def gated(base: type[Handler] = Gated, **attributes: object) -> tuple[Any, Gate]:
    """Return a subclass of a handler with a gate of its own, and the gate."""
    gate = Gate()
    return type(base.__name__, (base,), {"gate": gate, **attributes}), gate
