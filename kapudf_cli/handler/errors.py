"""Mistakes in how a handler is declared or called."""

from __future__ import annotations

from kapudf_cli.errors import KapudfError


class OptionsError(KapudfError):
    """A TICKscript calls a handler's options wrongly; the message is for its author."""


class FieldValueError(KapudfError, ValueError):
    """A value that no field of a point can have."""

    def __init__(self, field: str, value: object, advice: str) -> None:
        super().__init__(f"field '{field}': {type(value).__name__} {value!r:.80}: {advice}")
        self.field = field
        self.value = value


class StateError(KapudfError):
    """A snapshot is not of this handler's state."""


class BatchTooLongError(KapudfError):
    """A batch has more points than its handler keeps."""
