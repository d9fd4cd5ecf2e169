"""Calls of options: read from text, and checked against what a UDF declares."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kapudf_cli.protocol import (
    BOOL,
    DOUBLE,
    DURATION,
    INT,
    STRING,
    InfoResponse,
    Option,
    OptionInfo,
    OptionValue,
)
from kapudf_cli.tickscript.calls import check_calls, read_calls, write_calls
from kapudf_cli.tickscript.errors import CallError
from kapudf_cli.tickscript.identifiers import name_problem
from tests.tickscript.test_literals import VALUES

INFO = InfoResponse(
    options={
        "field": OptionInfo(valueTypes=[STRING, DOUBLE]),
        "size": OptionInfo(valueTypes=[INT]),
        "every": OptionInfo(valueTypes=[DURATION]),
        "on": OptionInfo(valueTypes=[BOOL]),
        "empty": OptionInfo(),
        "windowSize": OptionInfo(valueTypes=[INT]),
    }
)
CALLS = st.lists(
    st.builds(
        lambda name, values: Option(name=name, values=values),
        st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,8}", fullmatch=True).filter(
            lambda name: name_problem(name) is None
        ),
        st.lists(VALUES, max_size=4),
    ),
    max_size=5,
)


@given(CALLS)
def test_calls_that_are_written_read_back_as_they_were(calls: list[Option]) -> None:
    assert [call.option for call in read_calls(write_calls(calls))] == calls


def test_the_calls_of_the_manual() -> None:
    expected = [
        Option(
            name="field",
            values=[
                OptionValue(type=STRING, stringValue="usage_idle"),
                OptionValue(type=DOUBLE, doubleValue=42.0),
            ],
        ),
        Option(name="every", values=[OptionValue(type=DURATION, durationValue=10 * 10**9)]),
        Option(name="empty"),
    ]
    for text in (
        ".field('usage_idle', 42.0).every(10s).empty()",
        "@mirror().field('usage_idle', 42.0).every(10s).empty()",
        "\n  @mirror()\n    .field( 'usage_idle' ,42.0 )\n    . every(10s)\n    .empty( )\n",
    ):
        assert check_calls(read_calls(text), INFO) == expected


@pytest.mark.parametrize("text", ["", "  ", "@mirror()"])
def test_no_calls(text: str) -> None:
    assert read_calls(text) == []


@pytest.mark.parametrize(
    ("text", "column", "reason"),
    [
        ("field('x')", 1, "a call such as .name('text', 1.0) belongs here, not 'field('x')'"),
        (".size(1) , .on(TRUE)", 10, "a call such as .name('text', 1.0) belongs here, not"),
        (".size(1", 8, ".size(): a comma or ) belongs after 1, not nothing"),
        (".size(1 2)", 8, ".size(): a comma or ) belongs after 1, not '2)'"),
        (".every(1h30m)", 10, ".every(): a comma or ) belongs after 1h, not '30m)'"),
        (".size(1e3)", 8, ".size(): a comma or ) belongs after 1, not 'e3)'"),
        (".size(1,)", 9, ".size(): a value is missing"),
        (".field('\udcff', 1.0)", 8, ".field(): a string is not UTF-8"),
        (".field(usage, 1.0)", 8, ".field(): 'usage' is not a value; a string stands in single"),
        (".field('usage, 1.0)", 8, ".field(): a string is not closed"),
        (".size(1).var(1)", 10, "a TICKscript cannot call .var(); var is a keyword of TICKscript"),
        ("._size(1)", 2, "a TICKscript cannot call ._size(); use letters, digits and underscores,"),
    ],
)
def test_what_is_no_call_is_refused_with_its_place(text: str, column: int, reason: str) -> None:
    with pytest.raises(CallError) as refused:
        read_calls(text)
    assert refused.value.column == column
    assert refused.value.reason.startswith(reason)
    assert str(refused.value).startswith(f"character {column} of the options: {reason}")


@pytest.mark.parametrize(
    ("text", "column", "reason"),
    [
        (
            ".size(1).feild('x', 1.0)",
            10,
            (
                "the UDF has no option .feild(); did you mean .field()? Its options: empty() "
                "every(DURATION) field(STRING, DOUBLE) on(BOOL) size(INT) windowSize(INT)"
            ),
        ),
        (
            ".threshold(1)",
            2,
            (
                "the UDF has no option .threshold(); its options: empty() "
                "every(DURATION) field(STRING, DOUBLE) on(BOOL) size(INT) windowSize(INT)"
            ),
        ),
        (
            ".window_size(1)",
            2,
            (
                "the UDF has no option .window_size(); did you mean .windowSize()? Its options: "
                "empty() every(DURATION) field(STRING, DOUBLE) on(BOOL) size(INT) windowSize(INT)"
            ),
        ),
        (".size()", 2, ".size() expects .size(a whole number), got 0 values"),
        (".empty(1)", 2, ".empty() expects .empty(), got 1 value"),
        (".field('x', 42)", 13, ".field() expects a float as value 2, got 42, a whole number"),
        (".size(1).size(1.0)", 15, ".size() expects a whole number, got 1.0, a float"),
        (".every(10)", 8, ".every() expects a duration, got 10, a whole number"),
        (".size(TRUE)", 7, ".size() expects a whole number, got TRUE"),
    ],
)
def test_calls_that_the_udf_does_not_declare(text: str, column: int, reason: str) -> None:
    with pytest.raises(CallError) as refused:
        check_calls(read_calls(text), INFO)
    assert (refused.value.column, refused.value.reason) == (column, reason)


def test_a_type_that_has_no_name_is_expected_in_vain() -> None:
    info = InfoResponse.FromString(b"\x1a\x08\n\x01x\x12\x03\n\x01\x09")
    with pytest.raises(CallError, match=r"\.x\(\) expects an unknown type, got 1, a whole number"):
        check_calls(read_calls(".x(1)"), info)
