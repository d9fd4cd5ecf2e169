"""What a replay comes to, in a few lines."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Counts:
    """What has gone through so far."""

    points_sent: int = 0
    batches_sent: int = 0
    points_received: int = 0
    batches_received: int = 0


def summary(counts: Counts, seconds: float, errors: int) -> str:
    """Return how much went in and came back, how fast, and how much went wrong."""
    rate = counts.points_sent / seconds if seconds else 0.0
    return (
        f"{_amount(counts.points_sent, counts.batches_sent)} sent, "
        f"{_amount(counts.points_received, counts.batches_received)} came back, "
        f"{counted(errors, 'error')}; {seconds:.2f} s, {rate:,.0f} points/s"
    )


def counted(number: int, what: str) -> str:
    """Return a number with its noun: `1 point`, `2 points`."""
    plural = "es" if what.endswith("ch") else "s"
    return f"{number:,} {what}{'' if number == 1 else plural}"


def _amount(points: int, batches: int) -> str:
    amount = counted(points, "point")
    return f"{amount} in {counted(batches, 'batch')}" if batches else amount
