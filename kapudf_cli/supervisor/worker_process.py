"""A worker process as the supervisor sees it: its channel, the messages on it, and its end."""

from __future__ import annotations

import collections
import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from kapudf_cli.system import processes
from kapudf_cli.system.adoption import UNKNOWN_STATUS, AdoptedProcess
from kapudf_cli.worker.channel import Channel, Fork, Forked, Start, WorkerRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kapudf_cli.system.descriptor_store import DescriptorStore
    from kapudf_cli.worker.channel import Order, Ready, Report, Serve

#: How much of the stacks that a worker writes is read; a handler may have many threads.
_DUMP_BYTES: Final = 32 * 1024
#: Makes faulthandler write each thread's stack; see `worker.main`.
_DUMP_SIGNAL: Final = signal.SIGUSR1
#: Where memory runs out, a worker is killed rather than the supervisor: it can be replaced.
_OOM_SCORE_ADJ: Final = 200
#: How many reports of one worker are read at once, so that others get their turn.
_MAX_REPORTS: Final = 64
#: How long a worker gets no connections after it could not serve one; doubled each time.
_FIRST_REST_S: Final = 0.5
_MAX_REST_S: Final = 5.0
#: How long the exit of a template may take after its channels are closed.
_TEMPLATE_PATIENCE_S: Final = 0.5
#: How a worker has ended that an earlier supervisor had started.
UNKNOWN_END: Final = "unknown exit status"


class PartitionUsage(NamedTuple):
    """A partition of a worker.

    Attributes:
        pid: the process id.
        node: the node of a cluster on which it is; empty on this machine.
        rss_bytes: its resident memory.
        cpu_s: its processor time.
    """

    pid: int
    node: str
    rss_bytes: int
    cpu_s: float


