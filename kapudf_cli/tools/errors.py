"""Errors of recordings: they cannot be read, or cannot be sent."""

from __future__ import annotations

from kapudf_cli.errors import KapudfError


class LineProtocolError(KapudfError, ValueError):
    """A text is not line protocol, or a point cannot be written as line protocol.

    Attributes:
        text: the faulty text.
        reason: what is wrong, without the text.
    """

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(f"not line protocol: {text!r:.200}: {reason}")
        self.text = text
        self.reason = reason


class RecordingError(KapudfError):
    """A recording cannot be read, or has an ill-formed line.

    Attributes:
        place: the file, with the line if one line is ill-formed.
        reason: what is wrong, without the place.
    """

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place}: {reason}")
        self.place = place
        self.reason = reason


class WindowsTooFullError(KapudfError):
    """The open windows over a stream hold too many points."""


class IncompatibleError(KapudfError):
    """A UDF, a recording and the options of the command cannot be used together."""

    is_usage_error = True


class QueryError(KapudfError):
    """A query of InfluxDB, or its range of time, cannot be replayed."""

    is_usage_error = True
