"""The supervisor's side of a connection: causes of deaths, heartbeats and states."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from kapudf_cli.agent.checkpoints import ResumePlan
from kapudf_cli.journal.header import NO_FRAME
from kapudf_cli.protocol.framing import HEARTBEAT
from kapudf_cli.supervisor.routes import ConnectionState, Give
from kapudf_cli.transport.stream import Commit, ConnectionStats
from tests.journal.connections import JournaledConnection
from tests.peers import in_thread
from tests.serve_process import PATIENCE_S
from tests.supervisor.connections import supervised

if TYPE_CHECKING:
    from collections.abc import Iterator


class Connection(JournaledConnection):
    """A connection with the supervisor's side of it, and methods for what its worker does."""

    def __init__(self) -> None:
        super().__init__()
        self.supervised = supervised(self)

    def got_to(self, offset: int, *, current_frame: int | None = None, received: int = 100) -> None:
        """Make the worker busy with a frame, after it handled all input before an offset."""
        header = self.supervised.header
        header.commit(replace(header.record, stats=ConnectionStats(offset)))
        header.current_frame = offset if current_frame is None else current_frame
        header.received = received
        header.busy_since_ns = 1

    def waits(self) -> None:
        """Make the worker wait for input."""
        self.supervised.header.busy_since_ns = 0
        self.supervised.header.current_frame = NO_FRAME

    def dies(
        self,
        *,
        accused: bool | None = True,
        alone: bool = True,
        drops_poison: bool = True,
        how: str = "SIGSEGV",
    ) -> ResumePlan:
        """Let the worker die; return the plan for the next one."""
        self.supervised.note_death(how, accused=accused, alone=alone, drops_poison=drops_poison)
        return self.give()

    def give(self, *, waits: bool = False) -> ResumePlan:
        """Send the connection to another worker; return its plan."""
        order, descriptors = self.supervised.prepare(Give(2, 7, takes_over=True, waits=waits))
        assert len(descriptors) == 2
        assert order.resume is not None
        return order.resume

    def be(self, state: ConnectionState) -> None:
        """Set the state that the router decides on."""
        self.supervised.route.state = state

    def close(self) -> None:
        self.supervised.close()
        super().close()


@pytest.fixture
def kept() -> Iterator[Connection]:
    """Give a connection that was sent to a worker."""
    kept = Connection()
    order, descriptors = kept.supervised.prepare(Give(1, 7))
    assert (order.connection, order.resume, len(descriptors)) == (7, None, 2)
    yield kept
    kept.close()


# --- deaths ---


def test_frames_that_an_async_handler_was_not_given_are_no_suspects(kept: Connection) -> None:
    kept.got_to(40, received=90)
    kept.supervised.header.given = 55
    assert kept.dies() == ResumePlan(careful_until=55)
    # The next worker has not recorded yet what it gives its handler.
    assert kept.supervised.header.given == 0


def test_the_next_worker_gets_the_facts_of_earlier_deaths(kept: Connection) -> None:
    kept.got_to(40, received=90)
    order = kept.dies()
    assert order == ResumePlan(careful_until=90)
    assert kept.supervised.takeovers == 1
    assert kept.supervised.is_careful
    kept.got_to(40)
    assert kept.dies().poison == (40,)
    for _ in range(2):
        kept.got_to(64)
        order = kept.dies(drops_poison=False)
    assert order.poison == (40,)
    assert "the frame at byte 64 ended 2 workers" in (order.give_up or "")


def test_poison_that_is_no_history_any_more_is_forgotten(kept: Connection) -> None:
    for _ in range(2):
        kept.got_to(40)
        order = kept.dies()
    assert order.poison == (40,)
    header = kept.supervised.header
    header.commit(replace(header.record, input_start=41))
    kept.got_to(80)
    assert 40 not in kept.dies().poison


