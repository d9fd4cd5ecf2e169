"""Lines with their numbers, bounded, with a way back for those that were read in vain."""

from __future__ import annotations

import collections
import gzip
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Final, TypeAlias

from kapudf_cli.errors import RecordingError

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Called with an ill-formed line; it raises, or returns for the line to be passed over.
Refuse: TypeAlias = Callable[[RecordingError], None]

#: InfluxDB takes no string above 64 KB, and a point of many fields has a few of those at most.
MAX_POINT_BYTES: Final = 1024 * 1024
#: A batch is one line, and has to be in memory as a whole, where it takes some ten times as
#: much. Kapacitor sets no limit; this is 200,000 points of two tags and ten fields.
MAX_BATCH_BYTES: Final = 64 * 1024 * 1024

_SKIP_BYTES = 64 * 1024


@dataclass(frozen=True)
class Line:
    """A line as it stands in the file.

    Attributes:
        number: from 1.
        text: the line without its line feed, for a carriage return may be of a string;
            empty if it could not be read.
        problem: why it could not be read.
    """

    number: int
    text: str
    problem: str | None = None


class LineReader:
    """Reads a file of text line by line.

    Attributes:
        name: what the file is called in messages.
        max_line_bytes: the longest line that is kept; may be changed at any time.
    """

    def __init__(self, file: IO[bytes], name: str, *, max_line_bytes: int) -> None:
        """Read from where the file stands."""
        self.name = name
        self.max_line_bytes = max_line_bytes
        self._file = file
        self._number = 0
        self._unread: collections.deque[Line] = collections.deque()

    def read(self) -> Line | None:
        """Return the next line, None at the end.

        Raises:
            RecordingError: the file cannot be read on.
        """
        if self._unread:
            return self._unread.popleft()
        data = self._readline(self.max_line_bytes + 1)
        if not data:
            return None
        self._number += 1
        if len(data) > self.max_line_bytes and not data.endswith(b"\n"):
            while data and not data.endswith(b"\n"):
                data = self._readline(_SKIP_BYTES)
            return Line(self._number, "", f"a line of more than {self.max_line_bytes} bytes")
        try:
            text = data.removesuffix(b"\n").decode()
        except UnicodeDecodeError as error:
            return Line(self._number, "", f"this is not UTF-8: {error.reason}")
        return Line(self._number, text)

    def unread(self, lines: Iterable[Line]) -> None:
        """Let lines be read again, the first of them first."""
        self._unread.extendleft(reversed(list(lines)))

    def fault(self, line: Line, reason: str) -> RecordingError:
        """Return the error for an ill-formed line."""
        return RecordingError(f"{self.name}: line {line.number}", reason)

    def _readline(self, limit: int) -> bytes:
        try:
            return self._file.readline(limit)
        except (EOFError, gzip.BadGzipFile, zipfile.BadZipFile, zlib.error) as error:
            reason = f"the compressed data are damaged or cut off {self._place()}"
            raise RecordingError(self.name, f"{reason}: {error}") from error
        except OSError as error:
            reason = f"cannot be read on {self._place()}: {error.strerror or error}"
            raise RecordingError(self.name, reason) from error

    def _place(self) -> str:
        # A file is read ahead, so the damage may be further on.
        if not self._number:
            return "before any line could be read"
        return f"somewhere after line {self._number}"
