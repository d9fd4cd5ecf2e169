"""Handlers by name: what is installed, and the class behind a name.

Plugins are entry points of the group `kapudf.handlers`. Discovery imports none
of them: a plugin that is broken, or slow to import, costs nothing until it is
asked for.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kapudf_cli.errors import describe
from kapudf_cli.handler.handler import Handler
from kapudf_cli.plugin_errors import (
    AmbiguousHandlerError,
    HandlerImportError,
    NotAHandlerError,
    UnknownHandlerError,
)
from kapudf_cli.system.source_code import compile_from_source

if TYPE_CHECKING:
    from types import ModuleType

ENTRY_POINT_GROUP = "kapudf.handlers"


@dataclass(frozen=True)
class Plugin:
    """A handler that could be loaded, and where it comes from.

    Attributes:
        name: what the user calls it.
        module: a module's dotted name, or the path of a .py file.
        attribute: the class in that module, dotted if it is nested.
        distribution: the distribution that offers it, None for a class named directly.
        version: that distribution's version.
    """

    name: str
    module: str
    attribute: str
    distribution: str | None = None
    version: str | None = None

    @property
    def target(self) -> str:
        """The class as the user would name it: module:Class."""
        return f"{self.module}:{self.attribute}"

    @property
    def source(self) -> str:
        """Where it comes from, for a message."""
        if self.distribution is None:
            return self.target
        return f"{self.distribution} {self.version} ({self.target})"

    def load(self) -> type[Handler]:
        """Import the class.

        Raises:
            HandlerImportError: importing its module failed.
            NotAHandlerError: there is no such class, or it is no usable Handler.
        """
        if not _is_dotted_name(self.attribute):
            problem = (
                f"handler '{self.name}': {self.source} names no class; "
                "write package.module:Class or file.py:Class"
            )
            raise NotAHandlerError(problem)
        compile_from_source(self.module)
        try:
            if self.module.endswith(".py"):
                found: object = _import_file(Path(self.module))
            else:
                if self.distribution is None:
                    _search_in(Path.cwd())
                found = importlib.import_module(self.module)
        except (Exception, SystemExit) as error:
            raise HandlerImportError(self.name, self.source, error) from error
        for part in self.attribute.split("."):
            try:
                found = getattr(found, part)
            except AttributeError:
                raise NotAHandlerError(self._lacks_attribute(found, part)) from None
        return self._checked(found)

    def _lacks_attribute(self, place: object, part: str) -> str:
        handlers = (
            [
                name
                for name, value in vars(place).items()
                if inspect.isclass(value) and issubclass(value, Handler) and value is not Handler
            ]
            if hasattr(place, "__dict__")
            else []
        )
        hint = f"; handlers there: {', '.join(handlers)}" if handlers else ""
        return f"handler '{self.name}': {self.module} has no '{part}'{hint}"

    def _checked(self, found: object) -> type[Handler]:
        if not (inspect.isclass(found) and issubclass(found, Handler)):
            problem = (
                f"handler '{self.name}': {self.target} is not a subclass of kapudf_cli.Handler"
            )
            raise NotAHandlerError(problem)
        if inspect.isabstract(found):
            missing = ", ".join(sorted(found.__abstractmethods__))
            problem = f"handler '{self.name}': {self.target} does not define {missing}()"
            raise NotAHandlerError(problem)
        try:
            found.check_definition()
        except Exception as error:
            # Otherwise it would be an error of each task, or data lost in each.
            problem = f"handler '{self.name}': {self.target} cannot be used: {describe(error)}"
            raise NotAHandlerError(problem) from error
        return found


def discover() -> list[Plugin]:
    """Return every installed plugin, by name; a name may occur more than once."""
    # A distribution may be found twice, say installed and in the current folder.
    plugins = {
        Plugin(
            name=entry.name,
            module=entry.value.partition(":")[0].strip(),
            attribute=entry.value.partition(":")[2].strip(),
            distribution=entry.dist.name if entry.dist else None,
            version=entry.dist.version if entry.dist else None,
        )
        for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    }
    return sorted(plugins, key=lambda plugin: (plugin.name, plugin.source))


def find(spec: str) -> Plugin:
    """Return the plugin that `spec` names, without importing it.

    Args:
        spec: an installed plugin's name, `package.module:Class`, or
            `path/to/file.py:Class`.

    Raises:
        UnknownHandlerError: no installed plugin has that name.
        AmbiguousHandlerError: several distributions offer it.
        NotAHandlerError: a file that does not exist, or a class that is not named.
    """
    module, colon, attribute = spec.rpartition(":")
    if colon or spec.endswith(".py"):
        return _find_target(spec, module or spec, attribute if module else "")
    plugins = discover()
    named = [plugin for plugin in plugins if plugin.name == spec]
    if not named:
        known = sorted({plugin.name for plugin in plugins})
        nearest = difflib.get_close_matches(spec, known, n=1)
        raise UnknownHandlerError(spec, known, nearest[0] if nearest else None)
    if len(named) > 1:
        raise AmbiguousHandlerError(spec, [plugin.source for plugin in named])
    return named[0]


def _find_target(spec: str, module: str, attribute: str) -> Plugin:
    if not _is_dotted_name(attribute):
        problem = f"handler '{spec}' names no class; write package.module:Class or file.py:Class"
        raise NotAHandlerError(problem)
    if module.startswith("~"):
        problem = f"handler '{spec}': ~ is not expanded; write the whole path"
        raise NotAHandlerError(problem)
    if module.endswith(".py") and not Path(module).is_file():
        problem = f"handler '{spec}': there is no file {module}"
        raise NotAHandlerError(problem)
    return Plugin(name=spec, module=module, attribute=attribute)


def _is_dotted_name(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def _import_file(path: Path) -> ModuleType:
    """Import a file that belongs to no package.

    Its folder joins the import path, as for a script, so that it finds its siblings.
    """
    path = path.resolve()
    # Pickle and dataclasses look a class's module up by its name, so it must have
    # one in sys.modules; a file called json.py must not take json's.
    name = path.stem
    if name in sys.modules and getattr(sys.modules[name], "__file__", None) != str(path):
        name = f"{path.stem}_{hashlib.sha256(bytes(path)).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        problem = f"{path} is not a Python file"
        raise ImportError(problem)
    _search_in(path.parent)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _search_in(folder: Path) -> None:
    """Let imports find what lies in a folder, as `python` does for a script's."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
