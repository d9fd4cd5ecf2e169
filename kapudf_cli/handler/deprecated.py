"""Warnings for old names of the interface, which work for one more release."""

from __future__ import annotations

import inspect
import warnings


def warn(handler: type, message: str) -> None:
    """Give a DeprecationWarning at the class of a handler, for its author to find the line."""
    try:
        file = inspect.getsourcefile(handler) or handler.__module__
        _, line = inspect.getsourcelines(handler)
    except (OSError, TypeError):
        file, line = handler.__module__, 1
    warnings.warn_explicit(
        f"{handler.__name__}: {message}", DeprecationWarning, file, line, handler.__module__
    )
