"""Supervisors and workers that are killed while a keeper, or systemd, looks after them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING, Any

from kapudf_cli.supervisor import control
from kapudf_cli.supervisor.errors import ControlError
from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable


def await_status(path: str, is_wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Wait for a status, also while there is no supervisor."""
    deadline = time.monotonic() + 2 * PATIENCE_S
    while True:
        with contextlib.suppress(ControlError):
            status = control.ask(path, "status", timeout_s=PATIENCE_S)
            if is_wanted(status):
                return status
        assert time.monotonic() < deadline
        time.sleep(0.02)


def kill_supervisor(path: str) -> None:
    """Kill the supervisor, and wait until the next one has replaced the workers."""
    before = await_status(path, lambda status: bool(status["workers"]))
    os.kill(before["supervisor"]["pid"], signal.SIGKILL)
    old = {worker["worker"] for worker in before["workers"]}
    await_status(
        path,
        lambda status: (
            bool(status["workers"])
            and not old & {worker["worker"] for worker in status["workers"]}
            and all(each["state"] != "being handed over" for each in status["connections"])
        ),
    )


def kill_worker(path: str) -> None:
    """Kill the worker of the connection, and wait until another one serves it."""

    def served(status: dict[str, Any]) -> set[int]:
        numbers = {each["worker"] for each in status["connections"]}
        return {each["pid"] for each in status["workers"] if each["worker"] in numbers}

    before = await_status(path, lambda status: bool(served(status)))
    for pid in served(before):
        os.kill(pid, signal.SIGKILL)
    await_status(path, lambda status: bool(served(status) - served(before)))
