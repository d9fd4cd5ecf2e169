"""When dead workers are replaced and connections are checked, with a simulated clock."""

from __future__ import annotations

import pytest

from kapudf_cli.config import FunctionSettings
from kapudf_cli.supervisor.replacement import (
    CheckInterval,
    Recycling,
    Reloaded,
    ReloadResults,
    RestartBackoff,
    WorkerUsage,
)


@pytest.fixture
def backoff() -> RestartBackoff:
    """Give a back-off that has seen no death."""
    return RestartBackoff()


def pause_s(backoff: RestartBackoff, now_s: float) -> float:
    """Return the pause after a failed start, in steps of 0.05 s."""
    backoff.note_death(now_s, age_s=0.5, has_worked=False)
    steps = 0
    while not backoff.take_due(now_s + steps / 20):
        steps += 1
    return steps / 20


def test_without_a_death_no_worker_is_replaced(backoff: RestartBackoff) -> None:
    assert not backoff.is_pending
    assert not backoff.take_due(1e9)


def test_a_worker_that_has_worked_is_replaced_at_once(backoff: RestartBackoff) -> None:
    backoff.note_death(5.0, age_s=0.1, has_worked=True)
    assert backoff.take_due(5.0)
    assert not backoff.is_pending
    assert not backoff.take_due(6.0)


def test_a_worker_that_has_lived_long_is_replaced_at_once(backoff: RestartBackoff) -> None:
    backoff.note_death(5.0, age_s=10.0, has_worked=False)
    assert backoff.take_due(5.0)
    assert backoff.vain_starts == 0


def test_the_pause_doubles_up_to_half_a_minute(backoff: RestartBackoff) -> None:
    pauses = [pause_s(backoff, 1000.0 + 60.0 * number) for number in range(11)]
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]
    assert backoff.vain_starts == 11


def test_it_is_tried_for_as_long_as_it_takes(backoff: RestartBackoff) -> None:
    for number in range(3000):
        now_s = number * 30.0
        backoff.note_death(now_s, age_s=0.5, has_worked=False)
        assert backoff.take_due(now_s + 30.0)
    assert backoff.vain_starts == 3000


def test_a_worker_that_comes_to_something_ends_the_row(backoff: RestartBackoff) -> None:
    first = pause_s(backoff, 1000.0)
    assert pause_s(backoff, 1060.0) > first
    backoff.note_death(2000.0, age_s=0.5, has_worked=True)
    assert backoff.take_due(2000.0)
    assert pause_s(backoff, 2060.0) == first


@pytest.mark.parametrize(
    ("deaths", "failures", "due_s"),
    [
        ([(5.0, 2.0)] * 8, 1, 5.1),
        ([(5.0, 2.0), (5.04, 2.0), (5.08, 2.08)], 1, 5.1),
        ([(5.0, 2.0), (5.3, 0.1)], 2, 5.5),
        ([(5.0, 2.0), (5.3, 0.1), (5.4, 2.4), (5.4, 0.2)], 2, 5.5),
    ],
    ids=["all at once", "one after the other", "a new one too", "then an old one"],
)
def test_workers_of_one_generation_that_die_are_one_failure(
    backoff: RestartBackoff, deaths: list[tuple[float, float]], failures: int, due_s: float
) -> None:
    for now_s, age_s in deaths:
        backoff.note_death(now_s, age_s=age_s, has_worked=False)
    assert backoff.vain_starts == failures
    assert not backoff.take_due(due_s - 0.01)
    assert backoff.take_due(due_s + 0.01)


def test_a_worker_that_dies_late_is_replaced_though_its_failure_is_over(
    backoff: RestartBackoff,
) -> None:
    backoff.note_death(5.0, age_s=2.0, has_worked=False)
    assert backoff.take_due(5.2)
    backoff.note_death(6.0, age_s=3.0, has_worked=False)
    assert backoff.take_due(6.0)
    assert backoff.vain_starts == 1


def test_a_worker_that_has_worked_shortens_the_pause_of_another(backoff: RestartBackoff) -> None:
    backoff.note_death(5.0, age_s=0.5, has_worked=False)
    assert not backoff.take_due(5.0)
    assert backoff.is_pending
    backoff.note_death(5.1, age_s=0.5, has_worked=True)
    assert backoff.take_due(5.1)


def test_starting_is_retried_while_there_is_room_for_no_process(backoff: RestartBackoff) -> None:
    backoff.retry(7.0)
    assert not backoff.take_due(7.05)
    assert backoff.take_due(7.1)
    assert backoff.vain_starts == 0


def test_no_worker_is_replaced_after_a_cancellation(backoff: RestartBackoff) -> None:
    backoff.note_death(5.0, age_s=0.5, has_worked=False)
    backoff.cancel()
    assert not backoff.is_pending
    assert not backoff.take_due(1e9)


@pytest.mark.parametrize(("took_s", "interval_s"), [(0.0, 0.2), (0.05, 0.5), (3.0, 1.0)])
def test_checks_that_take_long_are_made_less_often(took_s: float, interval_s: float) -> None:
    interval = CheckInterval()
    assert interval.is_over(0.0)
    interval.note(100.0, took_s=took_s)
    assert not interval.is_over(100.0 + interval_s - 0.01)
    assert interval.is_over(100.0 + interval_s)


def test_each_reload_has_one_result() -> None:
    results = ReloadResults()
    results.add(Reloaded(problem="there was no reload"))
    assert results.take() == []
    for problem in ("first", "second"):
        results.begin()
        assert results.is_pending
        results.add(Reloaded(problem=problem))
        results.add(Reloaded(problem="too late"))
    assert not results.is_pending
    assert [each.problem for each in results.take()] == ["first", "second"]
    assert results.take() == []


def test_an_outdated_worker_is_recycled_once_it_has_lived_for_a_moment() -> None:
    """So that one without a cluster is replaced by one on the cluster."""
    settings = FunctionSettings(handler="h", socket="/s", engine="ray", ray_fallback=True)
    usages = [
        WorkerUsage("young", age_s=0.1, points=9, rss_mb=50.0, is_outdated=True),
        WorkerUsage("good", age_s=99.0, points=9, rss_mb=50.0),
        WorkerUsage("outdated", age_s=99.0, points=9, rss_mb=50.0, is_outdated=True),
    ]
    recycling = Recycling()
    chosen = recycling.choose(usages, settings, now_s=0.0)
    assert chosen is not None
    assert chosen.worker == "outdated"
    assert recycling.choose(usages[:2], settings, now_s=0.0) is None
