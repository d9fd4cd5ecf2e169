"""The base class of kapudf's errors, errors without a package, and texts of exceptions.

Each package has its own errors in an `errors.py`. An error's attributes hold the facts. Its
message says in one line what is wrong, where, and what to do next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

#: The longest text of an exception that is passed on: it may contain all the data of a task.
_DESCRIPTION_CHARACTERS: Final = 2000


class KapudfError(Exception):
    """The base class of all errors that kapudf raises on purpose.

    Attributes:
        is_usage_error: whether the request itself is wrong, so that trying again cannot help.
    """

    is_usage_error: bool = False


class ConfigError(KapudfError):
    """A configuration is not valid.

    Attributes:
        source: the file, or another name for the source of the settings.
        faults: one line per error: the path of the setting, and what is wrong.
    """

    is_usage_error = True

    def __init__(self, source: str, faults: Sequence[str]) -> None:
        super().__init__("; ".join(f"{source}: {fault}" for fault in faults))
        self.source = source
        self.faults = tuple(faults)


class MissingExtraError(KapudfError):
    """An optional dependency of kapudf (an extra) is not installed."""

    def __init__(self, what: str, library: str, extra: str) -> None:
        super().__init__(f"{what} needs {library}: pip install 'kapudf[{extra}]'")
        self.library = library
        self.extra = extra


class OutputError(KapudfError):
    """The results of a command cannot be written."""


def describe(error: BaseException) -> str:
    """Return an exception's type and text in one line of bounded length, for logs and Kapacitor."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # noqa: BLE001 - an exception without a text must still be reported
        text = "(an exception whose text cannot be read)"
    # A lone surrogate cannot be encoded, and would end the connection.
    text = text.encode("utf-8", "backslashreplace").decode()
    name = type(error).__name__
    return f"{name}: {shorten(text, _DESCRIPTION_CHARACTERS)}" if text else name


def shorten(text: str, limit: int) -> str:
    """Return a text, with its middle replaced by a note if it is over `limit` characters."""
    cut = len(text) - limit
    if cut <= 0:
        return text
    end = limit // 4
    return f"{text[: limit - end]} [... {cut} characters cut ...] {text[len(text) - end :]}"
