"""A connection as the supervisor keeps it: descriptors, heartbeats and causes of deaths."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import select
import socket
import time
from typing import TYPE_CHECKING, Final, Self

import msgspec

from kapudf_cli.agent.checkpoints import ResumePlan
from kapudf_cli.journal.header import HEADER_BYTES, NO_FRAME, Header
from kapudf_cli.journal.output_lock import locked_for_supervisor
from kapudf_cli.protocol.framing import HEARTBEAT
from kapudf_cli.supervisor.poison import DeathScene, PoisonDetector
from kapudf_cli.supervisor.routes import ConnectionState, RoutedConnection
from kapudf_cli.transport.descriptors import unread_bytes
from kapudf_cli.worker.busy_watchdog import BusyWatchdog
from kapudf_cli.worker.channel import Serve

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger

    from kapudf_cli.supervisor.routes import Give
    from kapudf_cli.system.descriptor_store import DescriptorStore

#: A worker that reads nothing for this time is not just slow.
_NOT_READING_S: Final = 1.0
#: A worker that neither runs nor answers for this time is frozen.
_FROZEN_S: Final = 10.0
#: No worker handles its input in these states.
_BETWEEN_WORKERS: Final = {
    ConnectionState.WAITING,
    ConnectionState.PAUSING,
    ConnectionState.MOVING,
}
#: The unit of `stat_result.st_blocks`, see stat(2).
_BLOCK_BYTES: Final = 512
#: The period over which `points_per_s` is measured.
_RATE_S: Final = 1.0
#: How much of a long record is kept for the next supervisor.
_KEPT_CHARACTERS: Final = 4_000
_KEPT_POISON: Final = 1_000


class ConnectionRecord(msgspec.Struct):
    """What the next supervisor must know of a connection, besides what its journal says.

    Attributes:
        number: its name in the log.
        function: the function that serves it.
        peer_pid: the process at the other end, None if the system does not name it.
        peer_uid: the user of that process.
        started_s: when it began, of the monotonic clock.
        was_served: whether any worker was told to serve it.
        poison_detector: finds out whether one of its frames kills workers.
    """

    number: int
    function: str
    peer_pid: int | None
    peer_uid: int | None
    started_s: float
    was_served: bool = False
    poison_detector: PoisonDetector = msgspec.field(default_factory=PoisonDetector)

    def encode(self) -> bytes:
        """Return it as JSON, shortened to what fits into a journal."""
        detector = self.poison_detector
        if detector.give_up is not None or len(detector.poison) > _KEPT_POISON:
            give_up = detector.give_up and detector.give_up[:_KEPT_CHARACTERS]
            poison = set(sorted(detector.poison)[-_KEPT_POISON:])
            kept = msgspec.structs.replace(detector, give_up=give_up, poison=poison)
            return _ENCODER.encode(msgspec.structs.replace(self, poison_detector=kept))
        return _ENCODER.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> ConnectionRecord:
        """Return the record from JSON.

        Raises:
            msgspec.DecodeError: it is not valid.
        """
        return _DECODER.decode(data)


_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(ConnectionRecord)


class SupervisedConnection:
    """One connection, which outlives the workers that serve it.

    Attributes:
        number: its name in the log.
        record: what the next supervisor must know of it.
        route: which worker serves it; the router changes this.
        watch: whether its handler is busy.
        meter: what it has cost.
        is_neglected: whether there is something to read or send, although its worker says that
            it waits for that, and has done nothing since the last tick.
        is_hanging: whether its worker is to be killed because its handler hangs.
        points_per_s: the points of the last second or so.
        points_before: how many points had come when its worker got it.
        bytes_per_s: the bytes handled in the last second or so.
        checkpoint_s: when its last checkpoint was noticed, of the monotonic clock.
    """

    def __init__(
        self,
        record: ConnectionRecord,
        connection: socket.socket,
        memory: int,
        store: DescriptorStore,
        *,
        busy_limit_s: float,
    ) -> None:
        """Keep a connection's socket and memory, and close them in the end.

        Args:
            record: what is known of it.
            connection: the socket.
            memory: its journal.
            store: keeps the socket and the memory for the next supervisor, until the end.
            busy_limit_s: the limit for one frame, in seconds.
        """
        self.number = record.number
        self.record = record
        self.route = RoutedConnection(record.number, was_served=record.was_served)
        self.watch = BusyWatchdog(busy_limit_s)
        self.points_before = 0
        self.points_per_s = self.bytes_per_s = 0.0
        self.is_neglected = False
        self.is_hanging = False
        # The worker that is paused while another one takes over, and its thread.
        self._paused = (0, 0)
        self._received_before = 0
        self._rated_s = self.checkpoint_s = record.started_s
        self._rated_points = self._rated_bytes = 0
        self._input_start = 0
        # Since when no worker handles its input, because of a death or of a handover.
        self._pauses_since_s: float | None = None
        self._socket = connection
        self._memory = memory
        self._store = store
        self._map = mmap.mmap(memory, HEADER_BYTES)
        self.header = Header(self._map)
        self.meter = self.header.open_meter()

    @classmethod
    def adopt(cls, connection: socket.socket, memory: int, store: DescriptorStore) -> Self:
        """Go on with a connection of an earlier supervisor, which has saved its record."""
        with mmap.mmap(memory, HEADER_BYTES) as header:
            record = ConnectionRecord.decode(Header(header).supervisor_record)
        store.keep(socket_name(record.number), connection.fileno())
        store.keep(journal_name(record.number), memory)
        adopted = cls(record, connection, memory, store, busy_limit_s=math.inf)
        adopted._rate_from_now()
        return adopted

    def _rate_from_now(self) -> None:
        stats = self.header.record.stats
        self._rated_s, self._input_start = time.monotonic(), self.header.record.input_start
        self._rated_points, self._rated_bytes = stats.points_in, stats.offset

    def save(self) -> None:
        """Save the record for the next supervisor, before what it says is done."""
        self.header.supervisor_record = self.record.encode()

    @property
    def poison_detector(self) -> PoisonDetector:
        """Finds out whether one of its frames kills workers."""
        return self.record.poison_detector

    @property
    def age_s(self) -> float:
        """Its age in seconds."""
        return time.monotonic() - self.record.started_s

    # --- to workers ---

    def prepare(self, give: Give) -> tuple[Serve, list[int]]:
        """Prepare it for another worker; return the message and the descriptors for that."""
        if not self.record.was_served:
            self.record.was_served = True
            self.save()
        if give.waits and self.route.worker is not None:
            self._paused = (self.route.worker, self.header.thread)
            self._pauses_since_s = time.monotonic()
        self.header.thread = self.header.given = 0
        self.header.heartbeat_ns = time.monotonic_ns()
        if not give.waits:
            # The next worker has not got the last one's frame yet. If it dies before, the
            # frame is not the cause.
            self.header.current_frame = NO_FRAME
            # It counts as busy until it says otherwise: it may hang while it replays.
            self.header.busy_since_ns = time.monotonic_ns()
            self.header.waits_for_peer = self.header.waits_for_turn = 0
            self.meter.end_wait()
        order = Serve(
            self.number,
            self.record.peer_pid,
            self.record.peer_uid,
            self.age_s,
            self._resume_plan(give) if give.takes_over else None,
        )
        return order, [self._socket.fileno(), self._memory]

    def _resume_plan(self, give: Give) -> ResumePlan:
        """Return how the next worker takes it over."""
        detector = self.poison_detector
        give_up = detector.give_up
        if give_up is None and not give.waits and not self.header.record.complete:
            give_up = "its worker died, and its journal had been outgrown; raise journal_mb"
        poison = tuple(sorted(detector.poison))
        return ResumePlan(detector.until, poison, give.waits, give_up)

    @property
    def points(self) -> int:
        """How many points were received."""
        return self.header.record.stats.points_in

    def on_assigned(self) -> None:
        """Reset what is counted for each worker: another one serves it now."""
        self.points_before = self.points
        self.is_hanging = False
        self.watch.reset()

    def on_resumed(self, worker: int) -> None:
        """Note that a worker goes on; its thread is the current one again if it had paused."""
        if worker == self._paused[0]:
            _, self.header.thread = self._paused
            self._end_pause()
        elif self._paused[0]:
            self.meter.note_handed_over(self._end_pause())
        self._paused = (0, 0)

    def on_taken_over(self) -> None:
        """Note that a worker goes on with it after the death of another one."""
        self.meter.note_taken_over(self._end_pause())

    def _end_pause(self) -> float:
        """Return how long no worker has handled its input, in seconds."""
        since_s, self._pauses_since_s = self._pauses_since_s, None
        return 0.0 if since_s is None else time.monotonic() - since_s

    @property
    def takeovers(self) -> int:
        """How often another worker took it over after a death."""
        return self.meter.takeovers[0]

    def give_up(self, reason: str) -> None:
        """Have the next worker fail it, with the reason."""
        self.poison_detector.give_up = reason
        self.save()

    # --- after a death ---

    @property
    def is_careful(self) -> bool:
        """Whether its worker handles one frame at a time, because one killed the last worker."""
        return self.header.record.stats.offset < self.poison_detector.until

    def observed(self) -> tuple[bool, bool, bool]:
        """Return what the router needs to know; see `RoutedConnection`.

        Returns:
            Whether it is isolated, is careful, and could be moved.
        """
        record = self.header.record
        is_careful = record.stats.offset < self.poison_detector.until
        return self.poison_detector.isolated, is_careful, bool(record.complete) and not is_careful

    def note_death(
        self, how: str, *, accused: bool | None, alone: bool, drops_poison: bool
    ) -> None:
        """Note that its worker died, and find out whether one of its frames is the cause.

        Args:
            how: what happened to the worker, as "died by SIGKILL".
            accused: whether its own thread caused the death, None if unknown, as after a kill.
            alone: whether it was the only careful connection of that worker.
            drops_poison: whether a frame that kills workers is dropped, and the connection
                goes on, or the connection is given up.
        """
        self.meter.note_death()
        if self._pauses_since_s is None:
            self._pauses_since_s = time.monotonic()
        header, record = self.header, self.header.record
        scene = DeathScene(
            offset=record.stats.offset,
            current_frame=header.current_frame,
            given=header.given or header.received,
            input_start=record.input_start,
            was_busy=header.busy_since_ns != 0 and not header.waits_for_turn,
        )
        self.poison_detector.note_death(
            scene,
            how,
            time.monotonic(),
            accused=accused,
            alone=alone,
            drops_poison=drops_poison,
        )
        self.save()

    # --- while its handler is busy ---

    def tick(self, now_s: float) -> None:
        """Update what is known of its handler and its worker."""
        header = self.header
        record = header.record
        at_work = header.busy_since_ns != 0 and not header.waits_for_peer
        busy = at_work or self.route.state in _BETWEEN_WORKERS
        # A worker that is stopped, or held up by another handler, cannot record that it has work.
        # The first tick that finds unread input sends a heartbeat: Kapacitor has then waited for
        # half of its time-out already.
        received = header.received
        reads = busy or received != self._received_before
        self.is_neglected = not reads and self._has_work_left()
        self._received_before = received
        what: object = None
        if header.waits_for_turn and busy:
            what = object()  # Another connection is to blame for however long it takes.
        elif busy:
            what = (record.stats.offset, header.current_frame)
        elif self.is_neglected:
            what = (record.stats.offset, received, self._sent_until())
        self.watch.tick(now_s, current_frame=what, sent=(record.output_end, record.stats.offset))

        if record.input_start != self._input_start:
            self.checkpoint_s, self._input_start = now_s, record.input_start
        if now_s - self._rated_s >= _RATE_S:
            period_s = now_s - self._rated_s
            points, handled = record.stats.points_in, record.stats.offset
            self.points_per_s = (points - self._rated_points) / period_s
            self.bytes_per_s = (handled - self._rated_bytes) / period_s
            self._rated_s, self._rated_points, self._rated_bytes = now_s, points, handled

    @property
    def needs_heartbeat(self) -> bool:
        """Whether Kapacitor should get a heartbeat.

        A connection without a worker waits without a limit: the import of a handler may take
        longer than one frame ever does, and without a heartbeat the task would fail. A worker
        that hangs is about to be replaced, which takes longer than a short time-out.
        """
        return self.is_waiting or self.is_hanging or self.watch.beats or self.is_neglected

    @property
    def is_not_reading(self) -> bool:
        """Whether its worker has left work undone for longer than a slow machine explains."""
        return self.is_neglected and self.watch.busy_s >= _NOT_READING_S

    @property
    def is_at_work(self) -> bool:
        """Whether its worker says that the handler has something to do."""
        return not self.is_waiting and self.header.busy_since_ns != 0

    @property
    def is_waiting(self) -> bool:
        """Whether no worker has it."""
        return self.route.state is ConnectionState.WAITING

    def is_silent(self, for_s: float) -> bool:
        """Return whether no Python code has run in its worker for this time."""
        return time.monotonic_ns() - self.header.heartbeat_ns >= for_s * 1e9

    @property
    def is_not_pausing(self) -> bool:
        """Whether its idle worker should pause, and does not run at all."""
        is_pausing = self.route.state is ConnectionState.PAUSING
        return is_pausing and not self.is_at_work and self.is_silent(_FROZEN_S)

    @property
    def state(self) -> str:
        """What it is doing, for `kapudf status`."""
        if self.is_waiting:
            return "waiting for a worker"
        if self.route.state in _BETWEEN_WORKERS:
            return "being handed over"
        if self.is_not_reading:
            return "not reading"
        if self.header.waits_for_peer:
            return "waiting on Kapacitor"
        if self.header.waits_for_turn:
            return "waiting for turn"
        return "busy" if self.header.busy_since_ns else "idle"

    @property
    def points_in_flight(self) -> int:
        """How many points the handler has; without `async`, one if it is busy."""
        return self.meter.in_flight or int(self.is_at_work)

    @property
    def waiting_bytes(self) -> int:
        """How many bytes of input are not handled, those of points in flight included."""
        unhandled = self.header.received - self.header.record.stats.offset
        return max(unhandled, 0) + unread_bytes(self._socket.fileno())

    @property
    def queue_delay_s(self) -> float:
        """How long new input will wait until it is handled, in seconds: an estimate.

        By Little's law, it is what waits divided by what was handled per second. While nothing is
        handled, it is how long the current call has taken.
        """
        waiting = self.waiting_bytes
        if not waiting:
            return 0.0
        rated_s = waiting / self.bytes_per_s if self.bytes_per_s else 0.0
        return max(rated_s, self.watch.busy_s)

    @property
    def checkpoint_age_s(self) -> float:
        """How old the last checkpoint is, in seconds; 0 if no input has come since."""
        record = self.header.record
        has_input = record.stats.offset > record.input_start
        return time.monotonic() - self.checkpoint_s if has_input else 0.0

    @property
    def journal_bytes(self) -> int:
        """How much memory its journal takes."""
        return os.fstat(self._memory).st_blocks * _BLOCK_BYTES

    @property
    def kept_bytes(self) -> int:
        """How much input the journal holds, with the checkpoint before it."""
        record = self.header.record
        return record.prefix_bytes + self.header.received - record.input_start

    @property
    def kept_limit_bytes(self) -> int:
        """How much input the journal can hold; beyond that, a worker's death ends the task."""
        return self.header.segment_bytes

    def _has_work_left(self) -> bool:
        """Return whether there is input to read or room for output, although its worker waits."""
        if self.header.waits_for_peer:
            if self._sent_until() == self.header.record.output_end:
                return False
            room = select.poll()
            room.register(self._socket, select.POLLOUT)
            return bool(room.poll(0))
        return unread_bytes(self._socket.fileno()) > 0

    def _send_rest(self) -> None:
        """Send what the last worker has committed and not sent, as far as there is room.

        The next worker would, but it may take long to start, and a heartbeat must not be sent
        inside a message.
        """
        record = self.header.record
        at = self._sent_until()
        if not record.output_start <= at <= record.output_end:
            # The worker died before it began to send the last output.
            at = os.lseek(self._memory, record.output_start, os.SEEK_SET)
        while at < record.output_end:
            at += os.sendfile(self._socket.fileno(), self._memory, None, record.output_end - at)

    def _sent_until(self) -> int:
        """Return the offset in the memory up to which output was sent."""
        return os.lseek(self._memory, 0, os.SEEK_CUR)

    def beat(self) -> None:
        """Send a heartbeat, unless part of a message is still unsent."""
        with contextlib.suppress(OSError), locked_for_supervisor(self._memory, self.header):
            if self.is_waiting:
                self._send_rest()
            if self._sent_until() == self.header.record.output_end:
                self._socket.send(HEARTBEAT, socket.MSG_DONTWAIT)

    def log_abandoned(self, log: BoundLogger) -> None:
        """Log the event that sums it up, because no worker will."""
        stats = self.header.record.stats
        task_id, node_id = self.header.task
        log.error(
            "connection finished",
            connection=self.number,
            reason="abandoned",
            task_id=task_id,
            node_id=node_id,
            points_in=stats.points_in,
            points_out=stats.points_out,
            batches_in=stats.batches_in,
            batches_out=stats.batches_out,
            bytes_in=self.header.received,
            bytes_out=stats.bytes_out,
            duration_s=round(self.age_s, 6),
            takeovers=self.takeovers,
        )

    def close(self) -> None:
        """Close the socket and the memory, and keep them no longer."""
        # If this process dies before they are out of the store, the next one forgets them.
        self.header.has_ended = 1
        self._store.remove(socket_name(self.number), journal_name(self.number))
        self._map.close()
        os.close(self._memory)
        with contextlib.suppress(OSError):
            # So that the peer sees the end even if a handler's child process has the socket too.
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def socket_name(connection: int) -> str:
    """Return the name of a connection's socket in the store."""
    return f"connection-{connection}"


def journal_name(connection: int) -> str:
    """Return the name of a connection's journal in the store."""
    return f"journal-{connection}"


def format_of(memory: int) -> int:
    """Return the version of the layout of a journal."""
    with mmap.mmap(memory, HEADER_BYTES) as header:
        return Header(header).format
