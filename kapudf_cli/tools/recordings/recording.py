"""Open a recording, detect its format, and read it."""

from __future__ import annotations

import collections
import contextlib
import enum
import gzip
import heapq
import io
import os
import re
import stat
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Final

from kapudf_cli.tools.errors import RecordingError
from kapudf_cli.tools.recordings.lines import MAX_BATCH_BYTES, MAX_POINT_BYTES, LineReader, Tally
from kapudf_cli.tools.recordings.readers import is_point, read_batches, read_lines, read_stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from kapudf_cli.handler.batches import Batch
    from kapudf_cli.protocol.udf_pb2 import Point
    from kapudf_cli.tools.recordings.lines import Line, Refuse

#: The name of standard input.
STDIN: Final = "-"

_GZIP: Final = b"\x1f\x8b"
#: The first bytes of a zip with members, and of an empty zip.
_ZIP: Final = (b"PK\x03\x04", b"PK\x05\x06")
_HEAD_BYTES: Final = 4
_BUFFER_BYTES: Final = 256 * 1024

#: How much of the file detection reads, but at least one line.
_DETECTION_LINES: Final = 60
_DETECTION_CHARACTERS: Final = 256 * 1024
_QUERY_ADVICE: Final = (
    "does not tell tags from fields or integers from floats; replay from the database: "
    "influxdb://HOST:8086/DATABASE --query 'SELECT …'"
)
#: The beginnings of other formats of InfluxDB, with what to do instead.
_OTHER_FORMATS: Final = (
    (re.compile(r"name,(?:tags,)?time,"), f"this is CSV of InfluxDB, which {_QUERY_ADVICE}"),
    (re.compile(r"name: \S"), f"this is a table of InfluxDB, which {_QUERY_ADVICE}"),
    (re.compile(r'\{\s*"results"'), f"this is JSON of InfluxDB, which {_QUERY_ADVICE}"),
    (
        re.compile(r"#(?:group|datatype|default),|,result,table,"),
        "this is annotated CSV of InfluxDB 2; export line protocol: influxd inspect export-lp",
    ),
)

#: Database and retention policy may both be empty.
_LEADING_BLANKS: Final = 2

#: A zip has a member for each query of a task. Memory holds one batch of each.
_MAX_MEMBERS: Final = 256
_MAX_HELD_BYTES: Final = 8 * MAX_BATCH_BYTES
#: The maximum size of a zip from standard input, which is copied to disk.
_MAX_SPOOLED_BYTES: Final = 4 * 1024**3


class Kind(enum.Enum):
    """The format of a recording, or another source, in words for a message."""

    STREAM = "a stream recording"
    BATCH = "a batch recording"
    LINES = "line protocol"
    QUERIED_POINTS = "the result of a query"
    QUERIED_BATCHES = "the result of a query with --every"

    @property
    def has_batches(self) -> bool:
        """Whether its records are batches, and not points."""
        return self in {Kind.BATCH, Kind.QUERIED_BATCHES}


@dataclass(frozen=True)
class Recording:
    """An open recording.

    Attributes:
        name: its name in messages.
        kind: its format.
        size_bytes: the size of the stored file, None for a pipe or a query.
        tally: the counts of the lines read so far.
        records: its points or batches; can be iterated over once.
    """

    name: str
    kind: Kind
    size_bytes: int | None
    tally: Tally
    records: Iterator[Point | Batch]
    _file: IO[bytes] | None

    @property
    def read_bytes(self) -> int:
        """How many bytes of the stored file have been read."""
        return 0 if self._file is None else self._file.tell()


