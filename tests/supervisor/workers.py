"""Worker processes as the supervisor starts them, for tests of the code that watches them."""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Self

from kapudf_cli.config import FunctionSettings
from kapudf_cli.supervisor.worker_process import WorkerProcess
from kapudf_cli.worker.channel import Ready, Start
from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from types import TracebackType

SETTINGS = FunctionSettings(handler="mirror", socket="/unused")


class Workers:
    """Starts workers, and ends them all on exit."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._left = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._left.close()

    def start(self, handler: str = "mirror") -> WorkerProcess:
        """Start a worker; it loads its handler in the background."""
        settings = FunctionSettings(handler=handler, socket="/unused")
        worker = WorkerProcess.start(Start("f", next(self._numbers), settings, "json", "info"))
        self._left.callback(_end, worker)
        return worker

    def start_ready(self, handler: str = "mirror") -> WorkerProcess:
        """Start a worker, and wait until it has loaded its handler."""
        worker = self.start(handler)
        worker.channel.socket.settimeout(PATIENCE_S)
        received = worker.channel.receive()
        assert received is not None
        assert isinstance(received[0], Ready)
        worker.channel.socket.settimeout(0)
        return worker


def _end(worker: WorkerProcess) -> None:
    worker.kill()
    worker.reap()
    worker.close()
