"""Exceptions over data where `on_error` lets the task go on: the output, and the log."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.client.driver import KapacitorSide
from kapudf_cli.protocol.udf_pb2 import (
    BeginBatch,
    EndBatch,
    ErrorResponse,
    InitRequest,
    InitResponse,
    Point,
)
from tests.conftest import plugin
from tests.serve_process import PATIENCE_S
from tests.supervisor.ongoing import await_status, kapudf
from tests.supervisor.tasks import batches, play, points

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.serve_process import ServeProcess

    Serve = Callable[..., ServeProcess]

COUNT = 5_000
#: At which `laden.Clumsy` raises.
BAD = range(37, COUNT, 100)


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize("on_error", ["skip", "restart"])
def test_one_percent_of_failures_leave_all_other_points(
    serve: Serve, socket_path: str, on_error: str, workers: str
) -> None:
    process = serve(plugin("laden.py:Clumsy"), "--on-error", on_error, "--workers", workers)
    back = [each for each in play(socket_path, points(COUNT)) if isinstance(each, Point)]
    assert [each.time for each in back] == [n for n in range(COUNT) if n not in BAD]
    counts = [each.fieldsInt["count"] for each in back]
    if on_error == "skip":
        # Changes that the handler made before it raised are kept.
        assert counts == [each.time + 1 for each in back]
    elif workers == "1":
        # The state is the one before the point that failed.
        assert counts == list(range(1, COUNT - len(BAD) + 1))
    finished = process.event("connection finished")
    assert (finished["reason"], finished["failures"]) == ("closed", len(BAD))
    assert finished.get("restarts", 0) == (len(BAD) if on_error == "restart" else 0)
    dropped = [event for event in process.events if "dropped" in event["event"]]
    assert 1 <= len(dropped) < len(BAD) / 2
    assert dropped[0]["event"] == ("point dropped: Clumsy.point raised ValueError: point 37 is bad")
    assert (dropped[0]["on_error"], dropped[0]["dropped_since_last_event"]) == (on_error, 1)
    assert "laden.py" in dropped[0]["exception"]


def test_without_on_error_the_first_failure_ends_the_task(serve: Serve, socket_path: str) -> None:
    serve(plugin("laden.py:Clumsy"))
    *back, error = play(socket_path, points(COUNT))
    assert len(back) == 37
    assert isinstance(error, ErrorResponse)
    assert "point 37 is bad" in error.error


def test_failures_show_in_the_status(serve: Serve, socket_path: str) -> None:
    serve(plugin("laden.py:Clumsy"), "--on-error", "skip")
    with KapacitorSide.connect(socket_path, timeout_s=PATIENCE_S) as side:
        side.send(InitRequest(taskID="t", nodeID="n"))
        assert side.receive() == InitResponse(success=True)
        side.queue(points(200))
        for _ in range(198):
            assert isinstance(side.receive(), Point)
        await_status(socket_path, lambda status: status["connections"][0]["points_in"] == 200)
        (shown,) = json.loads(kapudf("status", "--socket", socket_path, "--json"))["connections"]
        assert (shown["points_in"], shown["points_out"], shown["failures"]) == (200, 198, 2)


def test_a_long_batch_of_which_many_points_fail_keeps_all_others(
    serve: Serve, socket_path: str
) -> None:
    process = serve(plugin("unruly.py:ClumsyWithBatches"), "--on-error", "restart")
    begin, *back, end = play(socket_path, batches(1, 1_000))
    assert (type(begin), type(end)) == (BeginBatch, EndBatch)
    assert [each.time for each in back] == [n for n in range(1_000) if n % 10]  # type: ignore[union-attr]
    finished = process.event("connection finished")
    assert (finished["failures"], finished["restarts"]) == (100, 100)
