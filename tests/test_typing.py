"""What mypy in strict mode says of a stranger's handlers."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.serve_process import KAPUDF

# Each process that runs these tests runs mypy first, which takes several seconds.
pytestmark = pytest.mark.long

ROOT = Path(__file__).parent.parent

#: A handler, a batch handler and a test without a mistake; each mistake is made in it.
CODE = '''
from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

from kapudf_cli import (
    BATCH,
    Batch,
    BatchHandler,
    Handler,
    Meta,
    Options,
    PerGroup,
    Point,
    PointPatch,
    RawPoint,
    Snapshot,
    State,
    copy_envelope,
    get_field,
    get_number,
    set_field,
)
from kapudf_cli.handler import set_datetime
from kapudf_cli.protocol import (
    InfoResponse,
    InitRequest,
    InitResponse,
    RestoreRequest,
    RestoreResponse,
    SnapshotResponse,
)
from kapudf_cli.testing import StartTask, grouped, lines


class ScaleOptions(Options):
    size: Annotated[int, Meta(ge=1)] = 10
    field: str
    every: dt.timedelta = dt.timedelta(seconds=1)
    weight: list[tuple[str, float]] = []
    as_: str = "scaled"


class DeclaredKeywordOnly(Options, kw_only=True):
    size: int = 10
    field: str


class Seen(State):
    count: int = 0


class Scale(Handler):
    """Scales."""

    options: ScaleOptions
    state = PerGroup(Seen, limit=1000)
    on_state_mismatch = "refuse"

    def migrate(self, snapshot: Snapshot) -> Any:
        return snapshot.content

    def point(self, point: Point, /) -> Point:
        seen = self.state.of(point)
        seen.count += 1
        number = get_number(point, self.options.field)
        if number is not None:
            set_field(point, self.options.as_, number * self.options.size)
            point.fieldsInt["count"] = seen.count
        # POINT
        return point

    # METHOD


class Writes(Handler):
    state: PerGroup[Seen]

    def point(self, point: Point) -> None:
        self.agent.write_point(point)
        self.agent.write_batch(Batch())


class Yields(Handler):
    state = Seen()

    def point(self, point: Point) -> Iterator[Point]:
        for _ in range(self.state.count):
            yield point


class Lists(Handler):
    # METHOD2

    def point(self, point: Point) -> list[Point] | None:
        return [point] if point.time else None


class InBatches(Handler):
    provides = BATCH

    def point(self, point: Point) -> Batch | None:
        return Batch("m", [point])

    def teardown(self) -> Iterator[Batch]:
        yield Batch()


class Raw(Handler):
    def raw_point(self, raw: RawPoint) -> RawPoint | PointPatch | None:
        return raw


class Passes(Handler):
    passes_through = True


class PassesPatched(Handler):
    passes_through: bool | PointPatch = True

    def setup(self) -> None:
        self.passes_through = PointPatch({"x": 1.0})


class Tidy(BatchHandler):
    """Tidies."""

    # BATCH ATTRIBUTE

    def batch(self, batch: Batch, /) -> list[Point]:
        # BATCH
        return [copy_envelope(point, {"size": len(batch.points)}) for point in batch.points]


def test_it(udf: StartTask) -> None:
    task = udf(Scale, ScaleOptions(field="v"))
    out = task.send(*grouped(lines("m,host=a v=1"), "host"))
    assert [get_field(point, "scaled") for point in out.points] == [10.0]
    # TEST


# END
'''


@dataclass(frozen=True)
class Mistake:
    """What is written in a place of the code, and a part of what mypy says of it."""

    place: str
    code: str
    message: str


MISTAKES = {
    "a misspelt part of a point": Mistake(
        "POINT", "point.fieldDouble['x'] = 1.0", '"Point" has no attribute "fieldDouble"'
    ),
    "a misspelt part of a new point": Mistake(
        "POINT", "Point(tiem=3)", 'Unexpected keyword argument "tiem" for "Point"'
    ),
    "a text among the floats": Mistake(
        "POINT", "point.fieldsDouble['x'] = 'text'", '(expression has type "str", target'
    ),
    "a float among the integers": Mistake(
        "POINT", "point.fieldsInt['x'] = 1.5", '(expression has type "float", target'
    ),
    "a number as a tag": Mistake(
        "POINT", "point.tags['x'] = 3", '(expression has type "int", target'
    ),
    "a text as the time": Mistake(
        "POINT", "point.time = 'now'", 'expression has type "str", variable has type "int"'
    ),
    "a misspelt option": Mistake(
        "POINT", "self.options.feild", '"ScaleOptions" has no attribute "feild"'
    ),
    "an option by its TICKscript name": Mistake(
        "TEST", 'ScaleOptions(field="v", windowSize=1)', 'Unexpected keyword argument "windowSize"'
    ),
    "an option taken for another type": Mistake(
        "POINT", "self.options.every + 1", 'Unsupported operand types for + ("timedelta" and "int")'
    ),
    "an option of the wrong type": Mistake(
        "TEST",
        "ScaleOptions(field=3)",
        'Argument "field" to "ScaleOptions" has incompatible type "int"; expected "str"',
    ),
    "an option of the wrong types": Mistake(
        "TEST", "ScaleOptions(field='v', weight=[('a', 'b')])", 'has incompatible type "tuple[str, '
    ),
    "an option that is missing": Mistake(
        "TEST", "ScaleOptions(size=3)", 'Missing named argument "field" for "ScaleOptions"'
    ),
    "options by position": Mistake(
        "TEST", "ScaleOptions('v')", 'Too many positional arguments for "ScaleOptions"'
    ),
    "no group but a text": Mistake(
        "POINT",
        "self.state.of('host=a')",
        'Argument 1 to "of" of "PerGroup" has incompatible type "str"; expected "Point"',
    ),
    "a misspelt part of the state": Mistake(
        "POINT", "self.state.of(point).cuont", '"Seen" has no attribute "cuont"'
    ),
    "a state of the wrong type": Mistake(
        "POINT", "seen.count = 'x'", 'expression has type "str", variable has type "int"'
    ),
    "a state made of the wrong type": Mistake(
        "TEST", "Seen(count='x')", 'Argument "count" to "Seen" has incompatible type "str"'
    ),
    "groups of what is no state": Mistake(
        "END", "x: PerGroup[int]", 'Type argument "int" of "PerGroup" must be a subtype of "State"'
    ),
    "a field without a value": Mistake(
        "POINT", "set_field(point, 'x')", 'Missing positional argument "value" in call to "set_fi'
    ),
    "a field of no point": Mistake(
        "POINT", "set_field('x', 'y', 1.0)", 'Argument 1 to "set_field" has incompatible type "str"'
    ),
    "a number that may be none": Mistake(
        "POINT", "get_number(point, 'x') * 2", 'Unsupported operand types for * ("None" and "int")'
    ),
    "a field that may be a text": Mistake(
        "POINT", "(get_field(point, 'x') or 0) * 1.5", "Unsupported operand types for *"
    ),
    "a time of a text": Mistake(
        "POINT", "set_datetime(point, '2026')", 'has incompatible type "str"; expected "datetime"'
    ),
    "a misspelt write": Mistake(
        "POINT", "self.agent.write_pont(point)", '"Writer" has no attribute "write_pont"'
    ),
    "a batch written as a point": Mistake(
        "BATCH",
        "self.agent.write_point(batch)",
        'Argument 1 to "write_point" of "Writer" has incompatible type "Batch"; expected "Point"',
    ),
    "points written as a batch": Mistake(
        "BATCH", "self.agent.write_batch(batch.points)", 'expected "Batch"'
    ),
    "a batch that returns a text": Mistake(
        "BATCH", "return 'text'", 'Incompatible return value type (got "str", expected "list[Poin'
    ),
    "a batch method for texts": Mistake(
        "END",
        """