def test_a_worker_that_dies_before_it_has_a_frame_in_hand_does_not_make_it_poison(
    kept: Connection,
) -> None:
    for _ in range(3):
        kept.got_to(40)
        assert kept.dies(accused=None, how="SIGKILL").poison == ()
    for _ in range(5):
        order = kept.dies(accused=None, how="SIGKILL")
        assert (order.poison, order.give_up) == ((), None)
    kept.got_to(40)
    assert kept.dies(accused=None, how="SIGKILL").poison == (40,)


def test_a_connection_that_waited_for_input_has_nothing_to_do_with_a_death(
    kept: Connection,
) -> None:
    for _ in range(30):
        kept.got_to(100)
        kept.waits()
        order = kept.dies(accused=None)
        assert (order.careful_until, order.poison, order.give_up) == (0, (), None)
    assert kept.supervised.takeovers == 30


def test_the_plan_of_a_connection_that_is_given_up_says_why(kept: Connection) -> None:
    kept.supervised.give_up("Restore was refused")
    assert kept.give().give_up == "Restore was refused"


# --- heartbeats ---


def read(kept: Connection) -> bytes:
    kept.peer.settimeout(0)
    try:
        return kept.peer.recv(1 << 20)
    except BlockingIOError:
        return b""


def test_a_heartbeat_is_sent_between_messages(kept: Connection) -> None:
    held = kept.open()
    kept.supervised.beat()
    held.store(b"answer", Commit(1))
    held.send(held.unsent)
    kept.supervised.beat()
    held._connection.close()
    held.close()
    assert read(kept) == HEARTBEAT + b"answer" + HEARTBEAT


@pytest.mark.parametrize("sent", [0, 3])
@pytest.mark.parametrize("size", [6, 1_000_000])
def test_no_heartbeat_is_sent_in_the_middle_of_committed_output(
    kept: Connection, sent: int, size: int
) -> None:
    kept.be(ConnectionState.SERVED)
    held = kept.open()
    received = bytearray()
    kept.peer.settimeout(0)
    for _ in range(2):
        held.store(bytes(size), Commit(1))
        while unsent := held.unsent:
            try:
                held.send(unsent)
            except BlockingIOError:
                received += kept.peer.recv(1 << 20)
    held.store(b"x" * size, Commit(1))
    received += read(kept)
    if sent:
        assert held.unsent == size
        held.send(sent)
    held._connection.close()
    held.close()
    kept.supervised.beat()
    received += read(kept)
    assert bytes(received).strip(b"\0") == b"x" * sent


@pytest.mark.parametrize("sent", [0, 3])
@pytest.mark.parametrize("earlier", [0, 10_000])
def test_unsent_output_of_a_dead_worker_is_sent_before_the_next_heartbeat(
    kept: Connection, sent: int, earlier: int
) -> None:
    held = kept.open()
    if earlier:
        held.store(bytes(earlier), Commit(1))
        while unsent := held.unsent:
            held.send(unsent)
    held.store(b"answer", Commit(1))
    if sent:
        assert held.unsent == 6
        held.send(sent)
    held._connection.close()
    held.close()
    for _ in range(2):
        kept.supervised.beat()
    assert read(kept) == bytes(earlier) + b"answer" + HEARTBEAT + HEARTBEAT


#: Locks the memory, as a worker that sends does, and waits until it is killed.
LOCKING = """
import fcntl, signal, sys
fcntl.lockf(int(sys.argv[1]), fcntl.LOCK_EX)
print("locked", flush=True)
signal.pause()
"""


