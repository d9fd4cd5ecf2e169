"""The channel between the supervisor and a worker: all messages, in both directions.

A message is one datagram on a pair of Unix sockets: JSON, and descriptors beside it.
Either side notices the other's death by the end of its input.

    supervisor → worker                          worker → supervisor
    Start (first message)                        Ready or Failed
    Fork (to a template)                         Forked (from the new worker), and then Ready
    Serve                                        with `resume`: TakenOver or Refused
    Pause                                        Paused, unless the connection ends before
    Resume, Release (after Paused or TakenOver)
    Stop, Abort
                                                 Finished (each connection once)
                                                 Outdated
    Identify (from another supervisor)           Identity

    worker → partition                           partition → worker
    Start (first message)                        Ready or Failed
    ServePartition

    worker → Ray engine                          Ray engine → worker
    Start (first message)                        Unreachable, perhaps
    LoadRemotely                                 Placed or Failed
    ServePartition                               Failed, if a partition is lost
"""

from __future__ import annotations

import array
import datetime as dt
import os
import select
import socket
import struct
import threading
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from kapudf_cli.agent.checkpoints import ResumePlan  # noqa: TC001 - msgspec reads the annotations
from kapudf_cli.config import FunctionSettings  # noqa: TC001 - msgspec reads the annotations
from kapudf_cli.system.logs import LogFormat, LogLevel  # noqa: TC001 - likewise

if TYPE_CHECKING:
    from collections.abc import Sequence

#: More than any message has; a longer datagram would be cut, and not be valid JSON.
_LARGEST_BYTES: Final = 128 * 1024
_INT_BYTES: Final = array.array("i").itemsize
#: Room for the descriptors of `Fork`, which has the most.
_DESCRIPTORS_BYTES: Final = socket.CMSG_LEN(3 * _INT_BYTES)
#: Longer texts, such as errors, are cut before they are sent.
TEXT_CHARACTERS: Final = 16_000
#: The beginning of a `WorkerRecord`, and the number of a connection in it.
_PROCESS: Final = struct.Struct("@2q")
_NUMBER: Final = struct.Struct("@q")
#: The memory and the processor time of a partition on another machine, in bytes and nanoseconds.
_USAGE: Final = struct.Struct("@2q")
#: How many finished connections a `WorkerRecord` has: more than can wait to be reported.
_FINISHES: Final = 16 * 1024


class _Message(msgspec.Struct, frozen=True, tag=True):
    """A message; its class name is its tag."""


# --- from the supervisor --------------------------------------------------------


class Start(_Message, frozen=True, tag=True):
    """Load the handler; the first message that a worker gets, unless a template has forked it.

    Attributes:
        folder: the path of the working folder; a symbolic link may point to another one by now.
        is_template: whether it is to fork workers, and serves nothing itself.
        partition: which partition of a worker it is to be, None for a worker.
    """

    name: str
    worker: int
    settings: FunctionSettings
    log_format: LogFormat
    log_level: LogLevel
    folder: str = "."
    is_template: bool = False
    partition: int | None = None


class Fork(_Message, frozen=True, tag=True):
    """Fork a worker, from a template that has loaded the handler.

    With it come the worker's end of a channel, and the memory files for its stacks and for its
    `WorkerRecord`.
    """

    name: str
    worker: int


class Serve(_Message, frozen=True, tag=True):
    """Serve a connection; its socket and its journal come with the message.

    Attributes:
        connection: its number.
        age_s: its age in seconds.
        resume: how to take it over, None if no worker has served it. The answer is then
            TakenOver or Refused. Where `resume.waits` is set, the worker waits for Resume.
    """

    connection: int
    peer_pid: int | None
    peer_uid: int | None
    age_s: float
    resume: ResumePlan | None = None


class Resume(_Message, frozen=True, tag=True):
    """Go on with a connection after Paused, or after TakenOver with `resume.waits`."""

    connection: int


class Pause(_Message, frozen=True, tag=True):
    """Pause a connection at the next frame boundary, and answer Paused."""

    connection: int


class Release(_Message, frozen=True, tag=True):
    """Forget a paused connection, because another worker serves it."""

    connection: int


class Stop(_Message, frozen=True, tag=True):
    """Let every connection process what was received, end it, and then exit."""


class Abort(_Message, frozen=True, tag=True):
    """Abort every connection that is left after Stop, because the grace period is over."""


class Identify(_Message, frozen=True, tag=True):
    """Answer Identity: another supervisor has started, and goes on with this worker."""


