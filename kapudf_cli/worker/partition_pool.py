"""The partitions of a worker: processes with an instance of the handler for each connection.

worker ─┬─ control channel: which connections there are ─┬─ partition 0
        ├─ links: one of each connection, for its data ──┤
        └────────────────────────────────────────────────┴─ partition 1

A partition ends with its worker. If a partition dies, the worker ends in the same way, and another
worker takes its connections over: only all partitions together have the state.

With Ray, one process, the Ray engine, leads to the partitions on other machines; it dies if one of
them does.
"""

from __future__ import annotations

import collections
import contextlib
import faulthandler
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgspec

from kapudf_cli.agent.partition_messages import (
    ENCODER,
    REPLIES,
    Answer,
    Progress,
    Served,
    Waits,
    Written,
)
from kapudf_cli.agent.partitions import Wakeup
from kapudf_cli.plugin_errors import PluginError
from kapudf_cli.protocol.framing import MAX_VARINT, FrameReader, encode_varint, frame_body
from kapudf_cli.system import logs, processes
from kapudf_cli.worker.channel import (
    Channel,
    Failed,
    LoadRemotely,
    Placed,
    ServePartition,
    Unreachable,
)
from kapudf_cli.worker.template import reseed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from structlog.stdlib import BoundLogger

    from kapudf_cli.agent.partition_messages import Order, Reply, Result
    from kapudf_cli.worker.channel import Report, Start
    from kapudf_cli.worker.shipped_code import ShippedCode

#: How much is read at once. For more than 128 KiB, the C library maps new memory for each read,
#: which takes longer than to copy the data.
READ_BYTES: Final = 96 * 1024
#: So many bytes of orders can be sent before their partition reads them.
_BUFFER_BYTES: Final = 1024 * 1024
#: What a Ray engine that says nothing dies of.
_RAY_ENDED: Final = "Ray has ended the process that connects to it, as it does if the head is lost"
#: How long a partition may take to exit after its channel is closed.
_EXIT_S: Final = 1.0
#: How long a partition may take to write its stacks.
_DUMP_PAUSE_S: Final = 0.1
_REMOTE_DUMP_PAUSE_S: Final = 0.5
#: How much of the stacks of a partition is read.
_DUMP_BYTES: Final = 16 * 1024


@dataclass(frozen=True)
class ForkedPartition:
    """What a forked partition was given.

    Attributes:
        number: which partition it is.
        channel: its end of the channel.
        dump: the memory file for the stacks of its threads.
    """

    number: int
    channel: Channel
    dump: int


