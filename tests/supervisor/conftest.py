"""Fixtures of the tests of connections that outlive workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.supervisor.loops import Loop
from tests.supervisor.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def loop() -> Iterator[Loop]:
    """Give a loop."""
    with Loop() as made:
        yield made


@pytest.fixture
def workers() -> Iterator[Workers]:
    """Give an object that starts workers."""
    with Workers() as starter:
        yield starter
