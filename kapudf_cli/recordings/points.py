"""Points out of line protocol, and out of Kapacitor's stream recordings."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from kapudf_cli.errors import LineProtocolError
from kapudf_cli.recordings.line_protocol import is_unfinished, parse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kapudf_cli.recordings.lines import Line, LineReader, Refuse
    from kapudf_cli.wire.udf_pb2 import Point

#: How far the end of a string is looked for. InfluxDB takes none above 64 KB.
_MAX_STRING_BYTES = 64 * 1024
_MAX_STRING_LINES = 1000


def read_lines(lines: LineReader, precision: str, refuse: Refuse) -> Iterator[Point]:
    """Yield the points of line protocol. One without a time has that of its reading.

    Database and retention policy are empty: line protocol does not name them.
    """
    while (line := lines.read()) is not None:
        text = line.text.lstrip()
        if (not text and line.problem is None) or text.startswith("#"):
            continue
        if (point := _point(lines, line, precision, refuse)) is not None:
            yield point


def read_stream(lines: LineReader, precision: str, refuse: Refuse) -> Iterator[Point]:
    """Yield the points of a stream recording.

    It is read as Kapacitor does (`readPointsFromIO` in its replay.go), but that a string
    may go on in the next line: Kapacitor records such a point and cannot replay it.
    """
    while (database := lines.read()) is not None:
        retention_policy, line = lines.read(), lines.read()
        if retention_policy is None or line is None:
            refuse(lines.fault(database, "the recording ends inside a point of three lines"))
            return
        for name in (database, retention_policy):
            if name.problem is not None:
                line = name
        if (point := _point(lines, line, precision, refuse)) is not None:
            point.database = database.text.removesuffix("\r")
            point.retentionPolicy = retention_policy.text.removesuffix("\r")
            yield point


def _point(lines: LineReader, line: Line, precision: str, refuse: Refuse) -> Point | None:
    """Return the point that begins in a line; None if there is none, and that is passed over."""
    if line.problem is not None:
        refuse(lines.fault(line, line.problem))
        return None
    now = time.time_ns()
    try:
        return parse(line.text, precision=precision, default_time_ns=now)
    except LineProtocolError as error:
        reason = error.reason
    more: list[Line] = []
    text = line.text
    while is_unfinished(text) and (following := _continuation(lines, len(text), more)) is not None:
        more.append(following)
        text = f"{text}\n{following.text}"
        if '"' in following.text and not is_unfinished(text):
            try:
                return parse(text, precision=precision, default_time_ns=now)
            except LineProtocolError:
                break
    # The lines after it may well be in order.
    lines.unread(more)
    refuse(lines.fault(line, reason))
    return None


def _continuation(lines: LineReader, length: int, taken: list[Line]) -> Line | None:
    if length > _MAX_STRING_BYTES or len(taken) >= _MAX_STRING_LINES:
        return None
    line = lines.read()
    if line is not None and line.problem is not None:
        lines.unread([line])
        return None
    return line
