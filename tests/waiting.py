"""Wait for conditions that other threads or processes bring about."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable


def wait_until(condition: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    """Ask again and again until it is so; fail if it never is."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.0005)
