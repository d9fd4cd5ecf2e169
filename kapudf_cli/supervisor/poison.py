"""Which frame of a connection kills workers, if one does; sans-I/O.

A worker that dies leaves several connections, each with frames that its handler may have been
given and that are not handled. The next worker of each handles them one at a time, and records
each before the handler gets it. If that worker dies too, the record shows at which frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from kapudf_cli.journal.header import NO_FRAME

#: How many deaths at one frame, handled by itself, make it poison. After a fault, such as a
#: segmentation fault, one is enough. A kill may hit a frame by chance, several times on a slow
#: machine, where each frame takes long.
DEATHS_BY_FAULT: Final = 1
DEATHS_BY_KILL: Final = 3
#: After this many deaths in a row without progress, the connection is given up, because it would
#: kill all workers. Kills may have another cause: they must be more, and go on for longer.
MAX_FAULTS: Final = 6
MAX_DEATHS: Final = 20
LONGEST_DYING_S: Final = 600.0


@dataclass(frozen=True)
class DeathScene:
    """The progress of a connection when its worker died.

    Attributes:
        offset: the offset of the first frame that is not recorded as handled.
        current_frame: the offset of the frame that the handler was given, or one of the special
            values of `Header.current_frame`.
        given: how many bytes of input the handler may have been given.
        input_start: the offset at which the journal begins.
        was_busy: whether it did not wait for input.
    """

    offset: int
    current_frame: int
    given: int
    input_start: int
    was_busy: bool


class PoisonDetector(msgspec.Struct):
    """Finds frames of one connection that kill workers.

    Attributes:
        until: frames before this offset are handled one at a time.
        poison: the offsets of frames that killed workers and are not given to the next one.
        give_up: why the connection is failed, None if it is not.
        isolated: whether it must not share a worker with another isolated connection, so that
            the next death shows which of them is the cause.
        deaths: how many there were since the last progress.
        faults: how many of them its own thread caused.
        died_at: at which offset they were.
        dying_since_s: when the first of them was.
        over_frame: how many of them were at the frame at that offset, handled by itself.
        given_at_deaths: for each death: how many bytes the handler may have been given, if not
            all of these are handled yet.
    """

    until: int = 0
    poison: set[int] = msgspec.field(default_factory=set)
    give_up: str | None = None
    isolated: bool = False
    deaths: int = 0
    faults: int = 0
    died_at: int = -1
    dying_since_s: float = 0.0
    over_frame: int = 0
    given_at_deaths: list[int] = msgspec.field(default_factory=list)

    def note_death(
        self,
        scene: DeathScene,
        how: str,
        now_s: float,
        *,
        accused: bool | None,
        alone: bool,
        drops_poison: bool,
    ) -> None:
        """Note a worker's death, and find out whether a frame is the cause.

        Args:
            scene: where the connection stood.
            how: what happened to the worker, as "died by SIGKILL".
            now_s: a monotonic clock's time, in seconds.
            accused: whether its own thread caused the death, None if unknown, as after a kill.
            alone: whether no other connection of that worker was handled frame by frame.
            drops_poison: whether a frame that kills workers is dropped, and the connection
                goes on, or the connection is given up.
        """
        self.poison = {place for place in self.poison if place >= scene.input_start}
        waited = not scene.was_busy and scene.current_frame == NO_FRAME
        if scene.offset > self.died_at or waited:
            self._reset()
            self.over_frame = 0
        self.given_at_deaths = [given for given in self.given_at_deaths if given > scene.offset]
        if waited or accused is False:
            return  # This connection is not the cause.
        was_careful = scene.offset < self.until
        if not self.deaths:
            self.dying_since_s = now_s
        self.deaths += 1
        self.faults += accused is True
        self.died_at = scene.offset
        self.given_at_deaths.append(scene.given)
        self.until = max(self.until, scene.given)
        self.isolated = self.deaths > 1
        if was_careful and scene.current_frame == scene.offset and (accused or alone):
            self.over_frame += 1
            if self.over_frame >= (DEATHS_BY_FAULT if accused else DEATHS_BY_KILL):
                self._convict(scene.current_frame, how, drops_poison=drops_poison)
                return
        killed = self.deaths >= MAX_DEATHS and now_s - self.dying_since_s >= LONGEST_DYING_S
        if self.faults >= MAX_FAULTS or killed:
            self.give_up = f"it ended {self.deaths} workers, the last one {how}"

    def _reset(self) -> None:
        self.deaths = self.faults = 0
        self.isolated = False

    def _convict(self, offset: int, how: str, *, drops_poison: bool) -> None:
        """Drop a frame that was found to kill workers, or give the connection up."""
        if drops_poison:
            self.poison.add(offset)
            self._reset()
            self.given_at_deaths.clear()
        else:
            self.give_up = (
                f"the frame at byte {offset} ended {_workers(len(self.given_at_deaths))}, "
                f"the last one {how}; on_error: skip would drop it"
            )


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"
