"""Imports point down: a module imports from the floors below its own, and never up."""

from __future__ import annotations

import ast
import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

#: From the ground up. A name stands for a module, or for a package with all that is in it.
FLOORS = [
    {"entry_points", "errors", "lazy_names"},
    {"plugin_errors", "protocol"},
    {"system", "tickscript"},
    {"handler", "transport"},
    {"agent"},
    {"influx_scripts"},
    {"plugins"},
    {"config", "config_file"},
    {"journal"},
    {"worker"},
    {"influx_process", "ray_engine"},
    {"supervisor"},
    {"client"},
    {"scaffold", "tools"},
    {"commands", "testing"},
    {"__main__"},
]
#: The package itself is what plugins import; it re-exports from the floors up to `handler`.
FACADE = "__init__"

MODULES = sorted(
    path
    for path in (ROOT / "kapudf_cli").rglob("*.py")
    if path.name not in {"udf_pb2.py", FACADE + ".py"} or path.parent.name != "kapudf_cli"
)


def imported(path: Path) -> set[str]:
    """Return the dotted names of everything that a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def floor(part: str) -> int:
    (number,) = [number for number, parts in enumerate(FLOORS) if part in parts]
    return number


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_from_below(path: Path) -> None:
    """Within its own part it may import what it likes."""
    own = path.relative_to(ROOT / "kapudf_cli").parts[0].removesuffix(".py")
    for name in imported(path):
        package, _, rest = name.partition(".")
        part = rest.partition(".")[0]
        if package == "kapudf_cli" and part not in {own, "__version__"}:
            assert floor(part) < floor(own), f"{own} imports {name}"


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_modules_import_each_other_in_a_cycle() -> None:
    """Not even for their types: a cycle is a cut in the wrong place."""
    modules = {module_of(path): path for path in MODULES}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = imported(path)
        names |= {name.rpartition(".")[0] for name in names}
        graph[module] = (names & modules.keys()) - {module}
    # A package that only re-exports names of its own modules is no module of its own.
    for module, path in modules.items():
        if path.name == "__init__.py":
            del graph[module]
    sorter = graphlib.TopologicalSorter(graph)
    sorter.prepare()  # raises CycleError, which names the modules of the first cycle


def test_every_part_has_its_floor() -> None:
    """A new module is put on a floor on purpose."""
    parts = {path.relative_to(ROOT / "kapudf_cli").parts[0].removesuffix(".py") for path in MODULES}
    assert parts == set().union(*FLOORS)


def test_the_page_on_architecture_has_the_same_floors() -> None:
    """In the same order, and every file that it names is there."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| part \|.*\n((?:\|.*\n)+)", page, re.MULTILINE)
    rows = table.splitlines()[1:]
    assert [set(re.findall(r"`(\w+)`", row.split("|")[1])) for row in rows] == FLOORS
    files = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("[kt]*/**/*.py")]
    for named in re.findall(r"`([\w/]+\.py)`", page):
        assert any(file.endswith(f"/{named}") or file == named for file in files), named


@pytest.mark.parametrize(
    "forbidden", ["socket", "threading", "time", "logging", "structlog", "os", "selectors"]
)
def test_the_protocol_does_no_io(forbidden: str) -> None:
    """Bytes in, messages out: no socket, thread, clock or log."""
    for path in (ROOT / "kapudf_cli" / "protocol").glob("*.py"):
        assert forbidden not in {name.partition(".")[0] for name in imported(path)}, path


def test_click_is_known_to_the_commands_only() -> None:
    """Nothing below the command line knows of it or of exit codes."""
    for path in MODULES:
        if "commands" not in path.parts:
            assert "click" not in {name.partition(".")[0] for name in imported(path)}, path


def test_the_built_in_handlers_import_what_a_stranger_would() -> None:
    """They use the public package and nothing inside it."""
    for path in (ROOT / "handlers").rglob("*.py"):
        for name in imported(path):
            parts = name.split(".")
            assert parts[0] != "kapudf_cli" or len(parts) == 2, f"{path.name} imports {name}"
