"""Read points from line protocol and from Kapacitor's stream recordings."""

from __future__ import annotations

import dataclasses
import re
import time
from typing import TYPE_CHECKING, Final

from kapudf_cli.tools.errors import LineProtocolError
from kapudf_cli.tools.recordings.line_parser import RecordEnd, parse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kapudf_cli.protocol.udf_pb2 import Point
    from kapudf_cli.tools.recordings.lines import Line, LineReader

#: How far the end of a string is looked for. InfluxDB takes none above 64 KB.
_MAX_STRING_BYTES: Final = 64 * 1024
_MAX_STRING_LINES: Final = 1000

#: The header lines that `influx -import` obeys, as `influx_inspect export` writes them.
_HEADER = re.compile(r"# (?:(DDL|DML)\s*\Z|CONTEXT-(DATABASE|RETENTION-POLICY):(.*))", re.DOTALL)
_STATEMENT = re.compile(r"(?:CREATE|ALTER|DROP)\s+(?:DATABASE|RETENTION\s+POLICY)\s", re.IGNORECASE)
#: `telegraf --test` puts this before each point.
_TELEGRAF_POINT: Final = "> "
_TELEGRAF_PLUGIN: Final = "* Plugin: "
_BYTE_ORDER_MARK: Final = "\ufeff"


def read_lines(lines: LineReader, precision: str) -> Iterator[Point]:
    """Yield the points of line protocol. One without a timestamp has the time of its reading.

    Database and retention policy are empty unless the header of an export names them. The
    output of `telegraf --test` is read as well.
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
    """Return a line without the `> ` of `telegraf --test`, where that is not a measurement."""
    if not text.startswith(_TELEGRAF_POINT) or is_point(text):
        return line
    return dataclasses.replace(line, text=text.removeprefix(_TELEGRAF_POINT))


def read_stream(lines: LineReader, precision: str, *, detected: bool = True) -> Iterator[Point]:
    """Yield the points of a stream recording.

    Each is three lines: database, retention policy, line protocol (`readPointsFromIO` in
    Kapacitor's replay.go). A string may go on in the next line; Kapacitor records such a
    point and cannot replay it. After a missing line, reading goes on with the next record.

    Args:
        lines: the recording.
        precision: the unit of its timestamps.
        detected: whether the format was detected. Then a name with an equals sign is taken
            for a line of line protocol, ill-formed or not.
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
    """Reads points that may take several lines."""

    def __init__(self, lines: LineReader, precision: str) -> None:
        self._lines = lines
        self._precision = precision
        # The last line that was already looked at in vain for the end of a string. None of
        # them ends one, so none begins one; looking again from each would be quadratic.
        self._searched_until = 0

    def read(self, line: Line, *, names: int = 0) -> Point | None:
        """Return the point that begins in a line, None if the record was refused.

        Args:
            line: the line.
            names: the number of lines before it that belong to the record.
        """
        if line.problem is not None:
            self._lines.refuse(line, line.problem, lines=names + 1)
            return None
        if line.text.startswith(_BYTE_ORDER_MARK):
            reason = "a byte order mark before the measurement; were two files joined here?"
            self._lines.refuse(line, reason, lines=names + 1)
            return None
        more = self._continuation(line)
        text = "\n".join((line.text, *(each.text for each in more))).removesuffix("\r")
        try:
            point = parse(text, precision=self._precision, default_time_ns=time.time_ns())
        except LineProtocolError as error:
            # The lines after it may well be in order.
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
                # This one ends a string, so it may also begin one.
                self._searched_until = following.number - 1
                return more
            if length > _MAX_STRING_BYTES or len(more) >= _MAX_STRING_LINES:
                break
        if more:
            self._searched_until = more[-1].number
        self._lines.unread(more)
        return []
