"""Async handlers in workers that are killed and reloaded with calls in flight."""

from __future__ import annotations

import os
import random
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest

from kapudf_cli.protocol.udf_pb2 import ErrorResponse
from tests.conftest import plugin
from tests.peers import in_thread
from tests.serve_process import PATIENCE_S
from tests.supervisor.ongoing import kapudf, status_of
from tests.supervisor.tasks import of_type, play, points, tallied

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kapudf_cli.protocol.udf_pb2 import Point
    from tests.serve_process import ServeProcess

    Serve = Callable[..., ServeProcess]

#: `make soak` sets more.
KILLS = int(os.environ.get("KAPUDF_SOAK_KILLS", "30"))
RELOADS = int(os.environ.get("KAPUDF_SOAK_RELOADS", "6"))


def await_progress(path: str, count: int) -> None:
    """Wait until the connection has handled `count` more points."""
    pause = threading.Event()
    first = handled = points_handled(path)
    for _ in range(round(4 * PATIENCE_S / 0.02)):
        handled = points_handled(path)
        if handled >= first + count:
            return
        pause.wait(0.02)
    raise AssertionError(handled)


def group_of(point: Any) -> str:
    return str(point.group)


def points_handled(path: str) -> int:
    return sum(each["points_in"] for each in status_of(path)["connections"])


def kill_worker(path: str) -> bool:
    """Kill a worker that serves; return False if there is none at the moment."""
    pids = [each["pid"] for each in status_of(path)["workers"] if each["state"] == "serving"]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return bool(pids)


@pytest.mark.parametrize(
    ("handler", "kills", "reloads"),
    [
        ("Tally", 3, 2),
        pytest.param("Tally", KILLS, RELOADS, marks=pytest.mark.long),
        pytest.param("Unordered", KILLS, RELOADS, marks=pytest.mark.long),
    ],
)
def test_kills_and_reloads_with_calls_in_flight_lose_and_repeat_nothing(
    serve: Serve, socket_path: str, handler: str, kills: int, reloads: int
) -> None:
    process = serve(plugin(f"waiting.py:{handler}"), "--snapshot-interval", "0.5", "--standby", "1")
    ends = threading.Event()
    sent: list[Point] = []

    def until_the_end() -> Iterator[Point]:
        # As fast as they are taken, so that all calls are in flight all the time.
        for point in points(10_000_000):
            if ends.is_set():
                return
            sent.append(point)
            yield point

    # A kill or a reload takes about half a second, on a slow machine four times as long.
    timeout_s = 4 * PATIENCE_S + 2.0 * (kills + reloads)
    playing = in_thread(lambda: play(socket_path, until_the_end(), timeout_s=timeout_s))
    chance = random.Random(1)  # noqa: S311 - the same choices in every run
    steps = ["kill"] * kills + ["reload"] * reloads
    chance.shuffle(steps)
    for step in steps:
        await_progress(socket_path, chance.randrange(1, 60))
        if step == "reload":
            kapudf("reload", "--socket", socket_path)
        else:
            while not kill_worker(socket_path):
                pass
    await_progress(socket_path, 1)
    ends.set()
    back = playing.result(4 * PATIENCE_S)
    assert of_type(back, ErrorResponse) == []
    if handler == "Unordered":
        back = sorted(back, key=group_of)  # stable: the order within a group stays
        sent.sort(key=group_of)
    assert back == tallied(sent)
    finished = process.event("connection finished")
    assert (finished["reason"], finished["points_in"]) == ("closed", len(sent))
    assert finished["takeovers"] >= reloads
