"""A handler that forks in each of its methods, and lets the child return.

The parent waits for its child, and sends a point for each with the child's exit status.
"""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING

from kapudf_cli import Handler, Point, set_field
from kapudf_cli.protocol import InitRequest, InitResponse, SnapshotResponse

if TYPE_CHECKING:
    from kapudf_cli.handler import Writer


def forked(agent: Writer, place: str) -> bool:
    """Fork; return whether this is the child."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        point = Point(name=place)
        set_field(point, "status", os.waitstatus_to_exitcode(status))
        agent.write_point(point)
    return not child


class Forking(Handler):
    def __init__(self, agent: Writer) -> None:
        super().__init__(agent)
        forked(agent, "__init__")

    def init(self, request: InitRequest, /) -> InitResponse:
        forked(self.agent, "init")
        return super().init(request)

    def point(self, point: Point, /) -> None:
        if point.name == "thread":
            thread = threading.Thread(target=self.in_thread)
            thread.start()
            thread.join()
        elif forked(self.agent, point.name):
            if point.name == "raise":
                raise ValueError(point.name)
            if point.name == "write":
                self.agent.write_point(Point(name="of a child"))

    def in_thread(self) -> None:
        if forked(self.agent, "thread"):
            self.agent.write_point(Point(name="of a child"))
            raise AssertionError

    def snapshot(self) -> SnapshotResponse:
        forked(self.agent, "snapshot")
        return SnapshotResponse(snapshot=b"state")

    def teardown(self) -> None:
        forked(self.agent, "teardown")


class ForkingAsync(Forking):
    """The same in an event loop."""

    async def point(self, point: Point, /) -> None:  # type: ignore[override]  # Handler allows it
        await asyncio.sleep(0)
        super().point(point)
        await asyncio.sleep(0)