@contextlib.contextmanager
def open_recording(
    path: str, *, precision: str, refuse: Refuse, kind: Kind | None = None
) -> Iterator[Recording]:
    """Open a recording, `-` being standard input.

    Args:
        path: the file.
        precision: the unit of timestamps in line protocol; see `line_protocol.PRECISIONS`.
        refuse: called with the error for each ill-formed record.
        kind: its format; detected from its content if None.

    Raises:
        RecordingError: the file does not exist, is damaged or empty, or has another format.
            Iterating over the records raises it too.
    """
    name = "standard input" if path == STDIN else path
    with contextlib.ExitStack() as undo:
        try:
            if path == STDIN:
                raw = sys.stdin.buffer.raw if hasattr(sys.stdin.buffer, "raw") else sys.stdin.buffer
            else:
                raw = undo.enter_context(open(path, "rb", buffering=0))
            size = _size(raw)
            head = _read_head(raw)
            file: IO[bytes] = io.BufferedReader(_Rewound(head, raw), _BUFFER_BYTES)
        except OSError as error:
            raise RecordingError(name, f"cannot be read: {error.strerror or error}") from error
        if head.startswith(_ZIP):
            if kind not in {None, Kind.BATCH}:
                raise RecordingError(name, "a zip can only be a batch recording")
            # A zip is read from its end.
            archive = _spooled(file, name, undo) if size is None else raw
            tally = Tally()
            batches = _zipped(archive, name, refuse, tally, undo)
            yield Recording(name, Kind.BATCH, size, tally, batches, raw)
            return
        lines = LineReader(_unpacked(file, head, name, undo), name, refuse=refuse)
        detected = kind is None
        kind = kind or _detect(lines, name, live=size is None)
        if kind is not Kind.BATCH:
            lines.max_json_bytes = MAX_POINT_BYTES
        records = _records(lines, kind, precision, detected=detected)
        yield Recording(name, kind, size, lines.tally, records, raw)


def _records(
    lines: LineReader, kind: Kind, precision: str, *, detected: bool
) -> Iterator[Point | Batch]:
    match kind:
        case Kind.BATCH:
            return read_batches(lines)
        case Kind.STREAM:
            return read_stream(lines, precision, detected=detected)
        case _:
            return read_lines(lines, precision)


def _detect(lines: LineReader, name: str, *, live: bool) -> Kind:
    """Return the format that fits most of the first lines. They can be read again.

    Args:
        lines: the recording.
        name: its name in messages.
        live: whether to read as few lines as possible, because later ones may take a while.

    Raises:
        RecordingError: there are only blank lines, or a format that cannot be replayed.
    """
    head: list[Line] = []
    first = _first_line(lines, head)
    if first is None:
        raise RecordingError(name, "there is nothing in it")
    text = first.text.lstrip()
    for beginning, problem in _OTHER_FORMATS:
        if beginning.match(text):
            raise RecordingError(name, problem)
    if text.startswith("{"):
        short = first.problem is None and len(text) <= MAX_POINT_BYTES
        kind = Kind.LINES if short and is_point(text) else Kind.BATCH
    elif text.startswith(("#", "> ")) or is_point(text):
        # A database does not have such a name.
        kind = Kind.LINES
    else:
        kind = _detect_by_records(lines, head, live=live)
    lines.unread(head)
    return kind


def _first_line(lines: LineReader, head: list[Line]) -> Line | None:
    """Return the first line that is not blank; add it, and blank lines before it, to `head`."""
    while (line := lines.read()) is not None:
        if not line.is_blank or len(head) < _LEADING_BLANKS:
            head.append(line)
        else:
            lines.pass_over()
        if not line.is_blank:
            return line
    return None


def _detect_by_records(lines: LineReader, head: list[Line], *, live: bool) -> Kind:
    """Return the format in which more lines belong to records; add the lines read to `head`."""
    length = len(head[-1].text)
    while len(head) < _DETECTION_LINES and length <= _DETECTION_CHARACTERS:
        if live and (_tally(read_stream, head).records or _tally(read_lines, head).records):
            break
        if (line := lines.read()) is None:
            break
        head.append(line)
        length += len(line.text)
    as_lines = _tally(read_lines, head)
    explained = as_lines.in_records + as_lines.passed_over
    return Kind.STREAM if _tally(read_stream, head).in_records > explained else Kind.LINES


