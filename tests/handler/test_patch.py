"""Patches: patched bytes equal the decoded, changed and encoded point."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kapudf_cli import (
    FieldPatch,
    Handler,
    PointPatch,
    decode_point,
    get_field,
    get_fields,
    set_field,
)
from kapudf_cli.handler import FieldValueError
from kapudf_cli.protocol.codec import encode_point
from kapudf_cli.protocol.raw_points import RawPoint, frame_bytes
from kapudf_cli.protocol.udf_pb2 import Point
from kapudf_cli.testing import StartTask, lines

# Few names, so that they collide. One is part of another, and one is empty.
names = st.sampled_from(["a", "ab", "b", "", "é", "value"]) | st.text(max_size=4)
texts = st.sampled_from(["a", "\x01a", "\n\x01a", ""]) | st.text(max_size=200)
doubles = st.floats(allow_nan=False, allow_infinity=False)
integers = st.integers(-(2**63), 2**63 - 1)
values = st.booleans() | integers | doubles | texts


@st.composite
def points(draw: st.DrawFn) -> Point:
    """Draw any point; a name may be in several maps."""
    return Point(
        time=draw(integers),
        name=draw(names),
        group=draw(texts),
        dimensions=draw(st.lists(names, max_size=3)),
        tags=draw(st.dictionaries(names, texts, max_size=3)),
        fieldsDouble=draw(st.dictionaries(names, doubles, max_size=3)),
        fieldsInt=draw(st.dictionaries(names, integers, max_size=3)),
        fieldsString=draw(st.dictionaries(names, texts, max_size=3)),
        fieldsBool=draw(st.dictionaries(names, st.booleans(), max_size=3)),
    )


def copy_of(point: Point) -> Point:
    """Return an equal point."""
    copy = Point()
    copy.CopyFrom(point)
    return copy


def patched(point: Point, patch: PointPatch) -> Point:
    """Return the point as it would be sent."""
    return decode_point(RawPoint(patch.extend(RawPoint(encode_point(point)))))


@given(points(), st.dictionaries(names, values, max_size=3), st.dictionaries(names, texts))
def test_patched_bytes_are_the_point_with_everything_set(
    point: Point, fields: dict[str, object], tags: dict[str, str]
) -> None:
    result = patched(point, PointPatch(fields, tags))
    for name, value in fields.items():
        set_field(point, name, value)
    for name, text in tags.items():
        point.tags[name] = text
    assert result == point


@given(points(), st.dictionaries(names, values, max_size=3), st.dictionaries(names, texts))
def test_only_what_is_missing_is_set(
    point: Point, fields: dict[str, object], tags: dict[str, str]
) -> None:
    patch = PointPatch(fields, tags, only_missing=True)
    result = patched(point, patch)
    patch.apply(expected := copy_of(point))
    assert result == expected
    for name, value in fields.items():
        if get_field(point, name) is None:
            set_field(point, name, value)
    for name, text in tags.items():
        if not point.tags.get(name):
            point.tags[name] = text
    assert result == point


@given(
    st.lists(points(), min_size=1, max_size=5),
    st.dictionaries(names, values, max_size=2),
    st.dictionaries(names, texts, max_size=2),
    st.booleans(),
)
def test_a_run_is_patched_like_its_points(
    run: list[Point],
    fields: dict[str, object],
    tags: dict[str, str],
    only_missing: bool,  # noqa: FBT001 - drawn
) -> None:
    patch = PointPatch(fields, tags, only_missing=only_missing)
    raws = [RawPoint(encode_point(point)) for point in run]
    data, count, taken = patch.extend_run(b"".join(raws), 1 << 20)
    assert data == b"".join(patch.extend(raw) for raw in raws[:count])
    assert taken == sum(map(len, raws[:count]))
    # The run ends at the first frame whose length is not remembered, and not before.
    assert count == len(list(itertools.takewhile(lambda raw: frame_bytes(raw, 0), raws)))


@pytest.mark.parametrize("fields", [{"x": 1.5}, {"n": 1.5}], ids=["absent", "present"])
def test_a_run_ends_before_a_point_that_gets_too_long(fields: dict[str, object]) -> None:
    raws = [RawPoint(encode_point(Point(name="n" * size))) for size in (50, 60, 51)]
    longest = len(PointPatch(fields).extend(raws[0]))
    data, count, taken = PointPatch(fields).extend_run(b"".join(raws), longest)
    assert (len(data), count, taken) == (longest, 1, len(raws[0]))


@given(points(), names, st.lists(values, max_size=4))
def test_a_field_patch_sets_its_last_value(point: Point, name: str, given: list[object]) -> None:
    patch = FieldPatch(name)
    for value in given:
        result = patched(point, patch.to(value))
        expected = copy_of(point)
        set_field(expected, name, value)
        assert result == expected


def entry(key: bytes, value: bytes) -> bytes:
    return bytes([0x42, len(key) + len(value)]) + key + value


@pytest.mark.parametrize(
    "key",
    [b"\x0a\x01x", b"\x0a\x81\x00x", b"\x0a\x81\x80\x00x", b"\x8a\x00\x01x"],
    ids=["plain", "longer length", "still longer length", "longer tag"],
)
def test_a_name_is_found_however_its_length_was_written(key: bytes) -> None:
    double = b"\x11" + bytes(8)
    for body in (entry(key, double), entry(double, key)):
        point = Point.FromString(body + Point(name="n" * 150).SerializeToString())
        assert "x" in point.fieldsDouble
        size = len(body) + 153
        raw = RawPoint(encode_point(Point(name="n" * (size - 3)))[:6] + body + b"\x12\x96\x01")
        raw = RawPoint(raw + b"n" * 150)
        assert decode_point(raw) == point
        set_field(point, "x", 1)
        assert decode_point(RawPoint(PointPatch({"x": 1}).extend(raw))) == point


def test_an_empty_name_may_be_missing_in_the_bytes() -> None:
    body = entry(b"", b"\x11" + b"\x01" * 8)
    raw = RawPoint(bytes([len(body) + 3, 0x8A, 0x01, len(body)]) + body)
    assert 0 not in raw
    assert "" in decode_point(raw).fieldsDouble
    result = decode_point(RawPoint(PointPatch({"": 1}).extend(raw)))
    assert get_fields(result) == {"": 1}
    assert "" not in result.fieldsDouble


@pytest.mark.parametrize("size", [*range(100, 140), *range(16_370, 16_390), 70_000])
def test_a_frame_of_any_length_is_patched(size: int) -> None:
    point = Point(name="n" * size)
    result = patched(point, PointPatch({"x": 1.5}, {"t": "u"}))
    assert (result.name, dict(result.fieldsDouble), dict(result.tags)) == (
        point.name,
        {"x": 1.5},
        {"t": "u"},
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, 2**63, None, "\ud800"])
def test_a_value_that_no_field_can_have_is_refused(value: object) -> None:
    with pytest.raises(FieldValueError, match="field 'x'"):
        PointPatch({"x": value})
    with pytest.raises(FieldValueError, match="field 'x'"):
        FieldPatch("x").to(value)


class CommitRecord(Handler):
    """Patches each raw point."""

    def setup(self) -> None:
        self.patch = PointPatch({"x": 1.5}, {"t": "u"})

    def raw_point(self, raw: RawPoint) -> PointPatch:
        del raw
        return self.patch


def test_forwarded_points_have_what_the_patch_sets(udf: StartTask) -> None:
    sent = lines("m a=1.0 1", "m x=7i 2", 'm,t=v x="text",y=true 3')
    out = udf(CommitRecord).send(*sent)
    for point in sent:
        set_field(point, "x", 1.5)
        point.tags["t"] = "u"
    assert out.points == sent