class PartitionProcess:
    """A process of this worker that is a partition, or with Ray leads to all of them.

    Attributes:
        number: which.
        pid: the process id.
    """

    def __init__(
        self, number: int, channel: Channel, dump: int, pid: int, *, is_loaded: bool = False
    ) -> None:
        """Take over the channel and the memory file for its stacks; do not call this.

        Args:
            number: which it is.
            channel: this end.
            dump: the memory file.
            pid: the process id.
            is_loaded: whether it has loaded the handler already.
        """
        self._is_loaded = is_loaded
        self.number = number
        self.pid = pid
        self._channel = channel
        self._dump = dump
        self._dump_read = 0
        self._sending = threading.Lock()
        # The thread of each connection, by that of the partition that serves it.
        self.threads: dict[int, int] = {}

    @classmethod
    def start(cls, begin: Start, number: int, record: int) -> PartitionProcess:
        """Start a process that loads the handler, or one that has a cluster load it.

        Args:
            begin: how the worker was started.
            number: which partition it is to be; with a cluster, it leads to all.
            record: the memory file of the worker's record.

        Raises:
            OSError: the system has no process, memory or descriptor left.
        """
        dump = os.memfd_create("kapudf-stacks")
        end, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        is_ray = begin.settings.engine == "ray"
        module = "kapudf_cli.ray_engine.main" if is_ray else "kapudf_cli.worker.main"
        with theirs:
            started = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-P", "-m", module, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                process_group=0,
            )
        channel = Channel(end)
        channel.send(msgspec.structs.replace(begin, partition=number), [dump, record])
        return cls(number, channel, dump, started.pid)

    @classmethod
    def fork(cls, number: int) -> PartitionProcess | ForkedPartition:
        """Fork a process, before this one has any thread.

        Returns:
            In the new process, what it was given.

        Raises:
            OSError: the system has no process, memory or descriptor left.
        """
        dump = os.memfd_create("kapudf-stacks")
        end, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with warnings.catch_warnings():
            # Python 3.12 warns of threads; see `template`.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if not pid:
            end.close()
            os.setpgid(0, 0)
            processes.end_with_parent()
            reseed()
            return ForkedPartition(number, Channel(theirs), dump)
        theirs.close()
        return cls(number, Channel(end), dump, pid, is_loaded=True)

    def await_ready(self) -> None:
        """Wait until the handler is loaded.

        Raises:
            PluginError: it cannot be loaded.
        """
        if self._is_loaded:
            return
        report = self.receive() or Failed("a partition ended", is_usage_error=False)
        if isinstance(report, Failed):
            raise _not_loaded(report)

    def load_remotely(self, code: ShippedCode) -> None:
        """Have the partitions on a cluster load a handler; reports say how far they are.

        Raises:
            OSError: no descriptor is left, or the process has ended.
        """
        with os.fdopen(os.memfd_create("kapudf-code"), "wb") as file:
            file.write(msgspec.msgpack.encode(code))
            file.flush()
            # If the process has ended, its last report says why.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self._channel.send(LoadRemotely(), [file.fileno()])

    def receive(self) -> Report | None:
        """Wait for the next report, and return it; None once the process has ended."""
        received = self._channel.receive()
        return None if received is None else received[0]

    def fileno(self) -> int:
        """Return the descriptor that is readable once it has reported, or has ended."""
        return self._channel.fileno()

    def connect(
        self, connection: int, facts: Mapping[str, Any], *, partition: int
    ) -> socket.socket:
        """Return a link for a connection, whose log events have some facts, to a partition.

        Raises:
            OSError: no descriptor is left, or the process has ended.
        """
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as undo, theirs:
            undo.callback(ours.close)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
            with self._sending:
                order = ServePartition(connection, dict(facts), partition)
                self._channel.send(order, [theirs.fileno()])
            undo.pop_all()
        return ours

    def wait(self) -> int:
        """End the process; return its exit status, or the negative number of a signal."""
        with contextlib.suppress(OSError):
            # Not only closed: another thread may poll it, which would keep it open.
            self._channel.socket.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            exited = os.pidfd_open(self.pid)
            if not select.select([exited], [], [], _EXIT_S)[0]:
                os.kill(self.pid, signal.SIGKILL)
            os.close(exited)
        try:
            _, status = os.waitpid(self.pid, 0)
        except ChildProcessError:
            return 1
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        """Close what is left of it, after its end."""
        self._channel.close()
        os.close(self._dump)

    def stacks(self) -> bytes:
        """Return the stacks that it has written since the last call.

        The supervisor knows connections by threads of the worker, so these are named instead of
        those of the partition.
        """
        text = os.pread(self._dump, _DUMP_BYTES, self._dump_read)
        self._dump_read += len(text)
        for thread, ours in self.threads.items():
            text = text.replace(b"0x%016x" % thread, b"0x%016x" % ours)
        return text