class Wrong(BatchHandler):
    def batch(self, batch: Batch, /) -> str:
        return "text"
""",
        'Return type "str" of "batch" incompatible with return type',
    ),
    "a point method without a point": Mistake(
        "END",
        """
class Wrong(Handler):
    def point(self) -> None:
        pass
""",
        'Signature of "point" incompatible with supertype "kapudf_cli.handler.handler.Handler"',
    ),
    "a point method for texts": Mistake(
        "END",
        """
class Wrong(Handler):
    def point(self, point: str, /) -> None:
        pass
""",
        'Argument 1 of "point" is incompatible with supertype "kapudf_cli.handler.handler.Handler"',
    ),
    "a snapshot of bytes": Mistake(
        "METHOD",
        "def snapshot(self) -> bytes:\n        return b''",
        'Return type "bytes" of "snapshot" incompatible with return type "SnapshotResponse"',
    ),
    "a restore of nothing": Mistake(
        "METHOD",
        "def restore(self, request: RestoreRequest, /) -> None:\n        pass",
        'Return type "None" of "restore" incompatible with return type "RestoreResponse"',
    ),
    "an init of a bool": Mistake(
        "METHOD",
        "def init(self, request: InitRequest, /) -> bool:\n        return True",
        'Return type "bool" of "init" incompatible with return type "InitResponse"',
    ),
    "an edge by its name": Mistake(
        "BATCH ATTRIBUTE", "wants = 'BATCH'", 'expression has type "str", base class "BatchHandler"'
    ),
    "a limit as a text": Mistake(
        "BATCH ATTRIBUTE",
        "state = PerGroup(Seen, limit='10')",
        'Argument "limit" to "PerGroup" has incompatible type "str"; expected "int | None"',
    ),
    "an expiry in seconds": Mistake(
        "BATCH ATTRIBUTE",
        "state = PerGroup(Seen, expiry=10)",
        'Argument "expiry" to "PerGroup" has incompatible type "int"; expected "timedelta | None"',
    ),
    "a mismatch that is kept": Mistake(
        "BATCH ATTRIBUTE", "on_state_mismatch = 'keep'", 'Literal[\'keep\']", base class "Handler"'
    ),
    "points passed through by name": Mistake(
        "BATCH ATTRIBUTE", "passes_through = 'all'", 'base class "Handler" defined the type as "boo'
    ),
    "a point that returns a text": Mistake(
        "POINT", "return 'text'", 'Incompatible return value type (got "str", expected "Point")'
    ),
    "a point method that returns texts": Mistake(
        "END",
        """