class WorkerProcess:
    """One worker process, or a template that forks others.

    Attributes:
        number: its name in the log.
        channel: the supervisor's end.
        record: what outlives it.
        template: the template that was told to fork it, None if it was started by exec.
        is_adopted: whether an earlier supervisor has started it.
        loaded: what it has loaded, None until it is ready.
        outdated: why another worker could do better, None if none could.
        points_of_ended: how many points it has handled of connections that have ended.
        exit_notice: a descriptor that is readable once the process has ended, -1 where the
            system has none (Linux before 5.3).
        rests_until_s: it gets no connections before this time of the monotonic clock.
        channel_lost_s: when its end of the channel was found closed, None while it is open.
        killed_for: why the supervisor killed it, None if it did not or needs no reason.
        exit_overdue: whether it was killed only because its exit took too long.
    """

    def __init__(
        self, number: int, channel: Channel, dump: int, record: int, *, started_s: float
    ) -> None:
        """Do not call this; use `start` or `adopt`."""
        self.number = number
        self.channel = channel
        self.template: WorkerProcess | None = None
        self.is_adopted = False
        self.loaded: Ready | None = None
        self.outdated: str | None = None
        self.points_of_ended = 0
        self.started_s = started_s
        self.rests_until_s = 0.0
        self.channel_lost_s: float | None = None
        self.killed_for: str | None = None
        self.exit_overdue = False
        self._is_killed = False
        self._rest_s = _FIRST_REST_S
        # Messages that the channel has not taken yet. They carry no descriptors, and there are
        # only a few for each connection, so the queue is bounded.
        self._queue: collections.deque[Order] = collections.deque()
        self._lacks_room = False
        self._blocked_since_s = 0.0
        # Each thread's stack is written here, on demand and by a fault.
        self._dump = dump
        self._dump_read = 0
        self._record_descriptor = record
        self.record = WorkerRecord(record)
        self._store: DescriptorStore | None = None
        # None until the template has forked it.
        self._process: subprocess.Popen[bytes] | AdoptedProcess | None = None
        self.exit_notice = -1

    @classmethod
    def start(cls, begin: Start, template: WorkerProcess | None = None) -> Self:
        """Start a worker.

        Args:
            begin: how.
            template: forks it; otherwise it is started by exec.

        Raises:
            ConnectionError: the template has ended.
            OSError: the system has no process, memory or descriptor left.
        """
        with contextlib.ExitStack() as undo:
            dump = os.memfd_create("kapudf-stacks")
            undo.callback(os.close, dump)
            record = os.memfd_create("kapudf-worker")
            undo.callback(os.close, record)
            channel, theirs = Channel.pair()
            undo.callback(channel.close)
            worker = cls(begin.worker, channel, dump, record, started_s=time.monotonic())
            worker.template = template
            with theirs:
                if template is not None:
                    fork = Fork(begin.name, begin.worker)
                    template.channel.send(fork, [theirs.fileno(), dump, record])
                else:
                    command = [sys.executable, "-P", "-m", "kapudf_cli.worker.main"]
                    started = subprocess.Popen(  # noqa: S603 - our own module
                        [*command, str(theirs.fileno())],
                        stdin=subprocess.DEVNULL,
                        pass_fds=[theirs.fileno()],
                        # A Ctrl-C must reach only the supervisor.
                        process_group=0,
                    )
                    worker.watch(started)
            if template is None:
                channel.send(begin, [dump, record])
            undo.pop_all()
        return worker

    @classmethod
    def adopt(
        cls,
        number: int,
        channel: int,
        dump: int,
        record: int,
        store: DescriptorStore,
    ) -> Self:
        """Look after a worker that another supervisor has started.

        Args:
            number: its name in the log.
            channel: the supervisor's end.
            dump: the memory file for its stacks.
            record: the memory file of its record.
            store: keeps these.

        Raises:
            ProcessLookupError: it has ended; nothing was closed.
        """
        pid, started_ticks = WorkerRecord(record).process
        process = AdoptedProcess(pid) if pid else None
        if process is None or processes.start_ticks(pid) != started_ticks:
            raise ProcessLookupError(pid)
        started_s = time.monotonic() - processes.age_s(started_ticks)
        end = socket.socket(fileno=channel)
        end.settimeout(0)
        worker = cls(number, Channel(end), dump, record, started_s=started_s)
        worker.is_adopted, worker._store = True, store
        for name, descriptor in zip(kept_names(number), (channel, dump, record), strict=True):
            store.keep(name, descriptor)
        worker.watch(process)
        return worker

    def keep(self, store: DescriptorStore) -> None:
        """Keep its descriptors for the next supervisor, until it has ended."""
        self._store = store
        channel, dump, record = kept_names(self.number)
        store.put(dump, self._dump)
        store.put(record, self._record_descriptor)
        # The last one: a worker whose channel is kept can be adopted.
        store.put(channel, self.channel.fileno())

    def on_forked(self, pid: int) -> None:
        """Note that the template has forked it."""
        self.watch(AdoptedProcess(pid))

    def watch(self, process: subprocess.Popen[bytes] | AdoptedProcess) -> None:
        """Look after its process."""
        self._process = process
        self.record.process = (process.pid, processes.start_ticks(process.pid))
        with contextlib.suppress(OSError):
            self.exit_notice = os.pidfd_open(process.pid)
        with contextlib.suppress(OSError):
            Path(f"/proc/{process.pid}/oom_score_adj").write_text(str(_OOM_SCORE_ADJ))
        if self._is_killed:
            process.kill()

    @property
    def pid(self) -> int:
        """The process id; 0 until the template has forked it."""
        return 0 if self._process is None else self._process.pid

    @property
    def age_s(self) -> float:
        """Its age in seconds."""
        return time.monotonic() - self.started_s

    def partitions(self) -> list[PartitionUsage]:
        """Return its partitions, and what they use."""
        loaded = self.loaded
        if loaded is None:
            return []
        if not loaded.nodes:
            return [
                PartitionUsage(pid, "", processes.rss_bytes(pid), processes.cpu_s([pid]))
                for pid in loaded.partitions
            ]
        places = zip(loaded.partitions, loaded.nodes, strict=True)
        usages = [(*place, *self.record.usage(number)) for number, place in enumerate(places)]
        return [
            PartitionUsage(pid, node, rss_bytes, cpu_ns / 1e9)
            for pid, node, rss_bytes, cpu_ns in usages
        ]

    def rss_bytes(self) -> int:
        """Return its resident memory, with its partitions and shared memory; 0 once it is gone."""
        pids = (
            [self.pid]
            if self.loaded is None or not self.loaded.ray
            else [self.pid, self.loaded.ray]
        )
        own = sum(map(processes.rss_bytes, pids))
        return own + sum(each.rss_bytes for each in self.partitions())

    # --- messages to it ---

    def send(self, order: Order) -> None:
        """Send a message, or queue it until the worker has read earlier ones."""
        self._queue.append(order)
        self.send_queued()

    def send_queued(self) -> None:
        """Send queued messages, as far as there is room."""
        while self._queue:
            if not self._try(self._queue[0], ()):
                return
            self._queue.popleft()

    def hand_over(self, order: Serve, descriptors: Sequence[int]) -> bool:
        """Send a connection now or not at all; return whether it was sent.

        The message is not queued, because its descriptors may be closed meanwhile.
        """
        return self.check_room() and self._try(order, descriptors)

    def check_room(self) -> bool:
        """Return whether it has read enough messages to get another connection.

        If not, the time since when is measured, and the channel waits for room.
        """
        if self.channel_lost_s is not None or time.monotonic() < self.rests_until_s:
            return False
        if self._queue or not self.channel.has_room:
            self._note_blocked()
            return False
        return True

    @property
    def lacks_room(self) -> bool:
        """Whether messages wait until it has read earlier ones."""
        return self._lacks_room

    @property
    def blocked_s(self) -> float:
        """How long it has read no messages while some wait, in seconds; 0 if none wait."""
        return time.monotonic() - self._blocked_since_s if self._lacks_room else 0.0

    def note_room(self) -> None:
        """Note that the channel has room, and send queued messages."""
        self._lacks_room = False
        self.send_queued()

    def rest(self) -> float | None:
        """Give it no connections for a while, because it or the system is short of something.

        Returns:
            How long, in seconds; None if it rests already.
        """
        now_s, rest_s = time.monotonic(), self._rest_s
        if now_s < self.rests_until_s:
            return None
        self.rests_until_s = now_s + rest_s
        self._rest_s = min(2 * rest_s, _MAX_REST_S)
        return rest_s

    def end_rest(self) -> None:
        """Give it connections again, because one of its own has ended."""
        self.rests_until_s, self._rest_s = 0.0, _FIRST_REST_S

    def _try(self, order: Order, descriptors: Sequence[int]) -> bool:
        """Send a message; return False if it is to be sent later."""
        if self.channel_lost_s is not None:
            return True
        try:
            self.channel.send(order, descriptors)
        except (BrokenPipeError, ConnectionResetError):
            pass  # It is dead; `WorkerReports` handles that.
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
        """Ask it to write the stacks of its threads, which takes a moment."""
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._process.send_signal(_DUMP_SIGNAL)

    def stacks(self) -> str:
        """Return the stacks that it has written since the last call."""
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
        self._is_killed = True
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._process.kill()

    def lose_channel(self) -> None:
        """Close the channel after the worker has closed its end; the process may still run."""
        self.channel_lost_s = time.monotonic()
        self._queue.clear()
        self._lacks_room = False
        self.channel.close()

    @property
    def has_exited(self) -> bool:
        """Whether the process has ended, so that `reap` does not wait.

        One that its template has not forked has ended once its channel is closed. How the
        template has ended is usually known a moment later.
        """
        if self._process is None:
            if self.channel_lost_s is None:
                return False
            waits_s = time.monotonic() - self.channel_lost_s
            is_known = self.template is None or self.template.has_exited
            return is_known or waits_s > _TEMPLATE_PATIENCE_S
        return self._process.poll() is not None

    def reap(self) -> str:
        """Wait for its end; return the exit status or the signal in words."""
        self.channel.close()
        if self._process is not None:
            return _in_words(self._process.wait())
        template = None if self.template is None else self.template.poll()
        return "not forked" if template is None else f"{_in_words(template)} of its template"

    def poll(self) -> int | None:
        """Return its exit status, negative for a signal; None while it runs."""
        return None if self._process is None else self._process.poll()

    def finished_connections(self) -> set[int]:
        """Return the connections that it has logged as finished last, reported or not."""
        return self.record.finished()

    def close(self) -> None:
        """Close its remaining descriptors."""
        if self._store is not None:
            self._store.remove(*kept_names(self.number))
        for descriptor in (self._dump, self._record_descriptor, self.exit_notice):
            with contextlib.suppress(OSError):
                os.close(descriptor)


