"""Calls to a handler with async methods, in the event loop of its connection."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import sys
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from kapudf_cli.agent.calls_in_flight import Call, CallsInFlight
from kapudf_cli.agent.concurrent_outbox import context_of
from kapudf_cli.agent.errors import CallTimeoutError
from kapudf_cli.agent.event_loop import EventLoop, waits_at
from kapudf_cli.agent.handler_caller import HandlerCaller
from kapudf_cli.handler.output import write_returned, write_yielded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kapudf_cli.agent.concurrent_outbox import ConcurrentOutbox
    from kapudf_cli.agent.handler_caller import HandlerFactory

P = ParamSpec("P")
R = TypeVar("R")


class AsyncCaller(HandlerCaller):
    """Calls a handler whose `point` or `batch` is async.

    Attributes:
        calls: the calls that have not retired.
    """

    def __init__(
        self,
        factory: HandlerFactory,
        outbox: ConcurrentOutbox,
        *,
        concurrency: int,
        timeout_s: float | None,
        ordered: bool = True,
    ) -> None:
        """Create handlers with `factory`.

        Args:
            factory: creates handlers.
            outbox: they write to it.
            concurrency: the most calls that run at once.
            timeout_s: how long a call may take, in seconds; None for any time.
            ordered: whether output leaves in the order of the input.
        """
        super().__init__(factory, outbox)
        self._call_outbox = outbox
        self._timeout_s = timeout_s
        self.calls = CallsInFlight(concurrency, ordered=ordered)
        self._loop: EventLoop | None = None
        self._is_aborted = False

    @property
    def loop(self) -> EventLoop:
        """The event loop, inside `running`."""
        if self._loop is None:
            message = "the event loop was not started"
            raise RuntimeError(message)
        return self._loop

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Have an event loop in this thread."""
        self._loop = EventLoop(threads=self.calls.concurrency)
        try:
            yield
        finally:
            self._loop.close()

    def wake(self) -> None:
        """End the current or next wait of the event loop. From any thread."""
        if self._loop is not None:
            self._loop.wake()

    def end_in_child(self) -> None:
        """In a forked process: end it when the handler's code returns into the event loop."""
        if self._loop is not None:
            self._loop.end_in_child()

    def call(self, method: str, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a method of the handler, and send what it has written when it returns.

        Raises:
            HandlerError: it raised.
            ConnectionClosedError: it raised because the connection was lost.
        """
        scope = Call(method=method)
        context = context_of(scope)
        try:
            result = context.run(call, *args, **kwargs)
        except BaseException as error:
            self._release(scope)
            raise self.blame(method, error) from error
        if (fault := self._release(scope)) is not None:
            raise self.blame(method, fault) from fault
        return result

    def start(self, call: Call, method: Callable[[Any], object], message: object) -> None:
        """Call a method with a message, and add the call to those in flight.

        A method that is not async is done when this returns.
        """
        context = context_of(call)
        try:
            returned = context.run(method, message)
            call.awaits = _is_async(returned)
            if not call.awaits:
                context.run(write_returned, self._call_outbox, call.method, returned)
        except BaseException as error:  # noqa: BLE001 - a plugin's sys.exit() included
            self.calls.add(call)
            self.calls.finish(call, error)
            return
        self.calls.add(call)
        if not call.awaits:
            self.calls.finish(call)
            return
        call.task = self.loop.start(self._run(call, returned), context)
        if inspect.iscoroutine(returned):
            # Canceled before it began, it would be reported as never awaited.
            call.task.add_done_callback(lambda _: returned.close())

    def drain(self, limit_s: float) -> None:
        """Call the handler's `drain`; see `HandlerCaller.drain`."""
        handler = self._handler
        if handler is None or not inspect.iscoroutinefunction(handler.drain):
            super().drain(limit_s)
            return
        task = self.loop.start(handler.drain(), contextvars.copy_context())
        deadline_s = time.monotonic() + limit_s
        while not task.done() and (rest_s := deadline_s - time.monotonic()) > 0:
            if self._is_aborted:
                return
            self.loop.wait(timeout_s=rest_s)
        if not task.done():
            self._log_drain_goes_on(limit_s)
        elif not task.cancelled() and (error := task.exception()) is not None:
            self._log_drain(error)

    def abort(self) -> None:
        """Do not wait for `drain` any longer. From any thread."""
        super().abort()
        self._is_aborted = True
        self.wake()

    def oldest_call(self) -> str | None:
        """Return where the oldest call in flight waits; see `HandlerCaller.oldest_call`.

        None also if it runs, or blocks the event loop: then the thread shows where.
        """
        try:
            oldest = next((call for call in self.calls if not call.is_done), None)
        except RuntimeError:  # The line has changed meanwhile.
            return None
        if oldest is None or oldest.task is None or self._is_running(oldest.task):
            return None
        return waits_at(oldest.task)

    def _is_running(self, task: asyncio.Task[None]) -> bool:
        """Return whether a task blocks the event loop. From any thread."""
        return self._loop is not None and self._loop.current_task() is task

    def cancel(self) -> None:
        """Cancel the calls in flight, and forget what they wrote."""
        self.loop.cancel([call.task for call in self.calls.cancel()])

    def stop(self) -> None:
        """Cancel the calls in flight, call `teardown`, and cancel the handler's other tasks."""
        self.cancel()
        try:
            super().stop()
        finally:
            self.loop.cancel_all()

    # --- inside ---

    def _write_last(self, method: str, call: Callable[[], object]) -> None:
        returned = call()
        if _is_async(returned):
            self.loop.run(self._write(method, returned))
        else:
            write_returned(self._call_outbox, method, returned)

    async def _run(self, call: Call, returned: object) -> None:
        """Wait for the end of a call, and write what it returns."""
        error: BaseException | None = None
        limit = asyncio.timeout(self._timeout_s)
        try:
            async with limit:
                await self._write(call.method, returned)
        except BaseException as raised:  # noqa: BLE001 - also its own CancelledError
            error = raised
            if isinstance(raised, TimeoutError) and limit.expired():
                error = self._timed_out(call.method, raised)
        self.calls.finish(call, error)

    async def _write(self, method: str, returned: Any) -> None:
        if not isinstance(returned, AsyncIterator):
            write_returned(self._call_outbox, method, await returned)
            return
        try:
            async for item in returned:
                write_yielded(self._call_outbox, method, item)
        finally:
            if inspect.isasyncgen(returned):
                await returned.aclose()

    def _timed_out(self, method: str, error: TimeoutError) -> CallTimeoutError:
        """Return the error for a call that took too long, with the place where it waited."""
        code = getattr(sys.modules.get(type(self.handler).__module__), "__file__", None)
        place = ""
        trace = None if error.__cause__ is None else error.__cause__.__traceback__
        while trace is not None:
            file = trace.tb_frame.f_code.co_filename
            if file == code:  # The innermost line of the handler's own file.
                place = f"; it waited in {trace.tb_frame.f_code.co_name} ({file}:{trace.tb_lineno})"
            trace = trace.tb_next
        timed_out = CallTimeoutError(f"{method} took longer than {self._timeout_s:g} s{place}")
        timed_out.__cause__ = error.__cause__
        return timed_out

    def _release(self, scope: Call) -> Exception | None:
        """Send what a method wrote that is not called for a point or batch."""
        scope.is_open = False
        with self._call_outbox.changing() as output:
            return self._call_outbox.release(scope, output)


def _is_async(returned: object) -> bool:
    return inspect.isawaitable(returned) or isinstance(returned, AsyncIterator)
