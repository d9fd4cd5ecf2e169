"""Recordings: detecting the format, reading all points, and reporting ill-formed lines."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kapudf_cli import Point, get_fields, set_field
from kapudf_cli.handler.batches import Batch
from kapudf_cli.protocol import STREAM
from kapudf_cli.tools.errors import RecordingError
from kapudf_cli.tools.recordings.line_protocol import write
from kapudf_cli.tools.recordings.lines import Tally
from kapudf_cli.tools.recordings.recording import Kind, open_recording
from kapudf_cli.tools.recordings.sources import Source
from tests.handlers import recordings
from tests.recordings.test_line_protocol import STRINGS


def read(
    path: Path, precision: str = "ns", kind: Kind | None = None
) -> tuple[Kind, list[Point | Batch], list[str]]:
    """Return the format of a recording, its records, and its ill-formed records."""
    faults: list[RecordingError] = []
    with open_recording(
        str(path), precision=precision, refuse=faults.append, kind=kind
    ) as recording:
        records = list(recording.records)
    return recording.kind, records, [str(fault).removeprefix(f"{path}: ") for fault in faults]


def tally(path: Path, kind: Kind | None = None) -> Tally:
    """Return the counts of a recording's lines."""
    with open_recording(str(path), precision="ns", refuse=lambda _: None, kind=kind) as recording:
        for _ in recording.records:
            pass
    return recording.tally


def points(path: Path) -> list[Point]:
    """Return the points of a well-formed recording."""
    _, records, faults = read(path)
    assert faults == []
    return [record for record in records if isinstance(record, Point)]


def batch(**changes: Any) -> dict[str, Any]:
    """Return a batch as JSON."""
    return {
        "name": "cpu",
        "tmax": "2020-09-13T12:27:40Z",
        "tags": {"host": "a"},
        "points": [{"fields": {"x": 1}, "tags": {"host": "a"}, "time": "2020-09-13T12:26:40Z"}],
        **changes,
    }


# --- what a file is ---


def test_the_stream_recording_of_kapacitor() -> None:
    kind, records, faults = read(recordings.STREAM)
    assert (kind, len(records), faults) == (Kind.STREAM, 550, [])
    first = records[0]
    assert isinstance(first, Point)
    assert (first.database, first.retentionPolicy, first.time) == (
        "telegraf",
        "autogen",
        1_600_000_100_000_000_000,
    )
    assert get_fields(first) == {
        "n_cpus": 42,
        "state": "",
        "up": True,
        "usage_idle": 23.7965,
        "usage_user": 54.4229,
    }


