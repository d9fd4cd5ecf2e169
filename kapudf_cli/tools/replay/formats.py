"""Output formats of a replay: line protocol, JSON, a table, or differences.

In line protocol, comments mark the begin and end of a batch; InfluxDB and replay skip them. In
JSON, a batch is one line, as in a batch recording.
"""

from __future__ import annotations

import abc
import math
from typing import TYPE_CHECKING, Any, Final

import msgspec

from kapudf_cli.handler.points import get_fields
from kapudf_cli.protocol.udf_pb2 import BeginBatch, EndBatch, Point
from kapudf_cli.system.terminal_text import counted, printable, printable_json
from kapudf_cli.tools.errors import LineProtocolError
from kapudf_cli.tools.recordings.line_protocol import show_value, write
from kapudf_cli.tools.recordings.notation import write_time
from kapudf_cli.tools.replay.differences import Difference, Differences, Fate

if TYPE_CHECKING:
    from collections.abc import Callable

    from kapudf_cli.protocol.codec import DataMessage

_HEADER: Final = ("time", "measurement", "tags", "fields")
#: Column widths are computed from this number of rows, and grow with later ones.
_HELD_ROWS: Final = 20
#: The words for each fate in the summary.
_WORDS = {
    Fate.SAME: "as they were",
    Fate.CHANGED: "changed",
    Fate.LOST: "did not come back",
    Fate.NEW: "new",
}


class Format(abc.ABC):
    """An output format."""

    @abc.abstractmethod
    def take(self, message: DataMessage, /) -> None:
        """Show a message. The values of an EndBatch replace those of its BeginBatch."""

    def finish(self) -> None:  # noqa: B027 - most formats have nothing to do
        """Show buffered output, if there is any."""


def _series(name: str, tags: Any) -> str:
    """Return a measurement and its tags as text for people."""
    text = ",".join([name, *(f"{tag}={value}" for tag, value in sorted(tags.items()))])
    return printable(text)


def _end_of(end: EndBatch) -> str:
    """Return the end of a batch's period: `tmax=2020-09-13T12:27:40Z`."""
    return f"tmax={write_time(end.tmax)}"


def _comment(message: BeginBatch | EndBatch) -> str:
    which = _series(message.name, message.tags)
    return (
        f"# begin {which}"
        if isinstance(message, BeginBatch)
        else f"# end {which} {_end_of(message)}"
    )


class LineFormat(Format):
    """Line protocol, which `influx` and replay can read.

    Attributes:
        unwritable: the number of points that line protocol cannot express.
        first_unwritable: the error for the first of them.
    """

    def __init__(self, emit: Callable[[str], None]) -> None:
        """Pass each line to `emit`."""
        self.unwritable = 0
        self.first_unwritable: LineProtocolError | None = None
        self._emit = emit
        self._batch: BeginBatch | None = None

    def take(self, message: DataMessage) -> None:
        """Write a point, or a comment."""
        match message:
            case Point():
                try:
                    line = write(message, name=None if self._batch is None else self._batch.name)
                except LineProtocolError as error:
                    self.unwritable += 1
                    self.first_unwritable = self.first_unwritable or error
                else:
                    self._emit(line)
            case BeginBatch():
                self._batch = message
                self._emit(_comment(message))
            case EndBatch():
                self._batch = None
                self._emit(_comment(message))


class JsonFormat(Format):
    """JSON: one object a line, for each point of a stream or each batch.

    Each point of a batch is written at once. The batch's name and tags follow the points.
    """

    def __init__(self, emit: Callable[[str], None], emit_part: Callable[[str], None]) -> None:
        """Pass the beginning of a line to `emit_part`, and the rest or a whole line to `emit`."""
        self._emit = emit
        self._emit_part = emit_part
        self._in_batch = False
        self._by_name = False
        self._separator = ""

    def take(self, message: DataMessage) -> None:
        """Write a point or a part of a batch."""
        match message:
            case Point() if self._in_batch:
                self._emit_part(self._separator + _json(_content(message)))
                self._separator = ","
            case Point():
                self._emit(
                    _json(
                        {
                            "name": message.name,
                            "database": message.database,
                            "retentionPolicy": message.retentionPolicy,
                            "group": message.group,
                            "dimensions": list(message.dimensions),
                            "byname": message.byName,
                            **_content(message),
                        }
                    )
                )
            case BeginBatch():
                self._in_batch, self._by_name, self._separator = True, message.byName, ""
                self._emit_part('{"points":[')
            case EndBatch():
                self._in_batch = False
                end = {
                    "name": message.name,
                    "group": message.group,
                    "byname": self._by_name,
                    "tags": dict(message.tags),
                    "tmax": write_time(message.tmax),
                }
                self._emit(f"],{_json(end)[1:]}")


def _content(point: Point) -> dict[str, object]:
    fields = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in sorted(get_fields(point).items())
    }
    return {"fields": fields, "tags": dict(point.tags), "time": write_time(point.time)}