class PartitionPool:
    """The partition processes of this worker.

    Attributes:
        pids: the process ids of the partitions; on a cluster, once it has taken them.
        nodes: where they are on a cluster; empty for processes of this machine.
        ray_pid: the process that leads to them, 0 without a cluster.
    """

    def __init__(
        self, processes: Sequence[PartitionProcess], count: int, dump: int, log: BoundLogger
    ) -> None:
        """Watch over processes.

        Args:
            processes: they are partitions 0, 1 and so on, or one leads to all of them.
            count: how many partitions there are.
            dump: the memory file in which the supervisor finds the stacks of this process.
            log: where events go.
        """
        self._processes = processes
        self._count = count
        self._dump = dump
        self._log = log
        self._ending = threading.Lock()
        self.pids = tuple(process.pid for process in processes)
        self.nodes: tuple[str, ...] = ()
        self.ray_pid = 0

    @classmethod
    def start(cls, begin: Start, dump: int, record: int, log: BoundLogger) -> PartitionPool:
        """Start the processes, which load the handler meanwhile.

        Raises:
            OSError: the system has no process, memory or descriptor left.
        """
        count = begin.settings.partitions
        numbers = range(1 if begin.settings.engine == "ray" else count)
        processes = [PartitionProcess.start(begin, each, record) for each in numbers]
        return cls(processes, count, dump, log)

    @classmethod
    def fork(cls, count: int, dump: int, log: BoundLogger) -> PartitionPool | ForkedPartition:
        """Fork the processes, after a template has loaded the handler.

        Returns:
            In each partition, what it was given.

        Raises:
            OSError: the system has no process, memory or descriptor left.
        """
        forked = []
        for number in range(count):
            each = PartitionProcess.fork(number)
            if isinstance(each, ForkedPartition):
                return each
            forked.append(each)
        return cls(forked, count, dump, log)

    def await_ready(self) -> None:
        """Wait until all have loaded the handler.

        Raises:
            PluginError: the handler cannot be loaded.
        """
        for process in self._processes:
            process.await_ready()

    def await_cluster(
        self, code: ShippedCode, supervisor: Channel | None, *, is_patient: bool
    ) -> str | None:
        """Wait until all partitions have loaded the handler on a cluster.

        Args:
            code: the handler.
            supervisor: the wait ends if the other side of this channel is closed.
            is_patient: whether to wait as long as no cluster takes them.

        Returns:
            Why no cluster takes them, None if one has. Then another pool may have more luck.

        Raises:
            PluginError: the handler cannot be loaded, or the supervisor has ended.
        """
        (process,) = self._processes
        process.load_remotely(code)
        poll = select.poll()
        poll.register(process, select.POLLIN)
        if supervisor is not None:
            poll.register(supervisor, 0)  # Only for its end: messages wait.
        while True:
            ready = dict(poll.poll())
            if supervisor is not None and supervisor.fileno() in ready:
                raise PluginError("the supervisor has ended")
            match process.receive():
                case Placed() as placed:
                    self.pids, self.nodes = placed.pids, placed.nodes
                    self.ray_pid = process.pid
                    return None
                case Unreachable() as report:
                    if not is_patient:
                        return report.problem
                    self._log.warning("partitions wait for Ray", reason=report.problem)
                case Failed() as report:
                    raise _not_loaded(report)
                case _:
                    return f"{_RAY_ENDED} ({_ended(process.wait())})"

    def watch(self) -> None:
        """From now on, end this process if one of them dies."""
        threading.Thread(target=self._watch, name="partitions", daemon=True).start()

    def _watch(self) -> None:
        poll = select.poll()
        for process in self._processes:
            poll.register(process, select.POLLIN)
        descriptors = {process.fileno(): process for process in self._processes}
        for descriptor, _ in poll.poll():
            process = descriptors[descriptor]
            report = process.receive()
            self.end_worker(process, report.problem if isinstance(report, Failed) else None)

    def open(
        self,
        connection: int,
        facts: Mapping[str, Any],
        on_wait: Callable[[bool], None] | None = None,
    ) -> ProcessPartitions:
        """Return the partitions of a connection.

        Args:
            connection: its number.
            facts: what its log events name.
            on_wait: called with True while a partition cannot be reached, and then with False.
        """
        processes = [self._processes[each % len(self._processes)] for each in range(self._count)]
        return ProcessPartitions(self, processes, connection, facts, on_wait)

    def write_stacks(self) -> None:
        """Add the current stacks of all partitions to those of this process.

        The supervisor reads them when it finds that a handler hangs.
        """
        for process in self._processes:
            with contextlib.suppress(OSError):
                os.kill(process.pid, signal.SIGUSR1)
        time.sleep(_REMOTE_DUMP_PAUSE_S if self.nodes else _DUMP_PAUSE_S)
        self._copy_stacks()

    def _copy_stacks(self) -> None:
        for process in self._processes:
            os.write(self._dump, process.stacks())

    def end_worker(self, process: PartitionProcess, problem: str | None = None) -> NoReturn:
        """End this process as one of its partitions has ended, for a reason if that is known."""
        self._ending.acquire()  # Only one thread ends this process.
        try:
            status = process.wait()
            which = {} if self.nodes else {"partition": process.number}
            how = _ended(status)
            if self.nodes:
                how = problem or f"{_RAY_ENDED} ({how})"
            self._log.error(
                "partition died",
                **which,
                pid=process.pid,
                how=how,
                advice="its worker ends too, and another one takes the connections over",
            )
            self._copy_stacks()
            if status < 0:
                logs.flush()
                faulthandler.disable()
                os.kill(os.getpid(), -status)
        finally:
            logs.exit_at_once(1)

    def close(self) -> None:
        """End all partitions, at the end of this process."""
        self._ending.acquire()  # The end of a partition is expected from now on.
        for process in self._processes:
            process.wait()
            process.close()


