"""Load a handler and set it up for this process, and describe its code."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kapudf_cli import plugins
from kapudf_cli.agent.forks import end_child
from kapudf_cli.agent.parts import import_concurrent_parts
from kapudf_cli.handler.definition import is_async
from kapudf_cli.plugin_errors import HandlerImportError, PluginError, WorkerSetupError
from kapudf_cli.worker.channel import Code

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger

    from kapudf_cli.config import FunctionSettings
    from kapudf_cli.handler.handler import Handler

#: So many digits of a hash tell two files apart.
_DIGITS: Final = 12


def load_handler(
    settings: FunctionSettings, *, function: str, log: BoundLogger, is_set_up: bool = True
) -> type[Handler]:
    """Return the class of a function's handler; see `plugins.find` and `plugins.set_up`.

    Args:
        settings: the settings of the function.
        function: its name.
        log: where events go.
        is_set_up: whether this process calls the handler.

    Raises:
        PluginError: it cannot be loaded or set up. The traceback of what its code raised is in
            the log at debug level, and a note on the error says so.
    """
    process = os.getpid()
    try:
        handler = plugins.find(settings.handler).load()
        if settings.is_partitioned:
            plugins.check_partitions(settings.handler, handler)
        if is_set_up:
            plugins.set_up(handler)
    except PluginError as error:
        error.function = function
        if isinstance(error, HandlerImportError | WorkerSetupError):
            log.debug("handler cannot be loaded", function=function, exc_info=error.cause)
            error.add_note("at level debug, the log has the traceback")
        raise
    finally:
        if os.getpid() != process:
            end_child()  # Its code has forked, and the child has returned or raised.
    if is_async(handler):
        import_concurrent_parts()  # Now, and not at the first connection.
    else:
        unused = [name for name in ("concurrency", "timeout_s") if getattr(settings, name)]
        if unused:
            log.warning(
                "settings have no effect",
                function=function,
                settings=unused,
                reason=f"neither point nor batch of {handler.__name__} is async",
            )
    return handler


def code_of(handler: type[Handler]) -> Code:
    """Return the file that a handler was loaded from, as it is now."""
    path = os.path.realpath(str(sys.modules[handler.__module__].__file__))
    try:
        modified_s = os.stat(path).st_mtime
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return Code(path, 0.0, "unknown")  # It is gone by now.
    return Code(path, modified_s, digest[:_DIGITS])


def code_files(handler: type[Handler]) -> list[str]:
    """Return the imported files of a handler's code: its own first, then those beside it.

    Those are the modules of its package. For a handler that is no part of a package, they are
    the modules in the folder of its file.
    """
    module = sys.modules[handler.__module__]
    package = sys.modules.get(module.__name__.partition(".")[0], module)
    # A package without an __init__ has no file; then its module's own folder counts.
    whole = hasattr(package, "__path__") and getattr(package, "__file__", None)
    root = Path(str((package if whole else module).__file__)).parent
    found = {str(module.__file__)}
    for each in list(sys.modules.values()):
        file = getattr(each, "__file__", None)
        if isinstance(file, str) and file.endswith(".py"):
            folder = Path(file).parent
            if folder == root or (whole and folder.is_relative_to(root)):
                found.add(file)
    own = str(module.__file__)
    return [own, *sorted(found - {own})]
