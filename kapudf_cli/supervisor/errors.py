"""Workers that cannot start, and control requests that fail."""

from __future__ import annotations

from kapudf_cli.errors import KapudfError
from kapudf_cli.plugin_errors import PluginError


class WorkerStartError(PluginError):
    """A worker could not load its handler.

    Attributes:
        is_usage_error: whether the request itself is wrong, so that trying again cannot help.
    """

    def __init__(self, problem: str, *, function: str, is_usage_error: bool) -> None:
        super().__init__(problem)
        self.function = function
        self.is_usage_error = is_usage_error


class MetricsAddressError(KapudfError):
    """The address for metrics cannot be bound."""

    is_usage_error = True


class ControlError(KapudfError):
    """The supervisor of a function could not be asked, or could not do what was asked."""