def test_the_batch_recording_of_kapacitor() -> None:
    kind, records, faults = read(recordings.BATCH)
    assert (kind, len(records), faults) == (Kind.BATCH, 30, [])
    first = records[0]
    assert isinstance(first, Batch)
    assert (first.name, first.group, first.tags) == ("cpu", "host=server00", {"host": "server00"})
    assert first.tmax_ns == 1_600_000_060_000_000_000
    assert get_fields(first.points[0]) == {"n_cpus": 13.0, "usage_idle": 66.7721}


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("db\nrp\nm x=1 1\n", Kind.STREAM),
        ("db\n\nm x=1 1\ndb\n\nm x=2 2\n", Kind.STREAM),
        ("db\nrp\nm\ndb\nrp\nm x=2 2\n", Kind.STREAM),
        ('db\nrp\nm x="a\n\nb" 1\n', Kind.STREAM),
        ("\ufeffdb\nrp\nm x=1 1\n", Kind.STREAM),
        ("m x=1 1\n", Kind.LINES),
        ("m x=1 1", Kind.LINES),
        ("\n\nm x=1 1\nm x=2 2\n", Kind.LINES),
        ("\n\n\n\n\nm x=1 1\n", Kind.LINES),
        ("# comment\n\nm x=1 1\nm x=2 2\n", Kind.LINES),
        ("nonsense\nm x=1 1\nm x=2 2\n", Kind.LINES),
        ("nonsense\nnonsense\nm x=1 1\nm x=2 2\nm x=3 3\n", Kind.LINES),
        ("nonsense", Kind.LINES),
        ("{m x=1 1", Kind.LINES),
        ("PKG x=1 1\n", Kind.LINES),
        (json.dumps(batch()), Kind.BATCH),
        ("\n\n" + json.dumps(batch()), Kind.BATCH),
        ("{ nonsense", Kind.BATCH),
    ],
)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_what_a_file_is_is_told_by_its_content(
    tmp_path: Path,
    text: str,
    kind: Kind,
    packed: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    path = tmp_path / "recording"
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    assert read(path)[0] is kind


def test_every_form_of_one_recording_reads_the_same(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(gzip.decompress(recordings.STREAM.read_bytes()))
    expected = points(recordings.STREAM)
    assert points(plain) == expected
    as_lines = tmp_path / "lines"
    as_lines.write_text("".join(f"{write(point)}\n" for point in expected), encoding="utf-8")
    for point in expected:
        point.database = point.retentionPolicy = ""
    assert points(as_lines) == expected


CASES = Path(__file__).parent / "cases"


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (
            "leading-blank-lines.lp",
            [f"m,host={host} v={time}.0 {time}" for time, host in enumerate("abab", 1)],
        ),
        ("byte-order-mark.lp", ["m,host=a v=1.0 1", "m,host=a v=2.0 2"]),
        ("export-header.lp", ["m,host=a v=1.0 1", "m,host=b v=2.0 2"]),
        ("telegraf-test.lp", ["cpu,host=a v=1.0 1", "cpu,host=a v=2.0 2"]),
        (
            "unsigned-lookalikes.lp",
            ["pdu,height=2u,rack=r07 watts=310i 1", 'disk,host=a,size=16u s="x=5u" 2'],
        ),
        ("duplicate-field.lp", ["m v=2i,w=9.0 1"]),
    ],
)
def test_files_as_other_tools_write_them(case: str, expected: list[str]) -> None:
    assert [write(point) for point in points(CASES / case)] == expected


def test_the_header_of_an_export_names_database_and_retention_policy(tmp_path: Path) -> None:
    path = tmp_path / "export"
    path.write_text(
        "# INFLUXDB EXPORT: 1677-09-21T00:12:43Z - 2262-04-11T23:47:16Z\r\n# DDL\r\n"
        'CREATE DATABASE "plant" WITH NAME autogen\r\n# DML\r\n# CONTEXT-DATABASE:plant\r\n'
        "# CONTEXT-RETENTION-POLICY: autogen\r\n# writing tsm data\r\nm x=1 1\r\n"
        "# CONTEXT-DATABASE:other\r\nm x=2 2",
        newline="",
    )
    assert [(point.database, point.retentionPolicy) for point in points(path)] == [
        ("plant", "autogen"),
        ("other", "autogen"),
    ]
    assert tally(path) == Tally(records=2, in_records=2, passed_over=8)


@pytest.mark.parametrize(
    ("content", "kind", "times"),
    [
        ("\n\nm x=1 1\n\n\nm x=2 2\n", Kind.STREAM, [1, 2]),
        ("db\nrp\nm x=1 1\n", Kind.LINES, [1]),
        ("d=b\nr=p\nm x=1 1\nd=b\nr=p\nm x=2 2\n", Kind.STREAM, [1, 2]),
        ("m x=1 1\n", Kind.BATCH, []),
        (json.dumps(batch()), Kind.LINES, []),
        (json.dumps(batch()), Kind.STREAM, []),
    ],
)
def test_a_format_that_is_named_is_not_detected(
    tmp_path: Path, content: str, kind: Kind, times: list[int]
) -> None:
    path = tmp_path / "recording"
    path.write_text(content)
    found, records, faults = read(path, kind=kind)
    assert found is kind
    assert [record.time for record in records if isinstance(record, Point)] == times
    assert bool(faults) is (len(times) != 2)


LINES_OF_FILES = st.sampled_from(
    [
        *("m x=1 1", 'm x="a', 'b" 2', "m x=", "", " ", "# c", '# x="', "db", "rp", "> m x=1 1"),
        *("m x=1\\", "# DDL", "# DML", "CREATE DATABASE a", "# CONTEXT-DATABASE:a", "\ufeffm x=1"),
        *("\r", "m x=1 1\r", "m,a=é x=1", "{", json.dumps(batch()), json.dumps(batch(points=[]))),
        *("* Plugin: inputs.cpu", '"', "m x=1 1 1", "m x=5u", "\0"),
    ]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(LINES_OF_FILES, min_size=1, max_size=12), st.sampled_from([None, *Kind]))
