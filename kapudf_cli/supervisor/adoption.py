"""What an earlier supervisor has left: connections and workers, with which this one goes on.

A supervisor may die between any two instructions. What is kept of it (see `DescriptorStore`) says
which connections there are; only the workers know which of them they serve. So the next supervisor
asks them, and a worker that does not answer is killed: another one takes its connections over from
their journals, which is exact at any time.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from kapudf_cli.journal import kernel
from kapudf_cli.journal.header import READABLE_FORMATS
from kapudf_cli.supervisor import numbers
from kapudf_cli.supervisor.connection import (
    SupervisedConnection,
    format_of,
    journal_name,
    socket_name,
)
from kapudf_cli.supervisor.numbers import Numbers
from kapudf_cli.supervisor.worker_process import WorkerProcess, kept_names
from kapudf_cli.worker.channel import Finished, Identify, Identity, Release, Resume, WorkerRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from structlog.stdlib import BoundLogger

    from kapudf_cli.config import FunctionSettings
    from kapudf_cli.system.descriptor_store import DescriptorStore

#: How long workers have to answer. One that runs needs some milliseconds, even if it is busy.
_ANSWER_S: Final = 3.0
#: How long to wait until a question is sent again that had no room.
_POLL_MS: Final = 50
#: The names of all that is not a listening socket; see `socket_name` and `kept_names`.
_NUMBERED: Final = re.compile(r"(connection|journal|worker)-(\d+)(?:-\w+)?")


@dataclass
class AdoptedWorker:
    """A worker that goes on.

    Attributes:
        process: the worker.
        identity: what it has loaded.
        connections: the connections that it serves.
    """

    process: WorkerProcess
    identity: Identity
    connections: list[SupervisedConnection] = field(default_factory=list)


@dataclass
class AdoptedFunction:
    """What goes on of one function.

    Attributes:
        settings: those of its workers, None without workers.
        workers: its workers.
        waiting: its connections that no worker serves.
        ended: its connections that have ended, and may not be counted yet.
    """

    settings: FunctionSettings | None = None
    workers: list[AdoptedWorker] = field(default_factory=list)
    waiting: list[SupervisedConnection] = field(default_factory=list)
    ended: list[SupervisedConnection] = field(default_factory=list)


@dataclass
class Adopted:
    """What goes on.

    Attributes:
        workers: the workers that have answered.
        waiting: the connections that no worker serves.
        ended: the connections that have ended, and may not be counted yet.
        unbegun: sockets of connections that have no journal yet, with their numbers.
    """

    workers: list[AdoptedWorker] = field(default_factory=list)
    waiting: list[SupervisedConnection] = field(default_factory=list)
    ended: list[SupervisedConnection] = field(default_factory=list)
    unbegun: list[tuple[int, socket.socket]] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether nothing goes on."""
        return not (self.workers or self.waiting or self.unbegun)

    @property
    def connections(self) -> int:
        """How many connections go on."""
        served = sum(len(each.connections) for each in self.workers)
        return served + len(self.waiting) + len(self.unbegun)

    def by_function(self) -> dict[str, AdoptedFunction]:
        """Return the workers and connections of each function, by its name."""
        functions: dict[str, AdoptedFunction] = {}
        for worker in self.workers:
            # A worker is not told when its function is renamed.
            names = [each.record.function for each in worker.connections]
            name = next(iter(names), worker.identity.function)
            function = functions.setdefault(name, AdoptedFunction())
            function.settings = worker.identity.settings
            function.workers.append(worker)
        for connection in self.waiting:
            name = connection.record.function
            functions.setdefault(name, AdoptedFunction()).waiting.append(connection)
        for connection in self.ended:
            name = connection.record.function
            functions.setdefault(name, AdoptedFunction()).ended.append(connection)
        return functions


@dataclass(frozen=True)
class Decision:
    """Which worker goes on with which connection.

    Attributes:
        serving: the worker of each connection that has one.
        resumed: those of them that are paused and are to go on, with their thread.
        released: workers and connections that they are to forget.
    """

    serving: dict[int, int]
    resumed: dict[int, int]
    released: list[tuple[int, int]]


