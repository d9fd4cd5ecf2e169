"""What is sent: points as telegraf writes them and as a real kapacitord sent them."""

from __future__ import annotations

import random
from pathlib import Path

from kapudf_cli.protocol.codec import REQUESTS
from kapudf_cli.protocol.framing import FrameReader
from kapudf_cli.protocol.udf_pb2 import BeginBatch, EndBatch, Point
from kapudf_cli.tools.load.shape import Shape

CAPTURE = Path(__file__).parent.parent / "tests" / "captures" / "stream-01.bin"


def telegraf_points(count: int) -> list[Point]:
    """Return points of telegraf's `cpu`: 10 double fields, 2 tags, of 8 hosts."""
    return list(Shape().points(count))


def captured_points() -> list[Point]:
    """Return the points of a capture: four fields, one of each type."""
    requests = FrameReader(REQUESTS.decode_in).feed(CAPTURE.read_bytes())
    return [request for request in requests if isinstance(request, Point)]


def batch(points: list[Point]) -> list[BeginBatch | Point | EndBatch]:
    """Return points as a batch, with fields of which about one in a hundred lies far out."""
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
