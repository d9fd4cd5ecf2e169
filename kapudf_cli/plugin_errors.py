"""Handlers that cannot be found, imported or served."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapudf_cli.errors import KapudfError, describe

if TYPE_CHECKING:
    from collections.abc import Sequence


class PluginError(KapudfError):
    """A handler could not be had from what the user named.

    Attributes:
        function: the function that it is for, None where it is for none.
    """

    function: str | None = None


class UnknownHandlerError(PluginError):
    """No installed distribution offers a handler of that name."""

    is_usage_error = True

    def __init__(self, name: str, known: Sequence[str], nearest: str | None) -> None:
        hint = f"; did you mean '{nearest}'?" if nearest else ""
        installed = ", ".join(known) if known else "none"
        super().__init__(
            f"no handler is named '{name}'{hint} (installed: {installed}; "
            "a class that is not is named as file.py:Class or package.module:Class)"
        )
        self.name = name
        self.known = tuple(known)
        self.nearest = nearest


class AmbiguousHandlerError(PluginError):
    """Two or more distributions offer a handler of the same name."""

    is_usage_error = True

    def __init__(self, name: str, sources: Sequence[str]) -> None:
        super().__init__(
            f"handler '{name}' is offered more than once, by {' and by '.join(sources)}; "
            "uninstall one, or name the class itself as package.module:Class"
        )
        self.name = name
        self.sources = tuple(sources)


class HandlerImportError(PluginError):
    """The code of a handler could not be imported; the cause is the `__cause__`.

    Attributes:
        name: what the user called the handler.
        source: where it comes from.
        cause: what the import raised.
    """

    def __init__(self, name: str, source: str, cause: BaseException) -> None:
        # What was named by its class comes from where it says.
        origin = "" if source == name else f" of {source}"
        reason = f"{describe(cause)}{_place_in_import(cause)}"
        super().__init__(f"handler '{name}'{origin} cannot be imported: {reason}")
        self.name = name
        self.source = source
        self.cause = cause
        self.__cause__ = cause


class NotAHandlerError(PluginError):
    """What was named exists, but is no usable handler class."""

    is_usage_error = True


def _place_in_import(error: BaseException) -> str:
    """Return which line of the imported code raised, if one did and the text does not say."""
    if isinstance(error, SyntaxError):
        return ""
    place = ""
    importing = False
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file.startswith("<frozen importlib"):
            # What has run until now has led to the import, and is no part of the code.
            importing, place = True, ""
        elif importing:
            place = f" ({file}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return place
