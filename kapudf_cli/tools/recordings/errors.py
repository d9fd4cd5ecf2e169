"""Recordings and lines that cannot be read."""

from __future__ import annotations

from kapudf_cli.errors import KapudfError


class LineProtocolError(KapudfError, ValueError):
    """A text is no line protocol, or a point cannot be written as such.

    Attributes:
        text: the text at fault.
        reason: what is wrong, without the text.
    """

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(f"not line protocol: {text!r:.200}: {reason}")
        self.text = text
        self.reason = reason


class RecordingError(KapudfError):
    """A recording cannot be read, or has an ill-formed line.

    Attributes:
        place: the file, and the line in it where it is one line that is at fault.
        reason: what is wrong, without the place.
    """

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place}: {reason}")
        self.place = place
        self.reason = reason
