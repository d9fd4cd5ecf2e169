"""Which frame of a connection kills workers, if one does; sans-I/O.

A worker that dies leaves several connections, each with frames that had come and were not
dealt with. The next worker of each deals with those one at a time, each noted before the
handler gets it, so that if that one dies too, it is known over which.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kapudf_cli.journal.header import NO_FRAME

#: So many deaths over one frame, dealt with by itself, make it poison. After a fault,
#: such as a segmentation fault, one is enough; a kill may have hit it by chance, and on a
#: machine that is short of everything even the next one, for there a frame is long in hand.
_DEATHS_BY_FAULT: Final = 1
_DEATHS_BY_KILL: Final = 3
#: So many deaths in a row without a step forward, and the connection is given up: it
#: would take down every worker there is. A kill may be somebody else's doing: of those,
#: so many and over so long a time.
_MOST_FAULTS: Final = 6
_MOST_DEATHS: Final = 20
_LONGEST_DYING_S: Final = 600.0


@dataclass(frozen=True)
class DeathScene:
    """Where a connection stood when its worker died.

    Attributes:
        offset: that of the first frame that is not noted as dealt with.
        current_frame: that of the frame that the handler was given, or what the ledger has in
            its place.
        received: how much input had come.
        input_start: where the journal begins.
        was_busy: whether it did not wait for input.
    """

    offset: int
    current_frame: int
    received: int
    input_start: int
    was_busy: bool


class PoisonDetector:
    """What the deaths of one connection's workers say about its frames.

    Attributes:
        until: frames before this offset are dealt with one at a time.
        poison: the offsets of frames that killed workers, and are not given to the next.
        give_up: why the connection is to be failed, None if it is not.
        isolated: whether it is not to be with others that are suspected as it is, so that
            the next death tells them apart.
    """

    def __init__(self) -> None:
        """Begin with nothing that is suspected."""
        self.until = 0
        self.poison: set[int] = set()
        self.give_up: str | None = None
        self.isolated = False
        # Since the connection last got a step forward: deaths, those of them by its own
        # fault, where they were, and since when.
        self._deaths = self._faults = 0
        self._died_at = -1
        self._dying_since_s = 0.0
        # How many were over the frame there, which was dealt with by itself.
        self._over_frame = 0

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
            accused: whether the death came from its own thread, None where that is not
                known, as of a kill.
            alone: whether no other connection of that worker was dealt with frame by frame.
            drops_poison: whether a frame that kills workers is dropped, and the connection
                goes on, or the connection is given up.
        """
        self.poison = {place for place in self.poison if place >= scene.input_start}
        waited = not scene.was_busy and scene.current_frame == NO_FRAME
        if scene.offset > self._died_at or waited:
            self._begin_anew()
            self._over_frame = 0
        if waited or accused is False:
            return  # Whatever the cause was, it is not here.
        was_careful = scene.offset < self.until
        if not self._deaths:
            self._dying_since_s = now_s
        self._deaths += 1
        self._faults += accused is True
        self._died_at = scene.offset
        self.until = max(self.until, scene.received)
        self.isolated = self._deaths > 1
        if was_careful and scene.current_frame == scene.offset and (accused or alone):
            self._over_frame += 1
            if self._over_frame >= (_DEATHS_BY_FAULT if accused else _DEATHS_BY_KILL):
                self._convict(scene.current_frame, how, drops_poison=drops_poison)
                return
        killed = self._deaths >= _MOST_DEATHS and now_s - self._dying_since_s >= _LONGEST_DYING_S
        if self._faults >= _MOST_FAULTS or killed:
            self.give_up = f"it ended {self._deaths} workers, the last one {how}"

    def _begin_anew(self) -> None:
        self._deaths = self._faults = 0
        self.isolated = False

    def _convict(self, offset: int, how: str, *, drops_poison: bool) -> None:
        """Have a frame dropped that was found to kill workers, or the connection given up."""
        if drops_poison:
            self.poison.add(offset)
            self._begin_anew()
        else:
            self.give_up = (
                f"the frame at byte {offset} ended {_workers(self._deaths)}, "
                f"the last one {how}; on_error: skip would drop it"
            )


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"
