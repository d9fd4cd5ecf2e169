"""The load generator of the benchmarks, with UDFs that answer and some that fail."""

from __future__ import annotations

import shlex
import socket
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from benchmarks.contenders import cpu_s, exec_command, pid_of
from benchmarks.report import write_bars
from benchmarks.traffic import Connection, bulk, ping_pong, receive, wait_until
from kapudf_cli.protocol.codec import REQUESTS
from kapudf_cli.protocol.udf_pb2 import DOUBLE, STRING, Option, OptionValue, Point
from kapudf_cli.tools.load.work import Shape, Work, head_bytes
from tests.conftest import plugin
from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.serve_process import ServeProcess

    Serve = Callable[..., ServeProcess]

POINTS = Work(list(Shape().points(200)))
BATCHES = Work(list(Shape().batches(100, 20)))


@pytest.mark.parametrize(
    ("handler", "work"), [("mirror", POINTS), ("batch-mirror", BATCHES)], ids=["points", "batches"]
)
def test_what_comes_back_for_a_block_is_learnt_from_the_first(
    serve: Serve, socket_path: str, handler: str, work: Work
) -> None:
    process = serve(handler)
    with (
        closing(Connection(socket_path, work)) as one,
        closing(Connection(socket_path, work)) as other,
    ):
        assert one.answer_bytes == other.answer_bytes == len(one.block)
        assert bulk([one, other], 30) > 0
        for each in (one, other):
            assert isinstance(each.socket, socket.socket)
            each.socket.settimeout(0)
            with pytest.raises(BlockingIOError):
                each.socket.recv(1)
    finished = process.await_events("connection finished", 2, task_id="load")
    assert [each["points_out"] for each in finished] == [31 * work.points] * 2


def test_an_answer_may_be_longer_than_what_it_answers(serve: Serve, socket_path: str) -> None:
    serve("mirror")
    values = [
        OptionValue(type=STRING, stringValue="more"),
        OptionValue(type=DOUBLE, doubleValue=1.0),
    ]
    work = Work(POINTS.messages, [Option(name="field", values=values)])
    with closing(Connection(socket_path, work)) as made:
        assert made.answer_bytes > len(made.block)
        assert bulk([made], 3) > 0


def test_a_process_is_measured_through_its_pipes() -> None:
    command = shlex.join(exec_command("mirror"))
    with closing(Connection(command, POINTS, is_command=True)) as made:
        assert made.answer_bytes == len(made.block)
        assert bulk([made], 30) > 0
        assert cpu_s(pid_of(made)) > 0


@pytest.mark.parametrize("interval_s", [0.0, 0.001])
def test_points_are_timed_one_by_one(serve: Serve, socket_path: str, interval_s: float) -> None:
    process = serve("mirror")
    started = time.perf_counter()
    with closing(Connection(socket_path, POINTS)) as made:
        times = ping_pong(made, 100, interval_s)
    assert time.perf_counter() - started >= 100 * interval_s
    assert len(times) == 100
    assert all(0 < each < PATIENCE_S for each in times)
    finished = process.event("connection finished", task_id="load")
    assert finished["points_out"] == POINTS.points + 100


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        ("against_kapacitor.py:Refuser", "Init was answered with error: .*no licence"),
        ("laden.py:Clumsy", "the UDF failed: .*point 37 is bad"),
    ],
)
def test_a_udf_that_fails_in_the_first_block_is_an_error(
    serve: Serve, socket_path: str, handler: str, said: str
) -> None:
    serve(plugin(handler))
    work = Work([Point(time=number) for number in range(50)])
    with pytest.raises(RuntimeError, match=said):
        Connection(socket_path, work)


def test_what_is_waited_for_must_come() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.sendall(b"four")
        receive(ours, 4)
        theirs.close()
        with pytest.raises(RuntimeError, match="closed the connection"):
            receive(ours, 1)


def test_a_wait_ends_when_it_is_time() -> None:
    due = time.perf_counter() + 0.01
    wait_until(due)
    assert time.perf_counter() >= due
    wait_until(due - 1)


@pytest.mark.parametrize("size", [0, 50, 100, 20_000])
def test_a_head_is_what_says_how_long_the_frame_is(size: int) -> None:
    frame = REQUESTS.encode(Point(name="x" * size))
    head = head_bytes(frame)
    length = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(frame[:head]))
    assert length == len(frame) - head


def test_bars_are_drawn_with_their_numbers(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    bars = [("plain <mirror>", 1.0), ("kapudf", 24.507)]
    write_bars(tmp_path / "bars.svg", "Throughput", bars, grey=[True, False])
    drawn = (tmp_path / "bars.svg").read_text()
    for shown in ("Throughput", "plain &lt;mirror&gt;", "1.00", "kapudf", "24.51"):
        assert shown in drawn
