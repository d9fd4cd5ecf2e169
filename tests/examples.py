"""The number of examples of a hypothesis test that needs more or fewer than others."""

from __future__ import annotations

from typing import Any

from hypothesis import settings


def examples(factor: float, **more: Any) -> settings:
    """Return settings with so many times the examples of the profile in use."""
    return settings(max_examples=round(factor * settings().max_examples), **more)
