"""Find and load handlers, by name, module or file.

Installed handlers are entry points of the group `kapudf.handlers`. Discovery does not import
them, so a broken or slow plugin has no effect until it is loaded.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kapudf_cli import entry_points
from kapudf_cli.errors import describe
from kapudf_cli.handler import definition
from kapudf_cli.handler.errors import DefinitionError
from kapudf_cli.handler.handler import Handler
from kapudf_cli.influx_scripts.recognition import ScriptCall, find_script
from kapudf_cli.plugin_errors import (
    AmbiguousHandlerError,
    HandlerImportError,
    NotAHandlerError,
    UnknownHandlerError,
    WorkerSetupError,
)
from kapudf_cli.system.source_code import compile_from_source

if TYPE_CHECKING:
    from types import ModuleType

#: For each class, the `setup_worker` that was called. A test may replace the method.
_set_up: weakref.WeakKeyDictionary[type[Handler], object] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Plugin:
    """A handler that can be loaded, and its source.

    Attributes:
        name: as the user wrote it.
        module: a module's dotted name, or the path of a .py file.
        attribute: the class in that module, dotted if it is nested.
        distribution: the distribution that provides it, None for a class named directly.
        version: that distribution's version.
    """

    name: str
    module: str
    attribute: str
    distribution: str | None = None
    version: str | None = None

    @property
    def target(self) -> str:
        """The class as module:Class."""
        return f"{self.module}:{self.attribute}"

    @property
    def source(self) -> str:
        """Where it comes from, for messages."""
        if self.distribution is None:
            return self.target
        return f"{self.distribution} {self.version} ({self.target})"

    def load(self) -> type[Handler]:
        """Import the class and return it.

        Raises:
            HandlerImportError: its module cannot be imported.
            NotAHandlerError: the class does not exist, or is not a usable Handler.
        """
        if not _is_dotted_name(self.attribute):
            problem = (
                f"handler '{self.name}': {self.source} does not name a class; "
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
            hint = ""
            if self.module.endswith(".py") and find_script(self.module) is not None:
                hint = f"; it is a handler for InfluxData's agent, so name just {self.module}"
            problem = (
                f"handler '{self.name}': {self.target} is not a subclass of "
                f"kapudf_cli.Handler{hint}"
            )
            raise NotAHandlerError(problem)
        try:
            definition.check(found)
        except Exception as error:
            # Otherwise each task would fail, or lose data.
            reason = str(error) if isinstance(error, DefinitionError) else describe(error)
            problem = f"handler '{self.name}': {self.target} cannot be used: {reason}"
            raise NotAHandlerError(problem) from error
        return found


@dataclass(frozen=True)
class ScriptPlugin(Plugin):
    """A script for InfluxData's agent, which makes its handlers itself.

    Attributes:
        call: the script and its arguments.
    """

    call: ScriptCall = field(kw_only=True)

    @property
    def target(self) -> str:
        """The script."""
        return self.module

    def load(self) -> type[Handler]:
        """Run the script until it has started an agent or a server; return a class for it.

        Raises:
            HandlerImportError: it raised.
            NotAHandlerError: it has started neither.
        """
        compile_from_source(self.module)
        # Most processes run no script.
        runs = importlib.import_module("kapudf_cli.influx_scripts.runs")
        try:
            handler: type[Handler] = runs.load(self.call)
        except runs.NothingStartedError as error:
            raise NotAHandlerError(f"handler '{self.name}': {error}") from error
        except (Exception, SystemExit) as error:
            raise HandlerImportError(self.name, self.source, error) from error
        return handler


def set_up(handler: type[Handler]) -> None:
    """Call a handler's `setup_worker`, unless this process has called it before.

    Raises:
        WorkerSetupError: it raised.
    """
    method = handler.setup_worker.__func__  # type: ignore[attr-defined]  # of a class method
    if _set_up.get(handler) is method:
        return
    try:
        shared = handler.setup_worker()
    except (Exception, SystemExit) as error:
        raise WorkerSetupError(handler.__name__, error) from error
    if shared is not None:
        handler.shared = shared
    _set_up[handler] = method


def check_partitions(name: str, handler: type[Handler]) -> None:
    """Check that a handler can have partitions.

    Raises:
        NotAHandlerError: it cannot.
    """
    try:
        definition.check_partitions(handler)
    except DefinitionError as error:
        raise NotAHandlerError(f"handler '{name}' cannot have partitions: {error}") from error


def discover() -> list[Plugin]:
    """Return all installed plugins, sorted by name; a name may occur more than once."""
    # A distribution may be found twice, for example installed and in the working folder.
    plugins = {
        Plugin(
            name=entry.name,
            module=entry.value.partition(":")[0].strip(),
            attribute=entry.value.partition(":")[2].strip(),
            distribution=entry.dist.name if entry.dist else None,
            version=entry.dist.version if entry.dist else None,
        )
        for entry in entry_points.installed()
    }
    return sorted(plugins, key=lambda plugin: (plugin.name, plugin.source))


def find(spec: str) -> Plugin:
    """Return the plugin for `spec`, without importing it.

    Args:
        spec: an installed plugin's name, `package.module:Class`, `path/to/file.py:Class`, or a
            script for InfluxData's agent: `path/to/script.py`, perhaps with arguments.

    Raises:
        HandlerImportError: the script cannot be read as Python.
        UnknownHandlerError: no installed plugin has that name.
        AmbiguousHandlerError: several distributions provide it.
        NotAHandlerError: the file does not exist, or `spec` does not name a class.
    """
    try:
        call = find_script(spec)
    except (OSError, SyntaxError, ValueError) as error:
        raise HandlerImportError(spec, spec, error) from error
    if call is not None:
        return ScriptPlugin(name=spec, module=str(call.path), attribute="", call=call)
    first_word = spec.partition(" ")[0]
    if first_word.endswith(".py"):
        _check_file(spec, first_word)
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
    _check_file(spec, module)
    if not _is_dotted_name(attribute):
        problem = (
            f"handler '{spec}' does not name a class; write package.module:Class or file.py:Class"
        )
        if module.endswith(".py"):
            problem += (
                ". It is no script for InfluxData's agent: it does not import kapacitor.udf.agent"
            )
        raise NotAHandlerError(problem)
    return Plugin(name=spec, module=module, attribute=attribute)


def _check_file(spec: str, path: str) -> None:
    if path.startswith("~"):
        problem = f"handler '{spec}': ~ is not expanded; write the full path"
        raise NotAHandlerError(problem)
    if path.endswith(".py") and not Path(path).is_file():
        problem = f"handler '{spec}': there is no file {path}"
        raise NotAHandlerError(problem)


def _is_dotted_name(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def _import_file(path: Path) -> ModuleType:
    """Import a file that is not in a package.

    Its folder is added to the import path, as for a script, so that it can import its siblings.
    """
    path = path.resolve()
    # Pickle and dataclasses look up a class's module in sys.modules, so it needs a name there.
    # A file called json.py must not replace the module json.
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
    """Add a folder to the import path, as `python` does for a script."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
