"""What came back, as a table for eyes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kapudf_cli.handler.points import get_fields
from kapudf_cli.protocol.udf_pb2 import BeginBatch, EndBatch, Point
from kapudf_cli.system.terminal_text import printable
from kapudf_cli.tools.recordings.line_protocol import show_value
from kapudf_cli.tools.recordings.rfc3339 import write_time
from kapudf_cli.tools.replay.formats import end_of, series

if TYPE_CHECKING:
    from collections.abc import Callable

    from kapudf_cli.protocol.codec import DataMessage

_HEADER: Final = ("time", "measurement", "tags", "fields")
#: Widths are those of the first rows, and grow with what comes later.
_HELD_ROWS: Final = 20


class TableFormat:
    """A row a point; a batch has a line of its own before its points and one after them."""

    def __init__(self, emit: Callable[[str], None]) -> None:
        """Hand each line to `emit`."""
        self._emit = emit
        self._held: list[tuple[str, ...] | str] | None = [_HEADER]
        self._widths = [0] * len(_HEADER)
        self._batch: BeginBatch | None = None
        self._points = 0

    def take(self, message: DataMessage) -> None:
        """Show a point, or where a batch begins or ends."""
        match message:
            case Point():
                self._points += 1
                name = message.name if self._batch is None else self._batch.name
                self._row(
                    (write_time(message.time), printable(name), _tags(message), _fields(message))
                )
            case BeginBatch():
                self._batch, self._points = message, 0
                self._row(f"batch {series(message.name, message.tags)}")
            case EndBatch():
                self._batch = None
                counted = "1 point" if self._points == 1 else f"{self._points} points"
                self._row(f"end   {series(message.name, message.tags)} {end_of(message)} {counted}")

    def finish(self) -> None:
        """Show the rows that were held back for their widths."""
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


def _fields(point: Point) -> str:
    fields = sorted(get_fields(point).items())
    return printable(" ".join(f"{name}={show_value(value)}" for name, value in fields))
