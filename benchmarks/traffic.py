"""The load: generated and captured points, and connections that send them."""

from __future__ import annotations

import os
import random
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from kapudf_cli.client.driver import KapacitorSide
from kapudf_cli.protocol.codec import REQUESTS
from kapudf_cli.protocol.framing import FrameReader
from kapudf_cli.protocol.udf_pb2 import BeginBatch, EndBatch, Point
from kapudf_cli.tools.load.exchange import Exchange, receive, send_as_kapacitor
from kapudf_cli.tools.load.work import Shape

if TYPE_CHECKING:
    from kapudf_cli.tools.load.work import Work

_TIMEOUT_S = 120.0
CAPTURE = Path(__file__).parent.parent / "tests" / "captures" / "stream-01.bin"


def telegraf_points(count: int) -> list[Point]:
    """Return points like telegraf's `cpu`: 10 double fields, 2 tags, 8 hosts."""
    return list(Shape().points(count))


def captured_points() -> list[Point]:
    """Return the points of a capture: four fields, one of each type."""
    requests = FrameReader(REQUESTS.decode_in).feed(CAPTURE.read_bytes())
    return [request for request in requests if isinstance(request, Point)]


def batch(points: list[Point]) -> list[BeginBatch | Point | EndBatch]:
    """Return as many points as a batch in which every hundredth value is an outlier."""
    chance = random.Random(2)  # noqa: S311 - the same points in every run
    inside = [
        Point(
            time=point.time,
            group="host=a",
            tags={"host": "a"},
            fieldsDouble={"usage_idle": chance.gauss(50, 5)},
        )
        for point in points
    ]
    for point in inside[::100]:
        point.fieldsDouble["usage_idle"] = 1000.0
    begin = BeginBatch(name="cpu", group="host=a", tags={"host": "a"}, size=len(inside))
    end = EndBatch(name="cpu", group="host=a", tags={"host": "a"}, tmax=inside[-1].time)
    return [begin, *inside, end]


class Connection(Exchange):
    """A task's connection to a UDF, or a plain one to the echo server."""

    def __init__(self, path: str, work: Work, *, echo: bool = False) -> None:
        """Connect and, unless it is an echo, start a task and measure the answer to one block."""
        side = KapacitorSide.connect(path, timeout_s=_TIMEOUT_S)
        assert isinstance(side.connection, socket.socket)
        super().__init__(side, side.connection, work)
        if not echo:
            self.start(_TIMEOUT_S)


def at_a_rate(connection: Connection, points_per_s: int, duration_s: float) -> int:
    """Send points at a rate as Kapacitor sends them; return their number when all came back.

    Another process reads the answers, because this one busy-waits to keep the pace.
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
