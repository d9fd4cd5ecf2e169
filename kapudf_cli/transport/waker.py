"""Wakes a reader that waits for input."""

from __future__ import annotations

import os
import threading
from typing import NoReturn

from kapudf_cli.transport.stream import ReadPaused


class Waker:
    """A pipe that wakes a reader, with the reason.

    The reader polls the pipe together with its input. To shut a socket down for reading
    would wake the reader too, but then Kapacitor's next write fails with a broken pipe, and
    Kapacitor drops the answers that it has not read.

    Attributes:
        interrupted: whether `interrupt` was called.
        paused: whether `pause` was called and the reader has not noticed yet.
    """

    def __init__(self, pipe: tuple[int, int] | None = None) -> None:
        """Take over a pipe, as os.pipe() returns it, or create one."""
        self._readable, self._writable = pipe or os.pipe()
        self.interrupted = False
        self.paused = False
        # Guards the descriptors against use after close, when their numbers may have been
        # reused.
        self._open = True
        self._lifetime = threading.Lock()

    def fileno(self) -> int:
        """Return the descriptor that is readable once the reader is to wake."""
        return self._readable

    def interrupt(self) -> None:
        """Wake the reader, now and in all later waits. From any thread."""
        with self._lifetime:
            if self._open and not self.interrupted:
                self.interrupted = True
                os.write(self._writable, b"\0")

    def pause(self) -> None:
        """Wake the reader once. From any thread."""
        with self._lifetime:
            if self._open and not self.paused:
                self.paused = True
                os.write(self._writable, b"\0")

    def end_pause(self) -> NoReturn:
        """End the pause. Called by the reader when it has noticed it.

        Raises:
            ReadPaused: always.
        """
        with self._lifetime:
            self.paused = False
            if self._open:
                os.read(self._readable, 1)
        raise ReadPaused

    def close(self) -> None:
        """Close the pipe; later calls have no effect."""
        with self._lifetime:
            if self._open:
                self._open = False
                os.close(self._readable)
                os.close(self._writable)
