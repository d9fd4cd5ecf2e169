"""Points in line protocol, and a task that reads them."""

from __future__ import annotations

#: Mirrors whatever is written, each host in a group of its own.
BY_HOST = """
stream
    |from()
        .groupBy('host')
    @udf()
    |httpOut('out')
"""

_EPOCH_S = 1_700_000_000


def line(number: int, *, name: str = "cpu", host: str = "a") -> str:
    """Return the point of second `number`, with that as its integer field `n`."""
    return f"{name},host={host} n={number}i {(_EPOCH_S + number) * 1_000_000_000}"