def test_every_line_is_accounted_for(tmp_path: Path, lines: list[str], kind: Kind | None) -> None:
    path = tmp_path / "recording"
    path.write_text("\n".join((*lines, "m x=1 1")), newline="", encoding="utf-8")
    _, records, faults = read(path, kind=kind)
    counted = tally(path, kind)
    assert counted.in_records + counted.passed_over + counted.refused == len(lines) + 1
    assert counted.records == len(records)
    assert bool(counted.refused) is bool(faults)
    # Only blank lines, comments and headers are passed over.
    passed_over = [
        line for line in lines if not line.strip(" \0\r") or line[0] in "#*" or line[:2] == "CR"
    ]
    assert counted.passed_over <= len(passed_over)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "there is nothing in it"),
        (b"\n \n\r\n", "there is nothing in it"),
        (gzip.compress(b"", mtime=0), "there is nothing in it"),
        ("m x=1 1\n".encode("utf-16"), "this is UTF-16; convert it to UTF-8"),
        (
            gzip.compress(b"PK\x03\x04 and so on", mtime=0),
            "a zip inside a gzip; unpack the gzip first",
        ),
    ],
)
def test_a_file_without_anything_to_read_is_an_error(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "recording"
    path.write_bytes(content)
    with pytest.raises(RecordingError) as refused:
        read(path)
    assert refused.value.reason == reason


# --- points ---


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(STRINGS, STRINGS), min_size=1, max_size=5))
def test_strings_over_several_lines_read_back(
    tmp_path: Path, strings: list[tuple[str, str]]
) -> None:
    originals = []
    for number, (one, other) in enumerate(strings):
        point = Point(name="m", time=number, database="db", retentionPolicy="rp")
        set_field(point, "one", one)
        set_field(point, "other", other)
        originals.append(point)
    recording = tmp_path / "recording"
    recording.write_text("".join(f"db\nrp\n{write(each)}\n" for each in originals), newline="")
    assert points(recording) == originals
    recording.write_text("".join(f"{write(each)}\n" for each in originals), newline="")
    for point in originals:
        point.database = point.retentionPolicy = ""
    assert points(recording) == originals


