"""Heartbeats of the supervisor never end up inside a worker's message."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.journal import kernel
from kapudf_cli.journal.output_lock import locked_for_supervisor
from kapudf_cli.transport.stream import Commit
from tests.journal.connections import JournaledConnection
from tests.peers import in_thread
from tests.serve_process import PATIENCE_S
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Locks the given descriptor, as the supervisor does, until its input ends.
LOCKING = """
import fcntl, sys
fcntl.lockf(int(sys.argv[1]), fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def locked(kept: JournaledConnection) -> Iterator[subprocess.Popen[bytes]]:
    """Have another process lock the memory; it unlocks it when its stdin is closed."""
    command = [sys.executable, "-c", LOCKING, str(kept.memory)]
    with subprocess.Popen(
        command, pass_fds=[kept.memory], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        yield other


def test_a_worker_waits_while_the_supervisor_may_send(
    kept: JournaledConnection, locked: subprocess.Popen[bytes]
) -> None:
    kept.header.locks_output = 0
    stream = kept.serve()
    stream.write(b"no heartbeat is due", Commit(1))
    kept.header.locks_output = 1
    before = kept.header.record
    writing = in_thread(lambda: stream.write(b", and now one is", Commit(1)))
    wait_until(lambda: kept.header.record != before)
    assert not writing.done()
    assert kept.peer.recv(100) == b"no heartbeat is due"
    assert locked.stdin is not None
    locked.stdin.close()
    writing.result(PATIENCE_S)
    assert kept.peer.recv(100) == b", and now one is"
    stream.close()


def test_workers_lock_only_while_the_supervisor_does(kept: JournaledConnection) -> None:
    assert kernel.barrier(), "this needs membarrier(2)"
    assert not kept.header.locks_output
    with locked_for_supervisor(kept.memory, kept.header):
        during = kept.header.locks_output
    assert (during, kept.header.locks_output) == (1, 0)


def test_the_supervisor_does_not_wait_for_the_lock(
    kept: JournaledConnection, locked: subprocess.Popen[bytes]
) -> None:
    assert locked.poll() is None
    with pytest.raises(BlockingIOError), locked_for_supervisor(kept.memory, kept.header):
        pass
    assert not kept.header.locks_output


def test_without_barriers_workers_always_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "take_part_in_barriers", lambda: False)
    monkeypatch.setattr(kernel, "barrier", lambda: False)
    kept = JournaledConnection()
    with locked_for_supervisor(kept.memory, kept.header):
        pass
    assert kept.header.locks_output
    kept.close()