# --- from a worker to its partitions --------------------------------------------


class ServePartition(_Message, frozen=True, tag=True):
    """Serve a connection; the link for its orders and results comes with the message.

    Attributes:
        connection: its number.
        facts: what its log events name.
        partition: which partition is to serve it, for a process that leads to several.
    """

    connection: int
    facts: dict[str, Any]
    partition: int = 0


class LoadRemotely(_Message, frozen=True, tag=True):
    """Load the handler on a cluster; a memory file with its `ShippedCode` comes with the message.

    The file is as long as the code, which a message may not be.
    """


# --- from a worker --------------------------------------------------------------


class Code(msgspec.Struct, frozen=True):
    """The file that a handler was loaded from.

    Attributes:
        path: with symbolic links resolved.
        modified_s: when it was saved, in seconds since 1970.
        sha256: the beginning of the hash of its content, in hexadecimal digits.
    """

    path: str
    modified_s: float
    sha256: str

    @property
    def saved(self) -> str:
        """When it was saved, in local time."""
        return f"{dt.datetime.fromtimestamp(self.modified_s).astimezone():%Y-%m-%d %H:%M:%S}"

    def __str__(self) -> str:
        """Return the text for the log."""
        return f"{self.path}, saved {self.saved}, sha256 {self.sha256}"


class Forked(_Message, frozen=True, tag=True):
    """A worker was forked; its first message."""

    pid: int


class Ready(_Message, frozen=True, tag=True):
    """The handler is loaded.

    Attributes:
        handler: its class.
        code: the file that it was loaded from.
        files: that file, and those of the modules of the same package or folder.
        partitions: the process ids of the worker's partitions.
        nodes: the node of a cluster on which each of them is; empty for processes of this machine.
        ray: the process that leads to them, 0 without a cluster.
    """

    handler: str
    code: Code
    files: tuple[str, ...] = ()
    partitions: tuple[int, ...] = ()
    nodes: tuple[str, ...] = ()
    ray: int = 0


class Failed(_Message, frozen=True, tag=True):
    """The handler cannot be loaded, or a partition on a cluster is lost.

    Attributes:
        is_usage_error: whether the name of the handler is wrong, so that a retry cannot help.
    """

    problem: str
    is_usage_error: bool


class Placed(_Message, frozen=True, tag=True):
    """Each partition has loaded the handler on a node of a cluster.

    Attributes:
        pids: their process ids there.
        nodes: these nodes.
    """

    pids: tuple[int, ...]
    nodes: tuple[str, ...]


class Unreachable(_Message, frozen=True, tag=True):
    """No cluster has taken the partitions for a while; it goes on trying."""

    problem: str


class Outdated(_Message, frozen=True, tag=True):
    """Another worker could do better; this one serves until it is replaced."""

    reason: str


class Paused(_Message, frozen=True, tag=True):
    """A connection is paused at a frame boundary; nothing is read or written."""

    connection: int


class TakenOver(_Message, frozen=True, tag=True):
    """A new handler has the state of the last one."""

    connection: int


class Refused(_Message, frozen=True, tag=True):
    """A connection cannot be served or taken over; the worker keeps nothing of it.

    Attributes:
        retry: whether only descriptors, memory or threads are short.
    """

    connection: int
    problem: str
    retry: bool = False


class Finished(_Message, frozen=True, tag=True):
    """A connection has ended and was logged."""

    connection: int


class Identity(_Message, frozen=True, tag=True):
    """What a worker has loaded and serves; all orders before Identify have been carried out.

    Attributes:
        function: the name of the function when the worker started.
        settings: of the function, as the worker got them.
        loaded: the handler.
        serving: the connections that it serves.
        paused: those that it has paused, each with the identity of its thread.
        waiting: those that it is to take over from a worker that has paused.
    """

    function: str
    settings: FunctionSettings
    loaded: Ready
    serving: tuple[int, ...]
    paused: tuple[tuple[int, int], ...]
    waiting: tuple[int, ...]


Order: TypeAlias = (
    Start
    | Fork
    | Serve
    | Resume
    | Pause
    | Release
    | Stop
    | Abort
    | Identify
    | ServePartition
    | LoadRemotely
)
Report: TypeAlias = (
    Ready
    | Failed
    | Placed
    | Unreachable
    | Outdated
    | Paused
    | TakenOver
    | Refused
    | Finished
    | Identity
)

_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(Order | Report | Forked)


