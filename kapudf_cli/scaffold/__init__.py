"""A new plugin project: names that work everywhere, and files from the templates beside this.

One name gives them all: the distribution and the handler are `my-average`, the
package and the TICKscript's function `my_average`, the class `MyAverage`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import keyword
import os
import re
import string
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kapudf_cli import plugins
from kapudf_cli.scaffold.errors import ProjectNameError, ProjectTargetError
from kapudf_cli.tickscript.identifiers import name_problem

#: Each file of a project, and its template. The paths are templates as well.
_FILES: Final = {
    "pyproject.toml": "pyproject.toml.tmpl",
    "README.md": "README.md.tmpl",
    ".gitignore": "gitignore.tmpl",
    "src/$package/__init__.py": "init.py.tmpl",
    "src/$package/handler.py": "handler.py.tmpl",
    "src/$package/py.typed": "py.typed.tmpl",
    "tests/test_$package.py": "test.py.tmpl",
}

#: What is a distribution's name to pip, and an identifier once each - is a _.
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9]*([-_][A-Za-z0-9]+)*")

#: The classes that the templates import: another must not be called so.
_IMPORTED: Final = {
    "Annotated",
    "Handler",
    "Meta",
    "Name",
    "Options",
    "PerGroup",
    "Point",
    "StartTask",
    "State",
    "TaskFailedError",
}


@dataclass(frozen=True)
class Names:
    """The names of a project, in each place that has rules of its own.

    Attributes:
        name: of the distribution and of the handler, as the user gave it.
        package: what Python imports.
        class_name: the handler's class.
        function: what a TICKscript calls.
    """

    name: str
    package: str
    class_name: str
    function: str


def names_of(name: str) -> Names:
    """Return the names that follow from one.

    Raises:
        ProjectNameError: something else has the name, or could not be called so.
    """
    if not _NAME.fullmatch(name):
        raise ProjectNameError(
            name, "use letters and digits, in words joined by - or _, beginning with a letter"
        )
    package = name.replace("-", "_").lower()
    class_name = "".join(word[0].upper() + word[1:] for word in re.split("[-_]", name))
    if keyword.iskeyword(package) or keyword.iskeyword(class_name):
        raise ProjectNameError(name, "Python has it as a keyword")
    if (problem := name_problem(package)) is not None:
        raise ProjectNameError(name, problem)
    if class_name in _IMPORTED:
        raise ProjectNameError(name, f"its class would hide the {class_name} that it builds on")
    if package in sys.stdlib_module_names:
        raise ProjectNameError(name, f"{package} is a module of Python's standard library")
    for plugin in plugins.discover():
        if plugin.name == name:
            raise ProjectNameError(name, f"a handler of that name is installed: {plugin.source}")
    if _is_distribution(name):
        raise ProjectNameError(name, "a distribution of that name is installed")
    if _is_module(package):
        raise ProjectNameError(name, f"a module named {package} is installed")
    return Names(name, package, class_name, function=package)


def write(names: Names, target: Path) -> list[Path]:
    """Write a project into a folder that is empty or does not exist; return its files.

    Whatever goes wrong, nothing that was there is changed, and nothing is left over.

    Raises:
        ProjectTargetError: the folder cannot be created, or is not empty.
    """
    fill = vars(names)
    written = []
    try:
        if target.is_dir():
            if any(target.iterdir()):
                raise ProjectTargetError(target, "this folder is not empty; name another")
        elif os.path.lexists(target):
            raise ProjectTargetError(target, "this is not a folder; name another")
        with contextlib.ExitStack() as undo:
            for place, template in _FILES.items():
                path = target / string.Template(place).substitute(fill)
                _make_folder(path.parent, undo)
                text = Path(__file__).with_name(template).read_text(encoding="utf-8")
                # `x` fails where something has come to be meanwhile.
                with path.open("x", encoding="utf-8") as file:
                    undo.callback(path.unlink)
                    file.write(string.Template(text).substitute(fill))
                written.append(path)
            undo.pop_all()
    except OSError as error:
        where = "" if Path(error.filename or target) == target else f"{error.filename}: "
        problem = f"cannot be written: {where}{error.strerror}"
        raise ProjectTargetError(target, problem) from error
    return written


def _make_folder(folder: Path, undo: contextlib.ExitStack) -> None:
    """Make a folder and those above it, each to be removed by `undo`."""
    if not folder.is_dir():
        _make_folder(folder.parent, undo)
        folder.mkdir()
        undo.callback(folder.rmdir)


def _is_distribution(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _is_module(package: str) -> bool:
    """Return whether Python would import something; not for a mere folder that lies here."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        return False
    here = Path.cwd() / package
    is_mere_folder = spec.origin is None and spec.submodule_search_locations is not None
    return not is_mere_folder or any(
        Path(place) != here for place in spec.submodule_search_locations or ()
    )
