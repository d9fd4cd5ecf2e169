"""Why a load run fails."""

from __future__ import annotations

from kapudf_cli.errors import KapudfError


class LoadError(KapudfError):
    """A UDF could not carry the load that was put on it: it refused, failed, hung or ended."""