def _json(content: object) -> str:
    return printable_json(msgspec.json.encode(content).decode())


class TableFormat(Format):
    """A table: a row for each point, and a line before and after the points of a batch."""

    def __init__(self, emit: Callable[[str], None]) -> None:
        """Pass each line to `emit`."""
        self._emit = emit
        self._held: list[tuple[str, ...] | str] | None = [_HEADER]
        self._widths = [0] * len(_HEADER)
        self._batch: BeginBatch | None = None
        self._points = 0

    def take(self, message: DataMessage) -> None:
        """Show a point, or the begin or end of a batch."""
        match message:
            case Point():
                self._points += 1
                name = message.name if self._batch is None else self._batch.name
                self._row(
                    (write_time(message.time), printable(name), _tags(message), _fields(message))
                )
            case BeginBatch():
                self._batch, self._points = message, 0
                self._row(f"batch {_series(message.name, message.tags)}")
            case EndBatch():
                self._batch = None
                points = counted(self._points, "point")
                self._row(
                    f"end   {_series(message.name, message.tags)} {_end_of(message)} {points}"
                )

    def finish(self) -> None:
        """Show the rows that were buffered to compute the column widths."""
        held, self._held = self._held or [], None
        if held == [_HEADER]:
            return
        for row in held:
            self._widen(row)
        for row in held:
            self._show(row)

    def _row(self, row: tuple[str, ...] | str) -> None:
        if self._held is None:
            self._widen(row)
            self._show(row)
            return
        self._held.append(row)
        if len(self._held) > _HELD_ROWS:
            self.finish()

    def _widen(self, row: tuple[str, ...] | str) -> None:
        if not isinstance(row, str):
            self._widths = [
                max(width, len(cell)) for width, cell in zip(self._widths, row, strict=True)
            ]

    def _show(self, row: tuple[str, ...] | str) -> None:
        if not isinstance(row, str):
            cells = (cell.ljust(width) for cell, width in zip(row, self._widths, strict=True))
            row = "  ".join(cells).rstrip()
        self._emit(row)


def _tags(point: Point) -> str:
    return printable(" ".join(f"{tag}={value}" for tag, value in sorted(point.tags.items())))


def _fields(point: Point, separator: str = " ") -> str:
    fields = sorted(get_fields(point).items())
    return printable(separator.join(f"{name}={show_value(value)}" for name, value in fields))


class DifferenceFormat(Format):
    """Differences: a line for each point, with its fate, its series and what changed.

    `=` unchanged, `~` changed, `-` did not come back, `+` was not sent.
    """

    def __init__(
        self,
        emit: Callable[[str], None],
        paint: Callable[[str, Fate | None], str],
        tell: Callable[[Difference | BeginBatch | EndBatch], None] | None = None,
    ) -> None:
        """Pass each line to `emit`, which several threads call.

        Args:
            emit: prints a line.
            paint: colours a text by the fate of its point; None for the lines of a batch.
            tell: also called with each difference.
        """
        self._emit = emit
        self._paint = paint
        self._tell = tell
        self.differences = Differences(self._show)

    def take(self, message: DataMessage) -> None:
        """Compare a message that came back."""
        self.differences.received(message)

    def finish(self) -> None:
        """Show lost points, and the number of points with each fate."""
        self.differences.finish()
        counts = self.differences.counts
        fates = [f"{counts[fate]:,} {words}" for fate, words in _WORDS.items() if counts[fate]]
        if fates:
            self._emit(self._paint(f"# {', '.join(fates)}", None))

    def _show(self, result: Difference | BeginBatch | EndBatch) -> None:
        if self._tell is not None:
            self._tell(result)
        if isinstance(result, Difference):
            self._emit(self._line(result))
        else:
            self._emit(self._paint(_comment(result), None))

    def _line(self, difference: Difference) -> str:
        point, fate = difference.point, difference.fate
        line = f"{fate.value} {_series(difference.name, point.tags)} {write_time(point.time)}"
        if fate is Fate.NEW:
            line = f"{line}  {_fields(point, '  ')}".rstrip()
        if fate is Fate.CHANGED:
            return f"{line}  {self._paint(printable('  '.join(difference.changes)), fate)}"
        return self._paint(line, fate)


class JsonDifferenceFormat(DifferenceFormat):
    """Differences as JSON: an object a line, for each point."""

    def __init__(self, emit: Callable[[str], None]) -> None:
        """Pass each line to `emit`, which several threads call."""
        super().__init__(emit, lambda text, _: text)

    def finish(self) -> None:
        """Show lost points."""
        self.differences.finish()

    def _show(self, result: Difference | BeginBatch | EndBatch) -> None:
        if isinstance(result, Difference):
            fate = result.fate.name.lower()
            shown = {"fate": fate, "name": result.name, **_content(result.point)}
            self._emit(_json({**shown, "changes": result.changes}))
