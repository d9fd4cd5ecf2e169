"""The event loop of one connection, whose handler has async methods.

It runs in the connection's own thread, and only while the agent has nothing else to do. So
handlers need no locks. Its clock stops while it does not run: a call that waits because
Kapacitor does not read, or for another worker, does not time out.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import os
import selectors
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

from kapudf_cli.agent import forks
from kapudf_cli.system import loggers

if TYPE_CHECKING:
    from collections.abc import Collection, Coroutine

_log = loggers.get(__name__)

T = TypeVar("T")

#: How long canceled tasks may take to end. One that ignores its cancellation is abandoned.
_CANCEL_LIMIT_S: Final = 2.0


class _Loop(asyncio.SelectorEventLoop):
    """An event loop whose clock stops while it does not run."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._suspended_s = 0.0
        self._stopped_s: float | None = time.monotonic()
        super().__init__(selector)

    def time(self) -> float:
        """Return the time for which the loop has run, plus a constant."""
        now_s = time.monotonic() if self._stopped_s is None else self._stopped_s
        return now_s - self._suspended_s

    def run_forever(self) -> None:
        """Run until `stop` is called."""
        if self._stopped_s is not None:
            self._suspended_s += time.monotonic() - self._stopped_s
            self._stopped_s = None
        try:
            super().run_forever()
        finally:
            self._stopped_s = time.monotonic()


class EventLoop:
    """Runs the async methods of one handler.

    Only `wake` and `current_task` may be called from any thread.
    """

    def __init__(self, *, threads: int) -> None:
        """Create a loop for the calling thread.

        Args:
            threads: how many calls of `asyncio.to_thread` may run at once.
        """
        # Not epoll, which a forked process would share.
        self._selector = selectors.PollSelector()
        self._loop = _Loop(self._selector)
        self._loop.set_exception_handler(self._on_failure)
        threads = max(threads, min(32, (os.cpu_count() or 1) + 4))
        self._executor = concurrent.futures.ThreadPoolExecutor(threads, "to_thread")
        self._loop.set_default_executor(self._executor)
        asyncio.set_event_loop(self._loop)
        # Log events name the connection, in whichever thread a failure is found.
        self._context = contextvars.copy_context()
        # Whether `wait` is running, and whether it is to return.
        self._waits = self._woken = False

    # --- from any thread ---

    def wake(self) -> None:
        """End the current `wait`, or the next one. From any thread."""
        with contextlib.suppress(RuntimeError):  # It is closed.
            self._loop.call_soon_threadsafe(self.end_wait)

    def current_task(self) -> asyncio.Task[Any] | None:
        """Return the task whose code runs now, None if there is none. From any thread."""
        return asyncio.current_task(self._loop)

    # --- in the connection's thread ---

    def is_running(self) -> bool:
        """Return whether code runs inside the loop."""
        return self._loop.is_running()

    def start(
        self,
        coroutine: Coroutine[Any, Any, None],
        context: contextvars.Context,
    ) -> asyncio.Task[None]:
        """Start a task that ends the current `wait` when it is done."""
        task = self._loop.create_task(coroutine, context=context)
        task.add_done_callback(self._end_wait_after)
        return task

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end, while other tasks run too. Raises what it raises."""
        return self._loop.run_until_complete(coroutine)

    def wait(self, *, input_descriptor: int | None = None, timeout_s: float | None = None) -> None:
        """Run tasks until one of `start` is done, `wake` was called, or there is input.

        Args:
            input_descriptor: where input comes, if that ends the wait.
            timeout_s: how long to run at most, in seconds.
        """
        handle = None
        if input_descriptor is not None:
            self._loop.add_reader(input_descriptor, self.end_wait)
        try:
            if timeout_s is not None:
                handle = self._loop.call_later(timeout_s, self.end_wait)
            self._run()
        finally:
            if handle is not None:
                handle.cancel()
            if input_descriptor is not None:
                self._loop.remove_reader(input_descriptor)

    def run_ready(self) -> None:
        """Run tasks that are ready, without waiting."""
        self._woken = True
        self._run()

    def end_wait(self) -> None:
        """End the current `wait`, or the next one."""
        if self._waits:
            self._loop.stop()
        else:
            self._woken = True

    def cancel(self, tasks: Collection[asyncio.Task[Any]]) -> None:
        """Cancel tasks, and wait until they have ended. What they raise is dropped."""
        for task in tasks:
            task.cancel()
        self._end(tasks)

    def cancel_all(self) -> None:
        """Cancel all tasks of the handler, and wait until they have ended."""
        self.cancel(asyncio.all_tasks(self._loop))

    def close(self) -> None:
        """Cancel all tasks and close the loop."""
        self.cancel_all()
        self._end([self._loop.create_task(self._loop.shutdown_asyncgens())])
        # What is left now was logged as a task that cannot be ended.
        self._loop.set_exception_handler(lambda _loop, _context: None)
        self._executor.shutdown(wait=False, cancel_futures=True)
        asyncio.set_event_loop(None)
        self._loop.close()

    def end_in_child(self) -> None:
        """In a forked process: end it when the handler's code returns into the loop."""
        forks.end_child_on_call(self._selector, "select")

    # --- inside ---

    def _run(self) -> None:
        self._waits = True
        if self._woken:
            self._loop.stop()  # It runs what is ready, and stops.
        try:
            self._run_safely()
        finally:
            self._waits = self._woken = False

    def _run_safely(self) -> None:
        try:
            self._loop.run_forever()
        except (SystemExit, KeyboardInterrupt) as error:
            # asyncio raises these from a task that the handler has started.
            _log.error("background task failed: %s", type(error).__name__, exc_info=error)

    def _end_wait_after(self, task: asyncio.Task[None]) -> None:
        del task
        self.end_wait()

    def _end(self, tasks: Collection[asyncio.Task[Any]]) -> None:
        """Wait until tasks have ended, for a limited time."""
        if not tasks:
            return
        deadline_s = time.monotonic() + _CANCEL_LIMIT_S
        for task in tasks:
            task.add_done_callback(self._end_wait_after)
        while (left := [task for task in tasks if not task.done()]) and (
            rest_s := deadline_s - time.monotonic()
        ) > 0:
            self.wait(timeout_s=rest_s)
        for task in tasks:
            if task.done() and not task.cancelled():
                task.exception()  # asyncio would report it as never retrieved.
        if left:
            _log.error(
                "tasks ignore their cancellation and are abandoned",
                extra={"tasks": len(left), "first": waits_at(left[0])},
            )

    def _on_failure(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log an exception that no code of the handler has handled."""
        del loop
        error = context.get("exception")
        if isinstance(error, SystemExit | KeyboardInterrupt):
            return  # `_run_safely` has logged it.
        what = context.get("message") if error is None else f"{type(error).__name__}: {error}"
        self._context.copy().run(_log.error, "background task failed: %s", what, exc_info=error)


def waits_at(task: asyncio.Task[Any]) -> str:
    """Return where a task waits: its innermost call, as `function (file:line)`."""
    awaited: Any = task.get_coro()
    place = "unknown"
    while awaited is not None:
        for kind in ("cr", "ag", "gi"):
            frame = getattr(awaited, f"{kind}_frame", None)
            if frame is not None:
                code = frame.f_code
                place = f"{code.co_name} ({code.co_filename}:{frame.f_lineno})"
                break
        awaited = next(
            (
                getattr(awaited, name)
                for name in ("cr_await", "ag_await", "gi_yieldfrom")
                if hasattr(awaited, name)
            ),
            None,
        )
    return place