class Channel:
    """One end of a channel between the supervisor and a worker.

    Attributes:
        socket: this end; messages keep their boundaries.
    """

    def __init__(self, end: socket.socket) -> None:
        """Take over one end of a pair of SOCK_SEQPACKET sockets."""
        self.socket = end

    @classmethod
    def pair(cls) -> tuple[Channel, socket.socket]:
        """Return the supervisor's end, and the socket of the worker's."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # A worker that does not read must not block the supervisor.
        ours.settimeout(0)
        return cls(ours), theirs

    def fileno(self) -> int:
        """Return the descriptor that is readable when a message waits."""
        return self.socket.fileno()

    @property
    def has_room(self) -> bool:
        """Whether a message can be sent at once.

        Linux says so until a quarter of the socket's buffer holds messages that the other side
        has not read: about fifty.
        """
        poll = select.poll()
        poll.register(self.socket, select.POLLOUT)
        return bool(poll.poll(0))

    def send(self, message: Order | Report | Forked, descriptors: Sequence[int] = ()) -> None:
        """Send a message, and duplicates of descriptors.

        Raises:
            BlockingIOError: of the supervisor's end: the other side has not read enough of what
                was sent before.
            OSError: the other side is gone, or the system refuses more descriptors on their way.
        """
        socket.send_fds(self.socket, [_ENCODER.encode(message)], list(descriptors))

    def receive(self) -> tuple[Any, list[int]] | None:
        """Receive a message and its descriptors; None once the other side is closed."""
        try:
            # Not recv_fds(): up to Python 3.11 it drops the flag, so that child processes of a
            # handler would keep the connection open.
            data, ancillary, _, _ = self.socket.recvmsg(
                _LARGEST_BYTES, _DESCRIPTORS_BYTES, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            return None
        if not data:
            return None
        descriptors = array.array("i")
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(content[: len(content) // _INT_BYTES * _INT_BYTES])
        return _DECODER.decode(data), descriptors.tolist()

    def close(self) -> None:
        """Close this end."""
        self.socket.close()


class WorkerRecord:
    """What is known of a worker when it has died, or when another supervisor has started.

    It is in memory that the supervisor shares with the worker: which process the worker is,
    which connections it has logged as finished last, and what its partitions use on other machines.
    So no connection is logged as finished twice.
    """

    def __init__(self, descriptor: int) -> None:
        """Keep the record in a memory file."""
        self._descriptor = descriptor
        self._count = 0
        self._lock = threading.Lock()

    @property
    def process(self) -> tuple[int, int]:
        """Its process id, and when that process was started; see `processes.start_ticks`."""
        data = os.pread(self._descriptor, _PROCESS.size, 0)
        pid, started = _PROCESS.unpack(data.ljust(_PROCESS.size, b"\0"))
        return pid, started

    @process.setter
    def process(self, process: tuple[int, int]) -> None:
        os.pwrite(self._descriptor, _PROCESS.pack(*process), 0)

    def add_finished(self, connection: int) -> None:
        """Add a connection, right after its finish was logged."""
        with self._lock:
            offset = _PROCESS.size + self._count % _FINISHES * _NUMBER.size
            os.pwrite(self._descriptor, _NUMBER.pack(connection), offset)
            self._count += 1

    def finished(self) -> set[int]:
        """Return the connections that it has logged as finished last."""
        data = os.pread(self._descriptor, _FINISHES * _NUMBER.size, _PROCESS.size)
        whole = len(data) // _NUMBER.size * _NUMBER.size
        # Numbers begin at 1; 0 is room that was not used.
        return {number for (number,) in _NUMBER.iter_unpack(data[:whole]) if number}

    def usage(self, partition: int) -> tuple[int, int]:
        """Return the memory of a partition on another machine in bytes, and its CPU time in ns."""
        data = os.pread(self._descriptor, _USAGE.size, self._usage_offset(partition))
        rss_bytes, cpu_ns = _USAGE.unpack(data.ljust(_USAGE.size, b"\0"))
        return rss_bytes, cpu_ns

    def set_usage(self, partition: int, rss_bytes: int, cpu_ns: int) -> None:
        """Keep what `usage` returns."""
        usage = _USAGE.pack(rss_bytes, cpu_ns)
        os.pwrite(self._descriptor, usage, self._usage_offset(partition))

    @staticmethod
    def _usage_offset(partition: int) -> int:
        return _PROCESS.size + _FINISHES * _NUMBER.size + partition * _USAGE.size
