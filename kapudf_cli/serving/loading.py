"""A handler loaded for a function, with what the log and the user are told where it cannot be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapudf_cli import plugins
from kapudf_cli.errors import HandlerImportError, PluginError

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger

    from kapudf_cli.handler import Handler


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
