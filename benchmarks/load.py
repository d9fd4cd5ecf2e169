"""Drives a UDF with the code of `kapudf load`, and the echo server too."""

from __future__ import annotations

import os
import socket
import time

from kapudf_cli.client.driver import KapacitorSide
from kapudf_cli.tools.load.exchange import Exchange, bulk, ping_pong, receive, send_as_kapacitor
from kapudf_cli.tools.load.work import Work

__all__ = ["Connection", "Work", "at_a_rate", "bulk", "ping_pong", "receive"]

_TIMEOUT_S = 120.0


class Connection(Exchange):
    """A task's connection to a UDF, or a plain one to the echo server."""

    def __init__(self, path: str, work: Work, *, echo: bool = False) -> None:
        """Connect, and learn by one block how many bytes come back for each."""
        side = KapacitorSide.connect(path, timeout_s=_TIMEOUT_S)
        assert isinstance(side.connection, socket.socket)
        super().__init__(side, side.connection, work)
        if not echo:
            self.start(_TIMEOUT_S)


def at_a_rate(connection: Connection, points_per_s: int, duration_s: float) -> int:
    """Send points evenly spaced in Kapacitor's manner; return how many, once all came back.

    The answers are read by a process of their own: this one is busy keeping time.
    """
    frames = [unit.frames[0] for unit in connection.work.units]
    total = int(points_per_s * duration_s)
    answer_bytes = connection.answer_bytes // len(frames)
    reader = os.fork()
    if reader == 0:
        receive(connection.socket, answer_bytes * total)
        os._exit(0)
    due = time.perf_counter()
    interval_s = 1 / points_per_s
    for number in range(total):
        due += interval_s
        while time.perf_counter() < due:
            pass
        send_as_kapacitor(connection.socket, frames[number % len(frames)])
    os.waitpid(reader, 0)
    return total
