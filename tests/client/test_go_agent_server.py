"""UDFs that drop unsent output at the end of their input survive all commands."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.client.driver import probe
from kapudf_cli.client.target import HandlerTarget, SocketTarget
from kapudf_cli.handler.handler import Handler
from kapudf_cli.protocol.udf_pb2 import STREAM, InitRequest
from kapudf_cli.tools.check import CHECKS
from kapudf_cli.tools.check import run as run_checks
from kapudf_cli.tools.check.trial import Outcome, Trial
from kapudf_cli.tools.load.engine import Engine, Plan
from kapudf_cli.tools.load.work import Shape, Work
from kapudf_cli.tools.replay.replay import Replay
from tests.serve_process import PATIENCE_S
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kapudf_cli.protocol.codec import DataMessage
    from kapudf_cli.protocol.udf_pb2 import Point

ROOT = Path(__file__).parent.parent.parent
TIMES = 5
POINTS = list(Shape().points(100))
INIT = InitRequest(taskID="task", nodeID="node")


@pytest.fixture
def server(socket_path: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start the server at `socket_path`."""
    command = [sys.executable, "-m", "tests.peers.go_agent_server", socket_path]
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            wait_until(lambda: answers(socket_path))
            yield process
        finally:
            process.kill()


def answers(path: str) -> bool:
    with contextlib.suppress(Exception):
        return probe(path, timeout_s=PATIENCE_S).info.wants == STREAM
    return False


def replayed(path: str) -> list[DataMessage]:
    with SocketTarget(path).open(timeout_s=PATIENCE_S) as connection:
        replay = Replay(connection, provides=STREAM, timeout_s=PATIENCE_S)
        came = list(replay.run(INIT, POINTS))
    assert replay.settled
    return came


def test_probes_and_replays_and_loads_get_every_answer(
    server: subprocess.Popen[bytes], socket_path: str
) -> None:
    for _ in range(TIMES):
        assert answers(socket_path)
        assert replayed(socket_path) == POINTS
        plan = Plan(points=200, timeout_s=PATIENCE_S)
        measured = Engine(SocketTarget(socket_path), Work(POINTS), plan).run()
        assert measured.timed == "points"
        assert measured.returned == measured.sent == 200
    assert answers(socket_path)
    assert server.poll() is None


def test_a_replay_that_is_left_early_takes_what_is_on_its_way(
    server: subprocess.Popen[bytes], socket_path: str
) -> None:
    with (
        SocketTarget(socket_path).open(timeout_s=PATIENCE_S) as connection,
        contextlib.closing(
            Replay(connection, provides=STREAM, timeout_s=PATIENCE_S).run(INIT, POINTS)
        ) as came,
    ):
        assert next(came) == POINTS[0]
    assert answers(socket_path)
    assert server.poll() is None


class NeverRests(Handler):
    """Sends the first point again and again, until its connection ends."""

    ended = False

    def point(self, point: Point, /) -> None:
        threading.Thread(target=self.repeat, args=(point,), daemon=True).start()

    def repeat(self, point: Point) -> None:
        while not self.ended:
            self.agent.write_point(point)
            time.sleep(0.001)

    def stop(self) -> None:
        self.ended = True


def test_a_udf_that_never_stops_sending_is_not_waited_for_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kapudf_cli.client.session._SETTLE_TIMEOUTS", 0.2 / PATIENCE_S)
    with HandlerTarget("never-rests", NeverRests).open(timeout_s=PATIENCE_S) as connection:
        other_agent = dataclasses.replace(connection, drains=False)
        replay = Replay(other_agent, provides=STREAM, timeout_s=PATIENCE_S)
        assert list(replay.run(INIT, POINTS[:1]))
    assert not replay.settled


def test_check_runs_by_default_only_what_the_server_survives(
    server: subprocess.Popen[bytes], socket_path: str
) -> None:
    target = SocketTarget(socket_path)
    results = list(run_checks(Trial(target, PATIENCE_S, may_cut=False)))
    assert [each for each in results if each.outcome is Outcome.FAILED] == []
    skipped = {each.check.name for each in results if "cuts connections" in each.reason}
    assert skipped == {each.name for each in CHECKS if each.cuts}
    assert answers(socket_path)
    assert server.poll() is None


def test_the_check_that_ends_the_server_is_the_one_that_fails(
    server: subprocess.Popen[bytes], socket_path: str
) -> None:
    chosen = [
        check for check in CHECKS if check.name in {"info", "init", "half-close-in-flight", "exit"}
    ]
    results = {
        each.check.name: each for each in run_checks(Trial(SocketTarget(socket_path), 1.0), chosen)
    }
    found = results["half-close-in-flight"]
    assert found.outcome is Outcome.FAILED
    assert "were lost" in found.reason
    assert found.reason.endswith("no longer serves its socket, and all of its tasks have ended")
    assert results["exit"].outcome is Outcome.NOT_APPLICABLE
    assert results["exit"].reason == "the UDF is gone; see half-close-in-flight"
    assert server.wait(PATIENCE_S) == 1