def test_a_time_counts_in_the_precision(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text("m x=1 1600000000\n", encoding="utf-8")
    _, (point,), _ = read(path, "s")
    assert isinstance(point, Point)
    assert point.time == 1_600_000_000_000_000_000


def test_lines_end_as_on_windows(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    path.write_bytes(b'db\r\nrp\r\nm x="a"\r\n')
    (point,) = points(path)
    assert get_fields(point) == {"x": "a"}
    assert (point.database, point.retentionPolicy) == ("db", "rp")


# --- ill-formed lines ---


@pytest.mark.parametrize(
    ("content", "faults"),
    [
        (b"m x=1 1\nm x=\nm x=2 2\n", ["line 2: field 'x' has no value"]),
        (b"m x=1 1\n\n# c\nm x=1u 1\nm x=2 2\n", ["line 4: field 'x': '1u': Kapacitor 1.5 refu"]),
        (b"m x=1 1\nm x=\xff\nm x=2 2\n", ["line 2: byte 5 of the line is not UTF-8"]),
        (b"m x=1 1\n# \xff\nm x=2 2\n", []),
        (b'm x=1 1\nm x="open 1\nm x=2 2\n', ["line 2: a string is not closed"]),
        (b'm x=1 1\nm x="a 1\nm y= 2\nm x=2 2', ["line 2: a string is not", "line 3: field 'y'"]),
        (b"m x=1 1\nm x=2 2\n" + b"x" * 2000, ["line 3: a line of more than 1000 bytes"]),
        (b"m x=1 1\n" + b"x" * 200_000 + b"\nm x=2 2\n", ["line 2: a line of more than 1000"]),
        (b"x" * 1001 + b"\nm x=1 1\nm x=2 2\n", ["line 1: a line of more than 1000 bytes"]),
        (b"m x=1 1\nm x=2 2\ndb\nrp\n", ["line 3: there is no field", "line 4: there is no field"]),
        (b'm x=1 1\n# x="\nm x=2 2\n', ["line 2: an open quote or a backslash ends this comm"]),
        (b"m x=1 1\n\xef\xbb\xbfm x=3 3\nm x=2 2", ["line 2: a byte order mark before the meas"]),
        (b"# DDL\nm x=3 3\n# DML\nm x=1 1\nm x=2 2", ["line 2: neither a statement nor '# DML'"]),
        (b"m x=1 1\n> m x=\nm x=2 2\n", ["line 2: field 'x' has no value"]),
        (b"db\nrp\nm x=1 1\ndb\nrp\nm\ndb\nrp\nm x=2 2\n", ["line 6: there is no field; a line"]),
        (b"db\nrp\nm x=1 1\ndb\n\xff\nm x=1 1\ndb\nrp\nm x=2 2", ["line 5: byte 1 of the line is"]),
        (b"db\nrp\nm x=1 1\ndb\nrp\nm x=2 2\ndb\nrp\n", ["line 7: the recording ends inside a"]),
        (b"db\nrp\nm x=1 1\ndb\nrp\nm x=2 2\n\n\n\n", []),
        (b"db\nrp\nm x=1 1\nm x=3 3\ndb\nrp\nm x=2 2\n", ["line 4: database and retention po"]),
        (b"db\nrp\nm x=1 1\nrp\nm x=3 3\ndb\nrp\nm x=2 2", ["line 5: database or retention po"]),
        (b"db\nrp\nm x=1 1\ndb\nrp\ndb\nrp\nm x=2 2\n", ["line 4: database and retention po"]),
    ],
)
def test_the_lines_around_an_ill_formed_one_are_read(
    tmp_path: Path, content: bytes, faults: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kapudf_cli.tools.recordings.lines.MAX_POINT_BYTES", 1000)
    path = tmp_path / "recording"
    path.write_bytes(content)
    _, records, told = read(path)
    assert [record.time for record in records if isinstance(record, Point)] == [1, 2]
    assert [fault[: len(start)] for fault, start in zip(told, faults, strict=True)] == faults


def test_a_string_that_is_never_closed_is_not_looked_for_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text('m x="open\n' + "m x=1 1\n" * 5000, encoding="utf-8")
    _, records, faults = read(path)
    assert (len(records), faults) == (5000, ["line 1: a string is not closed"])


@pytest.mark.timeout(20)
def test_strings_that_are_never_closed_cost_time_in_proportion_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    # Inside a string or not, the line ends in an open string.
    path.write_text('m p=",",r="\n' + 'm p=",",r="a",s="\n' * 10_000, encoding="utf-8")
    counted = tally(path)
    assert counted.in_records + counted.refused == 10_001


def test_an_error_ends_the_reading_where_that_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text("m x=1 1\nm\n", encoding="utf-8")

    def refuse(error: RecordingError) -> None:
        raise error

    with open_recording(str(path), precision="ns", refuse=refuse) as recording:
        assert isinstance(next(recording.records), Point)
        with pytest.raises(RecordingError) as refused:
            next(recording.records)
    assert (refused.value.place, refused.value.reason[:17]) == (
        f"{path}: line 2",
        "there is no field",
    )


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "this is not JSON: Input data was truncated"),
        ('{"x":' + "[" * 5_000_000, "this is not a batch: brackets or braces are nested too"),
        ("m x=1 1", "this is not JSON: JSON is malformed: invalid character (byte 0)"),
        ('{"points": 3}', "this is not a batch: Expected `array`, got `int` - at `$.points`"),
        ('{"level": "info"}', "this is not a batch: it has neither points nor a name"),
        (
            json.dumps(batch(tmax="yesterday")),
            "'yesterday' is not a time such as 2020-09-13T12:27:40Z",
        ),
        (
            json.dumps(batch(points=[{"fields": {"x": None}, "time": "2020-09-13T12:26:40Z"}])),
            "field 'x' is null, on which Kapacitor panics",
        ),
        (
            json.dumps(batch(points=[{"fields": {"x": 1}, "time": "0001-01-01T00:00:00Z"}])),
            "the time 0001-01-01T00:00:00Z is out of range",
        ),
        (
            '{"name":"cpu","fields":{"x":1.0},"tags":{},"time":"2020-09-13T12:26:40Z"}',
            "this is a point, and not a batch",
        ),
    ],
)
def test_an_ill_formed_batch_is_told(tmp_path: Path, line: str, fault: str) -> None:
    path = tmp_path / "recording"
    path.write_text(f"{json.dumps(batch())}\n{line}\n\n{json.dumps(batch())}\n", encoding="utf-8")
    _, records, faults = read(path)
    assert len(records) == 2
    assert [found.startswith(f"line 2: {fault}") for found in faults] == [True]


