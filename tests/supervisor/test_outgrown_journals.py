"""Journals that outgrew their limit: the connection goes on, but cannot be taken over."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.protocol.codec import REQUESTS
from kapudf_cli.protocol.udf_pb2 import (
    BeginBatch,
    EndBatch,
    ErrorResponse,
    Point,
    SnapshotRequest,
    SnapshotResponse,
)
from tests.conftest import plugin
from tests.peers import in_thread
from tests.plugins.unruly import MOST_KEPT
from tests.serve_process import PATIENCE_S, ServeProcess
from tests.supervisor.ongoing import await_status, kapudf, status_of
from tests.supervisor.tasks import started_task

if TYPE_CHECKING:
    from collections.abc import Callable

    from kapudf_cli.client.driver import KapacitorSide
    from kapudf_cli.protocol.codec import RequestMessage

    Serve = Callable[..., ServeProcess]

#: The smallest journal; with these frames, it holds far less than 2 MB.
SMALL = ("--journal-mb", "0.1", "--max-frame-bytes", "65536")
COUNT = 2_000
BALLAST = "b" * 1_000
CAUSE = "outgrown"


def outgrow(side: KapacitorSide, first: int) -> None:
    """Send `unruly.Unkept` more than its journal can keep, from point `first` on."""
    sent = (Point(time=n, fieldsString={"s": BALLAST}) for n in range(first, first + COUNT))
    side.queue(sent)
    for number in range(first, first + COUNT):
        assert count_of(side.receive()) == number + 1


def count_of(response: object) -> int:
    """Return the count in a point that came back."""
    assert isinstance(response, Point), response
    return response.fieldsInt["count"]


def test_a_reload_leaves_an_outgrown_journal_to_the_old_worker(
    serve: Serve, socket_path: str
) -> None:
    process = serve(plugin("unruly.py:Unkept"), *SMALL)
    with started_task(socket_path) as side:
        outgrow(side, 0)
        full = [each for each in process.events if each["event"] == "journal is full"]
        assert [each["task_id"] for each in full] == ["task"]
        assert "raise journal_mb" in full[0]["advice"]
        said = kapudf("reload", "--socket", socket_path, status=1)
        assert "0 connections handed over, 1 kept by the old code" in said
        failed = process.event("handover failed, the old worker goes on")
        assert CAUSE in failed["error"]
        side.send(Point(time=COUNT))
        assert count_of(side.receive()) == COUNT + 1
        check_that_a_kill_fails_the_task(socket_path, side)
    finished = process.event("connection finished")
    assert (finished["reason"], finished["points_in"]) == ("handler_error", COUNT + 1)


def check_that_a_kill_fails_the_task(path: str, side: KapacitorSide) -> None:
    """Kill the worker of the only connection; check that Kapacitor gets the reason."""
    status = await_status(path, lambda status: status["connections"][0]["worker"] is not None)
    (connection,) = status["connections"]
    (pid,) = [each["pid"] for each in status["workers"] if each["worker"] == connection["worker"]]
    os.kill(pid, signal.SIGKILL)
    error = side.receive()
    assert isinstance(error, ErrorResponse)
    assert CAUSE in error.error
    assert "journal_mb" in error.error
    assert side.receive() is None


@pytest.mark.parametrize("dies", [False, True], ids=["goes on", "is killed"])
def test_a_batch_may_be_longer_than_the_journal(
    serve: Serve, socket_path: str, *, dies: bool
) -> None:
    process = serve(plugin("mortal.py:CountBatches"), *SMALL, "--snapshot-interval", "0.1")
    with started_task(socket_path) as side:
        side.send(BeginBatch(name="m", group="g", size=COUNT))
        for number in range(COUNT):
            side.send(Point(time=number, fieldsString={"s": BALLAST}))
        await_status(socket_path, lambda status: status["connections"][0]["points_in"] == COUNT)
        kapudf("reload", "--socket", socket_path, status=1)
        assert CAUSE in process.event("handover failed, the old worker goes on")["error"]
        if dies:
            check_that_a_kill_fails_the_task(socket_path, side)
            return
        side.send(EndBatch(name="m", group="g"))
        assert isinstance(side.receive(), BeginBatch)
        assert [count_of(side.receive()) for _ in range(COUNT)] == [1] * COUNT
        assert isinstance(side.receive(), EndBatch)
        side.send(SnapshotRequest())
        assert isinstance(side.receive(), SnapshotResponse)
        said = kapudf("reload", "--socket", socket_path)
        assert "1 connection handed over" in said


def test_a_new_handler_gets_the_last_snapshot_if_no_input_is_kept(
    serve: Serve, socket_path: str
) -> None:
    process = serve(plugin("unruly.py:Unkept"), *SMALL, "--on-error", "restart")
    with started_task(socket_path) as side:
        for number in range(MOST_KEPT):
            side.send(Point(time=number))
            assert count_of(side.receive()) == number + 1
        side.send(SnapshotRequest())  # The journal is compacted then.
        assert isinstance(side.receive(), SnapshotResponse)
        outgrow(side, MOST_KEPT)
        side.send(Point(name="bad"))
        side.send(Point(time=1))
        assert count_of(side.receive()) == MOST_KEPT + 1
        side.half_close()
        assert side.receive() is None
    finished = process.event("connection finished")
    assert (finished["reason"], finished["failures"], finished["restarts"]) == ("closed", 1, 1)


@pytest.mark.parametrize("handler", [plugin("mortal.py:CountBatches"), "batch-mirror"])
def test_batches_that_follow_each_other_without_a_pause_do_not_outgrow_it(
    serve: Serve, socket_path: str, handler: str
) -> None:
    serve(handler, *SMALL)
    count, size = 120, 20
    points = [Point(time=n, fieldsString={"s": BALLAST}) for n in range(size)]
    begin, end = BeginBatch(name="m", group="g", size=size), EndBatch(name="m", group="g")
    with started_task(socket_path) as side:
        batch: list[RequestMessage] = [begin, *points, end]
        unfinished = (batch * count)[:-1]
        sending = in_thread(lambda: side.send_bytes(b"".join(map(REQUESTS.encode, unfinished))))
        came = [[side.receive() for _ in batch] for _ in range(count - 1)]
        sending.result(PATIENCE_S)
        await_status(
            socket_path,
            lambda status: status["connections"][0]["points_in"] == count * size,
        )
        (worker,) = status_of(socket_path)["workers"]
        os.kill(worker["pid"], signal.SIGKILL)
        side.send(end)
        came.append([side.receive() for _ in batch])
    for number, messages in enumerate(came, start=1):
        expected = {"count": number} if handler != "batch-mirror" else {}
        for point in points:
            point.ClearField("fieldsInt")
            point.fieldsInt.update(expected)
        assert messages == [begin, *points, end]
