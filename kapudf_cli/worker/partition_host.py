"""A partition process: it has an instance of the handler for each connection of its worker."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import TYPE_CHECKING

from kapudf_cli.protocol.framing import MAX_VARINT, FrameReader, frame_body
from kapudf_cli.system import logs, processes
from kapudf_cli.worker.busy_watchdog import HEARTBEAT_INTERVAL_S
from kapudf_cli.worker.partition_connection import PartitionConnection
from kapudf_cli.worker.partition_pool import READ_BYTES

if TYPE_CHECKING:
    from kapudf_cli.worker.channel import Channel, ServePartition
    from kapudf_cli.worker.connections import Function


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
        self._served: set[PartitionConnection] = set()

    def run(self) -> None:
        """Serve until the worker closes the channel."""
        processes.ignore_stop_signals()
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
        sending = threading.Lock()

        def send(reply: bytes) -> None:
            with sending, contextlib.suppress(OSError):  # The worker has ended.
                link.sendall(reply)

        served = PartitionConnection(self._function, send)
        self._served.add(served)
        reader = FrameReader(frame_body, MAX_VARINT)
        try:
            with link, contextlib.suppress(ConnectionError):
                while data := link.recv(READ_BYTES):
                    for body in reader.feed(data):
                        send(served.execute(body))
            served.close()
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
