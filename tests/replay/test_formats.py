"""The output formats of a replay."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from kapudf_cli import Point, set_field
from kapudf_cli.protocol import BeginBatch, EndBatch
from kapudf_cli.testing import grouped, lines
from kapudf_cli.tools.recordings.recording import Kind, open_recording
from kapudf_cli.tools.replay.formats import JsonFormat, LineFormat, TableFormat
from tests.captured import data_of
from tests.handlers import recordings

if TYPE_CHECKING:
    from pathlib import Path

    from kapudf_cli.handler.batches import Batch
    from kapudf_cli.protocol.codec import DataMessage
    from kapudf_cli.tools.replay.formats import Format

BATCHES = ("batch-01", "batch-query-01")


def written(shape: str, messages: list[DataMessage]) -> str:
    """Return the output of a format for these messages."""
    told: list[str] = []
    formats: dict[str, Format] = {
        "lines": LineFormat(lambda line: told.append(f"{line}\n")),
        "json": JsonFormat(lambda line: told.append(f"{line}\n"), told.append),
        "table": TableFormat(lambda line: told.append(f"{line}\n")),
    }
    shown = formats[shape]
    for message in messages:
        shown.take(message)
    shown.finish()
    return "".join(told)


def read(path: Path, text: str) -> tuple[Kind, list[Point | Batch]]:
    path.write_text(text, encoding="utf-8", newline="")

    def refuse(error: Exception) -> None:
        raise error

    with open_recording(str(path), precision="ns", refuse=refuse) as recording:
        return recording.kind, list(recording.records)


def test_line_protocol_goes_back_into_replay(tmp_path: Path) -> None:
    points = recordings.read_stream(recordings.STREAM)
    kind, again = read(tmp_path / "lines", written("lines", [*grouped(points, "host")]))
    for point in points:
        for name in ("database", "retentionPolicy", "group", "dimensions"):
            point.ClearField(name)
    assert (kind, again) == (Kind.LINES, points)


@pytest.mark.parametrize("capture", BATCHES)
def test_batches_are_comments_and_points_of_line_protocol(tmp_path: Path, capture: str) -> None:
    messages = data_of(capture)
    text = written("lines", messages)
    begins = [message for message in messages if isinstance(message, BeginBatch)]
    points = [message for message in messages if isinstance(message, Point)]
    assert text.count("# begin cpu,host=server0") == len(begins)
    assert text.count("# end cpu,host=server0") == len(begins)
    _, again = read(tmp_path / "lines", text)
    assert len(again) == len(points)
    for ours, theirs in zip(again, points, strict=True):
        assert isinstance(ours, Point)
        theirs.name = "cpu"
        theirs.ClearField("group")
        assert ours == theirs


@pytest.mark.parametrize("capture", BATCHES)
def test_batches_as_json_are_a_batch_recording(tmp_path: Path, capture: str) -> None:
    messages = data_of(capture)
    kind, again = read(tmp_path / "json", written("json", messages))
    assert kind is Kind.BATCH
    ends = [message for message in messages if isinstance(message, EndBatch)]
    assert [(each.group, each.tmax_ns) for each in again if not isinstance(each, Point)] == [
        (end.group, end.tmax) for end in ends
    ]
    points = [point for each in again if not isinstance(each, Point) for point in each.points]
    sent = [message for message in messages if isinstance(message, Point)]
    for ours, theirs in zip(points, sent, strict=True):
        for name, value in theirs.fieldsInt.items():
            theirs.fieldsDouble[name] = float(value)
        theirs.ClearField("fieldsInt")
        assert ours == theirs


def test_a_point_of_a_stream_as_json_has_everything() -> None:
    (point,) = grouped(lines('m,host=a x=1i,y=1,z=true,s="é" 1600000000000000001'), "host")
    point.fieldsDouble["nan"] = float("nan")
    text = written("json", [point])
    assert json.loads(text) == {
        "name": "m",
        "database": "telegraf",
        "retentionPolicy": "autogen",
        "group": "host=a",
        "dimensions": ["host"],
        "byname": False,
        "fields": {"nan": None, "s": "é", "x": 1, "y": 1.0, "z": True},
        "tags": {"host": "a"},
        "time": "2020-09-13T12:26:40.000000001Z",
    }
    assert '"x":1,"y":1.0' in text


def test_what_line_protocol_cannot_hold_is_counted() -> None:
    told: list[str] = []
    shown = LineFormat(told.append)
    for message in (
        Point(name="m"),
        Point(name="m", fieldsDouble={"x": float("nan")}),
        *lines("m x=1 1"),
    ):
        shown.take(message)
    assert (told, shown.unwritable) == (["m x=1.0 1"], 2)
    assert "without fields" in str(shown.first_unwritable)


def test_a_table_has_columns() -> None:
    points = lines("cpu,host=a,dc=1 usage=1 1", "m x=2i 20")
    set_field(points[0], "state", "a\nb")
    assert written("table", [*points]) == (
        "time                            measurement  tags         fields\n"
        '1970-01-01T00:00:00.000000001Z  cpu          dc=1 host=a  state="a\\nb" usage=1.0\n'
        "1970-01-01T00:00:00.00000002Z   m                         x=2i\n"
    )
    (point,) = lines("ignored x=2i 20")
    batch: list[DataMessage] = [
        BeginBatch(name="cpu", tags={"host": "a"}),
        point,
        EndBatch(name="cpu", tags={"host": "a"}, tmax=10**9),
    ]
    assert written("table", batch).splitlines()[1:] == [
        "batch cpu,host=a",
        "1970-01-01T00:00:00.00000002Z  cpu                x=2i",
        "end   cpu,host=a tmax=1970-01-01T00:00:01Z 1 point",
    ]


def test_a_long_table_is_shown_as_it_comes() -> None:
    told: list[str] = []
    shown = TableFormat(told.append)
    for number in range(30):
        shown.take(lines(f"m x={number}i {number}")[0])
    assert len(told) == 31
    shown.take(lines("a_longer_name_than_before x=1i 1")[0])
    assert "a_longer_name_than_before" in told[-1]
    shown.finish()
    assert len(told) == 32


def test_a_table_of_nothing_is_nothing() -> None:
    assert written("table", []) == ""
