"""A handler loaded for a function, with what the log and the user are told where it cannot be."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from kapudf_cli import plugins
from kapudf_cli.errors import HandlerImportError, PluginError

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger

    from kapudf_cli.kit.handler import Handler


def load_handler(spec: str, *, function: str, log: BoundLogger) -> type[Handler]:
    """Return the handler's class that `spec` names; see `plugins.find`.

    Raises:
        PluginError: it cannot be had. The traceback of a failed import is in the log at
            debug level, and a note on the error says so.
    """
    try:
        return plugins.find(spec).load()
    except PluginError as error:
        error.function = function
        if isinstance(error, HandlerImportError):
            log.debug("handler cannot be imported", function=function, exc_info=error.cause)
            error.add_note("the traceback is shown with --log-level debug")
        raise


def code_folders(handler: type[Handler]) -> list[str]:
    """Return the folders of a handler's code: its package with all that is in it, or its file's.

    Only folders of which a module is imported.
    """
    module = sys.modules[handler.__module__]
    package = sys.modules.get(module.__name__.partition(".")[0], module)
    # A package without an __init__ has no file; then its module's own folder counts.
    whole = hasattr(package, "__path__") and getattr(package, "__file__", None)
    root = Path(str((package if whole else module).__file__)).parent
    folders = {root}
    if whole:
        files = [getattr(each, "__file__", None) for each in list(sys.modules.values())]
        parents = {Path(file).parent for file in files if file}
        folders |= {parent for parent in parents if parent.is_relative_to(root)}
    return sorted(map(str, folders))
