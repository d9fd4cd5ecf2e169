"""A worker process, as the supervisor sees it: its channel, its orders and its end."""

from __future__ import annotations

import collections
import contextlib
import enum
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kapudf_cli.system import processes
from kapudf_cli.worker.channel import Channel, Start

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kapudf_cli.worker.channel import Order, Serve

#: A worker with a handler of many threads writes that much at most of where it is.
_DUMP_BYTES: Final = 32 * 1024
#: Written by faulthandler for each thread that it knows of; see `worker.DUMP_SIGNAL`.
_DUMP_SIGNAL: Final = signal.SIGUSR1
#: Made a likelier victim than the supervisor where memory runs out, for it can be replaced.
_OOM_SCORE_ADJ: Final = 200
#: How long a worker gets no connections after it could not serve one; doubled each time.
_FIRST_REST_S: Final = 0.5
_LONGEST_REST_S: Final = 5.0


class WorkerState(enum.Enum):
    """What a worker is good for."""

    STARTING = "starting"
    SERVING = "serving"
    RETIRING = "retiring"
    DEAD = "dead"


class WorkerProcess:
    """One worker process.

    Attributes:
        number: what the log calls it.
        state: what it is good for.
        connections: the numbers of the connections that it serves.
        points_of_ended: how many points it has dealt with, of connections that have ended.
        exit_notice: a descriptor that is readable once the process has ended, -1 where the
            system has no such (Linux before 5.3).
        hung: the numbers of those for which it is killed, for their handlers hang.
        rests_until_s: it gets no connections before that time of the monotonic clock.
        channel_lost_s: when its end of the channel was found closed, None while it is open.
        is_frozen: whether it does nothing, though nothing keeps it waiting.
        killed_for: why the supervisor killed it, None if it did not or needs no reason.
        exit_overdue: whether it was killed only because its exit took too long.
    """

    def __init__(self, begin: Start) -> None:
        """Start a worker, with what it is to load.

        Raises:
            OSError: the system has no process, memory or descriptor left.
        """
        self.number = begin.worker
        self.state = WorkerState.STARTING
        self.connections: set[int] = set()
        self.points_of_ended = 0
        self.hung: set[int] = set()
        self.is_frozen = False
        self.started_s = time.monotonic()
        self.rests_until_s = 0.0
        self.channel_lost_s: float | None = None
        self.killed_for: str | None = None
        self.exit_overdue = False
        self._rest_s = _FIRST_REST_S
        # Orders that the channel has not taken yet. They carry no descriptors, and of each
        # connection there are only a few, so the queue is bounded.
        self._queue: collections.deque[Order] = collections.deque()
        self._lacks_room = False
        self._blocked_since_s = 0.0
        # Each thread's stack is written here, on demand and by a fault.
        self._dump = os.memfd_create("kapudf-stacks")
        self._dump_read = 0
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, self._dump)
            self.channel, theirs = Channel.pair()
            undo.callback(self.channel.close)
            with theirs:
                command = [sys.executable, "-P", "-m", "kapudf_cli.worker.main"]
                self._process = subprocess.Popen(  # noqa: S603 - our own module
                    [*command, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    # So that a Ctrl-C reaches the supervisor alone.
                    process_group=0,
                )
            self.channel.send(begin, [self._dump])
            undo.pop_all()
        self.exit_notice = -1
        with contextlib.suppress(OSError):
            self.exit_notice = os.pidfd_open(self.pid)
        with contextlib.suppress(OSError):
            Path(f"/proc/{self.pid}/oom_score_adj").write_text(str(_OOM_SCORE_ADJ))

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    @property
    def age_s(self) -> float:
        """How long ago it was started, in seconds."""
        return time.monotonic() - self.started_s

    def rss_bytes(self) -> int:
        """Return the memory that it has resident, shared memory included; 0 once it is gone."""
        return processes.rss_bytes(self.pid)

    # --- orders ---

    def send(self, order: Order) -> None:
        """Send an order, or queue it until the worker has read earlier ones."""
        self._queue.append(order)
        self.send_queued()

    def send_queued(self) -> None:
        """Send what is queued, as far as there is room."""
        while self._queue:
            if not self._try(self._queue[0], ()):
                return
            self._queue.popleft()

    def hand_over(self, order: Serve, descriptors: Sequence[int]) -> bool:
        """Send the order to serve a connection now, or not at all; return whether it was sent.

        Such an order is not queued: its descriptors may be closed meanwhile.
        """
        return self.has_room and self._try(order, descriptors)

    @property
    def has_room(self) -> bool:
        """Whether it has read enough of its orders to get another connection."""
        if self.channel_lost_s is not None or time.monotonic() < self.rests_until_s:
            return False
        if self._queue or not self.channel.has_room:
            self._note_blocked()
            return False
        return True

    @property
    def lacks_room(self) -> bool:
        """Whether something waits until it has read more of its orders."""
        return self._lacks_room

    @property
    def blocked_s(self) -> float:
        """For how long it has read no orders though some wait, in seconds; 0 if none do."""
        return time.monotonic() - self._blocked_since_s if self._lacks_room else 0.0

    def note_room(self) -> None:
        """Note that the channel can be written to, and send what is queued."""
        self._lacks_room = False
        self.send_queued()

    def rest(self) -> float | None:
        """Give it no connections for a while: it, or the system, lacks something for them.

        Returns:
            How long, in seconds; None if it rests already.
        """
        now_s, rest_s = time.monotonic(), self._rest_s
        if now_s < self.rests_until_s:
            return None
        self.rests_until_s = now_s + rest_s
        self._rest_s = min(2 * rest_s, _LONGEST_REST_S)
        return rest_s

    def end_rest(self) -> None:
        """Give it connections again: one of its own has ended, so there is room."""
        self.rests_until_s, self._rest_s = 0.0, _FIRST_REST_S

    def _try(self, order: Order, descriptors: Sequence[int]) -> bool:
        """Send an order; return whether that is done with."""
        if self.channel_lost_s is not None:
            return True
        try:
            self.channel.send(order, descriptors)
        except (BrokenPipeError, ConnectionResetError):
            pass  # It is dead. Its end is handled where its channel is read.
        except BlockingIOError:
            self._note_blocked()
            return False
        except OSError:
            # Too many descriptors are on their way (ETOOMANYREFS), or memory is short.
            self.rest()
            return False
        return True

    def _note_blocked(self) -> None:
        if not self._lacks_room:
            self._lacks_room, self._blocked_since_s = True, time.monotonic()

    # --- its end ---

    def ask_for_stacks(self) -> None:
        """Have it write where its threads are, which takes a moment."""
        with contextlib.suppress(OSError):
            self._process.send_signal(_DUMP_SIGNAL)

    def stacks(self) -> str:
        """Return what was written of its threads since the last call."""
        with contextlib.suppress(OSError):
            text = os.pread(self._dump, _DUMP_BYTES, self._dump_read)
            self._dump_read += len(text)
            return text.decode("utf-8", "replace").strip()
        return ""

    def kill(self, reason: str | None = None) -> None:
        """Kill it.

        Args:
            reason: what the log says of it, None where the log says so already.
        """
        self.killed_for = self.killed_for or reason
        with contextlib.suppress(OSError):
            self._process.kill()

    def lose_channel(self) -> None:
        """Close the channel, whose other end is closed; the process may live on for a while."""
        self.channel_lost_s = time.monotonic()
        self._queue.clear()
        self._lacks_room = False
        self.channel.close()

    @property
    def has_exited(self) -> bool:
        """Whether the process has ended, so that `reap` does not wait."""
        return self._process.poll() is not None

    def reap(self) -> str:
        """Wait for its end and return in words what it was."""
        self.state = WorkerState.DEAD
        self.channel.close()
        status = self._process.wait()
        if status >= 0:
            return f"exit status {status}"
        try:
            return signal.Signals(-status).name
        except ValueError:
            return f"signal {-status}"

    def close(self) -> None:
        """Close the descriptors that are left of it."""
        for descriptor in (self._dump, self.exit_notice):
            with contextlib.suppress(OSError):
                os.close(descriptor)
