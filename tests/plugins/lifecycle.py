"""Handlers that show when they are called, and that can be held up from outside."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from kapudf_cli import Handler, Point

if TYPE_CHECKING:
    from kapudf_cli.handler import Writer
    from kapudf_cli.protocol import InitRequest, InitResponse


class Recorder(Handler):
    """Writes the name of each call of its methods to the file $RECORD, a line each."""

    def _record(self, call: str) -> None:
        with Path(os.environ["RECORD"]).open("a", encoding="utf-8") as record:
            record.write(f"{call}\n")

    def __init__(self, agent: Writer) -> None:
        super().__init__(agent)
        self._record("__init__")

    def init(self, request: InitRequest, /) -> InitResponse:
        self._record("init")
        return super().init(request)

    def point(self, point: Point, /) -> None:
        self._record("point")
        self.agent.write_point(point)

    def teardown(self) -> None:
        self._record("teardown")
        self.agent.write_point(Point(name="flushed"))


class Gated(Handler):
    """Opens the named pipe $GATE at its first point, and so waits until a process writes there."""

    def __init__(self, agent: Writer) -> None:
        super().__init__(agent)
        self._waiting = True

    def point(self, point: Point, /) -> None:
        if self._waiting:
            Path(os.environ["GATE"]).read_bytes()
            self._waiting = False
        self.agent.write_point(point)


class Stuck(Handler):
    """Never returns from a point, and leaves a thread behind that would hold the exit up."""

    def point(self, point: Point, /) -> None:
        del point
        self.agent.write_point(Point(name="stuck"))
        for_ever = threading.Event()
        threading.Thread(target=for_ever.wait).start()
        for_ever.wait()


class Fragile(Handler):
    """Raises at a point named `bad`, and mirrors any other."""

    def point(self, point: Point, /) -> None:
        if point.name == "bad":
            message = "this point is bad"
            raise ValueError(message)
        self.agent.write_point(point)
