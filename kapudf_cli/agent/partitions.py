"""Where the partitions of a handler run: the interface, and partitions in the same thread."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from typing import TYPE_CHECKING, Protocol

from kapudf_cli.agent.partition import PartitionAgent
from kapudf_cli.handler.errors import ConnectionClosedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from kapudf_cli.agent.error_policy import OnError
    from kapudf_cli.agent.partition_messages import Order, Result
    from kapudf_cli.handler.handler import Handler


class Partitions(Protocol):
    """The partitions of the handler of one connection.

    Only `wake` and `abort` may be called from any thread.

    Attributes:
        count: how many there are.
    """

    count: int

    def open(self, on_written: Callable[[bytes], None]) -> None:
        """Begin, in the connection's thread.

        Args:
            on_written: called in this thread with each message, as a frame, that a thread of a
                handler has written.
        """

    def send(self, partition: int, order: Order) -> None:
        """Send an order, or queue it; does not wait."""

    def take(self) -> list[tuple[int, Result]]:
        """Return results that have come, each with its partition.

        Raises:
            ConnectionClosedError: `abort` was called.
        """

    def frames_done(self, partition: int) -> int:
        """Return how many frames of its current order a partition has handled, as last reported."""

    def forget(self) -> None:
        """Discard the results of all orders that were sent."""

    def wait(self, *, input_descriptor: int | None = None, timeout_s: float | None = None) -> None:
        """Wait until a result has come, there is input, or `wake` was called."""

    def wake(self) -> None:
        """End the current `wait`, or the next one."""

    def abort(self) -> None:
        """Raise ConnectionClosedError from now on."""

    def close(self) -> None:
        """End all handlers, without calling their `teardown`."""


class Wakeup:
    """A pipe that ends a wait from any thread, and remembers whether to wait at all."""

    def __init__(self) -> None:
        """Create the pipe."""
        self._readable, self._writable = os.pipe()
        os.set_blocking(self._readable, False)
        os.set_blocking(self._writable, False)
        self._is_open = True
        self._is_aborted = False
        self._lifetime = threading.Lock()

    def fileno(self) -> int:
        """Return the descriptor that is readable after `wake`."""
        return self._readable

    def wake(self) -> None:
        """Make the descriptor readable. From any thread."""
        with self._lifetime:
            if self._is_open:
                with contextlib.suppress(BlockingIOError):  # It is readable already.
                    os.write(self._writable, b"\0")

    def abort(self) -> None:
        """Have `check` raise from now on, and wake. From any thread."""
        self._is_aborted = True
        self.wake()

    def check(self) -> None:
        """Raise ConnectionClosedError after `abort`."""
        if self._is_aborted:
            problem = "the connection was aborted"
            raise ConnectionClosedError(problem)

    def clear(self) -> None:
        """Make the descriptor unreadable until the next `wake`."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._readable, 4096)

    def close(self) -> None:
        """Close the pipe; later calls of `wake` have no effect."""
        with self._lifetime:
            if self._is_open:
                self._is_open = False
                os.close(self._readable)
                os.close(self._writable)


class LocalPartitions:
    """Partitions that run one after the other in the connection's thread; see `Partitions`.

    They show whether a handler can be partitioned, in tests and in `kapudf replay`, and make
    nothing faster.
    """

    def __init__(
        self, handler: type[Handler], count: int, *, max_frame_bytes: int, on_error: OnError
    ) -> None:
        """Create `count` partitions of a handler; see `PartitionAgent`."""
        self.count = count
        self._handler = handler
        self._max_frame_bytes = max_frame_bytes
        self._on_error = on_error
        self._agents: list[PartitionAgent] = []
        self._results: list[tuple[int, Result]] = []
        self._written: list[bytes] = []
        self._wakeup = Wakeup()

    def open(self, on_written: Callable[[bytes], None]) -> None:
        """Begin; see `Partitions.open`."""
        self._on_written = on_written
        self._agents = [
            PartitionAgent(
                self._handler,
                max_frame_bytes=self._max_frame_bytes,
                on_error=self._on_error,
                on_written=self._note_written,
            )
            for _ in range(self.count)
        ]

    def _note_written(self, frame: bytes) -> None:
        self._written.append(frame)  # From any thread; appending is atomic.
        self._wakeup.wake()

    def send(self, partition: int, order: Order) -> None:
        """Execute an order."""
        self._results.append((partition, self._agents[partition].execute(order)))

    def take(self) -> list[tuple[int, Result]]:
        """Return the results of all orders; see `Partitions.take`."""
        self._wakeup.check()
        while self._written:
            self._on_written(self._written.pop(0))
        taken, self._results = self._results, []
        return taken

    def frames_done(self, partition: int) -> int:
        """Return 0: an order is executed at once."""
        del partition
        return 0

    def forget(self) -> None:
        """Discard all results."""
        self._results.clear()

    def wait(self, *, input_descriptor: int | None = None, timeout_s: float | None = None) -> None:
        """Wait for input or `wake`; see `Partitions.wait`."""
        if self._results:
            return
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        if input_descriptor is not None:
            poll.register(input_descriptor, select.POLLIN)
        poll.poll(None if timeout_s is None else timeout_s * 1000)
        self._wakeup.clear()
        while self._written:
            self._on_written(self._written.pop(0))

    def wake(self) -> None:
        """End a wait. From any thread."""
        self._wakeup.wake()

    def abort(self) -> None:
        """Raise from now on; see `Partitions.abort`. From any thread."""
        self._wakeup.abort()

    def close(self) -> None:
        """Release what waits need."""
        self._wakeup.close()
