"""A worker's log: it delays no task, and has the lines from right before a death."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from tests.conftest import plugin
from tests.serve_process import KAPUDF
from tests.supervisor.tasks import play, points

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.serve_process import ServeProcess

#: With a kilobyte each, far more than a pipe holds.
COUNT = 1_000


def test_a_log_reader_that_stops_delays_no_task(socket_path: str) -> None:
    command = [*KAPUDF, "serve", "--socket", socket_path, "--log-format", "json"]
    with subprocess.Popen(
        [*command, "--handler", plugin("unruly.py:Chatty")], stderr=subprocess.PIPE
    ) as process:
        try:
            assert process.stderr is not None
            assert b"listening" in process.stderr.readline()
            sent = list(points(COUNT))
            assert play(socket_path, sent) == sent
        finally:
            process.kill()


def test_a_line_logged_right_before_the_worker_dies_is_in_the_log(
    serve: Callable[..., ServeProcess], socket_path: str
) -> None:
    process = serve(plugin("unruly.py:Chatty"), "--on-error", "skip")
    first, last, after = points(3)
    last.name = "last"
    assert play(socket_path, [first, last, after]) == [first, after]
    deaths = process.event("connection finished")["takeovers"]
    said = [event for event in process.events if event["event"].startswith("last 1: ")]
    assert len(said) == deaths > 0
