"""Handlers that fork and let the child return: only the parent reads and writes."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.client.command_target import CommandTarget
from kapudf_cli.client.driver import KapacitorSide
from kapudf_cli.protocol.udf_pb2 import (
    InitRequest,
    InitResponse,
    KeepaliveRequest,
    KeepaliveResponse,
    Point,
    SnapshotRequest,
    SnapshotResponse,
)
from tests.conftest import plugin
from tests.peers import encoded
from tests.serve_process import KAPUDF, PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.serve_process import ServeProcess

    Serve = Callable[..., ServeProcess]

PLACES = ["point", "raise", "write", "thread", "point"]


def check_task(side: KapacitorSide, places: Sequence[str] = PLACES) -> None:
    """Run a task; check that only the parent answers, once for each call of the handler."""
    side.send(InitRequest(taskID="task"))
    assert side.receive() == InitResponse(success=True)
    # More than one point in a read: the child must not handle the next one.
    side.send_bytes(encoded(Point(time=time, name=name) for time, name in enumerate(places)))
    for name in ("__init__", "init", *places):
        response = side.receive()
        assert isinstance(response, Point)
        # It is the child's only thread, so the process ends with it.
        assert response.fieldsInt["status"] == (0 if name == "thread" else 1)
        assert response.name == name
    side.send_bytes(encoded([SnapshotRequest(), KeepaliveRequest(time=7)]))
    side.half_close()
    responses = list(side.responses())
    answers = [response for response in responses if not isinstance(response, Point)]
    assert answers == [SnapshotResponse(snapshot=b"state"), KeepaliveResponse(time=7)]
    rest = [response.name for response in responses if isinstance(response, Point)]
    # A worker also takes snapshots without a request.
    assert rest == ["snapshot"] * (len(rest) - 1) + ["teardown"]


@pytest.mark.parametrize(
    ("handler", "workers"), [("Forking", "1"), ("Forking", "0"), ("ForkingAsync", "1")]
)
def test_a_child_that_returns_is_ended_and_the_task_goes_on(
    serve: Serve, socket_path: str, handler: str, workers: str
) -> None:
    process = serve(plugin(f"forking.py:{handler}"), "--workers", workers)
    # What a thread writes is sent at once, and so before the output of async calls.
    places = [place for place in PLACES if handler == "Forking" or place != "thread"]
    with KapacitorSide.connect(socket_path, timeout_s=PATIENCE_S) as side:
        check_task(side, places)
    finished = process.event("connection finished", task_id="task")
    assert finished["reason"] == "closed"
    process.event("forked process returned into kapudf and is ended")
    assert len(list(process.matching("connection finished", task_id="task"))) == 1


def test_under_exec_too() -> None:
    command = (*KAPUDF, "exec", "--handler", plugin("forking.py:Forking"))
    target = CommandTarget("kapudf exec", command, io.BytesIO())
    with target.open(timeout_s=PATIENCE_S) as connection:
        check_task(connection.side)
