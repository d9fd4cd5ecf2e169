"""How a worker ended, and whether its death was expected."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from kapudf_cli.supervisor.routes import Give, WorkerState
from kapudf_cli.supervisor.worker_death import WorkerDeath, beginning, faulty_thread, where
from kapudf_cli.system import logs
from kapudf_cli.worker.channel import Stop
from tests.supervisor.connections import supervised, two_supervised

if TYPE_CHECKING:
    from pathlib import Path

    from tests.journal.connections import JournaledConnection
    from tests.supervisor.workers import Workers

STARTING, SERVING = WorkerState.STARTING, WorkerState.SERVING
RETIRING, DISMISSED, DEAD = WorkerState.RETIRING, WorkerState.DISMISSED, WorkerState.DEAD


def test_an_ordered_end_of_a_worker_is_no_death(workers: Workers) -> None:
    worker = workers.start_ready()
    worker.send(Stop())
    death = WorkerDeath.of(worker, RETIRING)
    assert death == WorkerDeath(worker.number, worker.pid, RETIRING, "exit status 0", "")


def test_a_fault_says_where(workers: Workers) -> None:
    worker = workers.start_ready()
    os.kill(worker.pid, signal.SIGSEGV)
    death = WorkerDeath.of(worker, SERVING)
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


#: A handler that crashes at the first request.
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
    file = tmp_path / "faulting.py"
    file.write_text(FAULTING, encoding="utf-8")
    worker = workers.start_ready(f"{file}:Faulting")
    served = supervised(kept)
    with contextlib.closing(served):
        assert worker.hand_over(*served.prepare(Give(worker.number, 7)))
        death = WorkerDeath.of(worker, SERVING)
        assert death.how == "SIGSEGV"
        assert served.header.thread == faulty_thread(death.stacks)


def test_a_kill_has_no_stacks_to_log(workers: Workers) -> None:
    worker = workers.start()
    worker.kill()
    death = WorkerDeath.of(worker, SERVING)
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
        (DISMISSED, "SIGKILL", True, True),
    ],
)
def test_the_end_of_a_worker_that_was_told_to_end_is_expected(
    state: WorkerState, how: str, *, expected: bool, expected_at_stop: bool
) -> None:
    death = WorkerDeath(1, 2, state, how, "")
    assert death.is_expected(stopping=False) is expected
    assert death.is_expected(stopping=True) is expected_at_stop


# --- which connection caused it ---

STACKS = """\
Thread 0x000000000000000b (most recent call first):
  File "slow.py", line 3 in wait
  File "slow.py", line 9 in point
Current thread 0x0000000000000001 (most recent call first):
  File "worker.py", line 1 in main
