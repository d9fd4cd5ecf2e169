"""How far a connection has got; a stream may note it beside what it sends."""

from __future__ import annotations

from typing import NamedTuple


class Progress(NamedTuple):
    """How far a connection has got, at a moment between two requests.

    Attributes:
        offset: how many bytes of input have been dealt with, all in whole frames.
        points_in: points received; likewise the others.
        failures: exceptions of the handler that were passed over.
        restarts: how often the handler was made anew after an exception.
        takeovers: how often another agent took the connection over.
    """

    offset: int = 0
    points_in: int = 0
    points_out: int = 0
    batches_in: int = 0
    batches_out: int = 0
    bytes_out: int = 0
    failures: int = 0
    restarts: int = 0
    takeovers: int = 0
