"""A connection as the supervisor has it: duplicates of its descriptors, and its history."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import select
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kapudf_cli.journal.header import HEADER_BYTES, NO_FRAME, Header
from kapudf_cli.protocol.framing import HEARTBEAT
from kapudf_cli.supervisor.poison import DeathScene, PoisonDetector
from kapudf_cli.transport.descriptors import unread_bytes
from kapudf_cli.worker.busy_watchdog import BusyWatchdog
from kapudf_cli.worker.channel import Serve

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger

    from kapudf_cli.supervisor.worker_process import WorkerProcess
    from kapudf_cli.system.socket_file import PeerCredentials

#: For so long a worker that reads nothing is only slow.
_NOT_READING_S: Final = 1.0
#: A worker that has not run for so long, and does not answer, is frozen.
_FROZEN_S: Final = 10.0
#: Over how long a rate is taken.
_RATE_S: Final = 1.0


@dataclass
class Move:
    """A connection on its way from one worker to another.

    Attributes:
        target: the worker that will have it.
        began_s: when the old one was told to pause, of the monotonic clock.
        is_paused: whether the old one stands still, and the new one was asked.
        thread: that of the old one, which serves the connection again if nothing comes of it.
    """

    target: WorkerProcess
    began_s: float = 0.0
    is_paused: bool = False
    thread: int = 0


class SupervisedConnection:
    """One connection, which outlives the workers that serve it.

    Attributes:
        number: what the log calls it.
        worker: who serves it, None while nobody does.
        move: on its way to another worker, if it is.
        stays: whether another worker could not take it over: it is not tried again.
        watch: whether its handler is busy.
        takeovers: how often another worker took it over after a death.
        was_served: whether a worker was ever told to serve it.
        is_neglected: whether something is there to be read or sent, its worker says that it
            waits for that, and has done nothing since the last look.
        suspicion: what the deaths of its workers say about its frames.
        points_per_s: how many points came of late, on average.
        points_before: how many points it had had when its worker got it.
    """

    def __init__(
        self,
        number: int,
        connection: socket.socket,
        memory: int,
        peer: PeerCredentials | None,
        *,
        busy_limit_s: float,
    ) -> None:
        """Keep a connection's socket and memory; they are this object's to close."""
        self.number = number
        self.peer = peer
        self.started_s = time.monotonic()
        self.worker: WorkerProcess | None = None
        self.move: Move | None = None
        self.cannot_move = False
        self.watch = BusyWatchdog(busy_limit_s)
        self.takeovers = 0
        self.was_served = False
        self.poison_detector = PoisonDetector()
        self.points_before = 0
        self.points_per_s = 0.0
        self.is_neglected = False
        self._received_before = 0
        self._rated_s = self.started_s
        self._rated_points = 0
        self._socket = connection
        self._memory = memory
        self._map = mmap.mmap(memory, HEADER_BYTES)
        self.header = Header(self._map)

    # --- to workers ---

    def take(self, *, waits: bool = False) -> tuple[Serve, list[int]]:
        """Return the order to serve it, and the descriptors that go with it."""
        self.header.thread = 0
        self.header.heartbeat_ns = time.monotonic_ns()
        if not waits:
            # What the last worker had in hand, this one has not been given yet: were it to
            # die before, that is no death over the frame.
            self.header.current_frame = NO_FRAME
            # Nor does this one wait, for input or for Kapacitor, as the last one did: it is at
            # work until it says so, and may hang over what it repeats.
            self.header.busy_since_ns = time.monotonic_ns()
            self.header.waits_for_peer = 0
        order = Serve(
            self.number,
            None if self.peer is None else self.peer.pid,
            None if self.peer is None else self.peer.uid,
            time.monotonic() - self.started_s,
            takes_over=self.was_served,
            waits=waits,
            until=self.poison_detector.until,
            poison=tuple(sorted(self.poison_detector.poison)),
            give_up=self.poison_detector.give_up,
        )
        return order, [self._socket.fileno(), self._memory]

    @property
    def points(self) -> int:
        """How many points have come."""
        return self.header.record.stats.points_in

    def begin_with_worker(self) -> None:
        """Count anew what its worker does for it, now that it is another one."""
        self.points_before = self.points
        self.watch.begin()

    def give_up(self, reason: str) -> None:
        """Have the next worker fail it, with the reason."""
        self.poison_detector.give_up = reason

    # --- after a death ---

    @property
    def is_careful(self) -> bool:
        """Whether its worker deals with one frame at a time, for one killed the last worker."""
        return self.header.record.stats.offset < self.poison_detector.until

    @property
    def is_movable(self) -> bool:
        """Whether another worker could take it over now, though it need not."""
        return bool(self.header.record.complete) and not self.is_careful

    def note_death(
        self, how: str, *, accused: bool | None, alone: bool, drops_poison: bool
    ) -> None:
        """Note that its worker died, and find out whether one of its frames is the cause.

        Args:
            how: what happened to the worker, as "died by SIGKILL".
            accused: whether the death came from its own thread, None where that is not
                known, as of a kill.
            alone: whether it was the only careful connection of that worker.
            drops_poison: whether a frame that kills workers is dropped, and the connection
                goes on, or the connection is given up.
        """
        self.takeovers += 1
        header, record = self.header, self.header.record
        scene = DeathScene(
            offset=record.stats.offset,
            current_frame=header.current_frame,
            received=header.received,
            input_start=record.input_start,
            was_busy=header.busy_since_ns != 0,
        )
        self.poison_detector.note_death(
            scene,
            how,
            time.monotonic(),
            accused=accused,
            alone=alone,
            drops_poison=drops_poison,
        )

    # --- while its handler is busy ---

    def tick(self, now_s: float) -> None:
        """See whether the handler is busy."""
        header = self.header
        record = header.record
        at_work = header.busy_since_ns != 0 and not header.waits_for_peer
        busy = at_work or self.worker is None or self.move is not None
        # A worker that another handler holds up, or that is stopped, cannot even note that
        # something has come for this one. Kapacitor is told at the first look that finds that:
        # it asks after half of its time-out, and gives up after the other half.
        received = header.received
        reads = busy or received != self._received_before
        self.is_neglected = not reads and self._has_work_left()
        self._received_before = received
        what: object = None
        if busy:
            what = (record.stats.offset, header.current_frame)
        elif self.is_neglected:
            what = (record.stats.offset, received, self._sent_until())
        self.watch.tick(now_s, current_frame=what, sent=(record.output_end, record.stats.offset))

        if now_s - self._rated_s >= _RATE_S:
            points = record.stats.points_in
            self.points_per_s = (points - self._rated_points) / (now_s - self._rated_s)
            self._rated_s, self._rated_points = now_s, points

    @property
    def needs_heartbeat(self) -> bool:
        """Whether Kapacitor should be told that the connection is alive.

        A connection without a worker waits without a limit: the import of a handler may take
        longer than one frame ever does, and without a heartbeat the task would fail. A worker
        that hangs is about to be replaced, which takes longer than a short time-out.
        """
        if self.worker is None or self.number in self.worker.hung:
            return True
        return self.watch.beats or self.is_neglected

    @property
    def is_not_reading(self) -> bool:
        """Whether its worker has left something undone for longer than a slow machine explains."""
        return self.is_neglected and self.watch.busy_s >= _NOT_READING_S

    @property
    def is_at_work(self) -> bool:
        """Whether its worker says that the handler has something to do."""
        return self.worker is not None and self.header.busy_since_ns != 0

    def is_silent(self, for_s: float) -> bool:
        """Return whether no Python code has run in its worker for so long."""
        return time.monotonic_ns() - self.header.heartbeat_ns >= for_s * 1e9

    @property
    def is_not_pausing(self) -> bool:
        """Whether its worker only has to stop waiting for a handover, and does not even run."""
        waits_for_pause = self.move is not None and not self.move.is_paused
        return waits_for_pause and not self.is_at_work and self.is_silent(_FROZEN_S)

    @property
    def state(self) -> str:
        """What it is doing, in words."""
        if self.worker is None:
            return "waiting for a worker"
        if self.move is not None:
            return "being handed over"
        if self.is_not_reading:
            return "not reading"
        if self.header.waits_for_peer:
            return "waiting on Kapacitor"
        return "busy" if self.header.busy_since_ns else "idle"

    def _has_work_left(self) -> bool:
        """Return whether a worker that waits has no reason to."""
        if self.header.waits_for_peer:
            if self._sent_until() == self.header.record.output_end:
                return False
            room = select.poll()
            room.register(self._socket, select.POLLOUT)
            return bool(room.poll(0))
        return unread_bytes(self._socket.fileno()) > 0

    def _send_rest(self) -> None:
        """Send what the last worker has committed and not sent, as far as there is room.

        The next worker would, but may import its handler for long, and no heartbeat may come
        in the middle of a message.
        """
        record = self.header.record
        at = self._sent_until()
        if not record.output_start <= at <= record.output_end:
            # The worker died before it began with the last piece, which lies elsewhere.
            at = os.lseek(self._memory, record.output_start, os.SEEK_SET)
        while at < record.output_end:
            at += os.sendfile(self._socket.fileno(), self._memory, None, record.output_end - at)

    def _sent_until(self) -> int:
        """Return up to where in the memory output was sent."""
        return os.lseek(self._memory, 0, os.SEEK_CUR)

    def beat(self) -> None:
        """Send a heartbeat, if that is not in the midst of a message."""
        with contextlib.suppress(OSError):
            # A worker that is about to send has it locked.
            fcntl.lockf(self._memory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                if self.worker is None:
                    self._send_rest()
                if self._sent_until() == self.header.record.output_end:
                    self._socket.send(HEARTBEAT, socket.MSG_DONTWAIT)
            finally:
                fcntl.lockf(self._memory, fcntl.LOCK_UN)

    def log_abandoned(self, log: BoundLogger) -> None:
        """Log the one event that says how it went, in the place of the worker that cannot."""
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
            duration_s=round(time.monotonic() - self.started_s, 6),
            takeovers=self.takeovers,
        )

    def close(self) -> None:
        """Close it, on this side."""
        self._map.close()
        os.close(self._memory)
        with contextlib.suppress(OSError):
            # So that it ends, even if a child of a handler's has it too.
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
