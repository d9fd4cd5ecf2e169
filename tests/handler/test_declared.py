"""Options and state that a handler's class declares by annotations."""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any, ClassVar, cast

import pytest

import kapudf_cli
from kapudf_cli import Handler, Options, PerGroup, Point, State
from kapudf_cli.handler import Writer, definition
from kapudf_cli.handler.errors import DefinitionError

if TYPE_CHECKING:
    from decimal import Decimal


class First(Options):
    first: int = 1


class Second(Options):
    second: int = 2


class Count(State):
    count: int = 0


class Base(Handler):
    """Declares nothing."""

    def point(self, point: Point, /) -> None:
        self.agent.write_point(point)


class Plain(Base):
    options: First


class Inherits(Plain):
    state: Count


class Overrides(Plain):
    options: Second  # type: ignore[assignment]


class Mixin:
    state: Count


class Mixed(Mixin, Base):
    pass


class Nested(Base):
    class Options(kapudf_cli.Options):
        nested: int = 3

    options: Options


class InheritsNested(Nested):
    class Options(kapudf_cli.Options):
        """Another class of that name, which the inherited annotation does not mean."""


class BesideTypeChecking(Base):
    """Has other annotations with names that only type checkers know."""

    before: ClassVar[Decimal]
    options: First
    after: dict[str, Decimal]


class BelowTypeChecking(BesideTypeChecking):
    other: Decimal


class Unknown(Base):
    options: Decimal


def options_of(handler: type[Handler]) -> list[str]:
    definition.check(handler)
    return list(handler(cast("Writer", None)).info().options)


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (Base, []),
        (Plain, ["first"]),
        (Inherits, ["first"]),
        (Overrides, ["second"]),
        (Mixed, []),
        (Nested, ["nested"]),
        (InheritsNested, ["nested"]),
        (BesideTypeChecking, ["first"]),
        (BelowTypeChecking, ["first"]),
    ],
)
def test_the_annotation_of_the_nearest_class_counts(
    handler: type[Handler], expected: list[str]
) -> None:
    assert options_of(handler) == expected


@pytest.mark.parametrize(
    ("handler", "expected"), [(Plain, None), (Inherits, Count), (Mixed, Count)]
)
def test_a_base_or_a_mixin_can_declare_the_state(
    handler: type[Handler], expected: type | None
) -> None:
    assert handler.keeps_state() == (expected is not None)
    state: Any = getattr(handler(cast("Writer", None)), "state", None)
    assert state == (None if expected is None else expected())


def test_the_error_of_an_annotation_for_type_checkers_names_it() -> None:
    with pytest.raises(DefinitionError, match="name 'Decimal' is not defined; define it at"):
        definition.check(Unknown)


SOURCE = """
from kapudf_cli import Handler, Options, PerGroup, State

class MyOptions(Options):
    size: int = 3

class MyState(State):
    count: int = 0

class Mine(Handler):
    options: MyOptions
    state: PerGroup[MyState]

    def point(self, point):
        self.agent.write_point(point)
"""


@pytest.mark.parametrize(
    "first", ["", "from __future__ import annotations"], ids=["evaluated", "as text"]
)
def test_annotations_may_be_evaluated_or_text(monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    module = types.ModuleType("declaring")
    monkeypatch.setitem(sys.modules, "declaring", module)
    exec(compile(first + SOURCE, "declaring", "exec", dont_inherit=True), vars(module))  # noqa: S102 - the text above
    assert options_of(module.Mine) == ["size"]
    assert isinstance(module.Mine(None).state, PerGroup)
