"""Standard output as a stream of lines, in UTF-8 whatever the locale, that may be cut short."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

from kapudf_cli.errors import OutputError

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
            OutputError: it cannot be written, to a full disk say.
        """
        self.emit_part(f"{line}\n")
        if self.live:
            self.flush()

    def emit_part(self, text: str) -> None:
        """Write a part of a line; raises as `emit` does."""
        # A lone surrogate cannot come out of protobuf, but may out of a name on the command line.
        with _told():
            self._file.write(text.encode("utf-8", "backslashreplace"))

    def flush(self) -> None:
        """Hand on what was written; raises as `emit` does."""
        with _told():
            self._file.flush()


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"stdout cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def own_stdout() -> Iterator[Stdout]:
    """Give stdout to results alone; until the end, a handler's `print` goes to stderr.

    Raises:
        BrokenPipeError: nobody reads any more; what was still to be written is dropped.
        OutputError: it cannot be written.
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
        out = Stdout(file)
        yield out
        out.flush()
    finally:
        with contextlib.suppress(OSError):
            # What could not be written has been told, and goes with the file.
            file.close()
        sys.stdout.flush()
        os.dup2(descriptor, sys.stdout.fileno())
        os.close(descriptor)
