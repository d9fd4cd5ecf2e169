"""Fixtures of the tests of connections that outlive workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.journals import KeptConnection

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def kept() -> Iterator[KeptConnection]:
    """Give a connection that nothing has come over yet."""
    kept = KeptConnection()
    yield kept
    kept.close()
