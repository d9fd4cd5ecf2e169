"""One connection in one partition: executes the orders for it, and sends the replies."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from kapudf_cli.agent.partition import PartitionAgent
from kapudf_cli.agent.partition_messages import (
    ENCODER,
    ORDERS,
    Answer,
    Progress,
    Served,
    Written,
)
from kapudf_cli.protocol.framing import encode_varint
from kapudf_cli.system import logs

if TYPE_CHECKING:
    from collections.abc import Callable

    from kapudf_cli.agent.partition_messages import Reply
    from kapudf_cli.worker.connections import Function


class PartitionConnection:
    """Executes orders in the thread that creates it, with an instance of the handler."""

    def __init__(self, function: Function, send: Callable[[bytes], None]) -> None:
        """Send replies that are no result of an order with `send`, from any thread."""
        self._send = send
        self._orders = self._reported = 0
        self._is_busy = False
        self._agent = PartitionAgent(
            function.handler,
            max_frame_bytes=function.settings.max_frame_bytes,
            on_error=function.settings.on_error,
            on_written=lambda frame: send(_encode(Written(frame))),
            on_init=lambda task, node: logs.bind_facts(task_id=task, node_id=node),
        )
        send(_encode(Served(threading.get_ident())))

    def execute(self, order: bytes) -> bytes:
        """Execute an encoded order, and return the reply, with its length before it.

        Raises:
            Exception: a bug of kapudf, or memory ran out.
        """
        self._is_busy = True
        result = self._agent.execute(ORDERS.decode(order))
        self._is_busy = False
        self._orders += 1
        return _encode(Answer(result))

    def report_progress(self) -> None:
        """Send how far the current order is, if it was begun before the last call.

        From another thread.
        """
        if self._is_busy and self._orders == self._reported:
            self._send(_encode(Progress(self._agent.frames_done)))
        self._reported = self._orders

    def close(self) -> None:
        """End the handler; no more orders come."""
        self._agent.close()


def _encode(reply: Reply) -> bytes:
    body = ENCODER.encode(reply)
    return encode_varint(len(body)) + body
