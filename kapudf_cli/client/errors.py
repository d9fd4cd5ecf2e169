"""UDFs that cannot be reached or do not answer."""

from __future__ import annotations

from kapudf_cli.errors import KapudfError


class TargetError(KapudfError):
    """A UDF that is to be tested cannot be connected to, or not be started.

    Attributes:
        target: the path or command as the user gave it.
        problem: the reason, without the target.
    """

    def __init__(self, target: str, problem: str) -> None:
        super().__init__(f"{target}: {problem}")
        self.target = target
        self.problem = problem


class ProbeError(KapudfError):
    """A UDF did not answer as Kapacitor needs it to."""
