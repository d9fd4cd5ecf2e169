"""A log that holds nobody up: written by a thread of its own, and cut short rather than waited for.

Whoever reads stderr may stop reading: a terminal that is paused, a pipe that is full. The
supervisor must send heartbeats all the same, and a worker answer.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import queue
import select
import threading
import time
from typing import Any, Final

#: A reader that is this far behind has stopped reading. An event is about 300 bytes.
_MOST_EVENTS: Final = 10_000
#: How long the end of the process waits for the rest to be written.
_PATIENCE_S: Final = 2.0


class LogWriter(logging.handlers.QueueHandler):
    """Takes the place of a handler, which it feeds from a thread.

    Attributes:
        lost: how many events found no room.
    """

    def __init__(self, output: logging.StreamHandler[Any]) -> None:
        """Feed `output`, with what its formatter makes of each record."""
        self._events: queue.Queue[logging.LogRecord] = queue.Queue(_MOST_EVENTS)
        super().__init__(self._events)
        self.setFormatter(output.formatter)
        output.setFormatter(None)  # What it gets is formatted.
        self._output = output
        self.lost = 0
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def enqueue(self, record: logging.LogRecord) -> None:
        """Take an event, or drop it where there is no room."""
        try:
            self._events.put_nowait(record)
        except queue.Full:
            self.lost += 1

    def _write_now(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(Exception):
            self._output.handle(record)

    def close(self) -> None:
        """Wait a moment until everything is written."""
        deadline = time.monotonic() + _PATIENCE_S
        with self._events.all_tasks_done:
            while self._events.unfinished_tasks and (left := deadline - time.monotonic()) > 0:
                self._events.all_tasks_done.wait(left)
        super().close()

    def _write(self) -> None:
        while True:
            record = self._events.get()
            self._write_now(record)
            if self.lost and self._events.empty():
                lost, self.lost = self.lost, 0
                logging.getLogger("kapudf").error(
                    "log events lost, nobody read them", extra={"lost": lost}
                )
            self._events.task_done()


class PromptLogWriter(LogWriter):
    """The same for a process that may die at any moment, and whose last words matter.

    What the reader has room for is written at once; only what it has not is left to the
    thread.
    """

    def __init__(self, output: logging.StreamHandler[Any]) -> None:
        """Feed `output`, as a `LogWriter` does."""
        super().__init__(output)
        self._room = select.poll()
        self._room.register(output.stream, select.POLLOUT)

    def enqueue(self, record: logging.LogRecord) -> None:
        """Write an event, or leave it to the thread where that could take time."""
        if self._events.unfinished_tasks or not self._has_room(record):
            super().enqueue(record)
        else:
            self._write_now(record)

    def _has_room(self, record: logging.LogRecord) -> bool:
        # A pipe that can be written to at all takes so much without a wait: pipe(7).
        size = len(record.getMessage().encode("utf-8", "backslashreplace")) + 1
        return size <= select.PIPE_BUF and bool(self._room.poll(0))


def install(writer: type[LogWriter]) -> None:
    """Have the root logger's handlers fed by writers of a kind from now on."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, logging.StreamHandler):
            root.removeHandler(handler)
            root.addHandler(writer(handler))
