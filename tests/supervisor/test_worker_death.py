"""How a worker ended, and whether that was to be expected."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from kapudf_cli.supervisor.connection import SupervisedConnection
from kapudf_cli.supervisor.worker_death import WorkerDeath
from kapudf_cli.supervisor.worker_process import WorkerState
from kapudf_cli.system import logs
from kapudf_cli.worker.channel import Stop
from kapudf_cli.worker.stacks import faulty_thread

if TYPE_CHECKING:
    from pathlib import Path

    from tests.journal.connections import JournaledConnection
    from tests.supervisor.workers import Workers

STARTING, SERVING, RETIRING, DEAD = WorkerState


def test_a_worker_that_was_told_to_end_has_ended_well(workers: Workers) -> None:
    """It leaves nothing to be read, and what it was good for is known."""
    worker = workers.start_ready()
    worker.state = RETIRING
    worker.send(Stop())
    death = WorkerDeath.of(worker)
    assert death == WorkerDeath(worker.number, worker.pid, RETIRING, "exit status 0", "")
    assert worker.state is DEAD


def test_a_fault_says_where(workers: Workers) -> None:
    """The log has it, and how many connections it has left alone."""
    worker = workers.start_ready()
    worker.state = SERVING
    os.kill(worker.pid, signal.SIGSEGV)
    death = WorkerDeath.of(worker)
    assert (death.state, death.how) == (SERVING, "SIGSEGV")
    with capture_logs() as events:
        death.log(logs.get_logger(), connections=3)
    (event,) = events
    assert "worker/main.py" in event.pop("stacks")
    assert event == {
        "event": "worker died",
        "log_level": "error",
        "worker": worker.number,
        "pid": worker.pid,
        "how": "SIGSEGV",
        "connections": 3,
    }


#: A handler that faults at the first thing that is asked of it.
FAULTING = """
import ctypes
from kapudf_cli import Handler


class Faulting(Handler):
    def __init__(self, agent):
        ctypes.string_at(0)

    def point(self, point):
        pass
"""


def test_a_fault_is_that_of_a_connection_from_its_threads_first_moment(
    workers: Workers, kept: JournaledConnection, tmp_path: Path
) -> None:
    """As of a handler that faults as soon as it is made, which no kill by chance explains."""
    file = tmp_path / "faulting.py"
    file.write_text(FAULTING, encoding="utf-8")
    worker = workers.start_ready(f"{file}:Faulting")
    served = SupervisedConnection(
        7, kept.connection.dup(), os.dup(kept.memory), None, busy_limit_s=10.0
    )
    with contextlib.closing(served):
        assert worker.hand_over(*served.take())
        death = WorkerDeath.of(worker)
        assert death.how == "SIGSEGV"
        assert served.header.thread == faulty_thread(death.stacks)


def test_a_kill_has_no_stacks_to_log(workers: Workers) -> None:
    """Then the field is not there at all."""
    worker = workers.start()
    worker.kill()
    death = WorkerDeath.of(worker)
    with capture_logs() as events:
        death.log(logs.get_logger(), connections=0)
    assert events[0]["how"] == "SIGKILL"
    assert "stacks" not in events[0]


@pytest.mark.parametrize(
    ("state", "how", "expected", "expected_at_stop"),
    [
        (STARTING, "exit status 0", False, True),
        (STARTING, "SIGKILL", False, True),
        (SERVING, "exit status 0", False, True),
        (SERVING, "exit status 1", False, False),
        (SERVING, "SIGKILL", False, False),
        (RETIRING, "exit status 0", True, True),
        (RETIRING, "SIGSEGV", False, False),
        (DEAD, "exit status 0", True, True),
        (DEAD, "exit status 1", False, False),
    ],
)
def test_an_end_is_expected_of_who_was_told_to_end(
    state: WorkerState, how: str, *, expected: bool, expected_at_stop: bool
) -> None:
    """If it went well, or if it served nobody yet at a stop; DEAD is one that has said so."""
    death = WorkerDeath(1, 2, state, how, "")
    assert death.is_expected(stopping=False) is expected
    assert death.is_expected(stopping=True) is expected_at_stop