def _not_loaded(report: Failed) -> PluginError:
    """Return the error for a handler that cannot be loaded elsewhere."""
    error = PluginError(report.problem)
    error.is_usage_error = report.is_usage_error
    return error


def _ended(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


class ProcessPartitions:
    """The partitions of one connection, in other processes; see `agent.partitions.Partitions`."""

    def __init__(
        self,
        pool: PartitionPool,
        processes: Sequence[PartitionProcess],
        connection: int,
        facts: Mapping[str, Any],
        on_wait: Callable[[bool], None] | None,
    ) -> None:
        """Connect to each process when it gets its first order; see `PartitionPool.open`."""
        self.count = len(processes)
        self._pool = pool
        self._processes = processes
        self._connection = connection
        self._facts = facts
        self._on_wait = on_wait
        self._links: dict[int, _Link] = {}
        self._by_descriptor: dict[int, _Link] = {}
        self._results: list[tuple[int, Result]] = []
        self._poll = select.poll()
        self._wakeup = Wakeup()
        self._poll.register(self._wakeup, select.POLLIN)

    def open(self, on_written: Callable[[bytes], None]) -> None:
        """Begin; see `Partitions.open`."""
        self._on_written = on_written

    def send(self, partition: int, order: Order) -> None:
        """Send an order as far as there is room; see `Partitions.send`."""
        link = self._links.get(partition)
        if link is None:
            link = self._links[partition] = self._connect(partition)
        body = ENCODER.encode(order)
        link.unsent.append(memoryview(encode_varint(len(body)) + body))
        link.awaited += 1
        self._flush(link)

    def take(self) -> list[tuple[int, Result]]:
        """Return results that have come; see `Partitions.take`."""
        self._wakeup.check()
        if not self._results:
            self._receive(0)
        taken, self._results = self._results, []
        return taken

    def frames_done(self, partition: int) -> int:
        """Return how many frames a partition has handled; see `Partitions.frames_done`."""
        return self._links[partition].frames_done

    def forget(self) -> None:
        """Discard the results of all orders that were sent; see `Partitions.forget`."""
        self._results.clear()
        for link in self._links.values():
            link.discarded = link.awaited

    def wait(self, *, input_descriptor: int | None = None, timeout_s: float | None = None) -> None:
        """Wait for results, input or `wake`; see `Partitions.wait`."""
        if self._results:
            return
        if input_descriptor is not None:
            self._poll.register(input_descriptor, select.POLLIN)
        try:
            self._receive(None if timeout_s is None else timeout_s * 1000)
        finally:
            if input_descriptor is not None:
                self._poll.unregister(input_descriptor)

    def wake(self) -> None:
        """End a wait. From any thread."""
        self._wakeup.wake()

    def abort(self) -> None:
        """Raise from now on; see `Partitions.abort`. From any thread."""
        self._wakeup.abort()

    def close(self) -> None:
        """Close the links, which ends the handlers."""
        for link in self._links.values():
            link.socket.close()
        self._links.clear()
        self._by_descriptor.clear()
        self._wakeup.close()

    # --- inside ---

    def _connect(self, partition: int) -> _Link:
        process = self._processes[partition]
        try:
            end = process.connect(self._connection, self._facts, partition=partition)
        except (BrokenPipeError, ConnectionResetError):
            self._pool.end_worker(process)
        link = _Link(partition, end)
        self._poll.register(link.socket, select.POLLIN)
        self._by_descriptor[link.socket.fileno()] = link
        return link

    def _flush(self, link: _Link) -> None:
        """Send what is queued, as far as there is room."""
        try:
            while link.unsent:
                sent = link.socket.send(link.unsent[0], socket.MSG_DONTWAIT)
                link.unsent[0] = link.unsent[0][sent:]
                if not link.unsent[0]:
                    link.unsent.popleft()
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            self._pool.end_worker(self._processes[link.partition])
        if link.is_blocked != bool(link.unsent):
            link.is_blocked = not link.is_blocked
            events = select.POLLIN | select.POLLOUT if link.is_blocked else select.POLLIN
            self._poll.modify(link.socket, events)

    def _receive(self, timeout_ms: float | None) -> None:
        """Receive and send what can be, after waiting for it."""
        for descriptor, events in self._poll.poll(timeout_ms):
            if descriptor == self._wakeup.fileno():
                self._wakeup.clear()
            elif (link := self._by_descriptor.get(descriptor)) is not None:
                if events & select.POLLOUT:
                    self._flush(link)
                if events & ~select.POLLOUT:
                    self._read(link)

    def _read(self, link: _Link) -> None:
        try:
            data = link.socket.recv(READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            self._pool.end_worker(self._processes[link.partition])
        for body in link.reader.feed(data):
            self._handle(link, REPLIES.decode(body))

    def _handle(self, link: _Link, reply: Reply) -> None:
        match reply:
            case Answer() as answer:
                link.frames_done = 0
                link.awaited -= 1
                if link.discarded:
                    link.discarded -= 1
                else:
                    self._results.append((link.partition, answer.result))
            case Progress() as progress:
                link.frames_done = progress.frames
            case Waits() as report:
                link.waits = report.waits
                if self._on_wait is not None:
                    self._on_wait(any(each.waits for each in self._links.values()))
            case Written() as written:
                self._on_written(written.frame)
            case Served() as served:
                process = self._processes[link.partition]
                process.threads[served.thread] = threading.get_ident()


class _Link:
    """The link to a partition for one connection.

    Attributes:
        partition: which.
        socket: this end.
        reader: splits replies.
        unsent: orders that wait for room.
        is_blocked: whether room for them is waited for.
        awaited: how many orders have no result yet.
        discarded: how many of the next results are discarded.
        frames_done: how many frames of its current order the partition has handled.
        waits: whether the partition cannot be reached at the moment.
    """

    __slots__ = (
        "awaited",
        "discarded",
        "frames_done",
        "is_blocked",
        "partition",
        "reader",
        "socket",
        "unsent",
        "waits",
    )

    def __init__(self, partition: int, link: socket.socket) -> None:
        self.partition = partition
        self.socket = link
        self.reader = FrameReader(frame_body, MAX_VARINT)
        self.unsent: collections.deque[memoryview] = collections.deque()
        self.is_blocked = self.waits = False
        self.awaited = self.discarded = self.frames_done = 0
