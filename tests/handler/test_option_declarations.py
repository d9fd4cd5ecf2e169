"""Option declarations: annotations, and errors in them."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, Literal

import msgspec
import pytest

from kapudf_cli.handler.option_declarations import Flag, Name, declarations, expected_words
from kapudf_cli.protocol.udf_pb2 import BOOL, DOUBLE, INT, STRING, ValueType

Meta = msgspec.Meta


def struct_with(annotation: object) -> type[msgspec.Struct]:
    return msgspec.defstruct("Made", [("name", annotation)])


class Declares(msgspec.Struct):
    """One option of each form."""

    one: int
    pair: tuple[str, float]
    any_number: list[bool]
    flag: Flag
    perhaps: str | None = None


def test_an_annotation_says_what_an_option_takes() -> None:
    seen = {
        each.attribute: (each.types, each.single, each.repeated, each.required)
        for each in declarations(Declares)
    }
    assert seen == {
        "one": ((INT,), True, False, True),
        "pair": ((STRING, DOUBLE), False, False, True),
        "any_number": ((BOOL,), True, True, True),
        "flag": ((), False, False, False),
        "perhaps": ((STRING,), True, False, False),
    }


def test_a_call_is_shown_with_its_arguments() -> None:
    assert [each.call for each in declarations(Declares)] == [
        ".one(a whole number)",
        ".pair(a string, a float)",
        ".any_number(TRUE or FALSE)",
        ".flag()",
        ".perhaps(a string)",
    ]


@pytest.mark.parametrize(
    ("annotation", "kind", "words"),
    [
        (Annotated[int, Meta(ge=1, lt=9)], INT, "a whole number, at least 1 and below 9"),
        (Literal["a", "b"], STRING, "'a' or 'b'"),
        (Name, STRING, "a string that is not empty"),
        (Annotated[str, Meta(min_length=2)], STRING, "a string, 2 characters or more"),
        (
            Annotated[str, Meta(min_length=1, max_length=9)],
            STRING,
            "a string that is not empty, 9 characters or less",
        ),
        (Annotated[str, Meta(min_length=1)], STRING, "a string that is not empty"),
    ],
)
def test_limits_are_put_in_words(annotation: object, kind: ValueType, words: str) -> None:
    assert expected_words(kind, annotation) == words


UNFIT: dict[str, Any] = {
    "dict": dict[str, int],
    "bytes": bytes,
    "Any": Any,
    "two types": int | str,
    "two types or None": int | str | None,
    "a list of lists": list[list[str]],
    "a bare list": list,
    "a bare tuple": tuple,
    "an endless tuple": tuple[float, ...],
    "an empty tuple": tuple[()],
    "a tuple of lists": tuple[str, list[int]],
    "a list of Optional": list[str | None],
    "a Literal of numbers": Literal[1, 2],
    "a struct": msgspec.Struct,
    "datetime": dt.datetime,
    "a list of flags": list[Flag],
    "a tuple with a flag": tuple[str, Flag],
}


@pytest.mark.parametrize("annotation", UNFIT.values(), ids=UNFIT)
def test_an_annotation_that_no_option_can_have_is_refused_when_declared(annotation: Any) -> None:
    with pytest.raises(TypeError, match=r"^Made\.name: .* is not a type of option; use str, "):
        declarations(struct_with(annotation))


@pytest.mark.parametrize(
    "annotation",
    [
        Annotated[dt.timedelta, Meta(ge=1)],
        Annotated[int, Meta(pattern="^a")],
        Annotated[str, Meta(ge=1)],
    ],
    ids=["a range of durations", "a pattern of numbers", "a range of texts"],
)
def test_a_limit_that_cannot_be_checked_is_refused_when_declared(annotation: Any) -> None:
    with pytest.raises(TypeError):
        declarations(struct_with(annotation))
