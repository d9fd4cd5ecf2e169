"""What workers report, and that they have ended, as the supervisor's loop finds it."""

from __future__ import annotations

import selectors
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from kapudf_cli.serving.channel import Report
    from kapudf_cli.serving.worker_process import WorkerProcess


class WorkerReports:
    """The channels of some workers, read as they become readable; for use with a selector."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        *,
        on_report: Callable[[WorkerProcess, Report], None],
        on_end: Callable[[WorkerProcess], None],
    ) -> None:
        """Register with `selector`, with a callable as data.

        Args:
            selector: whoever runs the loop calls each ready key's data.
            on_report: is given each report.
            on_end: is told of a worker's end, after all that it reported; it is to `unwatch` it.
        """
        self._selector = selector
        self._on_report = on_report
        self._on_end = on_end

    def watch(self, worker: WorkerProcess) -> None:
        """Have what a worker reports dealt with, and its end."""
        self._selector.register(
            worker.channel, selectors.EVENT_READ, lambda: self._read_one(worker)
        )
        if worker.exit_notice >= 0:
            # A child that a handler has forked may keep the channel open.
            self._selector.register(
                worker.exit_notice, selectors.EVENT_READ, lambda: self._read_rest(worker)
            )

    def unwatch(self, worker: WorkerProcess) -> None:
        """Let go of a worker whose channel is still open."""
        self._selector.unregister(worker.channel)
        if worker.exit_notice >= 0:
            self._selector.unregister(worker.exit_notice)

    def _read_one(self, worker: WorkerProcess) -> None:
        """Deal with one report, or with a channel that is closed."""
        try:
            received = worker.channel.receive()
        except BlockingIOError:
            return
        if received is None:
            self._on_end(worker)
        else:
            self._on_report(worker, received[0])

    def _read_rest(self, worker: WorkerProcess) -> None:
        """Deal with the exit of a worker, after what it reported before."""
        while True:
            try:
                received = worker.channel.receive()
            except BlockingIOError:
                received = None
            if received is None:
                self._on_end(worker)
                return
            self._on_report(worker, received[0])
