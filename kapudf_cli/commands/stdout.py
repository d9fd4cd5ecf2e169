"""Standard output as a stream of lines, in UTF-8 whatever the locale, that may be cut short."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO


class Stdout:
    """Where results go.

    Attributes:
        live: whether each line is handed on at once, for whoever watches them come.
    """

    def __init__(self, file: IO[bytes]) -> None:
        """Write to a file."""
        self.live = False
        self._file = file

    def emit(self, line: str) -> None:
        """Write a line.

        Raises:
            BrokenPipeError: nobody reads any more.
        """
        # A lone surrogate cannot come out of protobuf, but may out of a name on the command line.
        self._file.write(line.encode("utf-8", "backslashreplace") + b"\n")
        if self.live:
            self._file.flush()

    def emit_part(self, text: str) -> None:
        """Write a part of a line; raises as `emit` does."""
        self._file.write(text.encode("utf-8", "backslashreplace"))

    def flush(self) -> None:
        """Hand on what was written; raises as `emit` does."""
        self._file.flush()


@contextlib.contextmanager
def own_stdout() -> Iterator[Stdout]:
    """Give stdout to results alone; until the end, a handler's `print` goes to stderr.

    Raises:
        BrokenPipeError: nobody reads any more; what was still to be written is dropped.
    """
    sys.stdout.flush()
    # Where stdout is no file, as in a test, there is nothing to move.
    try:
        descriptor = os.dup(sys.stdout.fileno())
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    except OSError:
        yield Stdout(sys.stdout.buffer)
        return
    file = os.fdopen(os.dup(descriptor), "wb")
    try:
        yield Stdout(file)
        file.flush()
    finally:
        with contextlib.suppress(BrokenPipeError):
            # What a broken pipe has not taken goes with the file.
            file.close()
        sys.stdout.flush()
        os.dup2(descriptor, sys.stdout.fileno())
        os.close(descriptor)
