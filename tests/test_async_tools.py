"""Async handlers in the commands that run a handler: replay, check, load, exec, serve."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from kapudf_cli.commands import main
from kapudf_cli.protocol.udf_pb2 import Point
from tests.conftest import plugin
from tests.run_kapudf import run_kapudf
from tests.serve_process import KAPUDF
from tests.supervisor.tasks import play, points, tallied

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.serve_process import ServeProcess

TALLY = plugin("waiting.py:Tally")


def run(*arguments: str) -> str:
    """Run a command in this process; return what it prints."""
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_replay_prints_the_output_in_order(tmp_path: Path) -> None:
    file = tmp_path / "points.txt"
    file.write_text("".join(f"m x={n}.0 {n}\n" for n in range(40)), encoding="utf-8")
    output = run("replay", "--handler", TALLY, str(file))
    counts = [line.partition("count=")[2].partition("i")[0] for line in output.splitlines()]
    assert [int(count) for count in counts if count] == list(range(1, 41))


def test_load_gets_every_point_back() -> None:
    output = run("load", "--handler", TALLY, "--points", "200")
    assert "200 sent, 200 came back" in output


def test_check_passes_for_an_async_process_udf() -> None:
    command = shlex.join([*KAPUDF, "exec", "--handler", TALLY, "--concurrency", "4"])
    assert ", 0 failed, " in run("check", "--exec", command).splitlines()[-1]


#: Leaves a thread that never ends.
LEAVES_THREAD = """
import asyncio, threading
from kapudf_cli import Handler


class Leaves(Handler):
    timeout_s = 0.05

    async def point(self, point):
        await asyncio.to_thread(threading.Event().wait)
"""


def test_a_command_ends_although_a_handler_has_left_a_thread(tmp_path: Path) -> None:
    file = tmp_path / "points.txt"
    file.write_text("m x=1.0 1\n", encoding="utf-8")
    handler = tmp_path / "leaves.py"
    handler.write_text(LEAVES_THREAD, encoding="utf-8")
    result = run_kapudf("replay", "--handler", f"{handler}:Leaves", str(file))
    assert result.returncode == 1
    assert "point took longer than 0.05 s; it waited in point" in result.stderr


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_stop_answers_all_points(
    serve: Callable[..., ServeProcess], socket_path: str, workers: str
) -> None:
    process = serve(TALLY, "--workers", workers, "--concurrency", "3", "--timeout", "20")
    sent = list(points(50))
    assert play(socket_path, sent) == tallied(sent)
    assert isinstance(sent[0], Point)
    assert process.event("connection finished")["points_out"] == 50


def test_settings_for_async_handlers_have_no_effect_on_others(
    serve: Callable[..., ServeProcess], socket_path: str
) -> None:
    process = serve("mirror", "--concurrency", "3")
    assert play(socket_path, points(1)) == list(points(1))
    event = process.event("settings have no effect")
    assert (event["settings"], event["function"]) == (["concurrency"], "udf")
