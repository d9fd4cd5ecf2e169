"""Fixtures for the tests of the supervisor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.supervisor.loops import Loop
from tests.supervisor.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def loop() -> Iterator[Loop]:
    """Give an event loop for pools."""
    with Loop() as made:
        yield made


@pytest.fixture
def workers() -> Iterator[Workers]:
    """Give an object that starts workers, and ends them after the test."""
    with Workers() as starter:
        yield starter
