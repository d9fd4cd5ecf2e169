"""Errors in calls of options."""

from __future__ import annotations

from kapudf_cli.errors import KapudfError


class CallError(KapudfError):
    """A call of a UDF's options is not valid TICKscript, or does not match the UDF's options.

    Attributes:
        column: the place in the text; the first character is 1.
        reason: what is wrong, without the place.
    """

    is_usage_error = True

    def __init__(self, column: int, reason: str) -> None:
        super().__init__(f"character {column} of the options: {reason}")
        self.column = column
        self.reason = reason
