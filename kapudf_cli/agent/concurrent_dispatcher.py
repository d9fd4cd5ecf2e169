"""The dispatcher of a handler that awaits: it has several points or batches at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapudf_cli.agent.calls_in_flight import Call
from kapudf_cli.agent.dispatcher import Dispatcher, Next
from kapudf_cli.handler.batch_handler import BatchHandler
from kapudf_cli.protocol.udf_pb2 import STREAM, BeginBatch, EndBatch, KeepaliveRequest, Point

if TYPE_CHECKING:
    from collections.abc import Callable

    from kapudf_cli.agent.async_caller import AsyncCaller
    from kapudf_cli.agent.concurrent_outbox import ConcurrentOutbox
    from kapudf_cli.agent.error_policy import OnError
    from kapudf_cli.protocol.request_reader import ReadRequest


class ConcurrentDispatcher(Dispatcher):
    """Starts calls of the handler, and counts them when they retire.

    Attributes:
        caller: the handler, and its calls in flight.
        outbox: where answers go.
    """

    caller: AsyncCaller
    outbox: ConcurrentOutbox

    def __init__(
        self,
        caller: AsyncCaller,
        outbox: ConcurrentOutbox,
        *,
        on_error: OnError,
        on_init: Callable[[str, str], None] | None = None,
    ) -> None:
        """Give requests to the handler of `caller`; see `Dispatcher`."""
        super().__init__(caller, outbox, on_error=on_error, on_init=on_init)
        self._calls = caller.calls

    @property
    def allows_checkpoint(self) -> bool:
        """Whether no call is in flight, or there is no state and no batch; see `Dispatcher`."""
        return not self._calls or (self.stateless and self.caller.handler.wants == STREAM)

    @property
    def done(self) -> int:
        """Which of the next frames were answered, as bits; see `ConnectionStats.done`."""
        return self._calls.done

    def resume_done(self, done: int) -> None:
        """Set which of the next frames were answered by another agent."""
        self._calls.resume(done)

    def take_done(self) -> bool:
        """Return whether the next frame was answered; it is about to be given to the handler."""
        return self._calls.take_next()

    # --- a new frame ---

    def needs_drain(self, message: ReadRequest) -> bool:
        """Return whether a request must wait until no call is in flight."""
        match message:
            case Point() | KeepaliveRequest():
                return False
            case BeginBatch() | EndBatch():
                # Otherwise calls with points of two batches would overlap.
                return not isinstance(self.caller.handler, BatchHandler)
            case _:
                return True

    def start(self, message: ReadRequest, offset: int, end: int, *, is_done: bool = False) -> None:
        """Begin a call for a request that needs no drain.

        Args:
            message: the request.
            offset: where its frame starts in the input, in bytes.
            end: where the next frame starts.
            is_done: whether its output was sent already.

        Raises:
            UnexpectedMessageError: it may not come now.
        """
        self.order.receive(type(message))
        call = Call(offset, end)
        call.is_repeated = is_done
        handler = self.caller.handler
        method: Callable[..., object] = handler.point
        match message:
            case Point():
                call.method, call.points = "point", 1
                call.group = None if handler.ordered else message.group
                if is_done and self.stateless:
                    method = _do_nothing
            case BeginBatch():
                call.method, method = "begin_batch", handler.begin_batch
            case EndBatch():
                call.method, call.batches, method = "end_batch", 1, handler.end_batch
            case _:
                call.method, method = "keepalive", self._answer_keepalive
        call.state = self.order.state
        if not isinstance(message, KeepaliveRequest):
            self.outbox.send_data()
            if self._skips_batch:
                call.group = None
                self._skips_batch = not isinstance(message, EndBatch)
                self._count_dropped(call.points)
                method = _do_nothing
        self.caller.start(call, method, message)

    def count(self, call: Call) -> int:
        """Count a call that retires, once; return how many points it has handled."""
        if call.method == "begin_batch":
            self.begin_counting_batch()
        points = call.points
        self.points_in += points
        self.batches_in += call.batches
        if isinstance(self.caller.handler, BatchHandler):
            # Its points are only collected until the batch ends.
            points = self.points_in - self._points_before_batch if call.batches else 0
        call.points = call.batches = 0
        return points

    # --- a replay, in which nothing is sent ---

    def dispatch(self, message: ReadRequest, offset: int) -> Next:
        """Handle a request, where the next one need not wait for its end; see `drain`."""
        if self.needs_drain(message):
            self.drain()
            return super().dispatch(message, offset)
        while not self._calls.has_room:
            self._retire_or_wait()
        self.start(message, offset, offset)
        return Next.GO_ON

    def drop(self, message: ReadRequest) -> None:
        """Accept a request without giving it to the handler; see `Dispatcher.drop`."""
        self.drain()
        super().drop(message)

    def drain(self) -> None:
        """Wait for all calls in flight. Raises as `Dispatcher.dispatch` does."""
        while self._calls:
            self._retire_or_wait()

    def _retire_or_wait(self) -> None:
        call = self._calls.next_done()
        if call is None:
            self.caller.loop.wait()
            return
        with self.outbox.changing() as output:
            fault = self.outbox.release(call, output)
        for each in self._calls.retire(call):
            self.count(each)
        error = call.error or fault
        if error is not None:
            self.failed(call.method, error, call.offset)

    def _answer_keepalive(self, message: KeepaliveRequest) -> None:
        self._answer_request(message)


def _do_nothing(message: object) -> None:
    """Handle a message of a batch that is skipped."""
    del message
