"""Options: their declaration for Kapacitor, and errors for authors of TICKscripts."""
# ruff: noqa: RUF012 - the fields of a msgspec struct: their defaults are copied

from __future__ import annotations

import datetime as dt
import math
import types
from typing import Annotated, Any, Literal

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from kapudf_cli.handler.errors import OptionsError
from kapudf_cli.handler.option_declarations import Flag
from kapudf_cli.handler.options import Options, calls_of, declare, parse, tickscript_name
from kapudf_cli.protocol.udf_pb2 import (
    BOOL,
    DOUBLE,
    DURATION,
    INT,
    STRING,
    Option,
    OptionInfo,
    OptionValue,
    ValueType,
)

Meta = msgspec.Meta
SECOND = dt.timedelta(seconds=1)
TRUE = OptionValue(type=BOOL, boolValue=True)
FALSE = OptionValue(type=BOOL, boolValue=False)


def text(value: str) -> OptionValue:
    return OptionValue(type=STRING, stringValue=value)


def whole(value: int) -> OptionValue:
    return OptionValue(type=INT, intValue=value)


def double(value: float) -> OptionValue:
    return OptionValue(type=DOUBLE, doubleValue=value)


def duration(nanoseconds: int) -> OptionValue:
    return OptionValue(type=DURATION, durationValue=nanoseconds)


def call(name: str, *values: OptionValue) -> Option:
    return Option(name=name, values=values)


def options_with(annotation: Any, **default: object) -> type[Options]:
    """Return an options class with one field, `name`, with this annotation."""
    namespace: dict[str, Any] = {"__annotations__": {"name": annotation}}
    if default:
        namespace["name"] = default["default"]
    return types.new_class("Made", (Options,), exec_body=lambda body: body.update(namespace))


def refusal(options: type[Options], *calls: Option) -> str:
    """Return the error for calls of a TICKscript."""
    with pytest.raises(OptionsError) as caught:
        parse(options, calls)
    return str(caught.value)


# --- each annotation of the table ---


ROWS: dict[str, tuple[Any, Any, list[ValueType], list[list[OptionValue]]]] = {
    "str": (str, "text", [STRING], [[text("text")]]),
    "empty str": (str, "", [STRING], [[text("")]]),
    "int": (int, 10, [INT], [[whole(10)]]),
    "negative int": (int, -(2**63), [INT], [[whole(-(2**63))]]),
    "float": (float, 1.5, [DOUBLE], [[double(1.5)]]),
    "true": (bool, True, [BOOL], [[TRUE]]),
    "false": (bool, False, [BOOL], [[FALSE]]),
    "timedelta": (dt.timedelta, 10 * SECOND, [DURATION], [[duration(10_000_000_000)]]),
    "a negative timedelta": (dt.timedelta, -SECOND, [DURATION], [[duration(-1_000_000_000)]]),
    "Literal": (Literal["a", "b"], "b", [STRING], [[text("b")]]),
    "tuple": (tuple[str, float], ("x", 1.5), [STRING, DOUBLE], [[text("x"), double(1.5)]]),
    "tuple of one": (tuple[int], (3,), [INT], [[whole(3)]]),
    "tuple with a Literal": (
        tuple[Literal["a"], dt.timedelta],
        ("a", SECOND),
        [STRING, DURATION],
        [[text("a"), duration(1_000_000_000)]],
    ),
    "list": (list[int], [2, 1, 2], [INT], [[whole(2)], [whole(1)], [whole(2)]]),
    "list of durations": (list[dt.timedelta], [SECOND], [DURATION], [[duration(1_000_000_000)]]),
    "list of Literal": (list[Literal["a", "b"]], ["b"], [STRING], [[text("b")]]),
    "list of tuples": (
        list[tuple[str, bool]],
        [("x", True), ("y", False)],
        [STRING, BOOL],
        [[text("x"), TRUE], [text("y"), FALSE]],
    ),
    "Flag": (Flag, True, [], [[]]),
    "Optional": (str | None, "x", [STRING], [[text("x")]]),
    "Optional list": (list[str] | None, ["x"], [STRING], [[text("x")]]),
    "Annotated": (Annotated[int, Meta(ge=1)], 1, [INT], [[whole(1)]]),
    "Optional Annotated": (Annotated[int, Meta(ge=1)] | None, 1, [INT], [[whole(1)]]),
    "list of Annotated": (list[Annotated[int, Meta(ge=1)]], [1], [INT], [[whole(1)]]),
}


