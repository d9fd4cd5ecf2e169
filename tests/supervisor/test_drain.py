"""Draining, with a simulated clock."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from kapudf_cli.supervisor.supervisor import Drain
from kapudf_cli.system import logs
from kapudf_cli.worker.channel import Abort, Order, Stop
from tests.supervisor.workers import SETTINGS

if TYPE_CHECKING:
    from kapudf_cli.supervisor.pool import Pool
    from tests.supervisor.loops import Loop


@pytest.fixture
def pool(loop: Loop) -> Pool:
    """Give a pool with a serving worker."""
    return loop.start_pool(SETTINGS)


def drain(pool: Pool) -> Drain:
    """Start to drain at 100 s, with a grace period of 10 s."""
    return Drain(
        [pool],
        grace_period_s=10.0,
        now_s=100.0,
        attempt=lambda step: step(),
        log=logs.get_logger(),
    )


def test_it_is_over_once_every_worker_has_ended(loop: Loop, pool: Pool) -> None:
    drained = drain(pool)
    assert drained.advance(102.0) == 8.0
    loop.turn_until(lambda: pool.is_empty)
    assert drained.advance(103.0) is None
    assert pool.deaths == 0


def test_without_workers_there_is_nothing_to_wait_for() -> None:
    empty = Drain(
        [],
        grace_period_s=10.0,
        now_s=100.0,
        attempt=lambda step: step(),
        log=logs.get_logger(),
    )
    assert empty.advance(100.0) is None


def test_who_does_not_end_in_time_is_pressed_step_by_step(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (worker,) = pool.workers
    os.kill(worker.pid, signal.SIGSTOP)
    steps: list[Order | str] = []
    monkeypatch.setattr(worker, "send", steps.append)
    monkeypatch.setattr(worker, "ask_for_stacks", lambda: steps.append("asked"))
    monkeypatch.setattr(worker, "stacks", lambda: "Thread 1\n  somewhere\n")
    with capture_logs() as events:
        drained = drain(pool)
        assert steps == [Stop()]
        assert drained.advance(109.5) == 0.5
        assert steps == [Stop()]
        assert drained.advance(110.0) == 1.0
        assert steps == [Stop(), Abort()]
        assert drained.advance(110.5) == 0.5
        assert drained.advance(111.0) == 0.25
        assert steps == [Stop(), Abort(), "asked"]
        assert not events
        assert drained.advance(111.5) == 0.0
        assert drained.advance(111.5) is None
    assert events == [
        {
            "event": "worker hangs at the end, and is killed",
            "log_level": "error",
            "function": "f",
            "worker": worker.number,
            "pid": worker.pid,
            "connections": 0,
            "stacks": "Thread 1\n  somewhere",
        }
    ]
    assert steps == [Stop(), Abort(), "asked"]
