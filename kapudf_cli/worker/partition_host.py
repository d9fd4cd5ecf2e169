"""A partition process: it has an instance of the handler for each connection of its worker."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from typing import TYPE_CHECKING, Final

from kapudf_cli.agent.partition import PartitionAgent
from kapudf_cli.agent.partition_messages import (
    ENCODER,
    ORDERS,
    Answer,
    Progress,
    Served,
    Written,
)
from kapudf_cli.protocol.framing import MAX_VARINT, FrameReader, encode_varint, frame_body
from kapudf_cli.system import logs
from kapudf_cli.worker.busy_watchdog import HEARTBEAT_INTERVAL_S
from kapudf_cli.worker.partition_pool import READ_BYTES

if TYPE_CHECKING:
    from kapudf_cli.agent.partition_messages import Reply
    from kapudf_cli.worker.channel import Channel, ServePartition
    from kapudf_cli.worker.connections import Function

#: Only the worker ends a partition; see `template`.
_IGNORED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class PartitionHost:
    """Serves the connections of the worker with one partition of each."""

    def __init__(self, channel: Channel, function: Function, number: int) -> None:
        """Serve a partition.

        Args:
            channel: from the worker.
            function: the function.
            number: which partition it is.
        """
        self._channel = channel
        self._function = function
        self._number = number
        self._served: set[_Served] = set()

    def run(self) -> None:
        """Serve until the worker closes the channel."""
        for each in _IGNORED:
            signal.signal(each, signal.SIG_IGN)
        threading.Thread(target=self._report_progress, name="progress", daemon=True).start()
        while (received := self._channel.receive()) is not None:
            order, descriptors = received
            if not descriptors:
                os._exit(1)  # No descriptor was left. Another worker goes on.
            link = socket.socket(fileno=descriptors[0])
            threading.Thread(
                target=self._serve,
                args=(order, link),
                name=f"{self._function.name}-{order.connection}",
                daemon=True,
            ).start()

    def _serve(self, order: ServePartition, link: socket.socket) -> None:
        """Serve a connection; the target of its thread."""
        logs.bind_facts(**order.facts, partition=self._number)
        served = _Served(self._function, link)
        self._served.add(served)
        try:
            with link:
                served.run()
        except Exception:  # noqa: BLE001 - out of memory, or a bug of kapudf
            logs.get_logger().exception("partition crashes", partition=self._number)
            logs.exit_at_once(1)
        finally:
            self._served.discard(served)

    def _report_progress(self) -> None:
        """Report at intervals how far orders are that take long."""
        pause = threading.Event()
        while not pause.wait(HEARTBEAT_INTERVAL_S):
            for each in list(self._served):
                each.report_progress()


class _Served:
    """A connection that this partition serves."""

    def __init__(self, function: Function, link: socket.socket) -> None:
        self._link = link
        self._sending = threading.Lock()
        self._orders = self._reported = 0
        self._is_busy = False
        self._agent = PartitionAgent(
            function.handler,
            max_frame_bytes=function.settings.max_frame_bytes,
            on_error=function.settings.on_error,
            on_written=lambda frame: self._send(Written(frame)),
            on_init=lambda task, node: logs.bind_facts(task_id=task, node_id=node),
        )

    def run(self) -> None:
        """Execute orders until the worker closes the link."""
        self._send(Served(threading.get_ident()))
        reader = FrameReader(frame_body, MAX_VARINT)
        with contextlib.suppress(ConnectionError):
            while data := self._link.recv(READ_BYTES):
                for body in reader.feed(data):
                    self._is_busy = True
                    result = self._agent.execute(ORDERS.decode(body))
                    self._is_busy = False
                    self._orders += 1
                    self._send(Answer(result))
        self._agent.close()

    def report_progress(self) -> None:
        """Report how far the current order is, if it was begun before the last call."""
        if self._is_busy and self._orders == self._reported:
            self._send(Progress(self._agent.frames_done))
        self._reported = self._orders

    def _send(self, reply: Reply) -> None:
        body = ENCODER.encode(reply)
        with self._sending, contextlib.suppress(OSError):  # The worker has ended.
            self._link.sendall(encode_varint(len(body)) + body)
