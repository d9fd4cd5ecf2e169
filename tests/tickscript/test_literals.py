"""TICKscript's literals: read as Kapacitor reads them, and written so that they read back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kapudf_cli.protocol import BOOL, DOUBLE, DURATION, INT, STRING, OptionValue
from kapudf_cli.tickscript.literals import read_literal, write_duration, write_literal

TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])), st.text(st.sampled_from("a'\\\n\"é"))
)
INT64 = st.integers(-(2**63) + 1, 2**63 - 1)
#: What a TICKscript can hold of each type.
VALUES = st.one_of(
    TEXT.filter(lambda text: not ("'''" in text and text.endswith("\\"))).map(
        lambda text: OptionValue(type=STRING, stringValue=text)
    ),
    INT64.map(lambda number: OptionValue(type=INT, intValue=number)),
    st.floats(allow_nan=False, allow_infinity=False).map(
        lambda number: OptionValue(type=DOUBLE, doubleValue=number)
    ),
    st.booleans().map(lambda truth: OptionValue(type=BOOL, boolValue=truth)),
    st.integers(-(2**63) // 1000 + 1, 2**63 // 1000).map(
        lambda count: OptionValue(type=DURATION, durationValue=count * 1000)
    ),
)


def read(text: str) -> OptionValue:
    value, end = read_literal(text, 0)
    assert end == len(text)
    return value


@given(VALUES)
def test_what_is_written_reads_back_as_it_was(value: OptionValue) -> None:
    assert read(write_literal(value)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("''", ""),
        ("'it\\'s'", "it's"),
        ("'a\\b'", "a\\b"),
        ("'\\\\'a'", "\\'a"),
        ("'\"'", '"'),
        ("''''''", ""),
        ("'''it's'''", "it's"),
        ("'''a\\'''", "a\\"),
        ("''''a'''", "'a"),
        ("'two\nlines'", "two\nlines"),
    ],
)
def test_strings(text: str, value: str) -> None:
    assert read(text) == OptionValue(type=STRING, stringValue=value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("42", 42), ("-42", -42), ("- 42", -42), ("010", 8), (str(2**63 - 1), 2**63 - 1)],
)
def test_whole_numbers(text: str, value: int) -> None:
    assert read(text) == OptionValue(type=INT, intValue=value)


@pytest.mark.parametrize(
    ("text", "value"), [("1.5", 1.5), (".5", 0.5), ("5.", 5.0), ("-0.25", -0.25), ("010.0", 10.0)]
)
def test_floats(text: str, value: float) -> None:
    assert read(text) == OptionValue(type=DOUBLE, doubleValue=value)


@pytest.mark.parametrize(
    ("unit", "nanoseconds"),
    [
        ("u", 10**3),
        ("µ", 10**3),
        ("ms", 10**6),
        ("s", 10**9),
        ("m", 60 * 10**9),
        ("h", 3600 * 10**9),
        ("d", 24 * 3600 * 10**9),
        ("w", 7 * 24 * 3600 * 10**9),
    ],
)
def test_each_unit_of_a_duration(unit: str, nanoseconds: int) -> None:
    value = OptionValue(type=DURATION, durationValue=3 * nanoseconds)
    assert read(f"3{unit}") == value
    assert read(f"-3{unit}") == OptionValue(type=DURATION, durationValue=-3 * nanoseconds)
    assert read(f"010{unit}") == OptionValue(type=DURATION, durationValue=10 * nanoseconds)
    assert read(write_literal(value)) == value


def test_a_duration_below_a_microsecond_is_shown() -> None:
    assert write_duration(1001) == "1001ns"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "a value is missing"),
        (")", "a value is missing"),
        ("'open", "a string is not closed"),
        ('"text"', "a string stands in single quotes: 'text'"),
        ("text", "'text' is not a value; a string stands in single quotes: 'text'"),
        ("true", "'true' is not a value; write TRUE"),
        ("False", "'False' is not a value; write FALSE"),
        ("*", "'*' is not a value; a string stands in single quotes: 'text'"),
        ("(1)", "'(' is not a value"),
        ("09", "'09' is not a number; one that begins with 0 is octal"),
        (str(2**63), f"'{2**63}' does not fit into 64 bits"),
        (f"-{2**63}", f"'-{2**63}' does not fit into 64 bits"),
        ("300000w", "'300000w' does not fit into 64 bits"),
        ("9" * 5000, f"'{'9' * 40}' is not a number; one that begins with 0 is octal"),
    ],
)
def test_what_is_no_literal_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the text is compared whole
        read_literal(text, 0)
    assert str(refused.value) == problem