def decide(identities: Mapping[int, Identity], ended: set[int]) -> Decision:
    """Decide which worker goes on with which connection.

    A handover that was under way is undone: the worker that has paused goes on. If that one has
    ended, another worker takes the connection over from its journal, as after any death, because
    the one that waits may not have the last state.

    Args:
        identities: what each worker has answered.
        ended: connections that were logged as finished.
    """
    serving: dict[int, int] = {}
    resumed: dict[int, int] = {}
    for worker, identity in identities.items():
        serving |= {number: worker for number in identity.serving if number not in ended}
    for worker, identity in identities.items():
        for number, thread in identity.paused:
            if number not in ended and number not in serving:
                serving[number] = worker
                resumed[number] = thread
    released = [
        (worker, number)
        for worker, identity in identities.items()
        for number in (*identity.waiting, *(number for number, _ in identity.paused))
        if serving.get(number) != worker
    ]
    return Decision(serving, resumed, released)


class _Ended:
    """The connections that have ended.

    Attributes:
        numbers: which.
    """

    def __init__(self, connections: Mapping[int, SupervisedConnection]) -> None:
        """Begin with those of the connections that are known to have ended."""
        self._connections = connections
        self.numbers = {number for number, each in connections.items() if each.header.has_ended}

    def note(self, numbers: set[int]) -> None:
        """Note more; for the next supervisor too, because what is known of workers is removed."""
        self.numbers |= numbers
        for number in numbers & self._connections.keys():
            self._connections[number].header.has_ended = 1


class Inheritance:
    """What an earlier supervisor has left; nothing at the first start.

    Attributes:
        numbers: give numbers to new connections and workers.
        listeners: the sockets that it has listened on, by their names in the store.
    """

    def __init__(self, store: DescriptorStore, log: BoundLogger) -> None:
        """Sort what is in the store.

        Args:
            store: has it.
            log: where failures go.
        """
        self._store = store
        self._log = log
        self.listeners: dict[str, socket.socket] = {}
        # By number: sockets and journals of connections, and the descriptors of workers.
        self._sockets: dict[int, int] = {}
        self._journals: dict[int, int] = {}
        self._workers: dict[int, dict[str, int]] = {}
        memory: int | None = None
        for name, descriptor in store.take_found().items():
            match = _NUMBERED.fullmatch(name)
            if name == numbers.NAME:
                memory = descriptor
            elif match is None:
                self.listeners[name] = socket.socket(fileno=descriptor)
            elif match[1] == "connection":
                self._sockets[int(match[2])] = descriptor
            elif match[1] == "journal":
                self._journals[int(match[2])] = descriptor
            else:
                self._workers.setdefault(int(match[2]), {})[name] = descriptor
        if memory is not None and self._is_readable(memory):
            store.keep(numbers.NAME, memory)
            self.numbers = Numbers(memory)
        else:
            self._forget_all()
            if memory is not None:
                os.close(memory)
                store.remove(numbers.NAME)
            self.numbers = Numbers.create(store)

    def _is_readable(self, memory: int) -> bool:
        """Return whether this version of kapudf can read all of it."""
        formats = {numbers.format_of(memory), *map(format_of, self._journals.values())}
        unknown = sorted(formats - READABLE_FORMATS)
        if unknown:
            self._log.error(
                "cannot go on with the tasks of another version of kapudf",
                formats=unknown,
                readable=sorted(READABLE_FORMATS),
                connections=len(self._sockets),
                advice="their workers serve them to the end; reload them when that is convenient",
            )
        return not unknown

    def _forget_all(self) -> None:
        """Close everything but listening sockets; workers serve their connections to the end."""
        for number, descriptor in self._sockets.items():
            self._forget(socket_name(number), descriptor)
        for number, descriptor in self._journals.items():
            self._forget(journal_name(number), descriptor)
        for parts in self._workers.values():
            self._forget_parts(parts)
        self._sockets, self._journals, self._workers = {}, {}, {}

    def _forget(self, name: str, descriptor: int) -> None:
        os.close(descriptor)
        self._store.remove(name)

    def _forget_parts(self, parts: Mapping[str, int]) -> None:
        for name, descriptor in parts.items():
            self._forget(name, descriptor)

    # --- who goes on ---

    def adopt(self) -> Adopted:
        """Ask the workers what they serve; return what goes on.

        To be called once, before anything else is done with connections and workers.
        """
        connections = self._open_connections()
        ended = _Ended(connections)
        processes = self._open_workers(ended)
        identities, reported = _identify(processes, patience_s=_ANSWER_S)
        ended.note(reported)
        for process in processes:
            if process.number not in identities:
                self._end(process, ended)
        ended_ones = [connections.pop(number) for number in ended.numbers & connections.keys()]
        decision = decide(identities, ended.numbers)
        workers = {
            process.number: AdoptedWorker(process, identities[process.number])
            for process in processes
            if process.number in identities
        }
        for worker_number, number in decision.released:
            workers[worker_number].process.send(Release(number))
        for number, thread in decision.resumed.items():
            if number in connections:
                connections[number].header.thread = thread
                workers[decision.serving[number]].process.send(Resume(number))
        waiting = []
        for number, connection in connections.items():
            if number in decision.serving:
                workers[decision.serving[number]].connections.append(connection)
            else:
                waiting.append(connection)
        for worker in workers.values():
            worker.process.loaded = worker.identity.loaded
        return Adopted(list(workers.values()), waiting, ended_ones, self._open_unbegun())

    def _open_workers(self, ended: _Ended) -> list[WorkerProcess]:
        """Return the workers that have not ended; note the connections that any has finished."""
        processes: list[WorkerProcess] = []
        for number, parts in self._workers.items():
            channel, dump, record = (parts.get(name) for name in kept_names(number))
            if channel is None or dump is None or record is None:
                # It was not served by it yet, or has ended and was about to be forgotten.
                self._forget_parts(parts)
                continue
            ended.note(WorkerRecord(record).finished())
            try:
                processes.append(WorkerProcess.adopt(number, channel, dump, record, self._store))
            except ProcessLookupError:
                self._forget_parts(parts)
        return processes

    def _end(self, process: WorkerProcess, ended: _Ended) -> None:
        """Kill a worker that has not answered; note the connections that it has finished."""
        if not process.has_exited:
            self._log.error(
                "worker does not answer the new supervisor, it is replaced",
                worker=process.number,
                pid=process.pid,
            )
            process.kill()
        process.reap()
        ended.note(process.finished_connections())
        process.close()

    def _open_connections(self) -> dict[int, SupervisedConnection]:
        """Return the connections, with those that have ended and were not closed."""
        connections = {}
        for number, memory in list(self._journals.items()):
            descriptor = self._sockets.pop(number, None)
            if descriptor is None:
                self._forget(journal_name(number), memory)
                continue
            connections[number] = SupervisedConnection.adopt(
                socket.socket(fileno=descriptor), memory, self._store
            )
        return connections

    def _open_unbegun(self) -> list[tuple[int, socket.socket]]:
        """Return the sockets whose journals were not created yet."""
        unbegun = []
        for number, descriptor in self._sockets.items():
            connection = socket.socket(fileno=descriptor)
            if kernel.is_unread(connection):
                self._store.keep(socket_name(number), descriptor)
                unbegun.append((number, connection))
            else:
                self._log.error(
                    "connection is lost, its journal was not kept",
                    connection=number,
                    advice="raise FileDescriptorStoreMax=",
                )
                connection.close()
                self._store.remove(socket_name(number))
        return unbegun


