"""Log output that never blocks its caller.

The reader of stderr may stop: a paused terminal, a full pipe. The supervisor must still send
heartbeats, handlers must process points, and every process must exit when told to. So a line is
written at once if there is room. Otherwise it goes into a bounded queue, which a thread writes.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import logging
import os
import select
import socket
import stat
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

#: The limits of the queue. A line has about 300 bytes: a reader this far behind has stopped.
_MAX_LINES: Final = 10_000
_MAX_BYTES: Final = 16 * 1024 * 1024
#: How long a process waits at its end until the queue is written.
_END_TIMEOUT_S: Final = 1.0
#: How long `write` waits for the thread, if only the thread writes.
_THREAD_WRITE_S: Final = 0.05
#: The lowest descriptor that is not a standard stream.
_LOWEST_DESCRIPTOR: Final = 3


class LogWriter:
    """Writes lines to a private duplicate of a descriptor.

    Attributes:
        lost: how many lines were dropped since the last call of `on_lost`.
        descriptor: the duplicate. A write to it can block only if `waits` is true.
        waits: True if the descriptor has no non-blocking write; then only the thread writes.
    """

    def __init__(self, descriptor: int, on_lost: Callable[[int], None]) -> None:
        """Write to `descriptor`.

        Args:
            descriptor: the descriptor to duplicate.
            on_lost: called with the number of dropped lines when there is room again.
        """
        self._on_lost = on_lost
        self._socket: socket.socket | None = None
        self.descriptor, self.waits = self._duplicate(descriptor)
        self._queue: collections.deque[bytes] = collections.deque()
        self._queued_bytes = 0
        self.lost = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        os.register_at_fork(after_in_child=self._begin_in_child)

    def write(self, line: str) -> None:
        """Write a line, queue it, or drop it if the queue is full; never wait for a reader."""
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        with self._changed:
            was_empty = not self._queue
            if was_empty and not self.waits:
                data = self._write_some(data)
                if not data:
                    return
            elif len(self._queue) >= _MAX_LINES or self._queued_bytes >= _MAX_BYTES:
                self.lost += 1
                return
            self._queue.append(data)
            self._queued_bytes += len(data)
            self._wake_thread()
            if was_empty and self.waits:
                # A crash may end the process right after this call.
                self._changed.wait_for(lambda: not self._queue, _THREAD_WRITE_S)

    def finish(self) -> None:
        """Wait until the queue is written, for a limited time."""
        with self._changed:
            self._changed.wait_for(lambda: not self._queue, _END_TIMEOUT_S)

    def _duplicate(self, descriptor: int) -> tuple[int, bool]:
        """Return a duplicate, and whether a write to it can block.

        O_NONBLOCK belongs to the open file, which other processes such as the shell share. So a
        pipe or a terminal is opened a second time.
        """
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISSOCK(mode)):
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            with contextlib.suppress(OSError):
                opened = os.open(f"/proc/self/fd/{descriptor}", flags)
                if opened >= _LOWEST_DESCRIPTOR:
                    return opened, False
                os.close(opened)
        duplicate = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _LOWEST_DESCRIPTOR)
        if stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=duplicate)
        return duplicate, not (stat.S_ISREG(mode) or stat.S_ISSOCK(mode))

    def _write_some(self, data: bytes) -> bytes:
        """Write as much as possible and return the rest; b"" after an error."""
        try:
            if self._socket is not None:
                return data[self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) :]
            return data[os.write(self.descriptor, data) :]
        except BlockingIOError:
            return data
        except OSError:
            return b""  # The reader has closed the pipe, or the disk is full.

    def _wake_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_queue, name=THREAD_NAME, daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _write_queue(self) -> None:
        """Write the queue for as long as the process lives."""
        room = select.poll()
        room.register(self.descriptor, select.POLLOUT)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._queue))
                data = self._queue[0]
            # Only this thread removes lines, and only it writes while lines are queued.
            room.poll()
            rest = self._write_some(data)
            lost = 0
            with self._changed:
                self._queued_bytes -= len(data) - len(rest)
                if rest:
                    self._queue[0] = rest
                else:
                    self._queue.popleft()
                if not self._queue:
                    lost, self.lost = self.lost, 0
                    self._changed.notify_all()
            if lost:
                self._on_lost(lost)

    def _begin_in_child(self) -> None:
        """Start with an empty queue after a fork: the parent writes the queued lines."""
        self._changed = threading.Condition()
        self._queue = collections.deque()
        self._queued_bytes = self.lost = 0
        self._thread = None


#: The name of the writer's thread, which distinguishes it from threads of handlers.
THREAD_NAME: Final = "kapudf-log"


class LineHandler(logging.Handler):
    """A `logging` handler that passes formatted records to a `LogWriter`."""

    def __init__(self, writer: LogWriter, formatter: logging.Formatter) -> None:
        """Format records with `formatter` and write them with `writer`."""
        super().__init__()
        self._writer = writer
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        try:
            self._writer.write(self.format(record))
        except Exception:  # noqa: BLE001 - no event may end a connection
            self.handleError(record)
