"""Handlers that are slow, that leak, and that fail now and then."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from kapudf_cli import Handler, Point, State, set_field

if TYPE_CHECKING:
    from kapudf_cli.handler import Writer
    from kapudf_cli.protocol import RestoreRequest, RestoreResponse


class Count(State):
    """How many points there were."""

    count: int = 0


class Busy(Handler):
    """Takes as many seconds for a point as its field `s` says, in the way of its tag `how`."""

    def point(self, point: Point, /) -> None:
        seconds = point.fieldsInt["s"]
        if point.tags["how"] == "python":
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                sum(range(1000))
        else:
            # PyDLL keeps the interpreter's lock, as a long match of a regular expression does.
            libc = ctypes.PyDLL(None)
            for _ in range(seconds):
                libc.usleep(1_000_000)
        self.agent.write_point(point)


class Leaking(Handler):
    """Keeps 8 kB of each point, and counts."""

    state: Count

    def __init__(self, agent: Writer) -> None:
        super().__init__(agent)
        self._leak: list[bytes] = []

    def point(self, point: Point, /) -> None:
        self._leak.append(os.urandom(8192))
        self.state.count += 1
        set_field(point, "count", self.state.count)
        self.agent.write_point(point)


class Clumsy(Handler):
    """Counts each point, and then raises at every hundredth."""

    state: Count

    def point(self, point: Point, /) -> None:
        self.state.count += 1
        if point.time % 100 == 37:
            message = f"point {point.time} is bad"
            raise ValueError(message)
        set_field(point, "count", self.state.count)
        self.agent.write_point(point)


class HeldUp(Handler):
    """Waits, where the file $GATE.import or $GATE.restore is a named pipe, for who writes there."""

    state: Count

    def point(self, point: Point, /) -> None:
        if point.name == "wait":
            _pass("point")
        self.state.count += 1
        set_field(point, "count", self.state.count)
        self.agent.write_point(point)

    def restore(self, request: RestoreRequest, /) -> RestoreResponse:
        _pass("restore")
        return super().restore(request)


class TakesTurns(HeldUp):
    """The same, for one connection of a worker at a time."""

    serialize = True


def _pass(gate: str) -> None:
    path = Path(f"{os.environ['GATE']}.{gate}")
    if path.exists():
        path.read_bytes()


if "GATE" in os.environ:
    _pass("import")
