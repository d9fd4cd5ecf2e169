"""The outbox of a handler that awaits: what a call writes is kept with the call.

A call's output is sent when the call retires. What is written in the context of no call, as
by a task that `setup` has started, is sent at once, like that of a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from threading import get_ident
from typing import TYPE_CHECKING, Final

from kapudf_cli.agent.outbox import Outbox
from kapudf_cli.agent.output import BACKLOG_BYTES
from kapudf_cli.protocol.errors import InvalidWriteError
from kapudf_cli.protocol.order import OutgoingOrder
from kapudf_cli.protocol.udf_pb2 import BeginBatch, EndBatch, KeepaliveResponse, Point

if TYPE_CHECKING:
    from kapudf_cli.agent.calls_in_flight import Call
    from kapudf_cli.agent.output import Output
    from kapudf_cli.protocol.codec import DataMessage, ResponseMessage

#: The call in whose context code runs: also in tasks and threads that the call has started.
_CURRENT: Final[contextvars.ContextVar[Call | None]] = contextvars.ContextVar(
    "kapudf_call", default=None
)
#: In place of a message whose content no longer matters.
_A_POINT: Final = Point()
_AN_END: Final = EndBatch()


def context_of(call: Call) -> contextvars.Context:
    """Return a new context in which everything that is written belongs to a call."""
    context = contextvars.copy_context()
    context.run(_CURRENT.set, call)
    return context


class ConcurrentOutbox(Outbox):
    """An outbox that keeps the output of each call until `release`."""

    def write_point(self, point: Point, /) -> None:
        """Send a point; see `Writer.write_point`."""
        self._write(point, Point)

    def answer(self, message: ResponseMessage) -> None:
        """Send an answer, in its place among the output of calls; see `Outbox.answer`."""
        call = _CURRENT.get()
        if call is None:
            super().answer(message)
        else:
            call.write(message, self._encode(message))

    def release(self, call: Call, output: Output) -> InvalidWriteError | None:
        """Send the output of a call; the caller is inside `changing`.

        Returns:
            Why the rest of the output cannot be sent, None if all was sent.

        Raises:
            ConnectionClosedError: the connection broke.
        """
        if call.is_repeated:
            call.written.clear()
        while call.written:
            message, frame = call.written.popleft()
            try:
                if isinstance(message, KeepaliveResponse):
                    output.answer(type(message), frame)
                else:
                    output.write(message, frame, by_owner=True)
            except InvalidWriteError as error:
                call.written.clear()
                return error
            # Shorter output is committed as a whole, together with the end of the call. So
            # it does not matter if a further call for the same frame writes something else.
            if output.size >= BACKLOG_BYTES:
                self._flush()
        return None

    def _write(self, message: DataMessage, expected: type, *, frame: bytes | None = None) -> None:
        call = _CURRENT.get()
        if call is not None:
            self._check_class(message, expected)
            if call.group is not None and not isinstance(message, Point):
                # A point of a stream: it is checked now, because its output may be committed
                # before that of others.
                OutgoingOrder().write(message)
            with self._lock:
                if call.is_open:
                    frame = self._encode(message)
                    call.write(_kept(message), frame)
                    return
            if call.is_canceled:
                # Not counted as lost: the frame is handled again.
                raise self._closed()
        by_owner = get_ident() == self._owner and not _is_in_loop()
        self._accept(message, expected, frame, by_owner=by_owner)

    def _wait_until_accepted(self) -> None:
        if get_ident() != self._owner:
            super()._wait_until_accepted()
        elif not self._need_not_wait():
            # To wait would stop all calls.
            problem = (
                f"more than {BACKLOG_BYTES} bytes of data from a background task before "
                "Kapacitor can take any"
            )
            raise InvalidWriteError(problem)


def _kept(message: DataMessage) -> DataMessage:
    """Return what the check of the order needs of a message, which its author may change."""
    if isinstance(message, BeginBatch):
        copy = BeginBatch()
        copy.CopyFrom(message)
        return copy
    return _A_POINT if isinstance(message, Point) else _AN_END


def _is_in_loop() -> bool:
    with contextlib.suppress(RuntimeError):
        asyncio.get_running_loop()
        return True
    return False
