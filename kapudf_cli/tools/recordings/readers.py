"""Read points and batches from the lines of a recording."""

from __future__ import annotations

import dataclasses
import re
import time
from typing import TYPE_CHECKING, Final

import msgspec

from kapudf_cli.handler.batches import Batch
from kapudf_cli.handler.points import set_field
from kapudf_cli.protocol.udf_pb2 import Point
from kapudf_cli.tools.errors import LineProtocolError
from kapudf_cli.tools.recordings.line_protocol import MARK, PLAIN_LINE, parse
from kapudf_cli.tools.recordings.notation import group_id, read_time

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kapudf_cli.tools.recordings.lines import Line, LineReader

#: How far to look for the end of a string. InfluxDB refuses strings over 64 KB.
_MAX_STRING_BYTES: Final = 64 * 1024
_MAX_STRING_LINES: Final = 1000

#: The headers that `influx_inspect export` writes and `influx -import` follows.
_HEADER = re.compile(r"# (?:(DDL|DML)\s*\Z|CONTEXT-(DATABASE|RETENTION-POLICY):(.*))", re.DOTALL)
_STATEMENT = re.compile(r"(?:CREATE|ALTER|DROP)\s+(?:DATABASE|RETENTION\s+POLICY)\s", re.IGNORECASE)
#: `telegraf --test` prints this before each point.
_TELEGRAF_POINT: Final = "> "
_TELEGRAF_PLUGIN: Final = "* Plugin: "
_BYTE_ORDERMARK: Final = "\ufeff"


def read_lines(lines: LineReader, precision: str) -> Iterator[Point]:
    """Yield the points of line protocol. A point without a timestamp gets the current time.

    Database and retention policy are empty unless the header of an export names them. The
    output of `telegraf --test` is accepted too.
    """
    reader = _PointReader(lines, precision)
    context = {"DATABASE": "", "RETENTION-POLICY": ""}
    in_statements = False
    while (line := lines.read()) is not None:
        text = line.text.lstrip(" \t\0")
        if line.is_blank or text.startswith(_TELEGRAF_PLUGIN):
            lines.pass_over()
        elif text.startswith("#"):
            if RecordEnd().goes_on_after(line.text.removesuffix("\r")):
                lines.refuse(
                    line,
                    "an open quote or a backslash ends this comment, so Kapacitor takes the next "
                    "line as part of it",
                )
                continue
            lines.pass_over()
            if (header := _HEADER.match(text)) is not None:
                section, setting, value = header.groups()
                if section is None:
                    context[setting] = value.strip()
                else:
                    in_statements = section == "DDL"
        elif in_statements and _STATEMENT.match(text):
            lines.pass_over()
        elif in_statements:
            lines.refuse(line, "neither a statement nor '# DML' after '# DDL'")
        elif (point := reader.read(_without_prompt(line, text))) is not None:
            point.database = context["DATABASE"]
            point.retentionPolicy = context["RETENTION-POLICY"]
            yield point


def _without_prompt(line: Line, text: str) -> Line:
    """Remove the `> ` of `telegraf --test` from a line, unless it is part of a measurement."""
    if not text.startswith(_TELEGRAF_POINT) or is_point(text):
        return line
    return dataclasses.replace(line, text=text.removeprefix(_TELEGRAF_POINT))


