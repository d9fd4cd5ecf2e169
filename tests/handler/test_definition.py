"""Mistakes in a handler's class: each is refused in one sentence."""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING, Any

import pytest

from kapudf_cli import BatchHandler, Handler, Options, PerGroup, Point, State
from kapudf_cli.handler import KapudfError, Writer, definition
from kapudf_cli.testing import StartTask, TaskFailedError

if TYPE_CHECKING:
    from kapudf_cli import Batch


class MyOptions(Options):
    size: int = 1


class MyState(State):
    count: int = 0


def class_of(base: type, body: str) -> Any:
    """Return a class Mine with this body, of a file mine.py."""
    text = "class Mine(base):\n" + textwrap.indent(body, "    ")
    names: dict[str, Any] = {"__name__": __name__, "base": base, "MyOptions": MyOptions}
    names.update(MyState=MyState, PerGroup=PerGroup)
    exec(compile(text, "mine.py", "exec", dont_inherit=True), names)  # noqa: S102 - the text above
    return names["Mine"]


POINT = "def point(self, point): ...\n"
BATCH = "def batch(self, batch): ...\n"
JOIN = "def join_snapshots(cls, snapshots): ...\n"

#: The base class, the body, and the message.
MISTAKES: dict[str, tuple[type, str, str]] = {
    "plural": (
        Handler,
        "def points(self, point): ...",
        "Mine.points is never called; rename it to point (mine.py, line 2)",
    ),
    "upper case": (
        Handler,
        "def Point(self, point): ...",
        "Mine.Point is never called; rename it to point (mine.py, line 2)",
    ),
    "prefix": (
        Handler,
        "def on_point(self, point): ...",
        "Mine.on_point is never called; rename it to point (mine.py, line 2)",
    ),
    "underscore": (
        Handler,
        POINT + "def set_up(self): ...",
        "Mine.set_up is never called; rename it to setup (mine.py, line 3)",
    ),
    "underscore and upper case": (
        Handler,
        POINT + "def end_Batch(self, end): ...",
        "Mine.end_Batch is never called; rename it to end_batch (mine.py, line 3)",
    ),
    "short form": (
        Handler,
        POINT + "def begin(self, begin): ...",
        "Mine.begin is never called; rename it to begin_batch (mine.py, line 3)",
    ),
    "name of another library": (
        Handler,
        POINT + "def tearDown(self): ...",
        "Mine.tearDown is never called; rename it to teardown (mine.py, line 3)",
    ),
    "missing letter": (
        Handler,
        POINT + "def restor(self, request): ...",
        "Mine.restor is never called; rename it to restore (mine.py, line 3)",
    ),
    "plural of batch": (
        BatchHandler,
        "def batches(self, batch): ...",
        "Mine.batches is never called; rename it to batch (mine.py, line 2)",
    ),
    "batch of a Handler": (
        Handler,
        BATCH,
        "Mine does not define point(); to get batches, subclass BatchHandler",
    ),
    "no method": (Handler, "...", "Mine does not define point()"),
    "too few arguments": (
        Handler,
        "def point(self): ...",
        "Mine.point must be `def point(self, point)` (mine.py, line 2)",
    ),
    "too many arguments": (
        Handler,
        POINT + "def setup(self, agent): ...",
        "Mine.setup must be `def setup(self)` (mine.py, line 3)",
    ),
    "a required keyword": (
        Handler,
        "def point(self, point, *, more): ...",
        "Mine.point must be `def point(self, point)` (mine.py, line 2)",
    ),
    "__init__ without an agent": (
        Handler,
        POINT + "def __init__(self): ...",
        "Mine.__init__ must be `def __init__(self, agent)` (mine.py, line 3)",
    ),
    "a value for a method": (
        Handler,
        POINT + "setup = 3",
        "Mine.setup must be `def setup(self)`",
    ),
    "options assigned": (
        Handler,
        POINT + "options = MyOptions",
        "Mine.options is the class itself; write `options: MyOptions`",
    ),
    "options assigned as a value": (
        Handler,
        POINT + "options = MyOptions()",
        "Mine.options is a value of MyOptions; write `options: MyOptions`",
    ),
    "state assigned": (
        Handler,
        POINT + "state = MyState",
        "Mine.state is the class itself; write `state = MyState()`",
    ),
    "state of each group assigned": (
        Handler,
        POINT + "state = PerGroup[MyState]",
        "Mine.state is a type; write `state = PerGroup(MyState)`",
    ),
    "another class as options": (
        Handler,
        POINT + "options: int",
        "Mine.options: <class 'int'> is not a subclass of kapudf_cli.Options",
    ),
    "an unknown name": (
        Handler,
        POINT + "options: 'Unknown'",
        (
            "Mine.options: Unknown: name 'Unknown' is not defined; define it at the top level of "
            "its module, not in a function, and import it outside of `if TYPE_CHECKING:`"
        ),
    ),
}