@pytest.mark.parametrize(("annotation", "value", "kinds", "calls"), ROWS.values(), ids=ROWS)
def test_each_annotation_is_declared_called_and_parsed(
    annotation: Any, value: object, kinds: list[ValueType], calls: list[list[OptionValue]]
) -> None:
    options = options_with(annotation)
    expected = [call("name", *values) for values in calls]
    assert declare(options) == {"name": OptionInfo(valueTypes=kinds)}
    assert calls_of(options(name=value)) == expected
    parsed = parse(options, expected)
    assert parsed == options(name=value)
    assert type(parsed.name) is type(value)  # type: ignore[attr-defined]  # made above


class Everything(Options):
    """One option of each type."""

    text: str
    whole: int
    double: float
    truth: bool
    period: dt.timedelta
    choice: Literal["mean", "median"]
    pair: tuple[str, float]
    three: tuple[bool, dt.timedelta, int]
    small: Annotated[int, Meta(ge=-3, lt=4)]
    short: Annotated[str, Meta(max_length=3)]
    with_default: str = "default"
    maybe: float | None = None
    maybe_not: tuple[int, str] | None = None
    texts: list[str] = []
    pairs: list[tuple[str, int]] = []
    periods: list[dt.timedelta] = []
    verbose: Flag = False
    as_: str = "as"
    by_other: int = msgspec.field(default=7, name="other")


INT64 = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(allow_nan=False)
LONGEST = dt.timedelta(microseconds=(2**63 - 1) // 1000)
PERIODS = st.timedeltas(-LONGEST, LONGEST)
EVERYTHING = st.builds(
    Everything,
    text=st.text(),
    whole=INT64,
    double=FLOATS,
    truth=st.booleans(),
    period=PERIODS,
    choice=st.sampled_from(["mean", "median"]),
    pair=st.tuples(st.text(), FLOATS),
    three=st.tuples(st.booleans(), PERIODS, INT64),
    small=st.integers(-3, 3),
    short=st.text(max_size=3),
    with_default=st.text(),
    maybe=st.none() | FLOATS,
    maybe_not=st.none() | st.tuples(INT64, st.text()),
    texts=st.lists(st.text()),
    pairs=st.lists(st.tuples(st.text(), INT64)),
    periods=st.lists(PERIODS),
    verbose=st.booleans(),
    as_=st.text(),
    by_other=INT64,
)


@given(EVERYTHING)
def test_any_options_come_back_from_their_calls(options: Everything) -> None:
    calls = [Option.FromString(call.SerializeToString()) for call in calls_of(options)]
    assert parse(Everything, calls) == options


@given(EVERYTHING, st.randoms())
def test_the_order_of_calls_to_different_options_is_no_matter(
    options: Everything, random: Any
) -> None:
    calls = calls_of(options)
    names = [call.name for call in calls]
    random.shuffle(names)
    queues = {name: [call for call in calls if call.name == name] for name in names}
    assert parse(Everything, [queues[name].pop(0) for name in names]) == options


def test_nothing_called_gives_the_defaults() -> None:

    class AllDefaults(Options):
        names: list[str] = []
        size: int = 3

    first, second = parse(AllDefaults, []), parse(AllDefaults, [])
    assert first == AllDefaults(names=[], size=3)
    first.names.append("mine")
    assert second.names == []


def test_a_nan_reaches_the_handler_as_it_is() -> None:
    parsed = parse(options_with(float), [call("name", double(math.nan))])
    assert math.isnan(parsed.name)  # type: ignore[attr-defined]  # made here


@pytest.mark.parametrize(
    "value", [2**63, -(2**63) - 1, dt.timedelta(days=300 * 366)], ids=["int", "negative", "years"]
)
def test_values_that_no_call_can_have_raise(value: object) -> None:
    with pytest.raises(ValueError, match="range"):
        calls_of(options_with(type(value))(name=value))


INEXPRESSIBLE: dict[str, tuple[Any, object, object]] = {
    "None where the default is none": (int | None, 5, None),
    "a flag that is on by default, off": (Flag, True, False),
    "an empty list where the default is not": (
        list[int],
        msgspec.field(default_factory=lambda: [1]),
        [],
    ),
}


@pytest.mark.parametrize(
    ("annotation", "default", "value"), INEXPRESSIBLE.values(), ids=INEXPRESSIBLE
)
def test_options_that_no_tickscript_can_give_are_not_turned_into_others(
    annotation: Any, default: object, value: object
) -> None:
    options = options_with(annotation, default=default)
    with pytest.raises((ValueError, TypeError)):
        calls_of(options(name=value))


def test_an_option_that_must_be_called_can_be_left_out_by_an_empty_list() -> None:
    options = options_with(list[str])
    calls = calls_of(options(name=[]))
    assert calls == []
    with pytest.raises(OptionsError, match=r"^\.name\(\) is missing; call \.name\(a string\)$"):
        parse(options, calls)


# --- names ---


@pytest.mark.parametrize(
    ("attribute", "name"),
    [
        ("field", "field"),
        ("as_", "as"),
        ("window_size", "windowSize"),
        ("from_", "from"),
        ("a_b_c", "aBC"),
        ("windowSize", "windowSize"),
        ("every_10_s", "every10S"),
    ],
)
def test_names_follow_tickscript(attribute: str, name: str) -> None:
    assert tickscript_name(attribute) == name


class Parent(Options):
    window_size: int = 1
    other: int = msgspec.field(default=2, name="its_own_Name")


class Child(Parent):
    as_: str


def test_a_subclass_keeps_the_names_and_adds_its_own() -> None:
    assert list(declare(Child)) == ["windowSize", "its_own_Name", "as"]
    calls = [call("as", text("x")), call("its_own_Name", whole(5))]
    assert parse(Child, calls) == Child(as_="x", other=5)


class KeywordOnly(Options):
    size: int = 10
    field: str


class DeclaredKeywordOnly(Options, kw_only=True):
    size: int = 10
    field: str


@pytest.mark.parametrize("options", [KeywordOnly, DeclaredKeywordOnly])
def test_fields_are_keyword_only_and_may_have_any_order(options: type[Any]) -> None:
    assert options(field="usage").size == 10
    with pytest.raises(TypeError, match="positional"):
        options(3, "usage")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("window_size", " (did you mean .windowSize()?)"), ("threshold", "")],
)
def test_an_unknown_option_is_refused_with_the_similar_one(name: str, hint: str) -> None:
    assert refusal(Parent, call(name, whole(3))) == f"there is no option .{name}(){hint}"