def _tally(read: Callable[[LineReader, str], Iterator[Point]], head: Sequence[Line]) -> Tally:
    """Return the counts of some lines when one of the readers reads them."""
    lines = LineReader(io.BytesIO(), "", refuse=lambda _: None)
    lines.unread(head)
    collections.deque(read(lines, "ns"), maxlen=0)
    return lines.tally


def _zipped(
    file: IO[bytes], name: str, refuse: Refuse, tally: Tally, undo: contextlib.ExitStack
) -> Iterator[Batch]:
    """Return the batches of all queries, ordered by end time. Each query is a member of the zip."""
    try:
        archive = undo.enter_context(zipfile.ZipFile(file))
        members = sorted(archive.namelist(), key=lambda each: (len(each), each))
        if len(members) > _MAX_MEMBERS:
            reason = f"the zip has {len(members)} members, more than {_MAX_MEMBERS}"
            raise RecordingError(name, f"{reason}; a batch recording has one for each query")
        limit = min(MAX_BATCH_BYTES, _MAX_HELD_BYTES // max(len(members), 1))
        queries = []
        for member in members:
            content = undo.enter_context(archive.open(member))
            lines = LineReader(
                io.BufferedReader(content, _BUFFER_BYTES),  # type: ignore[type-var]
                f"{name}: query {member}",
                refuse=refuse,
                tally=tally,
                max_json_bytes=limit,
            )
            queries.append(read_batches(lines))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError) as error:
        raise RecordingError(name, f"the zip is damaged or of an unknown kind: {error}") from error
    return heapq.merge(*queries, key=lambda batch: batch.end_ns)


def _spooled(file: IO[bytes], name: str, undo: contextlib.ExitStack) -> IO[bytes]:
    """Copy a zip from a pipe to disk, because it must be read from its end.

    Raises:
        RecordingError: it is too large, or the disk is full.
    """
    copy: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - `undo` closes it
    undo.callback(copy.close)
    size = 0
    try:
        while data := file.read(_BUFFER_BYTES):
            size += len(data)
            if size > _MAX_SPOOLED_BYTES:
                reason = f"a zip of more than {_MAX_SPOOLED_BYTES >> 30} GiB; name it as a file"
                raise RecordingError(name, reason)
            copy.write(data)
    except OSError as error:
        reason = f"cannot be copied to {tempfile.gettempdir()}: {error.strerror or error}"
        raise RecordingError(name, reason) from error
    return copy


class _Rewound(io.RawIOBase):
    """A raw file whose first bytes have been read already."""

    def __init__(self, head: bytes, rest: IO[bytes]) -> None:
        self._head = head
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        data = self._head or self._rest.read(len(buffer))
        self._head = b""
        buffer[: len(data)] = data
        return len(data)


def _read_head(raw: IO[bytes]) -> bytes:
    """Return the first bytes. A pipe may return them one by one."""
    head = b""
    while len(head) < _HEAD_BYTES and (data := raw.read(_HEAD_BYTES - len(head))):
        head += data
    return head


def _unpacked(file: IO[bytes], head: bytes, name: str, undo: contextlib.ExitStack) -> IO[bytes]:
    """Return the file, or its content if it is a gzip."""
    if not head.startswith(_GZIP):
        return file
    # Reading single lines from a GzipFile is slow.
    unpacked = io.BufferedReader(undo.enter_context(gzip.GzipFile(fileobj=file)), _BUFFER_BYTES)
    # Damage is reported when the file is read.
    with contextlib.suppress(EOFError, OSError, zlib.error):
        if unpacked.peek(_HEAD_BYTES).startswith(_ZIP):
            raise RecordingError(name, "a zip inside a gzip; unpack the gzip first")
    return unpacked


def _size(raw: IO[bytes]) -> int | None:
    try:
        found = os.fstat(raw.fileno())
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None
