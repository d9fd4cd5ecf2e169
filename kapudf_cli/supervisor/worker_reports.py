"""What workers report, and that they have ended, as the supervisor's loop finds it."""

from __future__ import annotations

import selectors
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from kapudf_cli.supervisor.worker_process import WorkerProcess
    from kapudf_cli.worker.channel import Report

#: So many reports of one worker are read at once, so that others get their turn.
_AT_ONCE: Final = 64


class WorkerReports:
    """The channels of some workers, read and written as they allow; for use with a selector."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        *,
        on_report: Callable[[WorkerProcess, Report], None],
        on_end: Callable[[WorkerProcess], None],
    ) -> None:
        """Register with `selector`, with a callable as data.

        Args:
            selector: the loop calls each ready key's data.
            on_report: is given each report.
            on_end: is called once a worker's process has ended, after all that it reported; it
                must `unwatch` the worker.
        """
        self._selector = selector
        self._on_report = on_report
        self._on_end = on_end

    def watch(self, worker: WorkerProcess) -> None:
        """Handle what a worker reports, and its end."""
        self._selector.register(
            worker.channel, selectors.EVENT_READ, lambda: self._read_some(worker)
        )
        if worker.exit_notice >= 0:
            # A child that a handler has forked may keep the channel open.
            self._selector.register(
                worker.exit_notice, selectors.EVENT_READ, lambda: self._read_rest(worker)
            )

    def unwatch(self, worker: WorkerProcess) -> None:
        """Forget a worker."""
        if worker.channel_lost_s is None:
            self._selector.unregister(worker.channel)
        if worker.exit_notice >= 0:
            self._selector.unregister(worker.exit_notice)

    def update(self, worker: WorkerProcess) -> None:
        """Wait for room in a worker's channel if something is to be sent, and only then."""
        if worker.channel_lost_s is not None:
            return
        key = self._selector.get_key(worker.channel)
        if worker.lacks_room and not key.events & selectors.EVENT_WRITE:
            both = selectors.EVENT_READ | selectors.EVENT_WRITE
            self._selector.modify(worker.channel, both, lambda: self._read_and_write(worker))
        elif not worker.lacks_room and key.events & selectors.EVENT_WRITE:
            self._selector.modify(
                worker.channel, selectors.EVENT_READ, lambda: self._read_some(worker)
            )

    def tick(self, worker: WorkerProcess) -> None:
        """Notice the end of a worker whose channel is closed, where the system gives no notice."""
        if worker.channel_lost_s is not None and worker.has_exited:
            self._on_end(worker)

    def _read_and_write(self, worker: WorkerProcess) -> None:
        if worker.channel.has_room:
            worker.note_room()
        self._read_some(worker)

    def _read_some(self, worker: WorkerProcess) -> None:
        """Handle what a worker reports, or a channel that is closed."""
        for _ in range(_AT_ONCE):
            try:
                received = worker.channel.receive()
            except BlockingIOError:
                return
            if received is None:
                # The process ends, or its handler has closed the descriptor. Other workers
                # must not take over before it has ended.
                self._selector.unregister(worker.channel)
                worker.lose_channel()
                return
            self._on_report(worker, received[0])

    def _read_rest(self, worker: WorkerProcess) -> None:
        """Handle the exit of a worker, after what it reported before."""
        while worker.channel_lost_s is None:
            try:
                received = worker.channel.receive()
            except BlockingIOError:
                break
            if received is None:
                break
            self._on_report(worker, received[0])
        self._on_end(worker)