class Wrong(Handler):
    def point(self, point: Point) -> str:
        return "text"
""",
        'Return type "str" of "point" incompatible with return type',
    ),
    "a point method that yields texts": Mistake(
        "END",
        """
class Wrong(Handler):
    def point(self, point: Point) -> Iterator[str]:
        yield "text"
""",
        'Return type "Iterator[str]" of "point" incompatible with return type',
    ),
    "a raw point of bytes": Mistake(
        "END",
        """
class Wrong(Handler):
    def raw_point(self, raw: RawPoint) -> bytes:
        return raw
""",
        'Return type "bytes" of "raw_point" incompatible with return type',
    ),
    "a migration of three arguments": Mistake(
        "METHOD2",
        "def migrate(self, handler: str, version: int, content: Any) -> Any: ...",
        'Signature of "migrate" incompatible with supertype',
    ),
    "a task that is sent a text": Mistake(
        "TEST",
        "task.send('m v=1')",
        'Argument 1 to "send" of "Task" has incompatible type "str"; expected "Point | Batch"',
    ),
    "a fixture that is given a dict": Mistake(
        "TEST",
        "udf(Scale, {'field': 'v'})",
        'Argument 2 to "__call__" of "StartTask" has incompatible type "dict[str, str]"; expected',
    ),
    "a fixture that is given no handler": Mistake(
        "TEST", "udf(ScaleOptions)", 'type "type[ScaleOptions]"; expected "type[Handler]"'
    ),
    "a misspelt method of the task of the fixture": Mistake(
        "TEST", "udf(Scale).sned()", '"Task" has no attribute "sned"'
    ),
    "a task that is started with a dict": Mistake(
        "TEST",
        "task.init({'field': 'v'})",
        'Argument 1 to "init" of "Task" has incompatible type "dict[str, str]"; expected "Options',
    ),
    "a snapshot that is taken for a message": Mistake(
        "TEST", "task.snapshot().snapshot", '"bytes" has no attribute "snapshot"'
    ),
    "a point of an output that has points": Mistake(
        "TEST", "out.point.name", '"Output" has no attribute "point"'
    ),
}


def with_mistake(mistake: Mistake) -> str:
    """Return the code with the mistake in its place, which must be one."""
    record = re.findall(rf"# {mistake.place}$", CODE, re.MULTILINE)
    assert len(record) == 1, mistake.place
    code = re.sub(rf"# {mistake.place}$", lambda _: mistake.code, CODE, flags=re.MULTILINE)
    ast.parse(code)
    return code


def mypy(*files: Path) -> str:
    """Return what mypy says, in strict mode, as an author with an editor would see it."""
    command = [KAPUDF[0], "-m", "mypy", "--strict", "--config-file=", *map(str, files)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode in (0, 1), run.stdout + run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Check all mistakes, and the code without one, in one run: mypy starts slowly."""
    folder = tmp_path_factory.mktemp("mistakes")
    codes = {"none": CODE} | {name: with_mistake(each) for name, each in MISTAKES.items()}
    files = {name: folder / f"mistake_{place}.py" for place, name in enumerate(codes)}
    for name, file in files.items():
        file.write_text(codes[name], encoding="utf-8")
    said = mypy(*files.values()).splitlines()
    return {
        name: [line for line in said if f"{file.name}:" in line and "error:" in line]
        for name, file in files.items()
    }


