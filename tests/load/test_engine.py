"""Load runs on UDFs in this process, as processes and at sockets, some of them broken."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kapudf_handlers.mirror import BatchMirror, Mirror

from kapudf_cli.client.command_target import CommandTarget
from kapudf_cli.client.errors import UdfFaultError
from kapudf_cli.client.target import HandlerTarget, SocketTarget
from kapudf_cli.handler.handler import Handler
from kapudf_cli.protocol.udf_pb2 import BATCH, Option, Point
from kapudf_cli.tools.load.engine import Engine, Measured, Plan
from kapudf_cli.tools.load.work import Shape, Work
from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from kapudf_cli.client.target import Target
    from tests.serve_process import ServeProcess

ROOT = Path(__file__).parent.parent.parent
POINTS = Work(list(Shape().points(100)))
BATCHES = Work(list(Shape().batches(200, 20)))
MIRROR = HandlerTarget("mirror", Mirror)


def peer(module: str, *arguments: str) -> CommandTarget:
    return CommandTarget(module, (sys.executable, "-m", f"tests.peers.{module}", *arguments))


def run(target: Target, work: Work = POINTS, **how: object) -> Measured:
    plan = Plan(**{"points": 1000, "timeout_s": PATIENCE_S, **how})  # type: ignore[arg-type]
    return Engine(target, work, plan).run()


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("bulk", [True, False], ids=["bulk", "as kapacitor"])
@pytest.mark.parametrize("connections", [1, 3])
@pytest.mark.parametrize("target", [MIRROR, peer("plain_udf")], ids=["handler", "process"])
def test_every_point_comes_back_and_is_timed(
    target: Target, connections: int, *, bulk: bool
) -> None:
    measured = run(target, points=5000, connections=connections, bulk=bulk)
    assert measured.sent >= 5000
    assert measured.returned == measured.sent == measured.latencies.count
    assert measured.timed == "points"
    assert measured.elapsed_s > 0
    assert measured.latencies.max_ns > 0
    assert not measured.interrupted


def test_a_rate_is_kept() -> None:
    measured = run(MIRROR, points=200, rate=1000.0)
    assert measured.returned == measured.sent == 200
    assert measured.elapsed_s >= 0.199


def test_a_duration_ends_a_run() -> None:
    measured = run(MIRROR, points=None, duration_s=0.2)
    assert measured.elapsed_s >= 0.2
    assert measured.returned == measured.sent > 0


def test_a_rate_that_cannot_be_kept_ends_with_the_duration() -> None:
    measured = run(MIRROR, points=None, duration_s=0.3, rate=1e8)
    assert measured.elapsed_s >= 0.3
    assert measured.returned == measured.sent < 0.3e8
    assert measured.latencies.max_ns < 60e9


def test_a_udf_that_no_longer_answers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kapudf_cli.tools.load.connection._MAX_DUE", 1000)

    class Tires(Handler):
        seen = 0

        def point(self, point: Point, /) -> None:
            self.seen += 1
            if self.seen < 100:
                self.agent.write_point(point)

    with pytest.raises(UdfFaultError, match="the UDF owes 1000 answers at once"):
        run(HandlerTarget("tires", Tires), points=5000)


def test_batches_are_sent_whole_and_timed_by_their_ends() -> None:
    measured = run(HandlerTarget("batch-mirror", BatchMirror), BATCHES, rate=20_000.0)
    assert measured.timed == "batches"
    assert measured.returned == measured.sent == 1000
    assert measured.latencies.count == 50


class Swallows(Handler):
    """Sends nothing."""

    def point(self, point: Point, /) -> None:
        """Send nothing."""


def test_where_nothing_comes_back_keepalives_are_timed() -> None:
    measured = run(HandlerTarget("swallows", Swallows), rate=10_000.0)
    assert measured.timed == "keepalives"
    assert measured.returned == 0
    assert measured.latencies.count > 0


class WaitsOnce(Handler):
    """Pauses once, in the middle."""

    seen = 0
    held: threading.Event
    go: threading.Event

    def point(self, point: Point, /) -> None:
        self.seen += 1
        if self.seen == 150:
            self.held.set()
            assert self.go.wait(PATIENCE_S)
        self.agent.write_point(point)


def test_points_that_had_to_wait_show_as_late() -> None:
    WaitsOnce.held, WaitsOnce.go = threading.Event(), threading.Event()

    def let_go() -> None:
        assert WaitsOnce.held.wait(PATIENCE_S)
        threading.Timer(0.3, WaitsOnce.go.set).start()

    threading.Thread(target=let_go, daemon=True).start()
    measured = run(HandlerTarget("waits", WaitsOnce), points=1000, rate=2000.0)
    assert measured.returned == 1000
    # In the pause of 0.3 s, 600 points were due. Half of them waited for more than half of it.
    assert measured.latencies.max_ns > 0.25e9
    assert measured.latencies.percentile_ns(75) > 0.1e9


def test_the_processes_at_a_socket_are_what_is_measured(
    serve: Callable[..., ServeProcess], socket_path: str
) -> None:
    process = serve("mirror")
    measured = run(SocketTarget(socket_path), points=20_000, bulk=True)
    assert measured.pids == (process.pid,)
    assert measured.rss_bytes is not None
    assert measured.rss_bytes > 5_000_000
    assert measured.cpu_s is not None


def test_a_run_can_be_watched() -> None:
    watched = []
    plan = Plan(duration_s=0.6, timeout_s=PATIENCE_S)
    Engine(MIRROR, POINTS, plan).run(lambda measured: watched.append(measured.sent))
    assert watched
    assert watched == sorted(watched)


def test_ctrl_c_ends_the_sending_and_what_was_measured_is_kept() -> None:

    def interrupt(measured: Measured) -> None:
        if measured.sent:
            signal.raise_signal(signal.SIGINT)

    plan = Plan(duration_s=3600, timeout_s=PATIENCE_S)
    measured = Engine(MIRROR, POINTS, plan).run(interrupt)
    assert measured.interrupted
    assert measured.returned == measured.sent > 0


def test_an_interrupt_inside_a_send_leaves_no_frame_half_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    writes = 0
    write = os.write

    def interrupted_write(descriptor: int, data: memoryview) -> int:
        nonlocal writes
        writes += 1
        written = write(descriptor, data)
        if writes == 101:
            signal.raise_signal(signal.SIGINT)
        return written

    monkeypatch.setattr("kapudf_cli.tools.load.connection.os.write", interrupted_write)
    plan = Plan(duration_s=3600, timeout_s=PATIENCE_S)
    measured = Engine(MIRROR, POINTS, plan).run()
    assert measured.interrupted
    assert measured.returned == measured.sent > 0


class Refuses(Handler):
    """Wants batches and an option."""

    wants = BATCH

    def point(self, point: Point, /) -> None:
        """Send nothing."""


@pytest.mark.parametrize(
    ("target", "options", "told"),
    [
        (MIRROR, [Option(name="nothing")], "the UDF refused Init: there is no option"),
        (
            peer("broken_udfs", "FailsWithoutField"),
            [],
            "the UDF failed the task: KeyError: ",
        ),
        (peer("broken_udfs", "EmptyResponse"), [], "the UDF sent a Response in which no"),
    ],
)
def test_a_udf_that_fails_at_once_is_told(target: Target, options: list[Option], told: str) -> None:
    with pytest.raises(UdfFaultError, match=told):
        run(target, Work(POINTS.messages, options))


DIES = """
from tests.peers.plain_udf import PlainUdf
class Dies(PlainUdf):
    def point(self, point):
        if self.count == 500:
            {how}
        super().point(point)
Dies().run()
"""


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (
            "raise SystemExit('out of memory')",
            "it exited with status 1, after saying: out of memory",
        ),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "it was ended by SIGKILL"),
        ("self.write_bytes(bytes(1))", "sent a Response in which no message is set; kapacitord"),
        ("self.write_bytes(b'hello' * 100)", "sent bytes that are not frames"),
        ("import time; time.sleep(60)", "the UDF sent nothing for"),
    ],
    ids=["exits", "killed", "empty", "garbage", "hangs"],
)
def test_a_udf_that_fails_under_load_is_told(
    how: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kapudf_cli.client.command_target._EXIT_S", 0.1)
    target = CommandTarget("dies", (sys.executable, "-c", DIES.format(how=how)))
    with pytest.raises(UdfFaultError, match=told):
        run(target, points=5000, timeout_s=3.0 if "sleep" in how else PATIENCE_S)


def test_no_descriptor_is_left_open() -> None:
    run(MIRROR)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        run(MIRROR, connections=5)
        with pytest.raises(UdfFaultError):
            run(MIRROR, Work(POINTS.messages, [Option(name="nothing")]))
    assert len(os.listdir("/proc/self/fd")) == before
