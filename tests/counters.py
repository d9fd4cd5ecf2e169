"""Handlers whose state is a number, and what they answer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from kapudf_cli.handler.handler import Handler
from kapudf_cli.protocol.udf_pb2 import Point, RestoreRequest, RestoreResponse, SnapshotResponse

if TYPE_CHECKING:
    from kapudf_cli.handler.output import Writer


class Counting(Handler):
    """Has a count, which a snapshot holds as JSON."""

    def __init__(self, agent: Writer) -> None:
        super().__init__(agent)
        self.count = 0

    def snapshot(self) -> SnapshotResponse:
        return SnapshotResponse(snapshot=json.dumps(self.count).encode())

    def restore(self, request: RestoreRequest, /) -> RestoreResponse:
        self.count = json.loads(request.snapshot)
        return RestoreResponse(success=True)


class Counter(Counting):
    """Sends each point back with its number."""

    def point(self, point: Point, /) -> None:
        self.count += 1
        self.agent.write_point(counted(point.time, self.count))


def counted(time: int, count: int) -> Point:
    return Point(time=time, fieldsInt={"count": count})