@pytest.mark.parametrize(("base", "body", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_refused_in_one_sentence(base: type, body: str, message: str) -> None:
    with pytest.raises(KapudfError) as caught:
        definition.check(class_of(base, body))
    assert str(caught.value) == message


#: Methods of an author that are similar to those of kapudf, and declarations that work.
ACCEPTED = {
    "a helper with other arguments": (
        Handler,
        POINT + "def points(self): ...\ndef begin(self): ...",
    ),
    "a helper that is used": (
        Handler,
        "def point(self, point): self.end(point)\ndef end(self, point): ...",
    ),
    "a helper that a nested function uses": (
        Handler,
        "def point(self, point): return [self.setups() for _ in '12']\ndef setups(self): ...",
    ),
    "a similar name of another word": (
        Handler,
        POINT + "def print(self, point): ...\ndef reset(self): ...\ndef step(self): ...",
    ),
    "a private helper": (Handler, POINT + "def _set_up(self): ..."),
    "methods that a BatchHandler has": (BatchHandler, BATCH + "def points(self, point): ..."),
    "an argument with a default": (Handler, "def point(self, point, more=None): ..."),
    "any arguments": (Handler, "def point(self, *arguments, **more): ..."),
    "a static method": (Handler, POINT + "@staticmethod\ndef setup(): ..."),
    "another name for the argument": (Handler, "def point(this, p): ..."),
    "options as text": (Handler, POINT + "options: 'MyOptions'"),
    "options with a value": (Handler, POINT + "options: MyOptions = MyOptions()"),
    "options by hand": (Handler, POINT + "options = {}"),
    "state of each group": (Handler, POINT + "state: PerGroup[MyState]"),
}


@pytest.mark.parametrize(("base", "body"), ACCEPTED.values(), ids=ACCEPTED)
def test_other_classes_are_accepted(base: type, body: str) -> None:
    definition.check(class_of(base, body))


def test_a_local_class_can_be_the_options() -> None:
    class LocalOptions(Options):
        size: int = 2

    handler = class_of(Handler, POINT)
    handler.__annotations__ = {"options": LocalOptions}
    definition.check(handler)
    assert list(handler(None).info().options) == ["size"]


class ForgetsInit(Handler):
    def __init__(self, agent: Writer) -> None:
        self.writer = agent

    def point(self, point: Point, /) -> None: ...


class InheritsForgottenInit(ForgetsInit):
    def __init__(self, agent: Writer) -> None:
        super().__init__(agent)
        self.seen = 0


class ForgetsInitWithState(BatchHandler):
    state: MyState

    def __init__(self, agent: Writer) -> None:
        self.agent = agent

    def batch(self, batch: Batch, /) -> None: ...


@pytest.mark.parametrize(
    ("handler", "owner"),
    [
        (ForgetsInit, "ForgetsInit"),
        (InheritsForgottenInit, "ForgetsInit"),
        (ForgetsInitWithState, "ForgetsInitWithState"),
    ],
)
def test_a_forgotten_init_of_the_base_class_is_reported_with_its_place(
    udf: StartTask, handler: type[Handler], owner: str
) -> None:
    with pytest.raises(TaskFailedError) as caught:
        udf(handler)
    reason = f"{owner}.__init__ must call `super().__init__(agent)` first ({__file__}, line "
    assert reason in str(caught.value)


class Misspells(Handler):
    def point(self, point: Point, /) -> None:
        getattr(point, point.name)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("fieldDouble", "AttributeError: fieldDouble; did you mean Point.fieldsDouble?"),
        ("xyz", "AttributeError: xyz"),
    ],
)
def test_a_misspelt_field_is_answered_with_the_right_one(
    udf: StartTask, name: str, error: str
) -> None:
    with pytest.raises(TaskFailedError) as caught:
        udf(Misspells).send(Point(name=name))
    assert str(caught.value) == f"Misspells.point raised {error}"


class UsesUndeclared(Handler):
    def point(self, point: Point, /) -> None:
        getattr(self, point.name)


@pytest.mark.parametrize(
    ("attribute", "advice"),
    [
        ("options", "; write `options: MyOptions` in the class to declare the options"),
        ("state", "; write `state: MyState` in the class to declare the state"),
        ("other", ""),
    ],
)
def test_the_use_of_undeclared_options_or_state_says_how_to_declare_them(
    udf: StartTask, attribute: str, advice: str
) -> None:
    with pytest.raises(TaskFailedError) as caught:
        udf(UsesUndeclared).send(Point(name=attribute))
    cause = f"AttributeError: 'UsesUndeclared' object has no attribute '{attribute}'{advice}"
    assert str(caught.value) == f"UsesUndeclared.point raised {cause}"


# --- partitions ---

GROUPS = "state = PerGroup(MyState)\n"
OWN = "def snapshot(self): ...\n"


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (POINT, None),
        (GROUPS + POINT, None),
        (GROUPS + POINT + "partition_by = 'group'\n", None),
        (OWN + POINT + "partition_by = 'group'\n@classmethod\n" + JOIN, None),
        ("state = MyState()\n" + POINT, "has one state for all groups; declare the state as a"),
        (OWN + POINT, "has a snapshot of its own, which cannot be split by group; declare"),
        (
            OWN + POINT + "partition_by = 'group'\n",
            "does not define join_snapshots() and split_snapshot(); define",
        ),
        ("passes_through = True\n", "passes points through, which takes less time; use point"),
        (f"async {POINT}", "is async, and has several calls at once without partitions; raise"),
    ],
)
def test_only_groups_can_be_divided_among_partitions(body: str, problem: str | None) -> None:
    # A subclass is treated like its base.
    handler = class_of(class_of(Handler, body), "pass")
    if problem is None:
        definition.check_partitions(handler)
    else:
        with pytest.raises(KapudfError, match=re.escape(f"Mine {problem}")):
            definition.check_partitions(handler)
