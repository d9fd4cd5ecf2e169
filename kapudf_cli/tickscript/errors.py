"""Calls that are not TICKscript."""

from __future__ import annotations

from kapudf_cli.errors import KapudfError


class CallError(KapudfError):
    """The calls of a UDF's options are not TICKscript's, or not what the UDF declares.

    Attributes:
        column: where in the text, the first character being 1.
        reason: what is wrong, without the place.
    """

    is_usage_error = True

    def __init__(self, column: int, reason: str) -> None:
        super().__init__(f"character {column} of the options: {reason}")
        self.column = column
        self.reason = reason
