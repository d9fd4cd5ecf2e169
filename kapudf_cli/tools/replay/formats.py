"""What came back, as line protocol or as JSON.

Where a batch begins and ends, line protocol has comments, which InfluxDB and replay pass
over. In JSON a batch is one line, of the form that a batch recording has.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from kapudf_cli.handler.points import get_fields
from kapudf_cli.protocol.udf_pb2 import BeginBatch, EndBatch, Point
from kapudf_cli.system.terminal_text import printable, printable_json
from kapudf_cli.tools.recordings.errors import LineProtocolError
from kapudf_cli.tools.recordings.line_protocol import write
from kapudf_cli.tools.recordings.rfc3339 import write_time

if TYPE_CHECKING:
    from collections.abc import Callable

    from kapudf_cli.protocol.codec import DataMessage


class Format(Protocol):
    """Something that shows what comes back."""

    def take(self, message: DataMessage, /) -> None:
        """Show a message; of a batch's begin and end, the end's word counts."""

    def finish(self) -> None:
        """Show what is still held back."""


def series(name: str, tags: Any) -> str:
    """Return a measurement and its tags in one line, to be read and not to be parsed."""
    text = ",".join([name, *(f"{tag}={value}" for tag, value in sorted(tags.items()))])
    return printable(text)


class LineFormat:
    """Line protocol: what `influx` and replay itself take in.

    Attributes:
        unwritable: how many points line protocol could not hold.
        first_unwritable: what was wrong with the first of them.
    """

    def __init__(self, emit: Callable[[str], None]) -> None:
        """Hand each line to `emit`."""
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
                self._emit(f"# begin {series(message.name, message.tags)}")
            case EndBatch():
                self._batch = None
                self._emit(f"# end {series(message.name, message.tags)} {end_of(message)}")

    def finish(self) -> None:
        """Nothing is held back."""


def end_of(end: EndBatch) -> str:
    """Return the end of the time that a batch covers: `tmax=2020-09-13T12:27:40Z`."""
    return f"tmax={write_time(end.tmax)}"


class JsonFormat:
    """JSON: an object a line, for each point of a stream, or for each batch.

    A batch is written as it comes, and its name and tags at its end: nothing is kept.
    """

    def __init__(self, emit: Callable[[str], None], emit_part: Callable[[str], None]) -> None:
        """Hand whole lines to `emit`, and parts of a line, which come first, to `emit_part`."""
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

    def finish(self) -> None:
        """Nothing is held back."""


def _content(point: Point) -> dict[str, object]:
    fields = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in sorted(get_fields(point).items())
    }
    return {"fields": fields, "tags": dict(point.tags), "time": write_time(point.time)}


def _json(content: object) -> str:
    return printable_json(msgspec.json.encode(content).decode())
