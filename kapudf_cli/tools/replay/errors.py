"""Why a replay fails."""

from __future__ import annotations

from kapudf_cli.errors import KapudfError


class WindowsTooFullError(KapudfError):
    """The windows over a stream hold more points than memory should."""


class MisfitError(KapudfError):
    """A UDF, a recording, and what was asked for do not go together."""

    is_usage_error = True


class ReplayError(KapudfError):
    """A UDF did what fails its task, or worse, while a recording was sent through it."""
