"""Poison detection: which frame kills workers, and which deaths have another cause."""

from __future__ import annotations

import pytest

from kapudf_cli.journal.header import NO_FRAME, REPLAYING_HISTORY
from kapudf_cli.supervisor import poison as source
from kapudf_cli.supervisor.poison import DeathScene, PoisonDetector


class Deaths:
    """A connection whose workers die, with a clock that advances by a second each time."""

    def __init__(self) -> None:
        self.poison_detector = PoisonDetector()
        self.now_s = 1000.0
        self.drops_poison = True

    def fault(
        self,
        offset: int,
        *,
        current_frame: int | None = None,
        given: int = 100,
        input_start: int = 0,
    ) -> PoisonDetector:
        """Let a worker die in the connection's own thread, at the frame at an offset."""
        scene = _scene(offset, current_frame=current_frame, given=given, input_start=input_start)
        return self._note(scene, "died by SIGSEGV", accused=True)

    def kill(
        self, offset: int, *, current_frame: int | None = None, alone: bool = True
    ) -> PoisonDetector:
        """Kill a worker while it handles the frame at an offset."""
        return self._note(
            _scene(offset, current_frame=current_frame),
            "died by SIGKILL",
            accused=None,
            alone=alone,
        )

    def neighbour(self, offset: int) -> PoisonDetector:
        """Let a worker die in another connection's thread."""
        return self._note(_scene(offset), "died by SIGSEGV", accused=False)

    def while_it_waits(self, offset: int) -> PoisonDetector:
        """Kill a worker that waits for input of the connection."""
        scene = DeathScene(offset, NO_FRAME, given=offset, input_start=0, was_busy=False)
        return self._note(scene, "died by SIGKILL", accused=None)

    def _note(
        self, scene: DeathScene, how: str, *, accused: bool | None, alone: bool = True
    ) -> PoisonDetector:
        self.now_s += 1.0
        self.poison_detector.note_death(
            scene, how, self.now_s, accused=accused, alone=alone, drops_poison=self.drops_poison
        )
        return self.poison_detector


def _scene(
    offset: int, *, current_frame: int | None = None, given: int = 100, input_start: int = 0
) -> DeathScene:
    return DeathScene(
        offset,
        offset if current_frame is None else current_frame,
        given,
        input_start,
        was_busy=True,
    )


@pytest.fixture
def deaths() -> Deaths:
    """Give a connection whose workers have not died."""
    return Deaths()


# --- poison ---


def test_after_a_death_frames_that_had_come_are_handled_one_by_one(deaths: Deaths) -> None:
    after = deaths.fault(40, given=90)
    assert (after.until, after.poison, after.give_up) == (90, set(), None)


def test_a_frame_that_faults_by_itself_is_poison(deaths: Deaths) -> None:
    deaths.fault(40)
    after = deaths.fault(52)
    assert (after.poison, after.give_up) == ({52}, None)
    assert deaths.fault(64).poison == {52, 64}


def test_a_kill_may_have_hit_a_frame_by_chance(deaths: Deaths) -> None:
    for poison in (set(), set(), set(), {40}):
        assert deaths.kill(40).poison == poison


def test_kills_at_one_frame_after_the_other_find_no_poison(deaths: Deaths) -> None:
    for offset in range(0, 90, 3):
        after = deaths.kill(offset)
        assert (after.poison, after.give_up) == (set(), None)


@pytest.mark.parametrize("current_frame", [REPLAYING_HISTORY, NO_FRAME, 20])
def test_a_frame_that_is_not_in_hand_is_not_poison(deaths: Deaths, current_frame: int) -> None:
    for _ in range(source.MAX_FAULTS - 1):
        assert deaths.fault(40, current_frame=current_frame).poison == set()


def test_a_step_forward_takes_suspicion_away(deaths: Deaths) -> None:
    for _ in range(source.DEATHS_BY_KILL):
        deaths.kill(40)
    for _ in range(source.DEATHS_BY_KILL - 1):
        assert deaths.kill(50).poison == set()
    assert deaths.kill(50).poison == {50}


def test_poison_that_is_no_history_any_more_is_forgotten(deaths: Deaths) -> None:
    deaths.fault(40)
    assert deaths.fault(40).poison == {40}
    assert deaths.fault(80, input_start=41).poison == {80}


def test_the_connection_is_given_up_if_poison_is_not_dropped(deaths: Deaths) -> None:
    deaths.drops_poison = False
    deaths.fault(40)
    after = deaths.fault(40)
    assert after.poison == set()
    assert after.give_up == (
        "the frame at byte 40 ended 2 workers, the last one died by SIGSEGV; "
        "on_error: skip would drop it"
    )


def test_each_worker_is_counted_that_was_given_the_frame(deaths: Deaths) -> None:
    deaths.drops_poison = False
    deaths.fault(0, given=30)
    deaths.fault(0, given=100)
    assert "the frame at byte 40 ended 2 workers" in (deaths.fault(40).give_up or "")


# --- innocents ---


def test_a_connection_that_waited_for_input_has_nothing_to_do_with_a_death(deaths: Deaths) -> None:
    for _ in range(30):
        after = deaths.while_it_waits(100)
        assert (after.until, after.poison, after.give_up) == (0, set(), None)


def test_a_connection_that_is_known_not_to_be_the_cause_is_not_suspected(deaths: Deaths) -> None:
    for _ in range(30):
        after = deaths.neighbour(40)
        assert (after.until, after.poison, after.give_up) == (0, set(), None)


def test_no_connection_is_blamed_if_several_could_be_the_cause(deaths: Deaths) -> None:
    assert not deaths.kill(40).isolated
    for _ in range(5):
        after = deaths.kill(40, alone=False)
        assert (after.poison, after.isolated) == (set(), True)
    assert not deaths.kill(60, alone=False).isolated


# --- giving up ---


def test_faults_without_a_frame_to_blame_end_in_giving_up(deaths: Deaths) -> None:
    for _ in range(source.MAX_FAULTS - 1):
        assert deaths.fault(40, current_frame=REPLAYING_HISTORY).give_up is None
    after = deaths.fault(40, current_frame=REPLAYING_HISTORY)
    assert after.give_up == "it ended 6 workers, the last one died by SIGSEGV"


def test_kills_end_in_giving_up_only_if_they_go_on_for_long(deaths: Deaths) -> None:
    for _ in range(2 * source.MAX_DEATHS):
        assert deaths.kill(40, current_frame=REPLAYING_HISTORY).give_up is None
    deaths.now_s += source.LONGEST_DYING_S
    after = deaths.kill(40, current_frame=REPLAYING_HISTORY)
    assert after.give_up == "it ended 41 workers, the last one died by SIGKILL"
