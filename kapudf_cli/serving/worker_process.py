"""A worker, as the supervisor has it: a process, a channel to it, and what it leaves behind."""

from __future__ import annotations

import contextlib
import enum
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kapudf_cli.serving.channel import Begin, Channel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kapudf_cli.serving.channel import Order

#: A worker with a handler of many threads writes that much at most of where it is.
_DUMP_BYTES: Final = 32 * 1024
#: Written by faulthandler for each thread that it knows of; see `worker.DUMP_SIGNAL`.
_DUMP_SIGNAL: Final = signal.SIGUSR1
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
#: Made a likelier victim than the supervisor where memory runs out, for it can be replaced.
_OOM_SCORE_ADJ: Final = 200


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
    """

    def __init__(self, begin: Begin) -> None:
        """Start a worker, with what it is to load.

        Raises:
            OSError: the system has no process, memory or descriptor left.
        """
        self.number = begin.worker
        self.state = WorkerState.STARTING
        self.connections: set[int] = set()
        self.points_of_ended = 0
        self.hung: set[int] = set()
        self.started_s = time.monotonic()
        # Each thread's stack is written here, on demand and by a fault.
        self._dump = os.memfd_create("kapudf-stacks")
        self._dump_read = 0
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, self._dump)
            self.channel, theirs = Channel.pair()
            undo.callback(self.channel.close)
            with theirs:
                command = [sys.executable, "-P", "-m", "kapudf_cli.serving.worker"]
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
        try:
            return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * _PAGE_BYTES
        except (OSError, IndexError):
            return 0

    def send(self, order: Order, descriptors: Sequence[int] = ()) -> None:
        """Send an order; a worker that does not even read its orders is killed."""
        try:
            self.channel.send(order, descriptors)
        except (BrokenPipeError, ConnectionResetError):
            pass  # It is dead, which is noticed where its channel is read.
        except OSError:
            # It reads nothing, or the order cannot be had: without it, neither side would
            # know what the other one does.
            self.kill()

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

    def kill(self) -> None:
        """Kill it."""
        with contextlib.suppress(OSError):
            self._process.kill()

    def reap(self) -> str:
        """Wait for its end, which is at hand, and return in words what it was."""
        self.state = WorkerState.DEAD
        self.channel.close()
        try:
            status = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            # Its channel is closed and it is not gone: it is of no use any more.
            self.kill()
            status = self._process.wait()
        if status >= 0:
            return f"exit status {status}"
        try:
            return signal.Signals(-status).name
        except ValueError:
            return f"signal {-status}"

    def close(self) -> None:
        """Let go of what it left behind."""
        for descriptor in (self._dump, self.exit_notice):
            with contextlib.suppress(OSError):
                os.close(descriptor)
