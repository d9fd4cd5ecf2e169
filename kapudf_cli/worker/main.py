"""A worker process: imports a handler, and serves the connections that the supervisor sends.

    python -m kapudf_cli.worker.main DESCRIPTOR

where DESCRIPTOR is its end of the channel. It serves one function. It exits once it was told to
stop and its last connection has ended. As a template, it forks workers instead.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import itertools
import math
import os
import queue
import selectors
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any

import msgspec

from kapudf_cli.agent import refused_writes
from kapudf_cli.agent.agent import ConnectionSummary, Reason
from kapudf_cli.agent.handover import HandoverState
from kapudf_cli.errors import describe, shorten
from kapudf_cli.journal.journal import Journal
from kapudf_cli.journal.stream import JournaledStream
from kapudf_cli.plugin_errors import PluginError
from kapudf_cli.system import logs, processes
from kapudf_cli.system.peers import PeerCredentials
from kapudf_cli.system.signals import SignalQueue
from kapudf_cli.worker import fork_safety, template
from kapudf_cli.worker.channel import (
    TEXT_CHARACTERS,
    Abort,
    Channel,
    Failed,
    Finished,
    Identify,
    Identity,
    Pause,
    Paused,
    Ready,
    Refused,
    Release,
    Resume,
    Serve,
    Stop,
    TakenOver,
    WorkerRecord,
)
from kapudf_cli.worker.connections import Connections, Function, Heartbeats, where
from kapudf_cli.worker.loading import code_files, code_of, load_handler
from kapudf_cli.worker.partition_host import PartitionHost
from kapudf_cli.worker.partition_placement import PartitionPlacement
from kapudf_cli.worker.partition_pool import ForkedPartition, PartitionPool

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger

    from kapudf_cli.worker.channel import Report, Start
    from kapudf_cli.worker.connections import Connection

#: Makes faulthandler write the stacks of all threads, for the supervisor to read; it can do that
#: even while a handler holds the interpreter.
DUMP_SIGNAL = signal.SIGUSR1
#: The names of code files in `Ready` may take this much of the message.
_FILES_BYTES = 48 * 1024


#: An async call that takes long is logged so long before the supervisor replaces the worker.
_SLOW_BEFORE_S = 2.0
#: Serve comes with a connection's socket and its memory.
_DESCRIPTORS_OF_TAKE = 2


class Worker:
    """Serves the connections that the supervisor sends, and reports on them."""

    def __init__(
        self,
        channel: Channel,
        record: WorkerRecord,
        function: Function,
        ready: Ready,
        log: BoundLogger,
    ) -> None:
        """Serve `function` for the supervisor at the other end of `channel`.

        Args:
            channel: this process's end.
            record: has the connections that were logged as finished.
            function: the function.
            ready: what was loaded.
            log: where events go.
        """
        self._channel = channel
        self._function = function
        self._ready = ready
        self._log = log
        self._connections = Connections(log, self._on_end, on_logged=record.add_finished)
        # The main thread sends the reports of all threads, so that the end of the supervisor is
        # noticed in one place.
        self._reports: queue.SimpleQueue[Report] = queue.SimpleQueue()
        self._stopping = False
        self._orphaned = False

    def run(self) -> None:
        """Serve until told to stop; without a supervisor, until the last connection has ended."""
        # The supervisor watches the limit.
        limit_s = self._function.settings.busy_limit_s
        partitions = self._function.partitions
        heartbeats = Heartbeats(
            self._connections,
            lambda _: math.inf,
            slow_s=max(limit_s - _SLOW_BEFORE_S, limit_s / 2),
            on_slow=None if partitions is None else partitions.write_stacks,
        )
        # Only the supervisor stops a worker: not a Ctrl-C, and not systemd, which signals every
        # process of the service.
        with (
            SignalQueue((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)) as self._signals,
            selectors.DefaultSelector() as selector,
        ):
            selector.register(self._signals, selectors.EVENT_READ)
            selector.register(self._channel, selectors.EVENT_READ)
            heartbeats.start()
            while not self._is_done():
                ready = {key.fileobj for key, _ in selector.select()}
                if self._orphaned and self._signals.take():
                    self._stop()
                elif not self._orphaned:
                    self._signals.take()
                if self._channel in ready and not self._handle_order():
                    selector.unregister(self._channel)
                    self._become_orphan()
                self._send_reports()
            # The last connection may have ended after the last reports were sent.
            self._send_reports()
            heartbeats.stop()
        if partitions is not None:
            partitions.close()

    def _is_done(self) -> bool:
        return (self._stopping or self._orphaned) and not self._connections.current()

    def _handle_order(self) -> bool:
        """Handle a message of the supervisor; return False once it is gone."""
        received = self._channel.receive()
        if received is None:
            return False
        order, descriptors = received
        match order:
            case Serve():
                self._take_or_refuse(order, descriptors)
            case Stop():
                self._stop()
            case Abort():
                for each in self._connections.current():
                    each.log.error("grace period is over, connection aborted", where=where(each))
                    each.agent.abort()
            case Resume() | Pause() | Release():
                # A connection that has ended meanwhile is reported already.
                if (connection := self._connections.get(order.connection)) is not None:
                    self._steer(connection, order)
            case Identify():
                self.report(self._identity())
        return True

    def _identity(self) -> Identity:
        """Return what this worker serves, for another supervisor."""
        current = [(each, each.agent.handover_state) for each in self._connections.current()]
        return Identity(
            self._function.name,
            self._function.settings,
            self._ready,
            serving=tuple(each.number for each, state in current if state is HandoverState.SERVING),
            paused=tuple(
                (each.number, each.thread.ident or 0)
                for each, state in current
                if state is HandoverState.PAUSED
            ),
            waiting=tuple(each.number for each, state in current if state is HandoverState.WAITING),
        )

    def _steer(self, connection: Connection, order: Resume | Pause | Release) -> None:
        match order:
            case Resume():
                connection.agent.go()
            case Pause():
                connection.agent.pause(lambda: self.report(Paused(connection.number)))
            case Release():
                connection.agent.release()

    def _take_or_refuse(self, order: Serve, descriptors: list[int]) -> None:
        """Serve a connection, if all of its descriptors have come."""
        if len(descriptors) == _DESCRIPTORS_OF_TAKE:
            self._take(order, *descriptors)
            return
        # This process had no descriptor left, so that the kernel dropped some of them.
        for descriptor in descriptors:
            os.close(descriptor)
        problem = "no file descriptors are left; raise the limit (LimitNOFILE=)"
        self.report(Refused(order.connection, problem, retry=True))

    def _take(self, order: Serve, connection: int, memory: int) -> None:
        """Serve a connection, or say why it cannot be."""
        number = order.connection
        try:
            stream = self._stream(connection, memory)
        except OSError as error:
            self.report(Refused(number, processes.explain_limit(error), retry=True))
            return
        if order.resume is not None and order.resume.waits and not stream.record.complete:
            stream.close()
            problem = "its journal has been outgrown, as by a long batch; raise journal_mb"
            self.report(Refused(number, problem))
            return
        peer = None
        if order.peer_pid is not None and order.peer_uid is not None:
            peer = PeerCredentials(order.peer_pid, order.peer_uid, -1)

        def on_resumed(problem: str | None) -> None:
            report: Report = TakenOver(number)
            if problem is not None:
                report = Refused(number, shorten(problem, TEXT_CHARACTERS))
            self.report(report)

        try:
            self._connections.start(
                number,
                self._function,
                stream,
                peer,
                checkpoints=stream,
                resume_plan=order.resume,
                age_s=order.age_s,
                # By that thread: its handler may fault before this thread goes on.
                on_thread=lambda: stream.record_thread(threading.get_ident()),
                on_task=stream.record_task,
                on_resumed=on_resumed,
                on_crash=self._crash,
                on_turn=stream.record_turn,
            )
        except RuntimeError as error:
            self.report(Refused(number, str(error), retry=True))
            return
        # After a death, nothing is waited for. A new connection must not get this call: it would
        # count as the answer to its first handover.
        started = self._connections.get(number)
        if started is not None and order.resume is not None and not order.resume.waits:
            started.agent.go()
        if self._stopping:
            # This worker was told to stop before; the connection is of a worker that died.
            self._stop()

    def _stream(self, connection: int, memory: int) -> JournaledStream:
        settings = self._function.settings
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, memory)
            taken = socket.socket(fileno=connection)
            undo.callback(taken.close)
            journal = Journal(memory, taken)
            stream = JournaledStream(
                taken,
                journal,
                journal_bytes=settings.journal_bytes,
                snapshot_interval_s=settings.snapshot_interval_s,
            )
            undo.pop_all()
        return stream

    def _stop(self) -> None:
        self._stopping = True
        for connection in self._connections.current():
            connection.agent.stop()

    def _become_orphan(self) -> None:
        """Go on without a supervisor, so that the tasks do not stop."""
        self._orphaned = True
        connections = self._connections.current()
        if connections:
            self._log.warning(
                "supervisor is gone, serving connections to their end",
                connections=len(connections),
            )
        for connection in connections:
            connection.agent.cancel_handover()

    # --- from connections' threads ---

    def _crash(self, error: Exception) -> None:
        """End this process: another worker takes its connections over from their journals."""
        try:
            self._log.error("worker crashes, its connections are taken over", exc_info=error)
        finally:
            logs.exit_at_once(1)

    def _on_end(self, number: int, summary: ConnectionSummary) -> None:
        if summary.reason is not Reason.HANDED_OVER:
            self.report(Finished(number))
        else:
            self._signals.wake()

    def report(self, report: Report) -> None:
        """Send the supervisor a report. From any thread."""
        self._reports.put(report)
        self._signals.wake()

    def _send_reports(self) -> None:
        with contextlib.suppress(queue.Empty, OSError):
            while True:
                self._channel.send(self._reports.get_nowait())


def _load(begin: Start, log: BoundLogger, placement: PartitionPlacement) -> tuple[Function, Ready]:
    """Load the handler, also in partitions; return the function and the report of it.

    Raises:
        PluginError: it cannot be loaded.
    """
    # By its name: where that is a link, it may lead elsewhere than for the supervisor.
    with contextlib.suppress(OSError):
        os.chdir(begin.folder)
    before = fork_safety.Baseline()
    is_partitioned = (
        begin.settings.is_partitioned and begin.partition is None and not begin.is_template
    )
    partitions = None
    if is_partitioned:
        placement.start()
    try:
        # Where there are partitions, only they call the handler.
        handler = load_handler(
            begin.settings, function=begin.name, log=log, is_set_up=not is_partitioned
        )
        if is_partitioned:
            partitions = placement.finish(handler)
    except KeyboardInterrupt as error:
        # Ctrl-C does not reach this process, so it is the handler's code that raised it.
        problem = f"{begin.settings.handler} cannot be loaded: it raised {describe(error)}"
        raise PluginError(problem) from error
    script = getattr(handler, "script", None)
    if script is not None:
        log.info(
            "script loaded",
            function=begin.name,
            script=script.name,
            advice="what its snapshot() does not return is lost when a worker is replaced; "
            "return all of it, and take it in restore()",
        )
    if begin.is_template:
        if script is not None:
            script.end_unused()
        before.check(handler)
    ready = Ready(handler.__name__, code_of(handler), _fitting(code_files(handler)))
    return Function(begin.name, handler, begin.settings, partitions), _with(ready, partitions)


def _with(ready: Ready, partitions: PartitionPool | None) -> Ready:
    """Return a report that names the partitions."""
    if partitions is None:
        return ready
    return msgspec.structs.replace(
        ready, partitions=partitions.pids, nodes=partitions.nodes, ray=partitions.ray_pid
    )


def _fitting(files: list[str]) -> tuple[str, ...]:
    """Return as many files as fit into a message."""
    lengths = itertools.accumulate(len(os.fsencode(file)) for file in files)
    return tuple(file for file, end in zip(files, lengths, strict=True) if end <= _FILES_BYTES)


def main(descriptor: int) -> None:
    """Be a worker or a template, until the end of the process."""
    channel = Channel(socket.socket(fileno=descriptor))
    received: tuple[Any, list[int]] | None = channel.receive()
    if received is None:
        return  # The supervisor ended before it began.
    begin, descriptors = received
    logs.configure(begin.log_format, begin.log_level)
    log = logs.get_logger()
    dump, record = descriptors
    _dump_stacks_to(dump)
    if begin.partition is not None:
        processes.end_with_parent()
    placement = PartitionPlacement(begin, channel, dump, record, log)
    with logs.prints_logged():
        try:
            try:
                function, ready = _load(begin, log, placement)
            except PluginError as error:
                _fail(channel, error, is_template=begin.is_template)
                return
            try:
                channel.send(ready)
            except BrokenPipeError:
                return  # The supervisor has ended meanwhile.
            if begin.is_template:
                _be_template(channel, function, ready, log)
            elif begin.partition is not None:
                PartitionHost(channel, function, begin.partition).run()
            else:
                worker = Worker(channel, WorkerRecord(record), function, ready, log)
                placement.return_to_ray(function.handler, worker.report)
                worker.run()
        except OSError:
            log.exception("worker ends")
        refused_writes.log_all()
    logs.exit_despite_threads(0)


def _dump_stacks_to(descriptor: int) -> None:
    """Have the stacks of all threads be written to a memory file, by a fault and on demand."""
    faulthandler.enable(file=descriptor)
    faulthandler.register(DUMP_SIGNAL, file=descriptor, all_threads=True)


def _fail(channel: Channel, error: PluginError, *, is_template: bool) -> None:
    """Report that the handler cannot be loaded."""
    failure = Failed(shorten(error.with_notes, TEXT_CHARACTERS), error.is_usage_error)
    with contextlib.suppress(BrokenPipeError):  # A worker ends at the first partition that fails.
        channel.send(failure)
    if is_template:
        template.fail_workers(channel, failure)


def _be_template(channel: Channel, function: Function, ready: Ready, log: BoundLogger) -> None:
    """Fork workers; in each of them, be the worker."""
    forked = template.fork_workers(channel)
    if forked is None:
        return
    status = 1
    try:
        _dump_stacks_to(forked.dump)
        function = dataclasses.replace(function, name=forked.order.name)
        if (count := function.settings.partitions) > 1:
            found = PartitionPool.fork(count, forked.dump, log)
            if isinstance(found, ForkedPartition):
                forked.close()
                _dump_stacks_to(found.dump)
                PartitionHost(found.channel, function, found.number).run()
                logs.exit_at_once(0)
            found.watch()
            function = dataclasses.replace(function, partitions=found)
            ready = _with(ready, found)
        forked.channel.send(ready)
        Worker(forked.channel, WorkerRecord(forked.record), function, ready, log).run()
        status = 0
    except Exception:
        log.exception("worker ends")
    finally:
        # Without what the handler has registered with `atexit`: that is the template's.
        logs.exit_at_once(status)


if __name__ == "__main__":
    main(int(sys.argv[1]))