def _identify(
    processes: Iterable[WorkerProcess], *, patience_s: float
) -> tuple[dict[int, Identity], set[int]]:
    """Ask workers what they serve.

    Args:
        processes: the workers.
        patience_s: how long they may take, in seconds.

    Returns:
        The answers by the worker's number, and the connections that were reported as finished
        before. Those that have ended or are frozen do not answer.
    """
    identities: dict[int, Identity] = {}
    ended: set[int] = set()
    waiting = list(processes)
    unsent = set(waiting)
    poll = select.poll()
    for process in waiting:
        poll.register(process.channel, select.POLLIN)
    deadline_s = time.monotonic() + patience_s
    while waiting and time.monotonic() < deadline_s:
        for process in list(unsent):
            with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
                process.channel.send(Identify())
                unsent.discard(process)
        poll.poll(_POLL_MS)
        for process in list(waiting):
            try:
                received = process.channel.receive()
            except BlockingIOError:
                if process.has_exited:
                    received = None
                else:
                    continue
            report = None if received is None else received[0]
            if isinstance(report, Finished):
                ended.add(report.connection)
            elif report is None or isinstance(report, Identity):
                # Earlier reports are outdated by the answer.
                waiting.remove(process)
                poll.unregister(process.channel)
                if report is not None:
                    identities[process.number] = report
    return identities, ended