def read_stream(lines: LineReader, precision: str, *, detected: bool = True) -> Iterator[Point]:
    """Yield the points of a stream recording.

    A point has three lines: database, retention policy, line protocol (`readPointsFromIO` in
    Kapacitor's replay.go). A string may continue in the next line; Kapacitor records such a
    point, but cannot replay it. After a missing line, reading continues with the next record.

    Args:
        lines: the recording.
        precision: the unit of its timestamps.
        detected: whether the format was detected. Then a name with an equals sign counts as
            a line of line protocol, even if it is ill-formed.
    """
    is_line = _has_equals if detected else is_point
    reader = _PointReader(lines, precision)
    while (database := lines.read()) is not None:
        retention_policy = lines.read()
        line = None if retention_policy is None else lines.read()
        if is_line(database.text):
            lines.refuse(database, "database and retention policy are missing before this line")
            lines.unread(each for each in (retention_policy, line) if each is not None)
        elif retention_policy is not None and is_line(retention_policy.text):
            reason = "database or retention policy is missing before this line"
            lines.refuse(retention_policy, reason, lines=2)
            lines.unread(each for each in (line,) if each is not None)
        elif retention_policy is None or line is None:
            rest = [each for each in (database, retention_policy) if each is not None]
            if all(each.is_blank for each in rest):
                lines.pass_over(len(rest))
            else:
                reason = "the recording ends inside a point of three lines"
                lines.refuse(database, reason, lines=len(rest))
        elif database.is_blank and retention_policy.is_blank and line.is_blank:
            lines.pass_over(3)
        elif line.text == database.text:
            reason = "database and retention policy, and no point after them"
            lines.refuse(database, reason, lines=2)
            lines.unread([line])
        elif (faulty := database if database.problem else retention_policy).problem is not None:
            lines.refuse(faulty, faulty.problem, lines=3)
        elif (point := reader.read(line, names=2)) is not None:
            point.database = database.text.removesuffix("\r")
            point.retentionPolicy = retention_policy.text.removesuffix("\r")
            yield point


def _has_equals(text: str) -> bool:
    return "=" in text


def is_point(text: str) -> bool:
    """Return whether a line is line protocol."""
    if "=" not in text or " " not in text:
        return False
    try:
        parse(text.removesuffix("\r"))
    except LineProtocolError:
        return False
    return True


class _PointReader:
    """Reads points; a point may span several lines."""

    def __init__(self, lines: LineReader, precision: str) -> None:
        self._lines = lines
        self._precision = precision
        # The last line in which no end of a string was found. Up to there no line ends a
        # string, so none begins one. To search again from each line would take quadratic time.
        self._searched_until = 0

    def read(self, line: Line, *, names: int = 0) -> Point | None:
        """Return the point that begins in a line, or refuse the record and return None.

        Args:
            line: the line.
            names: the number of lines before it that belong to the record.
        """
        if line.problem is not None:
            self._lines.refuse(line, line.problem, lines=names + 1)
            return None
        if line.text.startswith(_BYTE_ORDERMARK):
            reason = "a byte order mark before the measurement; were two files joined here?"
            self._lines.refuse(line, reason, lines=names + 1)
            return None
        more = self._continuation(line)
        text = "\n".join((line.text, *(each.text for each in more))).removesuffix("\r")
        try:
            point = parse(text, precision=self._precision, default_time_ns=time.time_ns())
        except LineProtocolError as error:
            # The next lines may be well-formed.
            self._lines.unread(more)
            self._lines.refuse(line, error.reason, lines=names + 1)
            return None
        self._lines.accept(names + 1 + len(more))
        return point

    def _continuation(self, line: Line) -> list[Line]:
        """Return the further lines of the record that begins in a line."""
        more: list[Line] = []
        end = RecordEnd()
        if not end.goes_on_after(line.text) or line.number <= self._searched_until:
            return more
        length = len(line.text)
        while (following := self._lines.read()) is not None:
            more.append(following)
            length += len(following.text)
            if following.problem is not None:
                break
            if not end.goes_on_after(following.text):
                # This line ends a string, so it may also begin one.
                self._searched_until = following.number - 1
                return more
            if length > _MAX_STRING_BYTES or len(more) >= _MAX_STRING_LINES:
                break
        if more:
            self._searched_until = more[-1].number
        self._lines.unread(more)
        return []


