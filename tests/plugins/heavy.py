"""A handler with a state as long as $STATE_BYTES, which can run out of memory."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from kapudf_cli import Handler, Point, State, set_field

_PAGE_BYTES = resource.getpagesize()
#: What a process may still take after a point called `hungry`.
LEFT_BYTES = 8 * 1024 * 1024


class Ballast(State):
    count: int = 0
    ballast: str = ""


class Heavy(Handler):
    """Counts. The first point called `hungry` leaves its process little memory."""

    state: Ballast

    def point(self, point: Point, /) -> None:
        self.state.count += 1
        self.state.ballast = "x" * int(os.environ.get("STATE_BYTES", "0"))
        if point.name == "hungry" and not Path(os.environ["RECORD"]).exists():
            Path(os.environ["RECORD"]).touch()
            used = int(Path("/proc/self/statm").read_text().split()[0]) * _PAGE_BYTES
            resource.setrlimit(resource.RLIMIT_AS, (used + LEFT_BYTES, resource.RLIM_INFINITY))
        answer = Point(time=point.time)
        set_field(answer, "count", self.state.count)
        self.agent.write_point(answer)
