"""The busy watchdog, tick by tick."""

from __future__ import annotations

import pytest

from kapudf_cli.worker.busy_watchdog import BusyWatchdog


@pytest.fixture
def watch() -> BusyWatchdog:
    """Give a watchdog with a limit of ten seconds."""
    return BusyWatchdog(10.0)


def test_nothing_beats_while_nothing_is_in_hand(watch: BusyWatchdog) -> None:
    for now_s in (0.0, 5.0, 100.0):
        watch.tick(now_s, current_frame=None, sent=0)
        assert (watch.beats, watch.busy_s, watch.has_just_passed_limit) == (False, 0.0, False)


def test_a_handler_that_sends_needs_no_beats(watch: BusyWatchdog) -> None:
    for now_s in range(9):
        watch.tick(float(now_s), current_frame=1, sent=now_s)
        assert not watch.beats
    watch.tick(9.0, current_frame=1, sent=8)
    assert watch.beats


def test_it_beats_until_the_limit_and_tells_once_that_it_passed(watch: BusyWatchdog) -> None:
    seen = []
    for now_s in (0.0, 1.0, 9.9, 10.0, 11.0, 30.0):
        watch.tick(now_s, current_frame=7, sent=0)
        seen.append((watch.beats, watch.has_just_passed_limit))
    # Before the first tick nothing was seen, so nothing is late.
    assert seen[0][1] is False
    assert seen[1:] == [(True, False), (True, False), (False, True), (False, False), (False, False)]


def test_each_frame_has_the_whole_limit(watch: BusyWatchdog) -> None:
    for number in range(10):
        watch.tick(number * 9.0, current_frame=number, sent=0)
        assert watch.busy_s == 0.0
        watch.tick(number * 9.0 + 8.0, current_frame=number, sent=0)
        assert watch.busy_s == 8.0
        assert not watch.has_just_passed_limit


def test_the_limit_is_reported_again_for_another_frame(watch: BusyWatchdog) -> None:
    told = 0
    for frame in (1, 2):
        for second in range(0, 20, 5):
            watch.tick(frame * 100.0 + second, current_frame=frame, sent=0)
            told += watch.has_just_passed_limit
    assert told == 2


def test_another_worker_has_the_whole_limit_for_the_same_frame(watch: BusyWatchdog) -> None:
    watch.tick(0.0, current_frame=1, sent=0)
    watch.tick(9.0, current_frame=1, sent=0)
    watch.reset()
    watch.tick(12.0, current_frame=1, sent=0)
    assert (watch.busy_s, watch.has_just_passed_limit) == (0.0, False)
    watch.tick(21.0, current_frame=1, sent=0)
    assert watch.beats
    watch.tick(22.0, current_frame=1, sent=0)
    assert watch.has_just_passed_limit


def test_a_limit_that_was_lowered_meanwhile_counts(watch: BusyWatchdog) -> None:
    watch.tick(0.0, current_frame=1, sent=0)
    watch.tick(5.0, current_frame=1, sent=0)
    watch.limit_s = 6.0
    watch.tick(7.0, current_frame=1, sent=0)
    assert watch.has_just_passed_limit