# --- batches ---


def test_a_batch_is_read_as_kapacitor_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    late = {"fields": {"x": 1}, "time": "2020-09-13T12:27:41Z"}
    path.write_text(
        json.dumps(batch(byname=True, group="wrong", points=[late]))
        + "\n"
        + json.dumps(batch(points=[])),
        encoding="utf-8",
    )
    _, (read_batch,), faults = read(path)
    assert isinstance(read_batch, Batch)
    assert (faults, read_batch.group, read_batch.by_name) == ([], "cpu\nhost=a", True)
    assert read_batch.tmax_ns == read_batch.points[0].time == 1_600_000_061_000_000_000
    assert dict(read_batch.points[0].tags) == {"host": "a"}


def test_a_batch_without_tmax_ends_with_its_last_point(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    row = batch()
    del row["tmax"]
    path.write_text(json.dumps(row), encoding="utf-8")
    _, (found,), faults = read(path)
    assert isinstance(found, Batch)
    assert (faults, found.tmax_ns) == ([], 1_600_000_000_000_000_000)


def test_the_queries_of_a_zip_are_merged_by_time(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    ends = {"0": [1, 4, 5], "1": [2, 3], "10": [6]}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for query, minutes in ends.items():
            rows = [batch(tmax=f"2020-09-13T12:3{minute}:00Z") for minute in minutes]
            archive.writestr(query, "".join(f"{json.dumps(row)}\n" for row in rows))
    _, records, faults = read(path)
    assert faults == []
    started = 1_600_000_200_000_000_000
    read_ends = [record.end_ns for record in records if isinstance(record, Batch)]
    assert [(end - started) // (60 * 10**9) for end in read_ends] == [1, 2, 3, 4, 5, 6]


# --- damage ---


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            gzip.compress(b"m x=1 1\n" * 100, mtime=0)[:-12],
            "the compressed data are damaged or cut off",
        ),
        (
            gzip.compress(b"m x=1 1\n" * 100, mtime=0)[:15],
            "the compressed data are damaged or cut off before any line could be read: ",
        ),
        (
            gzip.compress(b"m x=1 1\n" * 100, mtime=0)[:-8] + b"damaged!",
            "the compressed data are damaged",
        ),
        (b"PK\x03\x04nothing of a zip", "the zip is damaged or of an unknown kind"),
        (recordings.BATCH.read_bytes()[:-30], "the zip is damaged or of an unknown kind"),
    ],
)
def test_damage_is_told_and_ends_the_reading(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "recording"
    path.write_bytes(content)
    with pytest.raises(RecordingError) as refused:
        read(path)
    assert refused.value.reason.startswith(reason)


def test_a_zip_with_a_damaged_member_is_told(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("0", json.dumps(batch()))
    path.write_bytes(data.getvalue().replace(b"cpu", b"CPU"))
    with pytest.raises(RecordingError, match="damaged or cut off"):
        read(path)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="/nothing: cannot be read: No such file"):
        read(tmp_path / "nothing")


# --- time and memory ---


@pytest.mark.timeout(60)
@pytest.mark.parametrize("unit", [b"x", b"\n", b"# c\n", b"x\n", b"{", b"{\n"])
@pytest.mark.parametrize("pack", ["gzip", "zip"])
def test_a_bomb_ends_the_reading(
    tmp_path: Path, unit: bytes, pack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kapudf_cli.tools.recordings.lines.MAX_GAP_BYTES", 2 * 1024 * 1024)
    monkeypatch.setattr("kapudf_cli.tools.recordings.recording.MAX_BATCH_BYTES", 1024 * 1024)
    monkeypatch.setattr("kapudf_cli.tools.recordings.lines.MAX_BATCH_BYTES", 1024 * 1024)
    path = tmp_path / "bomb"
    data = unit * (16 * 1024 * 1024 // len(unit))
    if pack == "gzip":
        path.write_bytes(gzip.compress(data, 1))
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("0", data)
    with pytest.raises(RecordingError, match=r"nothing in 2 MiB .* is a point or a batch; is this"):
        read(path)


def test_a_zip_has_a_bounded_number_of_members(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(257):
            archive.writestr(str(number), "")
    with pytest.raises(RecordingError, match="257 members, more than 256"):
        read(path)


def test_the_first_line_has_the_limit_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kapudf_cli.tools.recordings.lines.MAX_POINT_BYTES", 1000)
    monkeypatch.setattr("kapudf_cli.tools.recordings.lines.MAX_BATCH_BYTES", 4000)
    path = tmp_path / "recording"
    point, row = f'm x="{"a" * 1500}"\n', json.dumps(batch(group="a" * 3000)) + "\n"
    path.write_text(point + "m x=1\n" + point)
    assert [fault[:32] for fault in read(path)[2]] == [
        f"line {number}: a line of more than 1000" for number in (1, 3)
    ]
    path.write_text(row + json.dumps(batch(group="a" * 4000)) + "\n" + row)
    kind, records, faults = read(path)
    assert (kind, len(records), faults) == (
        Kind.BATCH,
        2,
        ["line 2: a line of more than 4000 bytes"],
    )


def test_a_long_file_takes_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text("".join(f"m x={number}.0 {number}\n" for number in range(50_000)))
    with open_recording(str(path), precision="ns", refuse=lambda _: None) as recording:
        next(recording.records)
        assert recording.read_bytes <= 512 * 1024
        assert recording.size_bytes == path.stat().st_size
        assert sum(1 for _ in recording.records) == 49_999


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("name,time,v\nm,1,2\n", "CSV of InfluxDB.*influxdb://HOST:8086/DATABASE --query"),
        ("name,tags,time,v\nm,host=a,1,2\n", "CSV of InfluxDB"),
        ("name: m\ntime v\n---- -\n1    2\n", "a table of InfluxDB"),
        ('{"results":[{"series":[]}]}\n', "JSON of InfluxDB"),
        ("#group,false,false\n#datatype,string,long\n", "annotated CSV.*influxd inspect export-lp"),
        (",result,table,_time,_value\n", "annotated CSV"),
    ],
)
def test_other_formats_of_influxdb_are_named_with_the_next_step(
    tmp_path: Path, content: str, problem: str
) -> None:
    path = tmp_path / "data"
    path.write_text(content)
    with pytest.raises(RecordingError, match=problem):
        read(path)


@pytest.mark.parametrize(
    ("time", "precision", "probable"),
    [
        (1_700_000_000, "ns", "s"),
        (1_700_000_000_123, "ns", "ms"),
        (1_700_000_000_123_456, "ns", "u"),
        (1_700_000_000, "ms", "s"),
        (28_333_333, "s", "m"),
        (472_222, "ns", "h"),
        (1_700_000_000_123_456_789, "ns", None),
        (0, "ns", None),
        (20, "ns", None),
        (-5, "ns", None),
        (700_000_000, "s", None),
    ],
)
def test_a_precision_is_suggested_for_a_time_long_ago(
    tmp_path: Path, time: int, precision: str, probable: str | None
) -> None:
    path = tmp_path / "data.lp"
    path.write_text(f"m v=1 {time}\nm v=1 {time}\n")
    warnings: list[str] = []
    source = Source(str(path), precision=precision)
    with source.open(STREAM, refuse=lambda _: None, warn=warnings.append) as recording:
        assert len(list(recording.records)) == 2
    named = [warning.partition("with --precision ")[2].split()[0] for warning in warnings]
    assert named == [probable] * (probable is not None)


def test_the_warning_shows_both_times(tmp_path: Path) -> None:
    path = tmp_path / "data.lp"
    path.write_text("m v=1 1700000000\n")
    warnings: list[str] = []
    with Source(str(path)).open(STREAM, refuse=print, warn=warnings.append) as recording:
        list(recording.records)
    (warning,) = warnings
    assert warning == (
        "the first time, 1970-01-01T00:00:01.7Z, is probably wrong: "
        "with --precision s it is 2023-11-14T22:13:20Z"
    )
