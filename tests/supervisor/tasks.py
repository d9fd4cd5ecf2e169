"""Input for tests of workers, and the expected output, whether workers are killed or not."""

from __future__ import annotations

import contextlib
import functools
import socket
from typing import TYPE_CHECKING, Any

from kapudf_cli.client.driver import KapacitorSide
from kapudf_cli.protocol.codec import REQUESTS
from kapudf_cli.protocol.framing import HEARTBEAT_TIME
from kapudf_cli.protocol.udf_pb2 import (
    BeginBatch,
    EndBatch,
    ErrorResponse,
    InitRequest,
    InitResponse,
    KeepaliveRequest,
    KeepaliveResponse,
    Point,
    SnapshotRequest,
)
from tests.peers import in_thread
from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterable, Iterator

    from kapudf_cli.protocol.codec import RequestMessage, ResponseMessage

GROUPS = 3


HEARTBEAT = KeepaliveResponse(time=HEARTBEAT_TIME)


def points(count: int) -> Iterator[Point]:
    """Yield numbered points of several groups."""
    for number in range(count):
        yield Point(time=number, name="m", group=f"g{number % GROUPS}", fieldsDouble={"x": number})


def tallied(sent: Iterable[Point]) -> list[Point]:
    """Return the points as `mortal.Count` sends them back."""
    tallies: dict[str, tuple[int, float]] = {}
    back = []
    for point in sent:
        count, total = tallies.get(point.group, (0, 0.0))
        tallies[point.group] = (count + 1, total + point.fieldsDouble["x"])
        copy = Point()
        copy.CopyFrom(point)
        copy.fieldsInt["count"], copy.fieldsDouble["total"] = tallies[point.group]
        back.append(copy)
    return back


def batches(count: int, size: int) -> Iterator[BeginBatch | Point | EndBatch]:
    """Yield batches of points."""
    for number in range(count):
        yield BeginBatch(name="m", group="g", size=size)
        for place in range(size):
            yield Point(time=number * size + place, fieldsDouble={"x": number})
        yield EndBatch(name="m", group="g", tmax=number * size + size - 1)


def interspersed(data: Iterable[RequestMessage], every: int) -> Iterator[RequestMessage]:
    """Yield data with a keepalive and a snapshot request after every `every` messages."""
    for number, message in enumerate(data, 1):
        yield message
        if number % every == 0:
            yield KeepaliveRequest(time=number)
            yield SnapshotRequest()


def started_task(path: str, task: str = "task", *, timeout_s: float = PATIENCE_S) -> KapacitorSide:
    """Connect and send Init, as for an enabled task."""
    side = KapacitorSide.connect(path, timeout_s=timeout_s)
    side.send(InitRequest(taskID=task, nodeID="node"))
    assert side.receive() == InitResponse(success=True)
    return side


def points_in(status: dict[str, Any]) -> int:
    """Return the number of points of the only connection, from the status of a function."""
    (connection,) = status["connections"]
    return int(connection["points_in"])


def play(
    path: str,
    data: Iterable[RequestMessage],
    *,
    task: str = "task",
    timeout_s: float = PATIENCE_S * 4,
) -> list[ResponseMessage]:
    """Connect, send Init and data, half-close, and return what comes after Init.

    Data is sent from a thread, as Kapacitor does: taking it may wait for the worker, which may
    wait until its output is read. Heartbeats are left out: on a busy machine they may come at
    any time. All must have come back after `timeout_s`.
    """
    with started_task(path, task, timeout_s=timeout_s) as side:
        assert isinstance(side.connection, socket.socket)
        sending = in_thread(functools.partial(_send, side.connection.dup(), data))
        came: list[ResponseMessage] = []
        try:
            came.extend(side.responses())
        except ConnectionResetError:
            # A failed task is closed although input may still come.
            assert isinstance(came[-1], ErrorResponse)
        with contextlib.suppress(OSError):
            sending.result(PATIENCE_S)
        return came


def play_until(
    path: str,
    ended: threading.Event,
    *,
    task: str,
    timeout_s: float = PATIENCE_S * 4,
    ordered: bool = True,
    at_least: int = 0,
    pause_s: float = 0.02,
) -> int:
    """Send points to `mortal.Count` until `ended`, as `play` does; return how many.

    Each must come back once, in order, and with the exact counts. If not `ordered`, only each group
    must come back in order. There are so many points at least, and a pause after 500, so that the
    workers keep up.
    """
    sent: list[Point] = []

    def until_ended() -> Iterator[Point]:
        for point in points(10_000_000):
            if point.time % 500 == 0 and ended.wait(pause_s) and point.time >= at_least:
                return
            sent.append(point)
            yield point

    back: list[Any] = play(path, until_ended(), task=task, timeout_s=timeout_s)
    assert of_type(back, ErrorResponse) == []
    wanted = tallied(sent)
    if not ordered:
        back.sort(key=lambda point: point.group)
        wanted.sort(key=lambda point: point.group)
    assert back == wanted
    return len(sent)


def _send(connection: socket.socket, data: Iterable[RequestMessage]) -> None:
    with connection:
        connection.settimeout(PATIENCE_S * 4)
        for message in data:
            connection.sendall(REQUESTS.encode(message))
        connection.shutdown(socket.SHUT_WR)


def of_type(responses: Iterable[ResponseMessage], *kinds: type) -> list[ResponseMessage]:
    """Return the responses of some kinds."""
    return [response for response in responses if isinstance(response, kinds)]