@pytest.mark.parametrize("name", ["var", "dbrp", "AND", "OR", "TRUE", "FALSE"])
def test_a_keyword_of_tickscript_cannot_be_an_option(name: str) -> None:
    options = types.new_class(
        "Made", (Options,), exec_body=lambda body: body.update(__annotations__={f"{name}_": int})
    )
    problem = f"no TICKscript can call .{name}(); {name} is a keyword of TICKscript"
    with pytest.raises(TypeError) as caught:
        declare(options)
    assert str(caught.value) == f"Made.{name}_: {problem}"


@pytest.mark.parametrize("name", ["_size", "my-size", "my size", "1st", ""])
def test_a_name_that_tickscript_does_not_have_cannot_be_an_option(name: str) -> None:
    class Made(Options):
        size: int = msgspec.field(name=name)

    problem = "use letters, digits and underscores, and start with a letter"
    with pytest.raises(TypeError) as caught:
        declare(Made)
    assert str(caught.value) == f"Made.size: no TICKscript can call .{name}(); {problem}"


def test_two_attributes_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="same name"):

        class Twice(Options):
            window_size: int
            windowSize: int  # noqa: N815 - the mistake


# --- flags ---


@pytest.mark.parametrize("default", [{}, {"default": False}], ids=["no default", "default"])
def test_a_flag_that_is_not_called_is_false(default: dict[str, object]) -> None:
    assert parse(options_with(Flag, **default), []).name is False  # type: ignore[attr-defined]


def test_a_flag_is_called_once_and_without_values() -> None:
    assert refusal(options_with(Flag), call("name"), call("name")) == (
        ".name() is called 2 times; call it once"
    )
    assert refusal(options_with(Flag), call("name", FALSE, TRUE)) == (
        ".name() got 2 values; call .name()"
    )


def test_a_flag_that_is_false_makes_no_call() -> None:
    assert calls_of(options_with(Flag)(name=False)) == []


# --- errors for authors of TICKscripts ---


class Average(Options):
    field: str
    size: Annotated[int, Meta(ge=1)]
    as_: str = "avg"
    method: Literal["mean", "median"] = "mean"
    weight: list[tuple[str, Annotated[float, Meta(gt=0.0, lt=1.0)]]] = []
    every: dt.timedelta = SECOND
    strict: bool = False


