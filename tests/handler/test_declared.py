"""What a handler's class declares by its annotations."""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import pytest

from kapudf_cli.handler.class_attributes import declared

if TYPE_CHECKING:
    from decimal import Decimal


class Base:
    """Where the search ends."""

    options: Any


class Thing:
    pass


class Other(Thing):
    pass


class Plain(Base):
    options: Thing


class Inherits(Plain):
    state: Other


class Overrides(Plain):
    options: Other


class Mixin:
    state: Thing


class Mixed(Mixin, Base):
    pass


class Nested(Base):
    class Options:
        pass

    options: Options


class InheritsNested(Nested):
    class Options:
        """Another of that name, which the annotation above does not mean."""


class BesideTypeChecking(Base):
    """Another annotation of the class is for type checkers alone."""

    before: ClassVar[Decimal]
    options: Thing
    after: dict[str, Decimal]


class BelowTypeChecking(BesideTypeChecking):
    other: Decimal


class Generic(Base):
    options: list[Thing]


class Extra(Base):
    options: Annotated[Thing, "a note"]


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (Base, None),
        (Plain, Thing),
        (Inherits, Thing),
        (Overrides, Other),
        (Mixed, None),
        (Nested, Nested.Options),
        (InheritsNested, Nested.Options),
        (BesideTypeChecking, Thing),
        (BelowTypeChecking, Thing),
        (Generic, list[Thing]),
        (Extra, Annotated[Thing, "a note"]),
    ],
)
def test_an_annotation_is_found_where_it_is_nearest(handler: type, expected: object) -> None:
    """In the class or its bases, short of the one at which the search ends."""
    assert declared(handler, "options", above=Base) == expected


def test_a_mixin_may_declare_as_well() -> None:
    """It comes before the base in the order of resolution."""
    assert declared(Mixed, "state", above=Base) is Thing
    assert declared(Inherits, "state", above=Base) is Other
    assert declared(Plain, "state", above=Base) is None


class Unknown(Base):
    options: Decimal


def test_an_annotation_for_type_checkers_alone_is_an_error_that_names_it() -> None:
    """The import belongs outside of the `if TYPE_CHECKING`."""
    with pytest.raises(NameError, match="'Decimal'"):
        declared(Unknown, "options", above=Base)


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
def test_annotations_are_found_evaluated_or_as_text(
    monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """A module may or may not import annotations from the future."""
    module = types.ModuleType("declaring")
    monkeypatch.setitem(sys.modules, "declaring", module)
    exec(compile(first + SOURCE, "declaring", "exec", dont_inherit=True), vars(module))  # noqa: S102 - the text above
    mine = module.Mine
    above = module.Handler
    assert declared(mine, "options", above=above) is module.MyOptions
    assert declared(mine, "state", above=above) == module.PerGroup[module.MyState]
    assert list(mine(None).info().options) == ["size"]
