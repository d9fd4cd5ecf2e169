"""Read a text file line by line, within limits, and count lines and records."""

from __future__ import annotations

import codecs
import collections
import gzip
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Final, TypeAlias

from kapudf_cli.tools.errors import RecordingError

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Called with the error for an ill-formed record; it raises, or returns to skip the record.
Refuse: TypeAlias = Callable[[RecordingError], None]

#: InfluxDB refuses strings over 64 KB, and a point has a few such strings at most.
MAX_POINT_BYTES: Final = 1024 * 1024
#: A batch is one line. The whole batch is in memory, where it takes about ten times as much.
#: Kapacitor has no limit; this is enough for 200,000 points with two tags and ten fields.
MAX_BATCH_BYTES: Final = 64 * 1024 * 1024
#: How much to read in search of the next record. This limits the time for a compressed file of
#: a few megabytes that has no records.
MAX_GAP_BYTES: Final = 128 * 1024 * 1024

_SKIP_BYTES: Final = 64 * 1024
#: What each line adds to the gap, besides its length.
_LINE_COST: Final = 256
#: How much of a line that is too long is kept, to detect comments.
_KEPT_BYTES: Final = 100


@dataclass(frozen=True)
class Line:
    """A line of the file.

    Attributes:
        number: the first line is 1.
        text: the line without its line feed. A carriage return is kept, as it may be part of
            a string. Bytes that are not UTF-8 are surrogates. Of a line that is too long, only
            the beginning is kept.
        problem: why the line cannot be part of a record; None if it can.
    """

    number: int
    text: str
    problem: str | None = None

    @property
    def is_blank(self) -> bool:
        """Whether it has only white space."""
        return not self.text.strip(" \t\0\r")


@dataclass
class Tally:
    """Counts of records and lines. Each line read is in one of the last three counts.

    Attributes:
        records: points or batches, without empty batches.
        empty_batches: batches without points.
        in_records: lines of records.
        passed_over: blank lines, comments and headers.
        refused: lines that were reported as errors.
    """

    records: int = 0
    empty_batches: int = 0
    in_records: int = 0
    passed_over: int = 0
    refused: int = 0


class LineReader:
    """Reads lines and counts them.

    Every line that is read must be passed to `accept`, `pass_over`, `refuse` or `unread`.

    Attributes:
        name: the name of the file in messages.
        tally: the counts of the lines read so far.
        max_line_bytes: the maximum length of a line.
        max_json_bytes: the maximum length of a line that begins with `{`.
    """

    def __init__(
        self,
        file: IO[bytes],
        name: str,
        *,
        refuse: Refuse,
        tally: Tally | None = None,
        max_json_bytes: int | None = None,
    ) -> None:
        """Read a file from its beginning.

        Args:
            file: a buffered file, at its beginning.
            name: the name of the file in messages.
            refuse: called with the error for each ill-formed record.
            tally: shared by the members of a zip.
            max_json_bytes: the initial value; MAX_BATCH_BYTES if None.
        """
        self.name = name
        self.tally = Tally() if tally is None else tally
        self.max_line_bytes = MAX_POINT_BYTES
        self.max_json_bytes = MAX_BATCH_BYTES if max_json_bytes is None else max_json_bytes
        self._file = file
        self._refuse = refuse
        self._number = 0
        self._unread: collections.deque[Line] = collections.deque()
        self._in_long_line = False
        self._gap_bytes = 0

    def read(self) -> Line | None:
        """Return the next line, None at the end.

        Raises:
            RecordingError: reading fails, or there was no record for too long.
        """
        if self._unread:
            return self._unread.popleft()
        self._skip_rest()
        data = self._read_line()
        if not data:
            return None
        self._number += 1
        if self._number == 1:
            if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise RecordingError(self.name, "this is UTF-16; convert it to UTF-8")
            data = data.removeprefix(codecs.BOM_UTF8)
        if self._in_long_line:
            limit = self._limit(data)
            text = data[:_KEPT_BYTES].decode(errors="surrogateescape")
            return Line(self._number, text, f"a line of more than {limit} bytes")
        data = data.removesuffix(b"\n")
        try:
            return Line(self._number, data.decode())
        except UnicodeDecodeError as error:
            text = data.decode(errors="surrogateescape")
            problem = f"byte {error.start + 1} of the line is not UTF-8"
            return Line(self._number, text, problem)

    def unread(self, lines: Iterable[Line]) -> None:
        """Put lines back, so that `read` returns them again in this order."""
        self._unread.extendleft(reversed(list(lines)))

    def accept(self, lines: int = 1) -> None:
        """Count a record with this number of lines."""
        self.tally.records += 1
        self.tally.in_records += lines
        self._gap_bytes = 0

    def accept_empty_batch(self) -> None:
        """Count a batch without points."""
        self.tally.empty_batches += 1
        self.tally.in_records += 1
        self._gap_bytes = 0

    def pass_over(self, lines: int = 1) -> None:
        """Count blank lines, comments or headers."""
        self.tally.passed_over += lines

    def refuse(self, line: Line, reason: str, *, lines: int = 1) -> None:
        """Count and report an ill-formed record with this number of lines."""
        self.tally.refused += lines
        self._refuse(RecordingError(f"{self.name}: line {line.number}", reason))

    def _limit(self, data: bytes) -> int:
        is_json = data[:_KEPT_BYTES].lstrip().startswith(b"{")
        return self.max_json_bytes if is_json else self.max_line_bytes

    def _read_line(self) -> bytes:
        """Return a line, or the beginning of a line that is longer than the limit."""
        data = self._read_piece(self.max_line_bytes + 1)
        if len(data) > self.max_line_bytes and not data.endswith(b"\n"):
            limit = self._limit(data.removeprefix(codecs.BOM_UTF8))
            if limit > self.max_line_bytes:
                data += self._read_piece(limit + 1 - len(data))
            self._in_long_line = len(data) > limit and not data.endswith(b"\n")
        return data

    def _skip_rest(self) -> None:
        """Skip the rest of a line that was too long."""
        while self._in_long_line:
            data = self._read_piece(_SKIP_BYTES)
            self._in_long_line = bool(data) and not data.endswith(b"\n")

    def _read_piece(self, limit: int) -> bytes:
        """Return the next line, or its beginning.

        Raises:
            RecordingError: reading fails, or there was no record for too long.
        """
        if self._gap_bytes > MAX_GAP_BYTES:
            reason = (
                f"nothing in {MAX_GAP_BYTES >> 20} MiB {self._place()} is a point or a batch; "
                "is this a recording?"
            )
            raise RecordingError(self.name, reason)
        try:
            data = self._file.readline(limit)
        except (EOFError, gzip.BadGzipFile, zipfile.BadZipFile, zlib.error) as error:
            reason = f"the compressed data are damaged or cut off {self._place()}"
            raise RecordingError(self.name, f"{reason}: {error}") from error
        except OSError as error:
            reason = f"cannot be read {self._place()}: {error.strerror or error}"
            raise RecordingError(self.name, reason) from error
        self._gap_bytes += len(data) + _LINE_COST
        return data

    def _place(self) -> str:
        # Files are read ahead, so the damage may be in a later line.
        if not self._number:
            return "before any line could be read"
        return f"somewhere after line {self._number}"
