"""Line protocol: reading it as Kapacitor does, and reading back what was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kapudf_cli import Point, get_fields, set_field
from kapudf_cli.tools.errors import LineProtocolError
from kapudf_cli.tools.recordings.line_protocol import MAX_KEY_BYTES, PRECISIONS, parse, write
from kapudf_cli.tools.recordings.readers import RecordEnd

#: Lines, each with the result of `ParsePointsWithPrecision` of the influxdb that Kapacitor 1.5.7
#: vendors: `points`, and `refused` if it returned an error.
KAPACITOR = [
    json.loads(row)
    for row in (Path(__file__).parent / "lines.jsonl").read_text(encoding="utf-8").splitlines()
]
#: The time of points without a timestamp in that table.
NOW_NS = 1234567890123456789

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
#: Any name or tag value, often with special characters of line protocol.
NAMES = st.one_of(TEXT, st.text(st.sampled_from('a ,="\\#é日'), min_size=1, max_size=8))
STRINGS = st.one_of(TEXT, st.text(st.sampled_from('a ,="\\\n\ré'), max_size=8))
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.one_of(st.integers(-(2**63), 2**63 - 1), FLOATS, st.booleans(), STRINGS)
TIMES = st.integers(-(2**63) + 2, 2**63 - 2)


def point(name: str, time: int, tags: dict[str, str], fields: dict[str, object]) -> Point:
    made = Point(name=name, time=time, tags=tags)
    for key, value in fields.items():
        set_field(made, key, value)
    return made


def records(text: str) -> list[str]:
    """Split a text into records."""
    found: list[str] = []
    lines = text.split("\n")
    while lines:
        end, taken = RecordEnd(), [lines.pop(0)]
        while end.goes_on_after(taken[-1]) and lines:
            taken.append(lines.pop(0))
        found.append("\n".join(taken))
    return [each for each in found if (bare := each.lstrip(" \t\0")) and bare[0] != "#"]


def test_every_line_is_read_as_kapacitor_reads_it() -> None:
    wrong: list[tuple[Any, Any]] = []
    for row in KAPACITOR:
        read: list[dict[str, Any]] = []
        refused = False
        for record in records(row["text"] + "\n"):
            precision = row.get("precision", "ns")
            try:
                got = parse(record, precision=precision, default_time_ns=NOW_NS)
            except LineProtocolError:
                refused = True
                continue
            fields = {
                name: [
                    {float: "float", int: "int", bool: "bool", str: "string"}[type(value)],
                    value.hex() if isinstance(value, float) else value,
                ]
                for name, value in get_fields(got).items()
            }
            tags = dict(got.tags)
            read.append({"name": got.name, "tags": tags, "fields": fields, "time": got.time})
        if (read, refused) != (row.get("points", []), "refused" in row):
            wrong.append((row, read))
    assert wrong == []
    assert len(KAPACITOR) > 400


@pytest.mark.parametrize("letter", ["k", "é"])
def test_measurement_and_tags_take_65535_bytes(letter: str) -> None:
    room = MAX_KEY_BYTES - len("m,=v")
    tag = letter * (room // len(letter.encode()))
    assert dict(parse(f"m,{tag}=v x=1").tags) == {tag: "v"}
    with pytest.raises(LineProtocolError, match="take more than 65535 bytes"):
        parse(f"m,{tag}{letter}=v x=1")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("m," + ",".join(f"t{number}=v" for number in range(100_000)) + " x=1", "measurement and"),
        ("m " + ",".join(f"f{number}=1" for number in range(30_000)), None),
        ("m x=" + "\\" * 500_000, "field 'x': "),
        ('m x="' + '\\"' * 500_000, "a string is not closed"),
        ('m x="' + '\\"' * 500_000 + '"', None),
        ("m " + '"="' * 50_000, "a string is not closed"),
        ("m x=" + "9" * 1_000_000, "field 'x': "),
        ("m x=" + "0" * 1_000_000 + "1i", None),
        ("m x=1 " + "0" * 1_000_000 + "1", None),
    ],
    ids=["tags", "fields", "backslashes", "open", "string", "quotes", "float", "integer", "time"],
)
@pytest.mark.timeout(10)
def test_a_line_costs_time_in_proportion_to_its_length(line: str, reason: str | None) -> None:
    if reason is None:
        assert parse(line).name == "m"
        return
    with pytest.raises(LineProtocolError) as refused:
        parse(line)
    assert refused.value.reason.startswith(reason)


@given(
    NAMES,
    TIMES,
    st.dictionaries(NAMES, NAMES, max_size=3),
    st.dictionaries(NAMES, VALUES, min_size=1, max_size=4),
)
def test_what_is_written_reads_back_as_it_was(
    name: str, time: int, tags: dict[str, str], fields: dict[str, object]
) -> None:
    original = point(name, time, tags, fields)
    try:
        line = write(original)
    except LineProtocolError:
        # Line protocol cannot express these, and line breaks.
        texts = [name, *tags, *tags.values(), *fields]
        assert any(set("\\\n\r\t\x0b\x0c\0") & set(text) for text in texts) or name[0] in "#\ufeff"
        return
    assert parse(line) == original


@given(st.dictionaries(st.just("x"), VALUES, min_size=1))
def test_every_value_of_a_field_reads_back_with_its_type(fields: dict[str, object]) -> None:
    read = get_fields(parse(write(point("m", 1, {}, fields))))
    assert [(type(value), repr(value)) for value in read.values()] == [
        (type(value), repr(value)) for value in fields.values()
    ]


@given(STRINGS)
def test_a_record_ends_with_the_line_after_which_no_string_is_open(text: str) -> None:
    line = write(point("m,1", 1, {"a": '"'}, {"x": text, "y": 1}))
    pieces = line.split("\n")
    end = RecordEnd()
    assert [end.goes_on_after(piece) for piece in pieces] == [True] * (len(pieces) - 1) + [False]


@pytest.mark.parametrize(
    ("line", "value"),
    [
        *((f"m x={text} 1", True) for text in ("t", "T", "true", "True", "TRUE")),
        *((f"m x={text} 1", False) for text in ("f", "F", "false", "False", "FALSE")),
        ("m x=1i", 1),
        ("m x=-0i", 0),
        ("m x=1", 1.0),
        ("m x=1e3", 1000.0),
        ('m x="1i"', "1i"),
        ('m x="a\\"\\\\b, =5u "', 'a"\\b, =5u '),
    ],
)
def test_each_spelling_of_a_value(line: str, value: object) -> None:
    (read,) = get_fields(parse(line)).values()
    assert (type(read), read) == (type(value), value)


@pytest.mark.parametrize(("precision", "unit"), PRECISIONS.items())
def test_a_time_counts_in_its_precision(precision: str, unit: int) -> None:
    assert parse("m x=1 -17", precision=precision).time == -17 * unit
    assert parse("m x=1", precision=precision).time == 0


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "there is no point; a line is: measurement,tag=value field=1.0 timestamp"),
        ("cpu", "there is no field; a line is: measurement,tag=value field=1.0 timestamp"),
        ("cpu 5", "there is no field; a line is: measurement,tag=value field=1.0 timestamp"),
        ("# a comment", "a comment holds no point"),
        ('m x="open', "a string is not closed"),
        ("m x=", "field 'x' has no value"),
        ("m x=1,=2", "a field has no key"),
        ("m x=1,y", "a field is not of the form key=value"),
        ("m,a x=1", "tag 'a' has no value"),
        ("m,a=b,a=c x=1", "there are two tags 'a'"),
        ("m,a=b=c x=1", "tag 'a': an '=' in its value has no backslash"),
        (",a=b x=1", "there is no measurement before the comma"),
        ("m x=1 1e3", "'1e3' is not a timestamp, which is a whole number"),
        ("m x=1 1 2", "'1 2' is not a timestamp, which is a whole number"),
        (
            "m x=1,y=5u,z=2 3",
            "field 'y': '5u': Kapacitor 1.5 refuses unsigned integers; write it with an i",
        ),
        (
            "m x=NaN",
            "field 'x': 'NaN' is not a number, a boolean or a string in double quotes",
        ),
        ("m x=1e400", "field 'x': '1e400' is out of range"),
        ("m x=9223372036854775808i", "field 'x': '9223372036854775808i' does not fit into 64 bits"),
    ],
)
def test_what_is_no_line_protocol_is_refused_with_the_reason(line: str, reason: str) -> None:
    with pytest.raises(LineProtocolError) as refused:
        parse(line)
    assert refused.value.reason == reason
    assert str(refused.value) == f"not line protocol: {line!r}: {reason}"


def test_a_time_out_of_range_names_the_precision() -> None:
    with pytest.raises(LineProtocolError, match="out of range; is the precision right"):
        parse("m x=1 1600000000000000000", precision="s")


def test_a_point_of_a_batch_is_written_with_the_batch_s_name() -> None:
    assert write(point("", 5, {"b": "2", "a": "1"}, {"y": 1, "x": 2.0}), name="cpu") == (
        "cpu,a=1,b=2 x=2.0,y=1i 5"
    )


def test_an_empty_tag_is_left_out() -> None:
    assert write(point("m", 5, {"a": ""}, {"x": True})) == "m x=true 5"


@pytest.mark.parametrize(
    ("unwritable", "reason"),
    [
        (point("m", 1, {}, {}), "a point without fields cannot be written"),
        (point("", 1, {}, {"x": 1}), "a measurement without a name"),
        (Point(name="m", fieldsDouble={"x": float("nan")}), "field 'x' is nan, which no line can"),
        (Point(name="m", fieldsDouble={"x": float("-inf")}), "field 'x' is -inf, which no line"),
        (point("m", 2**63 - 1, {}, {"x": 1}), "the time 9223372036854775807 is one that InfluxDB"),
        (point("m", 1, {"t": "v" * 65536}, {"x": 1}), "measurement and tags take more than 65535"),
        (point("\ufeffm", 1, {}, {"x": 1}), "a measurement that begins with a byte order mark"),
        (point("#m", 1, {}, {"x": 1}), "a measurement that begins with # would be a comment"),
        (point("m", 1, {"t": "a\\"}, {"x": 1}), "'t': a tab, a line's end, or a backslash"),
        (point("m", 1, {"": "a"}, {"x": 1}), "a tag without a name"),
        (point("m", 1, {}, {"a\nb": 1}), "'field': a tab, a line's end, or a backslash"),
    ],
)
def test_what_line_protocol_cannot_hold_is_refused(unwritable: Point, reason: str) -> None:
    with pytest.raises(LineProtocolError) as refused:
        write(unwritable)
    assert refused.value.reason.startswith(reason)