def test_no_heartbeat_is_sent_while_a_worker_is_sending(kept: Connection) -> None:
    command = [sys.executable, "-c", LOCKING, str(kept.memory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=[kept.memory]) as worker:
        assert worker.stdout is not None
        try:
            assert worker.stdout.readline() == b"locked\n"
            kept.supervised.beat()
            assert read(kept) == b""
        finally:
            worker.kill()
    kept.supervised.beat()
    assert read(kept) == HEARTBEAT


def test_a_heartbeat_never_waits(kept: Connection) -> None:
    try:
        while True:
            kept.connection.send(bytes(1000))
    except BlockingIOError:
        pass
    in_thread(kept.supervised.beat).result(PATIENCE_S)
    kept.peer.close()
    in_thread(kept.supervised.beat).result(PATIENCE_S)


# --- ticks ---


def test_it_beats_while_its_handler_is_busy(kept: Connection) -> None:
    def beats() -> bool:
        kept.supervised.tick(1.0)
        kept.supervised.tick(2.0)
        return kept.supervised.watch.beats

    kept.be(ConnectionState.SERVED)
    kept.got_to(40)
    assert beats()
    assert kept.supervised.state == "busy"
    kept.supervised.header.waits_for_peer = 1
    assert not beats()
    assert kept.supervised.state == "waiting on Kapacitor"
    kept.supervised.header.waits_for_peer = 0
    kept.waits()
    assert not beats()
    assert kept.supervised.state == "idle"
    kept.be(ConnectionState.WAITING)
    assert beats()
    assert kept.supervised.state == "waiting for a worker"
    kept.be(ConnectionState.SERVED)
    kept.be(ConnectionState.MOVING)
    assert beats()
    assert kept.supervised.state == "being handed over"


def test_while_it_waits_for_its_turn_it_beats_and_passes_no_limit(kept: Connection) -> None:
    connection = kept.supervised
    kept.be(ConnectionState.SERVED)
    kept.got_to(40)
    connection.header.waits_for_turn = 1
    for now_s in range(100):
        connection.tick(float(now_s))
        assert connection.watch.busy_s == 0.0
        assert connection.needs_heartbeat or not now_s
    assert connection.state == "waiting for turn"
    assert kept.dies(accused=False, how="SIGKILL").poison == ()
    assert connection.state == "busy", "the next worker has not said yet that it waits"


def test_a_worker_that_takes_over_is_at_work_until_it_says_that_it_waits(kept: Connection) -> None:
    kept.waits()
    kept.supervised.header.waits_for_peer = 1
    order = kept.dies(accused=None, how="SIGKILL")
    assert not order.waits
    kept.be(ConnectionState.SERVED)
    assert kept.supervised.state == "busy"
    for now_s in (1.0, 2.0, 12.0):
        kept.supervised.tick(now_s)
    assert kept.supervised.watch.has_just_passed_limit


def test_unread_input_is_noticed(kept: Connection) -> None:
    kept.be(ConnectionState.SERVED)
    kept.waits()

    def is_neglected() -> bool:
        kept.supervised.tick(1.0)
        return kept.supervised.is_neglected

    assert not is_neglected()
    kept.peer.send(b"input")
    # Kapacitor may have sent a request half of its timeout after the last answer.
    assert is_neglected(), "it is noticed at the first look"
    kept.connection.recv(2)
    kept.supervised.header.received += 2
    assert not is_neglected(), "its worker reads, and more has come meanwhile"
    assert is_neglected(), "it has read nothing since"
    kept.connection.recv(3)
    assert not is_neglected()


def test_input_that_the_worker_does_not_read_counts_against_the_limit(
    kept: Connection,
) -> None:
    connection = kept.supervised
    kept.be(ConnectionState.SERVED)
    kept.waits()

    def after(*times_s: float) -> tuple[str, bool]:
        for now_s in times_s:
            connection.tick(now_s)
        return connection.state, connection.watch.has_just_passed_limit

    kept.peer.send(b"input")
    assert after(1.0) == ("idle", False), "it may be about to be read"
    assert after(2.5) == ("not reading", False)
    assert connection.needs_heartbeat
    # The limit starts again when the worker reads input, or continues after SIGCONT.
    connection.header.received += 1
    assert after(9.0) == ("idle", False)
    assert after(10.0, 19.5) == ("not reading", False)
    assert after(20.0) == ("not reading", True)
    kept.connection.recv(5)
    assert after(21.0) == ("idle", False)

    connection.header.waits_for_peer = 1
    connection.header.commit(replace(connection.header.record, output_end=1 << 20))
    assert after(30.0, 39.5) == ("not reading", False), "Kapacitor would take output"
    assert after(40.0) == ("not reading", True)
    with contextlib.suppress(BlockingIOError):
        while True:
            kept.connection.send(b"x" * 65536)
    kept.peer.send(b"more")
    assert after(50.0, 70.0) == ("waiting on Kapacitor", False), "it does not"


@pytest.mark.parametrize("takes_s", [0.0, 1e6])
def test_a_connection_without_a_worker_gets_heartbeats_without_a_limit(
    kept: Connection, takes_s: float
) -> None:
    for now_s in (1.0, 1.5, takes_s, takes_s + 0.5):
        kept.supervised.tick(now_s)
        assert kept.supervised.needs_heartbeat


@pytest.mark.parametrize(
    ("pulse_s_ago", "at_work", "paused", "frozen"),
    [
        (11.0, False, False, True),
        (5.0, False, False, False),
        (11.0, True, False, False),
        (11.0, False, True, False),
    ],
    ids=["does not run", "runs", "may be long at work", "has paused"],
)
def test_a_worker_that_does_not_even_run_is_not_waited_for_at_a_handover(
    kept: Connection, pulse_s_ago: float, *, at_work: bool, paused: bool, frozen: bool
) -> None:
    kept.be(ConnectionState.SERVED)
    kept.supervised.header.heartbeat_ns = time.monotonic_ns() - round(pulse_s_ago * 1e9)
    kept.supervised.header.busy_since_ns = int(at_work)
    assert not kept.supervised.is_not_pausing
    kept.be(ConnectionState.MOVING if paused else ConnectionState.PAUSING)
    assert kept.supervised.is_not_pausing is frozen


@pytest.mark.parametrize(("worker", "thread"), [(1, 11), (2, 22)], ids=["old", "new"])
def test_after_a_handover_the_recorded_thread_is_that_of_the_serving_worker(
    kept: Connection, worker: int, thread: int
) -> None:
    kept.supervised.header.thread = 11
    kept.supervised.route.worker = 1
    kept.give(waits=True)
    assert kept.supervised.header.thread == 0
    kept.supervised.header.thread = 22
    kept.supervised.on_resumed(worker)
    assert kept.supervised.header.thread == thread


def test_a_rate_is_that_of_the_last_while(kept: Connection) -> None:
    started_s = kept.supervised.record.started_s
    header = kept.supervised.header
    header.commit(replace(header.record, stats=ConnectionStats(points_in=300)))
    kept.supervised.tick(started_s + 0.5)
    assert kept.supervised.points_per_s == 0
    kept.supervised.tick(started_s + 2.0)
    assert kept.supervised.points_per_s == pytest.approx(150)
    kept.supervised.tick(started_s + 4.0)
    assert kept.supervised.points_per_s == 0


def test_the_peer_sees_the_end_once_it_is_closed(kept: Connection) -> None:
    child = kept.connection.dup()
    kept.supervised.close()
    assert kept.peer.recv(1) == b""
    child.close()
    kept.supervised = supervised(kept, 8, busy_limit_s=1.0)


def test_a_connection_that_no_worker_will_serve_is_logged(kept: Connection) -> None:
    events: list[tuple[str, dict[str, Any]]] = []

    class Log:
        def error(self, event: str, **facts: Any) -> None:
            events.append((event, facts))

    header = kept.supervised.header
    header.task = ("task", "node")
    header.received = 99
    header.commit(replace(header.record, stats=ConnectionStats(90, points_in=3, points_out=2)))
    kept.supervised.log_abandoned(Log())  # type: ignore[arg-type]
    ((event, facts),) = events
    assert event == "connection finished"
    assert facts["reason"] == "abandoned"
    assert (facts["task_id"], facts["points_in"], facts["points_out"]) == ("task", 3, 2)
    assert facts["bytes_in"] == 99


def test_a_connection_gets_heartbeats_until_the_worker_that_hangs_is_replaced(
    kept: Connection,
) -> None:
    kept.be(ConnectionState.SERVED)
    kept.supervised.is_hanging = True
    for now_s in (1.0, 1e6):
        kept.supervised.tick(now_s)
    assert not kept.supervised.watch.beats
    assert kept.supervised.needs_heartbeat
