"""States longer than a frame may be, and workers that run out of memory."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

from kapudf_cli.protocol.udf_pb2 import ErrorResponse, Point
from tests.conftest import plugin
from tests.serve_process import PATIENCE_S
from tests.supervisor.ongoing import await_status
from tests.supervisor.tasks import started_task
from tests.supervisor.test_outgrown_journals import SMALL, count_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

    from kapudf_cli.client.driver import KapacitorSide
    from tests.serve_process import ServeProcess

    Serve = Callable[..., ServeProcess]

#: For a frame of 65,536 bytes; the journal takes about 0.6 MB.
LONGER_THAN_A_FRAME = 300_000
TOO_LONG = 2_000_000
COUNT = 20


def count_up(side: KapacitorSide, first: int) -> None:
    for number in range(first, first + COUNT):
        side.send(Point(time=number))
        assert count_of(side.receive()) == number + 1


def kill_worker(path: str) -> None:
    status = await_status(path, lambda status: status["connections"][0]["worker"] is not None)
    os.kill(status["workers"][0]["pid"], signal.SIGKILL)


def await_takeovers(path: str, count: int) -> None:
    await_status(path, lambda status: status["connections"][0]["takeovers"] == count)


def test_a_state_longer_than_a_frame_survives_the_death_of_its_worker(
    serve: Serve, socket_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATE_BYTES", str(LONGER_THAN_A_FRAME))
    serve(plugin("heavy.py:Heavy"), *SMALL, "--snapshot-interval", "0.1")
    with started_task(socket_path) as side:
        for round_ in range(2):
            count_up(side, round_ * COUNT)
            kill_worker(socket_path)
            await_takeovers(socket_path, round_ + 1)
        count_up(side, 2 * COUNT)


def test_a_state_too_long_for_the_journal_is_logged_once_in_advance(
    serve: Serve, socket_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATE_BYTES", str(TOO_LONG))
    process = serve(plugin("heavy.py:Heavy"), *SMALL, "--snapshot-interval", "0.1")

    def said() -> list[dict[str, Any]]:
        return [each for each in process.events if "too long to be kept" in each["event"]]

    with started_task(socket_path) as side:
        deadline_s = time.monotonic() + PATIENCE_S
        rounds = 0
        while not said() and time.monotonic() < deadline_s:
            count_up(side, rounds * COUNT)
            rounds += 1
        for more in range(rounds, 2 * rounds):
            count_up(side, more * COUNT)
    (event,) = said()
    assert event["task_id"] == "task"
    assert event["snapshot_bytes"] > TOO_LONG > event["most_bytes"]
    assert "raise journal_mb" in event["advice"]


def test_a_worker_without_memory_dies_and_its_connections_go_on(
    serve: Serve, socket_path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RECORD", str(tmp_path / "was-hungry"))
    process = serve(plugin("heavy.py:Heavy"))
    with started_task(socket_path) as side:
        count_up(side, 0)
        side.send(Point(name="hungry"))
        assert count_of(side.receive()) == COUNT + 1
        side.send(Point(fieldsString={"long": "x" * 30_000_000}))
        answer = side.receive()
        assert not isinstance(answer, ErrorResponse)
        assert count_of(answer) == COUNT + 2
    crash = process.event("worker crashes, its connections are taken over")
    assert "MemoryError" in crash["exception"]
    assert process.event("worker died")["how"] == "exit status 1"