def test_the_code_without_a_mistake_is_accepted(verdicts: dict[str, list[str]]) -> None:
    """What is refused below is refused for the mistake."""
    assert verdicts["none"] == []


@pytest.mark.parametrize("name", MISTAKES)
def test_a_typical_mistake_is_rejected(verdicts: dict[str, list[str]], name: str) -> None:
    """Where it is, before a task runs, in words that lead to it."""
    mistake = MISTAKES[name]
    assert any(mistake.message in line for line in verdicts[name]), verdicts[name]
    code = with_mistake(mistake)
    start = code[: code.index(mistake.code)].count("\n") + 1
    wrong = range(start, start + mistake.code.count("\n") + 1)
    assert all(int(line.split(":")[1]) in wrong for line in verdicts[name]), verdicts[name]


def test_the_built_in_handlers_are_accepted_as_a_strangers_code(tmp_path: Path) -> None:
    """Copied elsewhere, without the project's configuration."""
    handlers = sorted((ROOT / "handlers" / "kapudf_handlers").glob("[a-z]*.py"))
    assert len(handlers) >= 5
    copies = [shutil.copy(file, tmp_path / f"my_{file.name}") for file in handlers]
    said = mypy(*map(Path, copies))
    assert said.startswith("Success: "), said


def test_pyright_accepts_the_code_and_rejects_mistakes(tmp_path: Path) -> None:
    """With the fork of pyright that needs no download at its first run."""
    pytest.importorskip("basedpyright")
    wrong = [
        "def point(self, point: Point) -> str: return 'text'",
        "def point(self, point: Point) -> Iterator[str]: yield 'text'",
        "def point(self, point: Point) -> Point: return 'text'",
        "def raw_point(self, raw: RawPoint) -> bytes: return raw",
        "def migrate(self, handler: str, version: int, content: Any) -> Any: ...",
        "state = PerGroup(Seen, limit='10')",
        "on_state_mismatch = 'keep'",
        "passes_through = 'all'",
    ]
    classes = "".join(f"class W{n}(Handler):\n    {code}\n" for n, code in enumerate(wrong))
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text(CODE, encoding="utf-8")
    bad.write_text(CODE + classes, encoding="utf-8")
    settings = {"typeCheckingMode": "standard", "extraPaths": [str(ROOT)]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    command = [KAPUDF[0], "-m", "basedpyright", "--outputjson", "--pythonpath", KAPUDF[0]]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    found = {
        (Path(each["file"]).name, each["range"]["start"]["line"])
        for each in json.loads(run.stdout)["generalDiagnostics"]
        if each["severity"] == "error"
    }
    first = CODE.count("\n")
    assert found == {("bad.py", first + 2 * number + 1) for number in range(len(wrong))}
