"""Recognises scripts by what they import, without running them."""

from __future__ import annotations

import ast
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

AGENT: Final = "agent"
MESSAGES: Final = "udf_pb2"
#: The package of both, in InfluxData's source tree.
PACKAGE: Final = "kapacitor.udf"
_AGENT_NAMES: Final = frozenset({"Agent", "Handler", "Server"})


@dataclass(frozen=True)
class ScriptCall:
    """A script and its arguments, as on a command line.

    Attributes:
        path: the script.
        arguments: its arguments.
        packages: the packages in which it expects the modules `agent` and `udf_pb2`; an empty
            name stands for modules without a package.
    """

    path: Path
    arguments: tuple[str, ...] = ()
    packages: frozenset[str] = frozenset({PACKAGE})


def find_script(spec: str) -> ScriptCall | None:
    """Return the script that `spec` names: `script.py`, perhaps with arguments.

    None if it names no file, or one that is no script for InfluxData's agent.

    Raises:
        OSError, SyntaxError, ValueError: the file cannot be read as Python.
    """
    words = [spec]
    if not Path(spec).is_file():
        try:
            words = shlex.split(spec)
        except ValueError:
            return None
    if not words or not words[0].endswith(".py") or not Path(words[0]).is_file():
        return None
    packages = packages_of(Path(words[0]))
    if not packages:
        return None
    return ScriptCall(Path(words[0]).resolve(), tuple(words[1:]), packages | {PACKAGE})


def packages_of(script: Path) -> frozenset[str]:
    """Return the packages from which a script, or a module beside it, imports the agent.

    Nothing if it does not import the agent or its messages.

    Raises:
        OSError, SyntaxError, ValueError: a file cannot be read as Python.
    """
    packages: set[str] = set()
    seen: set[Path] = set()
    files = [script]
    while files:
        file = files.pop()
        if file not in seen:
            seen.add(file)
            modules = set(_imported(ast.parse(file.read_bytes(), str(file))))
            packages |= {name.rpartition(".")[0] for name in modules if _is_influx(name, modules)}
            beside = {script.parent / f"{name.partition('.')[0]}.py" for name in modules}
            files += [each for each in beside if each.is_file()]
    return frozenset(packages)


def _is_influx(name: str, imported: set[str]) -> bool:
    """Return whether an imported name is the module of the agent or of its messages."""
    last = name.rpartition(".")[2]
    return last == MESSAGES or (
        last == AGENT
        and (
            name == f"{PACKAGE}.{AGENT}"
            or any(f"{name}.{each}" in imported for each in _AGENT_NAMES)
        )
    )


def _imported(tree: ast.Module) -> Iterator[str]:
    """Yield the dotted names of all modules that are imported, and of what is taken from them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
