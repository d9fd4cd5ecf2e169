"""New workers in the place of others: all of them, or none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from kapudf_cli.supervisor.replacement import Reloaded, Replacement, Replacements
from kapudf_cli.supervisor.worker_process import WorkerState
from kapudf_cli.system import logs
from tests.supervisor.workers import SETTINGS, Workers

if TYPE_CHECKING:
    from kapudf_cli.supervisor.worker_process import WorkerProcess


@pytest.fixture
def succession() -> Replacements:
    """Give one in which nobody comes."""
    return Replacements(logs.get_logger())


class Reload:
    """A reload to two workers, and what was told of it."""

    def __init__(self, succession: Replacements, workers: Workers) -> None:
        self.told: list[Reloaded] = []
        self.coming = [workers.start() for _ in range(2)]
        succession.begin_reload(SETTINGS, list(self.coming), self.told.append)


def serve(*workers: WorkerProcess) -> None:
    """Have workers be ready."""
    for worker in workers:
        worker.state = WorkerState.SERVING


def test_new_workers_take_over_once_all_of_them_are_ready(
    succession: Replacements, workers: Workers
) -> None:
    """With the new settings, from all others; and once."""
    reload = Reload(succession, workers)
    assert succession.is_under_way
    serve(reload.coming[0])
    assert succession.take_ready() is None
    serve(reload.coming[1])
    assert succession.take_ready() == Replacement(reload.coming, None, SETTINGS)
    assert not succession.coming
    assert succession.take_ready() is None


def test_what_came_of_a_reload_is_told_once(succession: Replacements, workers: Workers) -> None:
    """Not as soon as they take over, for connections move then; and nobody need be told."""
    succession.tell(Reloaded())
    reload = Reload(succession, workers)
    serve(*reload.coming)
    succession.take_ready()
    assert not reload.told
    for count in (3, 4):
        succession.tell(Reloaded(connections=count))
    assert reload.told == [Reloaded(connections=3)]


def test_one_takes_over_from_one_that_has_had_its_time(
    succession: Replacements, workers: Workers
) -> None:
    """The settings stay."""
    old, new = workers.start(), workers.start()
    succession.begin_recycling(old, new)
    assert not succession.is_reload
    serve(old)
    assert succession.take_ready() is None
    serve(new)
    assert succession.take_ready() == Replacement([new], old, None)
    assert not succession.is_under_way


def test_one_that_dies_before_it_is_relieved_need_not_go(
    succession: Replacements, workers: Workers
) -> None:
    """Its successor serves all the same."""
    old, new = workers.start(), workers.start()
    succession.begin_recycling(old, new)
    succession.forget(old)
    serve(new)
    assert succession.take_ready() == Replacement([new], None, None)


def test_if_one_cannot_take_over_none_does(succession: Replacements, workers: Workers) -> None:
    """They are killed, and known until they have ended; the log and who waits are told why."""
    reload = Reload(succession, workers)
    serve(reload.coming[0])
    with capture_logs() as events:
        succession.fail("no module")
    assert events == [
        {
            "event": "reload failed, the old code goes on",
            "log_level": "error",
            "error": "no module",
        }
    ]
    assert reload.told == [Reloaded(problem="no module")]
    assert not succession.is_under_way
    assert succession.take_ready() is None
    assert succession.dismissed == reload.coming
    for worker in reload.coming:
        assert worker.reap() == "SIGKILL"
        succession.forget(worker)
    assert not succession.dismissed


def test_a_successor_that_fails_is_logged_as_such(
    succession: Replacements, workers: Workers
) -> None:
    """The next reload is one again."""
    succession.begin_recycling(workers.start(), workers.start())
    with capture_logs() as events:
        succession.fail("no module")
    assert [event["event"] for event in events] == ["worker cannot be recycled"]
    Reload(succession, workers)
    assert succession.is_reload


def test_what_was_given_up_leaves_nothing_to_what_comes_next(
    succession: Replacements, workers: Workers
) -> None:
    """Neither its settings, nor who waits for it, nor its workers."""
    first = Reload(succession, workers)
    succession.give_up("another reload began")
    assert first.told == [Reloaded(problem="another reload began")]
    old, new = workers.start(), workers.start()
    succession.begin_recycling(old, new)
    serve(new, *first.coming)
    assert succession.take_ready() == Replacement([new], old, None)
    succession.tell(Reloaded())
    assert len(first.told) == 1


def test_giving_up_where_nobody_comes_changes_nothing(succession: Replacements) -> None:
    """As at the beginning of each reload."""
    succession.give_up("another reload began")
    assert not succession.is_under_way
    assert not succession.dismissed


def test_a_gap_is_filled_by_whoever_was_to_take_over_from_the_dead(
    succession: Replacements, workers: Workers
) -> None:
    """Not by the workers of a reload, which take over from whoever there is."""
    old, new = workers.start(), workers.start()
    assert not succession.fills_gap
    succession.begin_recycling(old, new)
    seen = [succession.fills_gap]
    succession.forget(old)
    seen.append(succession.fills_gap)
    succession.forget(new)
    seen.append(succession.fills_gap)
    Reload(succession, workers)
    assert [*seen, succession.fills_gap] == [False, True, False, False]


def test_who_waits_for_a_reload_learns_nothing_of_a_recycling_that_failed(
    succession: Replacements, workers: Workers
) -> None:
    """Connections may still move to the workers of the reload."""
    reload = Reload(succession, workers)
    serve(*reload.coming)
    succession.take_ready()
    succession.begin_recycling(reload.coming[0], workers.start())
    succession.fail("there is no room")
    assert not reload.told
    succession.tell(Reloaded(connections=3))
    assert reload.told == [Reloaded(connections=3)]