def kept_names(number: int) -> tuple[str, str, str]:
    """Return the names in the store of a worker's channel, stacks and record."""
    return f"worker-{number}", f"worker-{number}-stacks", f"worker-{number}-record"


def _in_words(status: int) -> str:
    """Return an exit status, negative for a signal, in words."""
    if status == UNKNOWN_STATUS:
        return UNKNOWN_END
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


class WorkerReports:
    """Reads the reports of workers, and notices their ends; for use with a selector."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        *,
        on_report: Callable[[WorkerProcess, Report], None],
        on_end: Callable[[WorkerProcess], None],
    ) -> None:
        """Watch no worker yet.

        Args:
            selector: channels are registered with it, with a callable as data, which the loop
                calls when the channel is ready.
            on_report: called with each report.
            on_end: called once a worker's process has ended, after its last report; it must
                call `unwatch`.
        """
        self._selector = selector
        self._on_report = on_report
        self._on_end = on_end

    def watch(self, worker: WorkerProcess) -> None:
        """Watch a worker."""
        self._selector.register(
            worker.channel, selectors.EVENT_READ, lambda: self._read_some(worker)
        )
        self._watch_exit(worker)

    def _watch_exit(self, worker: WorkerProcess) -> None:
        if worker.exit_notice >= 0:
            # A child process of a handler may keep the channel open after the worker's end.
            self._selector.register(
                worker.exit_notice, selectors.EVENT_READ, lambda: self._read_rest(worker)
            )

    def unwatch(self, worker: WorkerProcess) -> None:
        """Forget a worker."""
        if worker.channel_lost_s is None:
            self._selector.unregister(worker.channel)
        if worker.exit_notice >= 0:
            self._selector.unregister(worker.exit_notice)

    def update(self, worker: WorkerProcess) -> None:
        """Wait for room in a worker's channel while messages are queued."""
        if worker.channel_lost_s is not None:
            return
        key = self._selector.get_key(worker.channel)
        if worker.lacks_room and not key.events & selectors.EVENT_WRITE:
            both = selectors.EVENT_READ | selectors.EVENT_WRITE
            self._selector.modify(worker.channel, both, lambda: self._read_and_write(worker))
        elif not worker.lacks_room and key.events & selectors.EVENT_WRITE:
            self._selector.modify(
                worker.channel, selectors.EVENT_READ, lambda: self._read_some(worker)
            )

    def tick(self, worker: WorkerProcess) -> None:
        """Notice the end of a worker with a closed channel, if there is no exit notice."""
        if worker.channel_lost_s is not None and worker.has_exited:
            self._on_end(worker)

    def _read_and_write(self, worker: WorkerProcess) -> None:
        if worker.channel.has_room:
            worker.note_room()
        self._read_some(worker)

    def _read_some(self, worker: WorkerProcess) -> None:
        """Handle some reports, or the end of the channel."""
        for _ in range(_MAX_REPORTS):
            try:
                received = worker.channel.receive()
            except BlockingIOError:
                return
            if received is None:
                # The process ends, or its handler has closed the descriptor. Its connections are
                # not taken over before the process has ended.
                self._selector.unregister(worker.channel)
                worker.lose_channel()
                return
            if isinstance(received[0], Forked):
                worker.on_forked(received[0].pid)
                self._watch_exit(worker)
            else:
                self._on_report(worker, received[0])

    def _read_rest(self, worker: WorkerProcess) -> None:
        """Handle the exit of a worker, after its last reports."""
        while worker.channel_lost_s is None:
            try:
                received = worker.channel.receive()
            except BlockingIOError:
                break
            if received is None:
                break
            self._on_report(worker, received[0])
        self._on_end(worker)
