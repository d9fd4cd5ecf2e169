"""Errors that a handler or its methods raise."""

from __future__ import annotations

from kapudf_cli.errors import KapudfError


class DefinitionError(KapudfError, TypeError):
    """A class cannot be used as a handler; the message is for its author."""


class OptionsError(KapudfError):
    """A TICKscript sets invalid options; the message is for its author."""


class FieldValueError(KapudfError, ValueError):
    """A value that a field of a point cannot have."""

    def __init__(self, field: str, value: object, advice: str) -> None:
        super().__init__(f"field '{field}': {type(value).__name__} {value!r:.80}: {advice}")
        self.field = field
        self.value = value


class InvalidReturnError(KapudfError, TypeError):
    """A method of a handler returned what cannot be written.

    Attributes:
        method: the name of the method.
        problem: what it did, to be written after its name.
    """

    def __init__(self, method: str, problem: str) -> None:
        super().__init__(f"{method} {problem}")
        self.method = method
        self.problem = problem


class ConnectionClosedError(KapudfError):
    """A handler wrote to a connection that has ended."""


class StateError(KapudfError):
    """A snapshot of another state, or a damaged one."""


class BatchTooLongError(KapudfError):
    """A batch has more points than `max_batch_points`."""
