"""A handler, served in this process by the agent that serves it for real."""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kapudf_cli.client.in_process import served
from kapudf_cli.client.target import Connection, Ending

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kapudf_cli.agent.summary import ConnectionSummary
    from kapudf_cli.handler.handler import Handler


@dataclass(frozen=True)
class HandlerTarget:
    """A handler's class, with an instance for each connection; see `Target`.

    What the handler prints goes where this process prints.
    """

    name: str
    handler: type[Handler]

    @contextlib.contextmanager
    def open(self, *, timeout_s: float) -> Iterator[Connection]:
        """Serve it in a thread; see `Target.open`."""
        accounts: list[ConnectionSummary] = []
        ended = threading.Event()

        def note(summary: ConnectionSummary) -> None:
            accounts.append(summary)
            ended.set()

        def ending(timeout_s: float) -> Ending | None:
            return _told(accounts[0]) if ended.wait(timeout_s) else None

        with served(self.handler, timeout_s=timeout_s, on_end=note) as side:
            yield Connection(side, os.getpid(), ending, drains=True)


def _told(summary: ConnectionSummary) -> Ending:
    error = summary.error or summary.stop_error
    if error is not None:
        return Ending(clean=False, text=f"ended: {error}")
    if summary.refusal is not None:
        return Ending(clean=True, text=f"ended: {summary.refusal}")
    return Ending(clean=True, text="ended by itself")