FIELD = call("field", text("usage"))
SIZE = call("size", whole(10))

FAULTS: dict[str, tuple[list[Option], str]] = {
    "missing": ([FIELD], ".size() is missing; call .size(a whole number, at least 1)"),
    "repeated": ([FIELD, FIELD, SIZE], ".field() is called 2 times; call it once"),
    "an int for a str": (
        [call("field", whole(3)), SIZE],
        ".field() expects a string, got 3",
    ),
    "a float for an int": (
        [FIELD, call("size", double(10.0))],
        ".size() expects a whole number, at least 1, got 10.0",
    ),
    "a str for an int": (
        [FIELD, call("size", text("10"))],
        ".size() expects a whole number, at least 1, got '10'",
    ),
    "a duration for an int": (
        [FIELD, call("size", duration(10_000_000_000))],
        ".size() expects a whole number, at least 1, got 10s",
    ),
    "an int for a duration": (
        [FIELD, SIZE, call("every", whole(10))],
        ".every() expects a duration, got 10",
    ),
    "a str for a bool": (
        [FIELD, SIZE, call("strict", text("yes"))],
        ".strict() expects TRUE or FALSE, got 'yes'",
    ),
    "a bool for a str": (
        [call("field", TRUE), SIZE],
        ".field() expects a string, got TRUE",
    ),
    "nothing for a str": (
        [call("field", OptionValue()), SIZE],
        ".field() expects a string, got nothing",
    ),
    # Kapacitor sends this for `.strict("TRUE")` and `.strict(lambda: TRUE)`.
    "nothing for a bool": (
        [FIELD, SIZE, call("strict", OptionValue(type=BOOL))],
        (
            ".strict() expects TRUE or FALSE, got nothing; "
            "write TRUE or FALSE itself, without quotes and without lambda:"
        ),
    ),
    "nothing for an int": (
        [FIELD, call("size", OptionValue(type=INT))],
        ".size() expects a whole number, at least 1, got nothing",
    ),
    "a type with the content of another": (
        [FIELD, call("size", OptionValue(type=INT, stringValue="10"))],
        ".size() expects a whole number, at least 1, got '10'",
    ),
    "a text with a quote": (
        [FIELD, call("size", text("it's"))],
        ".size() expects a whole number, at least 1, got 'it\\'s'",
    ),
    "out of range": (
        [FIELD, call("size", whole(0))],
        ".size() expects a whole number, at least 1, got 0",
    ),
    "none of the choices": (
        [FIELD, SIZE, call("method", text("mode"))],
        ".method() expects 'mean' or 'median', got 'mode'",
    ),
    "a choice of another type": (
        [FIELD, SIZE, call("method", whole(1))],
        ".method() expects 'mean' or 'median', got 1",
    ),
    "too many values": (
        [FIELD, call("size", whole(1), whole(2))],
        ".size() got 2 values; call .size(a whole number, at least 1)",
    ),
    "no values": (
        [FIELD, call("size")],
        ".size() got 0 values; call .size(a whole number, at least 1)",
    ),
    "too few values": (
        [FIELD, SIZE, call("weight", text("a"))],
        ".weight() got 1 value; call .weight(a string, a float, above 0.0 and below 1.0)",
    ),
    "one value of two": (
        [FIELD, SIZE, call("weight", text("a"), double(0.5)), call("weight", text("b"), whole(1))],
        ".weight() expects a float, above 0.0 and below 1.0 as value 2, got 1",
    ),
    "both values": (
        [FIELD, SIZE, call("weight", whole(1), double(1.0))],
        (
            ".weight() expects a string as value 1, got 1; "
            ".weight() expects a float, above 0.0 and below 1.0 as value 2, got 1.0"
        ),
    ),
    "unknown": (
        [FIELD, SIZE, call("sise", whole(1))],
        "there is no option .sise() (did you mean .size()?)",
    ),
    "several": (
        [call("field", whole(1)), call("as", text("a")), call("as", text("b")), call("x")],
        (
            ".field() expects a string, got 1; "
            ".size() is missing; call .size(a whole number, at least 1); "
            ".as() is called 2 times; call it once; "
            "there is no option .x()"
        ),
    ),
}


@pytest.mark.parametrize(("calls", "sentence"), FAULTS.values(), ids=FAULTS)
def test_each_fault_is_reported_in_a_sentence(calls: list[Option], sentence: str) -> None:
    assert refusal(Average, *calls) == sentence


