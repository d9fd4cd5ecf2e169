"""The root of the errors that kapudf raises on purpose, and how errors are described.

Each package has an `errors.py` with its own. An error's class says whose fault it is, its
attributes hold the facts, and its message says in one line what happened, where, and what
to do next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

#: The longest text of an exception that is passed on. It may hold all the data of a task.
_DESCRIPTION_CHARACTERS: Final = 2000


class KapudfError(Exception):
    """The root: catch it to catch whatever kapudf raises on purpose.

    Attributes:
        is_usage_error: whether the request itself is wrong, so that trying again cannot help.
    """

    is_usage_error: bool = False


class ConfigError(KapudfError):
    """A configuration is not usable.

    Attributes:
        source: the file, or a word for where the settings came from.
        faults: one line each: the path of the setting, and what is wrong.
    """

    is_usage_error = True

    def __init__(self, source: str, faults: Sequence[str]) -> None:
        super().__init__("; ".join(f"{source}: {fault}" for fault in faults))
        self.source = source
        self.faults = tuple(faults)


class MissingExtraError(KapudfError):
    """Something needs a library that is an extra of kapudf's, and is not installed."""

    def __init__(self, what: str, library: str, extra: str) -> None:
        super().__init__(f"{what} needs {library}: pip install 'kapudf[{extra}]'")
        self.library = library
        self.extra = extra


class OutputError(KapudfError):
    """What a command found out cannot be written to where it should go."""


def describe(error: BaseException) -> str:
    """Return an exception's type and text in one line of bounded length, for logs and Kapacitor."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # noqa: BLE001 - an exception that cannot be shown must not hide that it came
        text = "(an exception whose text cannot be had)"
    # Half a surrogate pair would fail to be sent, and the connection with it.
    text = text.encode("utf-8", "backslashreplace").decode()
    name = type(error).__name__
    return f"{name}: {shorten(text, _DESCRIPTION_CHARACTERS)}" if text else name


def shorten(text: str, limit: int) -> str:
    """Return a text over `limit` characters without its middle, and how much was cut there."""
    cut = len(text) - limit
    if cut <= 0:
        return text
    end = limit // 4
    return f"{text[: limit - end]} [... {cut} characters cut ...] {text[len(text) - end :]}"
