"""Errors about UDFs that cannot be reached, do not answer, or break the protocol."""

from __future__ import annotations

from kapudf_cli.errors import KapudfError


class TargetError(KapudfError):
    """A UDF that is to be tested cannot be connected to, or cannot be started.

    Attributes:
        target: the path or command as the user gave it.
        problem: the reason, without the target.
    """

    def __init__(self, target: str, problem: str) -> None:
        super().__init__(f"{target}: {problem}")
        self.target = target
        self.problem = problem


class ProbeError(KapudfError):
    """A UDF did not answer Info as Kapacitor needs it to."""


class UdfFaultError(KapudfError):
    """A UDF broke a rule: it failed its task, hung, closed, or sent what it must not send.

    Attributes:
        problem: what it did, without a subject: `closed the connection instead of …`.
        reported: the text of its ErrorResponse, None if it sent none.
    """

    def __init__(self, problem: str, *, advice: str = "", reported: str | None = None) -> None:
        super().__init__(f"the UDF {problem}" + (f". {advice}" if advice else ""))
        self.problem = problem
        self.reported = reported