EXPECTATIONS: dict[str, tuple[Any, OptionValue, str]] = {
    "ge": (Annotated[int, Meta(ge=2)], whole(1), "a whole number, at least 2, got 1"),
    "gt": (Annotated[float, Meta(gt=2)], double(2.0), "a float, above 2, got 2.0"),
    "le": (Annotated[int, Meta(le=2)], whole(3), "a whole number, at most 2, got 3"),
    "lt": (Annotated[float, Meta(lt=2.5)], double(2.5), "a float, below 2.5, got 2.5"),
    "a zero": (Annotated[int, Meta(ge=0)], whole(-1), "a whole number, at least 0, got -1"),
    "both": (
        Annotated[int, Meta(ge=1, le=9)],
        whole(10),
        "a whole number, at least 1 and at most 9, got 10",
    ),
    "multiple of": (
        Annotated[int, Meta(multiple_of=5)],
        whole(7),
        "a whole number, a multiple of 5, got 7",
    ),
    "pattern": (
        Annotated[str, Meta(pattern="^[a-z]+$")],
        text("A"),
        "a string, matching ^[a-z]+$, got 'A'",
    ),
    "shortest": (
        Annotated[str, Meta(min_length=1)],
        text(""),
        "a string that is not empty, got ''",
    ),
    "longest": (
        Annotated[str, Meta(max_length=2)],
        text("abc"),
        "a string, 2 characters or less, got 'abc'",
    ),
    "in an Optional": (
        Annotated[int, Meta(ge=2)] | None,
        whole(1),
        "a whole number, at least 2, got 1",
    ),
    "in a list": (list[Annotated[int, Meta(ge=2)]], whole(1), "a whole number, at least 2, got 1"),
    "not a number": (Annotated[float, Meta(ge=0.0)], double(math.nan), "a float, at least 0.0"),
}


@pytest.mark.parametrize(
    ("annotation", "value", "sentence"), EXPECTATIONS.values(), ids=EXPECTATIONS
)
def test_each_limit_of_a_value_is_checked_and_reported(
    annotation: Any, value: OptionValue, sentence: str
) -> None:
    told = refusal(options_with(annotation), call("name", value))
    assert told.startswith(f".name() expects {sentence}")


def test_a_value_at_its_limit_is_taken() -> None:
    options = options_with(Annotated[int, Meta(ge=1, le=3)])
    assert [parse(options, [call("name", whole(n))]) for n in (1, 3)] == [
        options(name=1),
        options(name=3),
    ]


def test_a_description_is_no_limit() -> None:
    options = options_with(Annotated[int, Meta(description="how many")])
    assert refusal(options) == ".name() is missing; call .name(a whole number)"


@pytest.mark.parametrize(
    ("nanoseconds", "literal"),
    [
        (10_000_000_000, "10s"),
        (90_000_000_000, "90s"),
        (1_500_000_000, "1500ms"),
        (250_000, "250u"),
        (3_600_000_000_000, "1h"),
        (30 * 86_400_000_000_000, "30d"),
        (1_234_567_000_000_000, "1234567s"),
    ],
)
def test_a_duration_is_shown_as_a_tickscript_has_it(nanoseconds: int, literal: str) -> None:
    told = refusal(options_with(int), call("name", duration(nanoseconds)))
    assert told == f".name() expects a whole number, got {literal}"


@pytest.mark.parametrize("nanoseconds", [1, 1_500, -999, 10_000_000_001])
def test_a_duration_finer_than_a_microsecond_is_refused(nanoseconds: int) -> None:
    told = refusal(options_with(dt.timedelta), call("name", duration(nanoseconds)))
    assert told.startswith(".name() expects a duration, got ")
    assert told.endswith(", finer than a microsecond")


@pytest.mark.parametrize(
    "annotation",
    [Annotated[list[int], Meta(min_length=2)], list[Annotated[tuple[int, int], Meta(ge=3)]]],
    ids=["of a list", "of a tuple"],
)
def test_a_limit_of_several_values_is_checked_or_refused(annotation: Any) -> None:
    options = options_with(annotation)
    pair = 2 if "tuple" in str(annotation) else 1
    with pytest.raises((OptionsError, TypeError)):
        parse(options, [call("name", *[whole(1)] * pair)])


def test_options_without_fields_declare_nothing() -> None:
    assert declare(Options) == {}
    assert parse(Options, []) == Options()
    assert calls_of(Options()) == []
