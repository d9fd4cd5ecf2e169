"""What is sent over and over: messages, encoded once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from kapudf_cli.protocol.codec import REQUESTS
from kapudf_cli.protocol.udf_pb2 import BeginBatch, EndBatch, Point

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kapudf_cli.protocol.codec import RequestMessage
    from kapudf_cli.protocol.udf_pb2 import Option


@dataclass(frozen=True)
class Unit:
    """What is due at one moment: a point, or a whole batch.

    Attributes:
        frames: each message as a frame.
        data: all of them.
        points: how many points.
    """

    frames: tuple[bytes, ...]
    data: bytes
    points: int


@dataclass(frozen=True)
class Work:
    """What one connection sends over and over.

    Attributes:
        messages: the messages of one block.
        options: what Init calls.
    """

    messages: Sequence[RequestMessage]
    options: Sequence[Option] = ()

    @property
    def points(self) -> int:
        """How many points a block has."""
        return sum(isinstance(message, Point) for message in self.messages)

    @cached_property
    def units(self) -> list[Unit]:
        """The block, cut into what is due at one moment."""
        units: list[Unit] = []
        frames: list[bytes] = []
        points = 0
        in_batch = False
        for message in self.messages:
            frames.append(REQUESTS.encode(message))
            points += isinstance(message, Point)
            in_batch = isinstance(message, BeginBatch) or (
                in_batch and not isinstance(message, EndBatch)
            )
            if not in_batch:
                units.append(Unit(tuple(frames), b"".join(frames), points))
                frames, points = [], 0
        return units
