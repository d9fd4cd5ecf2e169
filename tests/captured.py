"""What a real kapacitord sent, as messages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kapudf_cli import Point
from kapudf_cli.protocol import BeginBatch, EndBatch
from kapudf_cli.protocol.codec import REQUESTS
from kapudf_cli.protocol.framing import FrameReader, frame_body

if TYPE_CHECKING:
    from kapudf_cli.protocol.codec import DataMessage

_CAPTURES = Path(__file__).parent / "captures"


def data_of(capture: str) -> list[DataMessage]:
    """Return the points, begins and ends of a capture, by its name."""
    data = (_CAPTURES / f"{capture}.bin").read_bytes()
    requests = [REQUESTS.decode(frame) for frame in FrameReader(frame_body).feed(data)]
    return [each for each in requests if isinstance(each, BeginBatch | Point | EndBatch)]


def points_of(capture: str) -> list[Point]:
    """Return the points of a capture."""
    return [each for each in data_of(capture) if isinstance(each, Point)]
