"""What a UDF is, as a TICKscript would call it."""

from __future__ import annotations

from kapudf_cli import BATCH, STREAM
from kapudf_cli.protocol import (
    BOOL,
    DOUBLE,
    DURATION,
    INT,
    STRING,
    InfoResponse,
    OptionInfo,
    ValueType,
)
from kapudf_cli.tickscript.snippets import edge_name, signatures, snippet


def info(**options: tuple[ValueType, ...]) -> InfoResponse:
    """Return what a UDF with these options says of itself."""
    return InfoResponse(
        options={name: OptionInfo(valueTypes=types) for name, types in options.items()}
    )


#: As a later version of the protocol, or another program, might send it: numbers without names.
UNKNOWN = InfoResponse.FromString(
    b"\x08\x07\x10\x08" + b"\x1a\x0b\x0a\x03odd\x12\x04\x0a\x02\x09\x03"
)


def test_edges_have_the_names_of_a_tickscript() -> None:
    assert [edge_name(STREAM), edge_name(BATCH)] == ["stream", "batch"]


def test_an_edge_without_a_name_is_its_number() -> None:
    assert edge_name(UNKNOWN.wants) == "unknown edge 7"
    assert edge_name(UNKNOWN.provides) == "unknown edge 8"


def test_options_are_listed_by_name_with_their_types() -> None:
    described = info(
        size=(INT,), field=(STRING, DOUBLE), every=(DURATION,), enabled=(BOOL,), empty=()
    )
    assert signatures(described) == [
        "empty()",
        "enabled(BOOL)",
        "every(DURATION)",
        "field(STRING, DOUBLE)",
        "size(INT)",
    ]


def test_a_type_without_a_name_is_its_number() -> None:
    assert signatures(UNKNOWN) == ["odd(unknown type 9, STRING)"]


def test_a_snippet_has_a_literal_for_each_type() -> None:
    described = info(
        size=(INT,), field=(STRING, DOUBLE), every=(DURATION,), enabled=(BOOL,), empty=()
    )
    assert snippet("mirror", described) == (
        "@mirror().empty().enabled(TRUE).every(10s).field('…', 0.0).size(0)"
    )


def test_a_snippet_without_options_is_the_call_alone() -> None:
    assert snippet("mirror", InfoResponse()) == "@mirror()"


def test_a_snippet_calls_a_name_that_can_be_called() -> None:
    assert snippet("my-mirror", InfoResponse()) == "@my_mirror()"


def test_a_snippet_leaves_a_gap_for_a_type_without_a_name() -> None:
    assert snippet("odd", UNKNOWN) == "@odd().odd(…, '…')"
