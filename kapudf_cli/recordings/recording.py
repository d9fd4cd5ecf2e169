"""A recording: opened, told by its content what it is, and read."""

from __future__ import annotations

import contextlib
import enum
import gzip
import heapq
import io
import os
import shutil
import stat
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Final

from kapudf_cli.errors import RecordingError
from kapudf_cli.recordings.batches import read_batches
from kapudf_cli.recordings.lines import MAX_BATCH_BYTES, MAX_POINT_BYTES, LineReader
from kapudf_cli.recordings.points import read_lines, read_stream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kapudf_cli.kit.batches import Batch
    from kapudf_cli.recordings.lines import Refuse
    from kapudf_cli.wire.udf_pb2 import Point

#: Stands for standard input.
STDIN: Final = "-"

_GZIP = b"\x1f\x8b"
_ZIP = b"PK"
_BUFFER_BYTES = 256 * 1024


class Kind(enum.Enum):
    """What a recording is, in words for a message."""

    STREAM = "a stream recording"
    BATCH = "a batch recording"
    LINES = "line protocol"


@dataclass(frozen=True)
class Recording:
    """An open recording.

    Attributes:
        name: what it is called in messages.
        kind: what it is.
        size_bytes: how long the file is, as it is stored; None of what is no file.
        records: its points, or its batches; to be had once.
    """

    name: str
    kind: Kind
    size_bytes: int | None
    records: Iterator[Point | Batch]
    _file: IO[bytes]

    @property
    def read_bytes(self) -> int:
        """How much of the file has been read, as it is stored."""
        return self._file.tell()


@contextlib.contextmanager
def open_recording(path: str, *, precision: str, refuse: Refuse) -> Iterator[Recording]:
    """Open a recording, `-` being standard input.

    Args:
        path: the file.
        precision: what the timestamps of line protocol count; see `line_protocol.PRECISIONS`.
        refuse: what to do with an ill-formed line.

    Raises:
        RecordingError: there is no such file, or it is damaged; while it is read as well.
    """
    name = "standard input" if path == STDIN else path
    with contextlib.ExitStack() as undo:
        try:
            if path == STDIN:
                raw = sys.stdin.buffer.raw if hasattr(sys.stdin.buffer, "raw") else sys.stdin.buffer
            else:
                raw = undo.enter_context(open(path, "rb", buffering=0))
            size = _size(raw)
            file: IO[bytes] = io.BufferedReader(raw, _BUFFER_BYTES)  # type: ignore[type-var]
            undo.callback(file.detach)  # type: ignore[attr-defined]
            head = file.peek(2)  # type: ignore[attr-defined]
        except OSError as error:
            raise RecordingError(name, f"cannot be read: {error.strerror or error}") from error
        if head.startswith(_ZIP):
            if size is None:
                # A zip is read from its end.
                file = _spooled(file, undo)
            yield Recording(name, Kind.BATCH, size, _zipped(file, name, refuse, undo), raw)
            return
        if head.startswith(_GZIP):
            unpacked = undo.enter_context(gzip.GzipFile(fileobj=file))
            # A line at a time out of a GzipFile is slow.
            file = io.BufferedReader(unpacked, _BUFFER_BYTES)
        lines = LineReader(file, name, max_line_bytes=MAX_POINT_BYTES)
        kind = _kind(lines)
        records: Iterator[Point | Batch]
        match kind:
            case Kind.BATCH:
                records = read_batches(lines, refuse)
            case Kind.STREAM:
                records = read_stream(lines, precision, refuse)
            case Kind.LINES:
                records = read_lines(lines, precision, refuse)
        yield Recording(name, kind, size, records, raw)


def _kind(lines: LineReader) -> Kind:
    """Tell by the first lines what this is, taking no more of them than that needs.

    A database's name has no `=`, and a line of line protocol has one.
    """
    lines.max_line_bytes = MAX_BATCH_BYTES
    first = lines.read()
    kind = Kind.LINES
    taken = [first]
    if first is not None:
        text = first.text.lstrip()
        if text.startswith("{"):
            kind = Kind.BATCH
        elif "=" not in text and not text.startswith("#"):
            second = lines.read()
            taken.append(second)
            if second is not None and "=" not in second.text:
                third = lines.read()
                taken.append(third)
                if third is not None and "=" in third.text:
                    kind = Kind.STREAM
    if kind is not Kind.BATCH:
        lines.max_line_bytes = MAX_POINT_BYTES
    lines.unread(line for line in taken if line is not None)
    return kind


def _zipped(
    file: IO[bytes], name: str, refuse: Refuse, undo: contextlib.ExitStack
) -> Iterator[Batch]:
    """Return the batches of all queries, each a member, by the time of their end."""
    try:
        archive = undo.enter_context(zipfile.ZipFile(file))
        queries = []
        for member in sorted(archive.namelist(), key=lambda each: (len(each), each)):
            content = undo.enter_context(archive.open(member))
            lines = LineReader(content, f"{name}: query {member}", max_line_bytes=MAX_BATCH_BYTES)
            queries.append(read_batches(lines, refuse))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError) as error:
        raise RecordingError(
            name, f"the zip is damaged or not one that can be read: {error}"
        ) from error
    return heapq.merge(*queries, key=lambda batch: batch.end_ns)


def _spooled(file: IO[bytes], undo: contextlib.ExitStack) -> IO[bytes]:
    """Return a copy on disk of what cannot be read from its end."""
    copy: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - it is closed with all else
    undo.callback(copy.close)
    shutil.copyfileobj(file, copy)
    copy.seek(0)
    return copy


def _size(raw: IO[bytes]) -> int | None:
    try:
        found = os.fstat(raw.fileno())
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None
