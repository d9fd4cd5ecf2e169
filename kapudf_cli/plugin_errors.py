"""Errors of handlers that cannot be found, imported or used.

Apart from `plugins`, because the supervisor must not import handlers or protobuf.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from kapudf_cli.errors import KapudfError, describe

if TYPE_CHECKING:
    from collections.abc import Sequence


class PluginError(KapudfError):
    """A handler cannot be loaded.

    Attributes:
        function: the name of its function, None if there is none.
    """

    function: str | None = None

    @property
    def with_notes(self) -> str:
        """Its text and its notes, in one line."""
        return str(self) + "".join(f" ({note})" for note in getattr(self, "__notes__", ()))


class UnknownHandlerError(PluginError):
    """No installed distribution provides a handler of that name."""

    is_usage_error = True

    def __init__(self, name: str, known: Sequence[str], nearest: str | None) -> None:
        hint = f"; did you mean '{nearest}'?" if nearest else ""
        installed = ", ".join(known) if known else "none"
        super().__init__(
            f"no installed handler has the name '{name}'{hint} (installed: {installed}; "
            "name other classes as file.py:Class or package.module:Class)"
        )
        self.name = name
        self.known = tuple(known)
        self.nearest = nearest


class AmbiguousHandlerError(PluginError):
    """Two or more distributions provide a handler of the same name."""

    is_usage_error = True

    def __init__(self, name: str, sources: Sequence[str]) -> None:
        super().__init__(
            f"handler '{name}' is provided more than once, by {' and by '.join(sources)}; "
            "uninstall one, or name the class as package.module:Class"
        )
        self.name = name
        self.sources = tuple(sources)


class HandlerImportError(PluginError):
    """The module of a handler cannot be imported.

    Attributes:
        name: the handler, as the user wrote it.
        source: where it comes from.
        cause: the exception of the import, also in `__cause__`.
    """

    def __init__(self, name: str, source: str, cause: BaseException) -> None:
        # A class that was named directly already shows its source.
        origin = "" if source == name else f" of {source}"
        reason = f"{describe(cause)}{_place_in_import(cause, source)}{_how_to_install(cause)}"
        super().__init__(f"handler '{name}'{origin} cannot be imported: {reason}")
        self.name = name
        self.source = source
        self.cause = cause
        self.__cause__ = cause


class WorkerSetupError(PluginError):
    """The `setup_worker` of a handler raised.

    Attributes:
        cause: what it raised, also in `__cause__`.
    """

    def __init__(self, handler: str, cause: BaseException) -> None:
        # The first frame is the caller's, the second one that of `setup_worker`.
        trace = cause.__traceback__ and cause.__traceback__.tb_next
        place = ""
        if trace is not None:
            place = f" ({trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno})"
        super().__init__(f"{handler}.setup_worker raised {describe(cause)}{place}")
        self.cause = cause
        self.__cause__ = cause


class PreloadError(PluginError):
    """A handler cannot be preloaded, because a fork of its process would not be safe."""

    is_usage_error = True

    def __init__(self, handler: str, reasons: Sequence[str]) -> None:
        super().__init__(
            f"{handler} cannot be preloaded: after its import and setup_worker, "
            f"{'; '.join(reasons)}; a forked worker would have only a broken copy: create it in "
            "setup instead, or serve the handler without preload, for example with standby: 1"
        )
        self.reasons = tuple(reasons)


class NotAHandlerError(PluginError):
    """The name does not refer to a usable handler class."""

    is_usage_error = True


def _how_to_install(error: BaseException) -> str:
    """Return where a module that is missing must be installed."""
    if not isinstance(error, ModuleNotFoundError):
        return ""
    pip = f"{sys.executable} -m pip install PACKAGE"
    return f"; install the package that has it into kapudf's environment: {pip}"


def _place_in_import(error: BaseException, source: str) -> str:
    """Return the line of the imported code that raised, unless the error has it already.

    That of a script, which is run instead, has the file name `source`.
    """
    if isinstance(error, SyntaxError):
        return ""
    place = ""
    importing = False
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file.startswith("<frozen importlib"):
            # The frames so far started the import, and do not belong to the imported code.
            importing, place = True, ""
        elif importing or file == source:
            place = f" ({file}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return place
