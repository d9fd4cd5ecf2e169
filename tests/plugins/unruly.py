"""Handlers that do to their worker what handlers are not expected to do."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from kapudf_cli import BATCH, Handler, Point, State, set_field

if TYPE_CHECKING:
    from kapudf_cli.protocol import BeginBatch, EndBatch, SnapshotResponse

#: From so many points on, `Unkept` has no snapshot to give.
MOST_KEPT = 10
#: How long a child lives that no test ends.
_CHILD_S = 60


class Parent(Handler):
    """Has a child for each task, which has all that the worker has, and writes it to $CHILDREN."""

    def setup(self) -> None:
        child = os.fork()
        if not child:
            time.sleep(_CHILD_S)
            os._exit(0)
        with Path(os.environ["CHILDREN"]).open("a", encoding="ascii") as file:
            file.write(f"{child}\n")

    def point(self, point: Point, /) -> None:
        self.agent.write_point(point)


class Grasping(Handler):
    """Keeps the interpreter at a point named `grasp`, until something is written to $GATE."""

    def point(self, point: Point, /) -> None:
        if point.name == "grasp":
            gate = os.open(os.environ["GATE"], os.O_RDWR)
            with contextlib.closing(os.fdopen(gate)):
                # PyDLL keeps the interpreter's lock.
                ctypes.PyDLL(None).read(gate, ctypes.create_string_buffer(1), 1)
        self.agent.write_point(point)


class Tally(State):
    """How many points there were."""

    count: int = 0


class Unkept(Handler):
    """Counts, raises at points named `bad`, and cannot say its count once that is high."""

    state: Tally

    def point(self, point: Point, /) -> None:
        if point.name == "bad":
            raise ValueError("bad")
        self.state.count += 1
        set_field(point, "count", self.state.count)
        self.agent.write_point(point)

    def snapshot(self) -> SnapshotResponse:
        if self.state.count > MOST_KEPT:
            raise RuntimeError("too much to tell")
        return super().snapshot()


class ClumsyWithBatches(Handler):
    """Sends batches back as they come, and raises at every tenth point."""

    wants = provides = BATCH
    state: Tally

    def begin_batch(self, begin: BeginBatch, /) -> None:
        self.agent.write_begin_batch(begin)

    def point(self, point: Point, /) -> None:
        if point.time % 10 == 0:
            raise ValueError("bad")
        self.state.count += 1
        self.agent.write_point(point)

    def end_batch(self, end: EndBatch, /) -> None:
        self.agent.write_end_batch(end)


class Chatty(Handler):
    """Logs much about each point, and dies right after at a point named `last`."""

    def point(self, point: Point, /) -> None:
        logging.getLogger("chatty").info("%s %d: %s", point.name, point.time, "." * 1_000)
        if point.name == "last":
            os.kill(os.getpid(), signal.SIGKILL)
        self.agent.write_point(point)