class RecordEnd:
    """Finds the last line of a record. A record spans several lines if a string has line feeds.

    The time is proportional to the length of the lines.
    """

    def __init__(self) -> None:
        """Begin at the start of a record."""
        self._quoted = False
        self._in_fields = False
        self._equals = 0
        self._commas = 0

    def goes_on_after(self, line: str) -> bool:
        """Add a line of the record; return whether the record continues in the next line.

        It does after an open quote, and after a backslash at the end, even in a comment.
        """
        if '"' not in line:
            if line.endswith("\\"):
                return self._scan(line)
            if self._quoted:
                return True
        elif not self._in_fields and PLAIN_LINE.match(line):
            return False
        return self._scan(line)

    def _scan(self, line: str) -> bool:
        escaped_end = False
        for found in MARK.finditer(line):
            mark = found[0]
            if mark == " ":
                self._in_fields = True
            elif mark == "\\":
                escaped_end = True
            elif not self._in_fields:
                continue
            elif mark == '"':
                if self._equals > self._commas:
                    self._quoted = not self._quoted
            elif self._quoted:
                continue
            elif mark == "=":
                self._equals += 1
            elif mark == ",":
                self._commas += 1
        return self._quoted or escaped_end


# --- batch recordings ---

_INT64 = range(-(2**63), 2**63)


class _JsonPoint(msgspec.Struct):
    fields: dict[str, bool | float | str | None]
    time: str
    tags: dict[str, str] | None = None


class _JsonBatch(msgspec.Struct):
    points: list[_JsonPoint] = []
    name: str = ""
    tmax: str | None = None
    byname: bool = False
    tags: dict[str, str] | None = None
    # A batch has no fields; a point of a stream has.
    fields: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_DECODER = msgspec.json.Decoder(_JsonBatch)


def read_batches(lines: LineReader) -> Iterator[Batch]:
    """Yield the batches of a batch recording, which has a JSON object in each line.

    They are read as Kapacitor does (`UnmarshalJSON` of a batch in its edge/messages.go and
    `replayBatchFromChan` in its replay.go): each number is a float, as JSON does not mark
    integers; a point without tags gets those of its batch; the group is computed from the
    tags; a batch without points is left out; a batch does not end before its last point.
    """
    while (line := lines.read()) is not None:
        if line.is_blank:
            lines.pass_over()
            continue
        try:
            if line.problem is not None:
                raise ValueError(line.problem)
            batch = _batch(_DECODER.decode(line.text))
        except (ValueError, msgspec.DecodeError, RecursionError) as error:
            lines.refuse(line, _reason(error))
            continue
        if batch.points:
            lines.accept()
            yield batch
        else:
            lines.accept_empty_batch()


def _batch(content: _JsonBatch) -> Batch:
    if content.fields is not msgspec.UNSET:
        message = "this is a point, and not a batch"
        raise ValueError(message)
    if not (content.points or content.name or content.tags or content.tmax):
        message = "this is not a batch: it has neither points nor a name"
        raise ValueError(message)
    tags = content.tags or {}
    group = group_id(content.name, tags, sorted(tags), by_name=content.byname)
    points = [_point(each, tags, group) for each in content.points]
    batch = Batch(content.name, points, tags, group, by_name=content.byname)
    if points:
        ended = [] if content.tmax is None else [read_time(content.tmax)]
        batch.tmax_ns = max([*ended, points[-1].time])
        if batch.tmax_ns not in _INT64:
            message = f"tmax {content.tmax} is out of range"
            raise ValueError(message)
    return batch


def _point(content: _JsonPoint, tags: dict[str, str], group: str) -> Point:
    time = read_time(content.time)
    if time not in _INT64:
        message = f"the time {content.time} is out of range"
        raise ValueError(message)
    point = Point(time=time, group=group, tags=content.tags or tags)
    for name, value in content.fields.items():
        if value is None:
            message = f"field '{name}' is null, on which Kapacitor panics"
            raise ValueError(message)
        set_field(point, name, value)
    return point


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "this is not a batch: brackets or braces are nested too deeply"
    if isinstance(error, msgspec.ValidationError):
        return f"this is not a batch: {error}"
    if isinstance(error, msgspec.DecodeError):
        return f"this is not JSON: {error}"
    return str(error)
