"""Handlers whose worker dies: at a step of the journal, at a point, or when told to.

$DIE_AT names a step of the journal, as `store.commit.before`; the worker kills itself when it
gets there for the third time. $DEATHS is a file with a byte for each such death; at the
fifth it is enough.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path
from typing import Any

from kapudf_cli import (
    BATCH,
    Batch,
    BatchHandler,
    Handler,
    PerGroup,
    Point,
    State,
    set_field,
)
from kapudf_cli.journal import header, journal

#: A worker passes a step so many times and dies.
PASSES = 3
ENOUGH_DEATHS = 5

#: What a wordy handler adds to a point.
BALLAST = "b" * 4_000

#: What each field of the header is called in $DIE_AT.
FIELDS = {
    header._ACTIVE: "commit",
    header._RECEIVED: "received",
    header._BUSY_SINCE: "busy",
    header._CURRENT_FRAME: "current_frame",
    header._WAITS_FOR_PEER: "peer",
}


class Reaper:
    """Kills this process at a step, after some passes."""

    def __init__(self, step: str, deaths: Path) -> None:
        self.operation = "other"
        self._step = step
        self._deaths = deaths
        self._passes = 0

    def at(self, when: str) -> None:
        if f"{self.operation}.{when}" != self._step:
            return
        self._passes += 1
        if self._passes >= PASSES and self._deaths.stat().st_size < ENOUGH_DEATHS:
            with self._deaths.open("ab") as file:
                file.write(b"x")
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)  # It is dying.


class DeadlyWord:
    """Stores fields of the header, and dies before or after it."""

    def __init__(self, word: Any, reaper: Reaper) -> None:
        self._word = word
        self._reaper = reaper
        self.unpack_from = word.unpack_from

    def pack_into(self, memory: Any, place: int, value: int) -> None:
        field = FIELDS.get(place, "other")
        self._reaper.at(f"{field}.before")
        self._word.pack_into(memory, place, value)
        self._reaper.at(f"{field}.after")


def _make_deadly(reaper: Reaper) -> None:
    header._WORD = DeadlyWord(header._WORD, reaper)  # type: ignore[assignment]
    for name in ("receive", "store", "compact", "send"):
        _wrap(name, getattr(journal.Journal, name), reaper)


def _wrap(name: str, original: Any, reaper: Reaper) -> None:
    def call(*arguments: Any, **named: Any) -> Any:
        outer, reaper.operation = reaper.operation, name
        try:
            if name == "send" and arguments[1] > 1:
                reaper.at("before")
                # Only a part, so that some deaths come inside a message.
                done = original(arguments[0], arguments[1] // 2)
                reaper.at("half")
                return done
            reaper.at("before")
            done = original(*arguments, **named)
            reaper.at("after")
            return done
        finally:
            reaper.operation = outer

    setattr(journal.Journal, name, call)


if "DIE_AT" in os.environ:
    _make_deadly(Reaper(os.environ["DIE_AT"], Path(os.environ["DEATHS"])))


class Tally(State):
    """How many points there were, and the sum of their fields `x`."""

    count: int = 0
    total: float = 0.0


class Count(Handler):
    """Sets on each point how many its group has had, and their sum."""

    state: PerGroup[Tally]

    def point(self, point: Point, /) -> None:
        tally = self.state.of(point)
        tally.count += 1
        tally.total += point.fieldsDouble["x"]
        set_field(point, "count", tally.count)
        set_field(point, "total", tally.total)
        self.agent.write_point(point)


class Unordered(Count):
    """Counts; some points of group g1 take longer, or until the file exists that a tag names."""

    ordered = False

    def point(self, point: Point, /) -> None:
        while "file" in point.tags and not os.path.exists(point.tags["file"]):
            time.sleep(0.01)
        if point.group == "g1" and point.time % 30 == 1:
            time.sleep(0.002)
        super().point(point)


class CountBatches(BatchHandler):
    """Sets on each point how many batches there were, itself included."""

    provides = BATCH
    state: Tally

    def batch(self, batch: Batch, /) -> list[Point]:
        self.state.count += 1
        for point in batch.points:
            set_field(point, "count", self.state.count)
        return batch.points


class Poisoned(Count):
    """Counts, and has the worker die in the way that a point's tag `poison` says."""

    def point(self, point: Point, /) -> None:
        match point.tags.get("poison"):
            case "abort":
                os.abort()
            case "segfault":
                ctypes.string_at(0)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(60)
            case "exit":
                os._exit(3)
            case "hang":
                time.sleep(600)
        super().point(point)


class Slow(Poisoned):
    """Counts, after as many milliseconds for each point as its field `ms` says."""

    def point(self, point: Point, /) -> None:
        time.sleep(point.fieldsInt.get("ms", 0) / 1000)
        super().point(point)


class Wordy(Handler):
    """Sends much more back than it gets."""

    def point(self, point: Point, /) -> None:
        set_field(point, "ballast", BALLAST)
        self.agent.write_point(point)


class WordyCount(Count):
    """Counts, and sends much more back than it gets."""

    def point(self, point: Point, /) -> None:
        set_field(point, "ballast", BALLAST)
        super().point(point)
