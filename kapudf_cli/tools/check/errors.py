"""How a check says that a rule is broken, or does not apply."""

from __future__ import annotations

from kapudf_cli.errors import KapudfError


class RuleBrokenError(KapudfError):
    """The UDF broke the rule; the message says what it did, to be put after its name."""


class NotApplicableError(KapudfError):
    """The rule does not apply to this UDF, for the reason that the message gives."""
