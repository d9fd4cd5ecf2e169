"""How other threads make a reader look up from its waiting."""

from __future__ import annotations

import os
import threading
from typing import NoReturn

from kapudf_cli.transport.stream import ReadPaused


class Waker:
    """A pipe that wakes a reader, and why it was woken.

    A pipe wakes the poll that waits for input. Shutting a socket down for reading would
    wake the reader too, but would also give the peer a broken pipe at its next write;
    Kapacitor then drops the answers that are still to come.

    Attributes:
        interrupted: whether `interrupt` was called, which stays so.
        paused: whether `pause` was called, and the reader has not looked up yet.
    """

    def __init__(self, pipe: tuple[int, int] | None = None) -> None:
        """Take over a pipe, as os.pipe() returns it, or make one."""
        self._readable, self._writable = pipe or os.pipe()
        self.interrupted = False
        self.paused = False
        # Guards the descriptors above against use after close: their numbers may
        # belong to somebody else by then.
        self._open = True
        self._lifetime = threading.Lock()

    def fileno(self) -> int:
        """Return the descriptor that is readable once the reader is to look up."""
        return self._readable

    def interrupt(self) -> None:
        """Wake the reader for good. From any thread."""
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
        """Let the reader, who calls this, look up; its next wait goes on.

        Raises:
            ReadPaused: always.
        """
        with self._lifetime:
            self.paused = False
            if self._open:
                os.read(self._readable, 1)
        raise ReadPaused

    def close(self) -> None:
        """Close the pipe; from then on nothing is woken, and a second call does nothing."""
        with self._lifetime:
            if self._open:
                self._open = False
                os.close(self._readable)
                os.close(self._writable)