"""
FAULT_OF_12 = STACKS.replace("0000000001 (", "000000000c (")


@pytest.mark.parametrize(
    ("how", "silent_s", "accused"),
    [("a kill", 0.0, [None, False]), ("a hang", 60.0, [True, False])],
)
def test_a_connection_that_waited_for_its_turn_is_not_blamed(
    how: str, silent_s: float, accused: list[bool | None]
) -> None:
    death = WorkerDeath(1, 2, SERVING, "SIGKILL", STACKS if how == "a hang" else "")
    with two_supervised() as connections:
        for connection in connections:
            connection.header.thread = 10 + connection.number
            connection.header.busy_since_ns = 1
            connection.header.heartbeat_ns = time.monotonic_ns() - round(silent_s * 1e9)
        connections[0].is_hanging = how == "a hang"
        connections[1].header.waits_for_turn = 1
        assert list(death.accusations(connections).values()) == accused


@pytest.mark.parametrize(
    ("hung", "busy", "silent_s", "stacks", "accused"),
    [
        ({1}, {1, 2}, 0.0, STACKS, [True, False]),
        ({1, 2}, {1, 2}, 0.0, STACKS, [True, True]),
        ({1}, {1}, 60.0, STACKS, [True, False]),
        ({1}, {1, 2}, 60.0, STACKS, [None, None]),
        ({1, 2}, {1, 2}, 60.0, STACKS, [None, None]),
        ({1}, {1}, 60.0, "", [None, None]),
        (set(), {1, 2}, 0.0, FAULT_OF_12, [False, True]),
        (set(), {1, 2}, 0.0, STACKS, [None, None]),
        (set(), {1, 2}, 0.0, "", [None, None]),
    ],
    ids=[
        "one hangs, the other works",
        "both hang",
        "one holds the interpreter, the other waits",
        "one holds the interpreter, the other was busy",
        "it looks as if both hang, because one holds the interpreter",
        "the process was stopped",
        "a fault in a connection's thread",
        "a fault in another thread",
        "a kill",
    ],
)
def test_a_death_is_blamed_on_a_connection_only_if_it_must_be_its_own(
    hung: set[int], busy: set[int], silent_s: float, stacks: str, accused: list[bool | None]
) -> None:
    death = WorkerDeath(1, 2, SERVING, "SIGKILL", stacks)
    with two_supervised() as connections:
        for connection in connections:
            connection.header.thread = 10 + connection.number
            connection.header.busy_since_ns = int(connection.number in busy)
            connection.header.heartbeat_ns = time.monotonic_ns() - round(silent_s * 1e9)
            connection.is_hanging = connection.number in hung
        assert list(death.accusations(connections).values()) == accused
        words = [death.in_words(each) for each in connections]
    if 1 in hung:
        place = " in wait (slow.py:3) < point (slow.py:9)" if stacks else ""
        assert words[0] == "hung for 0 s" + place
    if 2 not in hung:
        assert words[1] == "died by SIGKILL"


# --- what faulthandler writes ---

#: Prints the identity of a thread, and crashes in it.
FAULT = """
import ctypes, faulthandler, sys, threading
faulthandler.enable()
def die():
    print(threading.get_ident(), flush=True)
    ctypes.string_at(0)
if sys.argv[1] == "main":
    die()
thread = threading.Thread(target=die)
thread.start()
thread.join()
"""
DUMP = "import faulthandler; faulthandler.dump_traceback()"


@pytest.mark.parametrize("thread", ["main", "another"])
def test_the_thread_of_a_fault_is_found(thread: str) -> None:
    process = subprocess.run(
        [sys.executable, "-c", FAULT, thread], capture_output=True, text=True, check=False
    )
    assert process.returncode < 0
    assert faulty_thread(process.stderr) == int(process.stdout)


@pytest.mark.parametrize(
    "text", ["", "Thread 0x00007f498c1c1b80 (most recent call first):\n"], ids=["killed", "asked"]
)
def test_without_a_fault_no_thread_is_named(text: str) -> None:
    assert faulty_thread(text) is None


def test_as_much_is_shown_as_a_log_can_bear() -> None:
    dump = subprocess.run([sys.executable, "-c", DUMP], capture_output=True, text=True, check=True)
    assert dump.stderr
    assert beginning(dump.stderr) == dump.stderr.strip("\n")
    lines = [f"line {number}" for number in range(1000)]
    assert beginning("\n".join(lines)) == "\n".join(lines[:60])


def test_the_stack_of_a_thread_is_one_line() -> None:
    code = "import faulthandler, threading\nprint(threading.get_ident(), flush=True)\n"
    code += "def inner(): faulthandler.dump_traceback()\ndef outer(): inner()\nouter()\n"
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    dump = 'Thread 0x0000000000000007 (most recent call first):\n  File "x", line 1 in x\n'
    dump += process.stderr
    assert where(dump, int(process.stdout)) == (
        "inner (<string>:3) < outer (<string>:4) < <module> (<string>:5)"
    )
    assert where(dump, 7) == "x (x:1)"
    assert where(dump, 8) == ""
