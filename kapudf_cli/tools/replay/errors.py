"""Recordings that cannot be sent."""

from __future__ import annotations

from kapudf_cli.errors import KapudfError


class WindowsTooFullError(KapudfError):
    """The windows over a stream hold more points than memory should."""


class IncompatibleError(KapudfError):
    """A UDF, a recording and the options of the command cannot be used together."""

    is_usage_error = True
