"""Line protocol: what is written reads back as it was, and what cannot be written is refused."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kapudf_cli import Point, get_fields, set_field
from kapudf_cli.errors import LineProtocolError
from kapudf_cli.recordings.line_protocol import PRECISIONS, is_unfinished, parse, write

TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20
)
#: Any name and any value of a tag, with what line protocol makes hard more often than not.
NAMES = st.one_of(TEXT, st.text(st.sampled_from('a ,="\\#é日'), min_size=1, max_size=8))
STRINGS = st.one_of(TEXT, st.text(st.sampled_from('a ,="\\\n\ré'), max_size=8))
#: The parser refuses what is nearer to 0 than the smallest normal float.
FLOATS = st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False)
VALUES = st.one_of(st.integers(-(2**63), 2**63 - 1), FLOATS, st.booleans(), STRINGS)
TIMES = st.integers(-(2**63) + 2, 2**63 - 2)


def point(name: str, time: int, tags: dict[str, str], fields: dict[str, object]) -> Point:
    made = Point(name=name, time=time, tags=tags)
    for key, value in fields.items():
        set_field(made, key, value)
    return made


@given(
    NAMES,
    TIMES,
    st.dictionaries(NAMES, NAMES, max_size=3),
    st.dictionaries(NAMES, VALUES, min_size=1, max_size=4),
)
def test_what_is_written_reads_back_as_it_was(
    name: str, time: int, tags: dict[str, str], fields: dict[str, object]
) -> None:
    """Every name, tag, type and value, or a refusal."""
    original = point(name, time, tags, fields)
    try:
        line = write(original)
    except LineProtocolError:
        # Few texts only are beyond line protocol: these, and the ends of lines.
        texts = [name, *tags, *tags.values(), *fields]
        assert any(set("\\\n\r\t\x0b\x0c") & set(text) for text in texts) or name[0] == "#"
        assume(False)  # noqa: FBT003 - there is nothing to read back
    assert parse(line) == original


@given(st.dictionaries(st.just("x"), VALUES, min_size=1))
def test_every_value_of_a_field_reads_back_with_its_type(fields: dict[str, object]) -> None:
    """An integer stays one, a float as well, down to the sign of zero."""
    read = get_fields(parse(write(point("m", 1, {}, fields))))
    assert [(type(value), repr(value)) for value in read.values()] == [
        (type(value), repr(value)) for value in fields.values()
    ]


@given(STRINGS)
def test_a_string_is_unfinished_until_its_quote(text: str) -> None:
    """A line may be cut at any line feed in a string, and goes on until the quote that ends it."""
    line = write(point("m,1", 1, {"a": '"'}, {"x": text, "y": 1}))
    assert not is_unfinished(line)
    for place, character in enumerate(line):
        if character == "\n":
            assert is_unfinished(line[:place])


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
    """As InfluxDB's reference has them."""
    (read,) = get_fields(parse(line)).values()
    assert (type(read), read) == (type(value), value)


@pytest.mark.parametrize(("precision", "unit"), PRECISIONS.items())
def test_a_time_counts_in_its_precision(precision: str, unit: int) -> None:
    """And becomes nanoseconds."""
    assert parse("m x=1 -17", precision=precision).time == -17 * unit
    assert parse("m x=1", precision=precision).time == 0


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "there is no field; a line is: measurement,tag=value field=1.0 timestamp"),
        ("cpu", "there is no field; a line is: measurement,tag=value field=1.0 timestamp"),
        ("# a comment", "a comment holds no point"),
        ('m x="open', "a string is not closed"),
        ("m x=1 1e3", "failed to parse nanoseconds integer timestamp"),
        ("m x=5u", "Kapacitor has no unsigned integers, and panics on one"),
        ("m x=1,y=5u,z=2 3", "Kapacitor has no unsigned integers, and panics on one"),
        ("m x=NaN", "failed to parse type of field value"),
        ("m x=1\0", "embedded NUL bytes are not supported"),
    ],
)
def test_what_is_no_line_protocol_is_refused_with_the_reason(line: str, reason: str) -> None:
    """The error has the line as well."""
    with pytest.raises(LineProtocolError) as refused:
        parse(line)
    assert refused.value.reason == reason
    assert str(refused.value) == f"not line protocol: {line!r}: {reason}"


def test_a_time_out_of_range_names_the_precision() -> None:
    """Nanoseconds taken for seconds leave the range of 64 bits."""
    with pytest.raises(LineProtocolError, match=r"out of range; is its precision s\?"):
        parse("m x=1 1600000000000000000", precision="s")


def test_a_point_of_a_batch_is_written_with_the_batch_s_name() -> None:
    """Such a point has none of its own."""
    assert write(point("", 5, {"b": "2", "a": "1"}, {"y": 1, "x": 2.0}), name="cpu") == (
        "cpu,a=1,b=2 x=2.0,y=1i 5"
    )


def test_an_empty_tag_is_left_out() -> None:
    """To InfluxDB it is absent."""
    assert write(point("m", 5, {"a": ""}, {"x": True})) == "m x=true 5"


@pytest.mark.parametrize(
    ("unwritable", "reason"),
    [
        (point("m", 1, {}, {}), "a point without fields cannot be written"),
        (point("", 1, {}, {"x": 1}), "a measurement without a name"),
        (Point(name="m", fieldsDouble={"x": float("nan")}), "field 'x' is nan, which no line can"),
        (Point(name="m", fieldsDouble={"x": float("-inf")}), "field 'x' is -inf, which no line"),
        (point("m", 1, {}, {"x": "a\0"}), "field 'x' has a NUL byte"),
        (point("#m", 1, {}, {"x": 1}), "a measurement that begins with # would be a comment"),
        (point("m", 1, {"t": "a\\"}, {"x": 1}), "'t': a tab, a line's end, or a backslash"),
        (point("m", 1, {"": "a"}, {"x": 1}), "a tag without a name"),
        (point("m", 1, {}, {"a\nb": 1}), "'field': a tab, a line's end, or a backslash"),
    ],
)
def test_what_line_protocol_cannot_hold_is_refused(unwritable: Point, reason: str) -> None:
    """Rather than written as something else."""
    with pytest.raises(LineProtocolError) as refused:
        write(unwritable)
    assert refused.value.reason.startswith(reason)
