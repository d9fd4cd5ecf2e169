"""The Ray engine of a worker: leads from the links of its connections to the actors.

    python -m kapudf_cli.ray_engine.main DESCRIPTOR

where DESCRIPTOR is its end of the channel. It is a process of its own because Ray ends the process
that has connected to a cluster when the cluster is lost; the worker must not end for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import itertools
import os
import select
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgspec

from kapudf_cli.agent.partition_messages import ENCODER, Waits
from kapudf_cli.errors import MissingExtraError, describe, shorten
from kapudf_cli.protocol.framing import MAX_VARINT, FrameReader, encode_varint, frame_body
from kapudf_cli.ray_engine.actor import NUMBER_BYTES
from kapudf_cli.ray_engine.messages import (
    Description,
    Events,
    Load,
    Loaded,
    chunks,
    encode,
    silent_s,
    versions,
)
from kapudf_cli.system import logs, processes
from kapudf_cli.worker.channel import (
    TEXT_CHARACTERS,
    Channel,
    Failed,
    LoadRemotely,
    Placed,
    ServePartition,
    Unreachable,
    WorkerRecord,
)
from kapudf_cli.worker.shipped_code import ShippedCode

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from kapudf_cli.system.logs import LogFormat
    from kapudf_cli.worker.channel import Report, Start

_READ_BYTES: Final = 1024 * 1024
#: After this time without a cluster, or a node with room, the worker is told.
_PATIENCE_S: Final = 10.0
#: The pause between two attempts to connect.
_RETRY_S: Final = 1.0


class EngineError(Exception):
    """The engine cannot go on.

    Attributes:
        is_usage_error: whether a setting is wrong, so that trying again cannot help.
    """

    def __init__(self, problem: str, *, is_usage_error: bool = False) -> None:
        super().__init__(problem)
        self.is_usage_error = is_usage_error


class Engine:
    """Connects the worker with the actors of its partitions."""

    def __init__(
        self,
        channel: Channel,
        begin: Start,
        record: WorkerRecord,
        dump: int,
        log_format: LogFormat,
    ) -> None:
        """Serve a worker.

        Args:
            channel: from it.
            begin: its first message.
            record: where the usage of the partitions is kept.
            dump: the memory file for stacks.
            log_format: of the log; not `auto`.
        """
        self._log_format: LogFormat = log_format
        self._cluster: Any = None
        self._channel = channel
        self._begin = begin
        self._settings = begin.settings
        self._record = record
        self._dump = dump
        self._partitions: list[_Partition] = []
        self._links = itertools.count()
        self._load: asyncio.Future[ShippedCode] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def connect(self) -> None:
        """Connect to the cluster, as soon as there is one.

        Raises:
            EngineError: that cannot succeed.
        """
        try:
            from kapudf_cli.ray_engine import cluster  # noqa: PLC0415 - Ray may be missing
        except MissingExtraError as error:
            raise EngineError(str(error), is_usage_error=True) from error
        self._cluster = cluster
        address = self._settings.ray_address
        problem = "it does not answer"
        is_connected = False

        def tell() -> None:
            if not is_connected:
                self.report(Unreachable(f"Ray at {address} cannot be reached: {problem}"))

        # Ray may try for a minute, and then end this process.
        patience = threading.Timer(_PATIENCE_S, tell)
        patience.daemon = True
        patience.start()
        while True:
            try:
                cluster.connect(address)
            except cluster.MismatchError as error:
                raise EngineError(f"Ray at {address}: {error}") from error
            except cluster.UnreachableError as error:
                problem = str(error)
                if self._worker_ends_within(_RETRY_S):
                    raise EngineError("the worker has ended") from None
            else:
                is_connected = True
                patience.cancel()
                return

    def _worker_ends_within(self, timeout_s: float) -> bool:
        """Wait for some time; return at once, and True, if the worker has ended."""
        poll = select.poll()
        poll.register(self._channel, 0)  # Only for its end: messages wait.
        return bool(poll.poll(timeout_s * 1000))

    async def run(self) -> None:
        """Create the actors, and serve until the worker closes the channel.

        Raises:
            EngineError: an actor is lost, or cannot load the handler.
        """
        loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = loop.create_future()
        self._load = loop.create_future()
        loop.add_reader(self._channel.fileno(), self._receive)
        loop.add_signal_handler(signal.SIGUSR1, self.start, self._write_stacks)
        self.start(self._place)
        await self._ended

    def disconnect(self) -> None:
        """Disconnect from a cluster that would not notice the end of this process at once."""
        if self._cluster is not None and self._settings.ray_address.startswith("ray://"):
            self._cluster.disconnect()

    def report(self, report: Report) -> None:
        """Send a message to the worker."""
        with contextlib.suppress(OSError):  # It has ended.
            self._channel.send(report)

    # --- the beginning ---

    async def _place(self) -> None:
        """Create the actors, and have them load the handler."""
        actors = await self._create()
        descriptions = await self._start_actors(actors)
        for description in descriptions:
            _check_versions(description)
        assert self._load is not None
        code = await self._load
        self._partitions = [
            _Partition(number, actor, description, self)
            for number, (actor, description) in enumerate(zip(actors, descriptions, strict=True))
        ]
        loads = [self._load_in(each, code) for each in self._partitions]
        for loaded, partition in zip(await asyncio.gather(*loads), self._partitions, strict=True):
            if loaded.problem is not None:
                raise EngineError(
                    f"{loaded.problem} (on Ray's node {partition.node})",
                    is_usage_error=loaded.is_usage_error,
                )
            if loaded.sha256 != code.sha256:
                raise EngineError(
                    f"Ray's node {partition.node} has other code of {code.handler} (sha256 "
                    f"{loaded.sha256}, here {code.sha256}); install the same version"
                )
        self._report_placed()
        for each in self._partitions:
            self.start(each.poll)

    async def _create(self) -> list[Any]:
        """Return the actors, once there is room for all of them."""
        cluster, count, needs = self._cluster, self._settings.partitions, self._settings.ray_actor
        loop = asyncio.get_running_loop()
        try:
            group = cluster.reserve(needs, count)
            if not await loop.run_in_executor(None, group.wait, _PATIENCE_S):
                text = msgspec.json.encode(needs).decode()
                problem = f"Ray has no room for {count} partitions that need {text} each"
                self.report(Unreachable(problem))
                while not await loop.run_in_executor(None, group.wait, _PATIENCE_S):
                    pass
            actors: list[Any] = cluster.create_actors(needs, group, count)
        except (ValueError, TypeError) as error:
            problem = f"ray_actor: {describe(error)}; see Ray's documentation of actors"
            raise EngineError(problem, is_usage_error=True) from error
        except cluster.LOST_ERRORS as error:
            raise EngineError(f"Ray reserves nothing: {cluster.reason_of(error)}") from error
        return actors

    async def _start_actors(self, actors: list[Any]) -> list[Description]:
        """Return what the actors are, once they have started."""
        try:
            return list(await asyncio.gather(*map(self._describe, actors)))
        except self._cluster.LOST_ERRORS as error:
            reason = self._cluster.reason_of(error)
            raise EngineError(
                f"Ray cannot start the partitions: {reason}; each node needs the same version of "
                "kapudf as this machine"
            ) from error

    async def _describe(self, actor: Any) -> Description:
        data = await self._cluster.call(actor.describe)
        description = msgspec.msgpack.decode(data, type=Description)
        name = self._cluster.name_of(description.node)
        return msgspec.structs.replace(description, node=name)

    async def _load_in(self, partition: _Partition, code: ShippedCode) -> Loaded:
        load = Load(
            self._begin.name,
            self._settings,
            code,
            self._log_format,
            self._begin.log_level,
            partition.number,
            partition.node,
        )
        data = await self.call(partition, partition.actor.load, encode(load))
        return msgspec.msgpack.decode(data, type=Loaded)

    def _report_placed(self) -> None:
        pids = tuple(each.pid for each in self._partitions)
        self.report(Placed(pids, tuple(each.node for each in self._partitions)))

    # --- the channel ---

    def _receive(self) -> None:
        received = self._channel.receive()
        if received is None:
            self._end(None)
            return
        order, descriptors = received
        match order:
            case LoadRemotely() if descriptors:
                assert self._load is not None
                with open(descriptors[0], "rb") as file:
                    file.seek(0)
                    self._load.set_result(msgspec.msgpack.decode(file.read(), type=ShippedCode))
            case ServePartition() if descriptors:
                link = socket.socket(fileno=descriptors[0])
                partition = self._partitions[order.partition]
                self.start(partition.serve, next(self._links), link, order.facts)
            case _:
                self._end(
                    EngineError("no file descriptors are left; raise the limit (LimitNOFILE=)")
                )

    def start(self, run: Any, *arguments: object) -> asyncio.Task[None]:
        """Run a coroutine function in a task; if it fails, the engine ends."""
        task = asyncio.get_running_loop().create_task(run(*arguments))
        self._tasks.add(task)
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._end(error)

    def _end(self, error: BaseException | None) -> None:
        if not self._ended.done():
            if error is None:
                self._ended.set_result(None)
            else:
                self._ended.set_exception(error)

    # --- for partitions ---

    async def call(self, partition: _Partition, method: Any, *arguments: object) -> bytes:
        """Call a method of an actor.

        Raises:
            EngineError: the actor is lost.
        """
        return await self.answer(partition, self.send(partition, method, *arguments))

    async def answer(self, partition: _Partition, called: Awaitable[bytes]) -> bytes:
        """Return the result of a call.

        Raises:
            EngineError: the actor is lost.
        """
        try:
            return await called
        except self._cluster.LOST_ERRORS as error:
            raise self._lost(partition, error) from error

    def _lost(self, partition: _Partition, error: Exception) -> EngineError:
        return EngineError(
            f"partition {partition.number} on Ray's node {partition.node}, pid {partition.pid}, is "
            f"lost: {self._cluster.reason_of(error)}"
        )

    def send(
        self, partition: _Partition, method: Any, *arguments: object, results: int = 1
    ) -> Awaitable[bytes]:
        """Call a method of an actor, whose result `answer` returns.

        Raises:
            EngineError: the cluster is lost.
        """
        try:
            called: Awaitable[bytes] = self._cluster.call(method, *arguments, results=results)
        except self._cluster.LOST_ERRORS as error:
            raise self._lost(partition, error) from error
        return called

    def note_usage(self, partition: int, events: Events) -> None:
        """Keep what a partition uses."""
        self._record.set_usage(partition, events.rss_bytes, events.cpu_ns)

    @property
    def busy_limit_s(self) -> float:
        """How long an actor may be busy with one frame, or not answer at all, in seconds."""
        return self._settings.busy_limit_s

    async def _write_stacks(self) -> None:
        """Write the stacks of all actors for the worker, which was asked where a handler hangs."""
        calls = [self.call(each, each.actor.stacks) for each in self._partitions]
        for called in asyncio.as_completed(calls):  # One may not answer.
            os.write(self._dump, await called)


class _Partition:
    """One partition: its actor, and the links that lead to it.

    Attributes:
        number: which it is.
        actor: the handle.
        pid: the process id of the actor.
        node: where it is.
    """

    def __init__(self, number: int, actor: Any, description: Description, engine: Engine) -> None:
        self.number = number
        self.actor = actor
        self.pid = description.pid
        self.node = description.node
        self._engine = engine
        self._links: dict[int, asyncio.StreamWriter] = {}
        self._polls = 0
        self._polled = asyncio.Condition()
        self._is_silent = False

    async def serve(self, link: int, end: socket.socket, facts: dict[str, Any]) -> None:
        """Pass the orders of a connection on, until the worker closes the link."""
        reader, writer = await asyncio.open_connection(sock=end, limit=_READ_BYTES)
        self._links[link] = writer
        calls: asyncio.Queue[Awaitable[bytes] | None] = asyncio.Queue()
        answering = self._engine.start(self._answer, calls, writer)
        orders = FrameReader(frame_body, MAX_VARINT)
        number = 0
        try:
            while data := await _read(reader):
                for order in orders.feed(data):
                    parts = chunks(order)
                    calls.put_nowait(
                        self._engine.send(
                            self,
                            self.actor.execute,
                            link,
                            number,
                            {} if number else facts,
                            *parts,
                            results=len(parts),
                        )
                    )
                    number += 1
            calls.put_nowait(None)
            await answering
            if number:
                await self._engine.call(self, self.actor.close, link)
        finally:
            answering.cancel()
            del self._links[link]
            writer.close()

    async def _answer(
        self, calls: asyncio.Queue[Awaitable[bytes] | None], writer: asyncio.StreamWriter
    ) -> None:
        """Send the results of calls, in the order of the calls."""
        while (called := await calls.get()) is not None:
            result = await self._engine.answer(self, called)
            await self._await_polls(int.from_bytes(result[:NUMBER_BYTES], "little"))
            if not writer.is_closing():
                writer.write(memoryview(result)[NUMBER_BYTES:])
            with contextlib.suppress(ConnectionError):
                await writer.drain()

    async def _await_polls(self, number: int) -> None:
        """Wait until what the actor wrote before a result was sent: it came with this poll."""
        async with self._polled:
            await self._polled.wait_for(lambda: self._polls >= number)

    async def poll(self) -> None:
        """Ask the actor for events, again and again."""
        limit_s = self._engine.busy_limit_s
        patience_s = silent_s(limit_s)
        while True:
            called = asyncio.ensure_future(self._engine.call(self, self.actor.poll))
            done, _ = await asyncio.wait([called], timeout=patience_s)
            if not done:
                self._note_silence(is_silent=True)
                done, _ = await asyncio.wait([called], timeout=limit_s)
                if not done:
                    self._note_silence(is_silent=False)
                    raise EngineError(
                        f"partition {self.number} on Ray's node {self.node}, pid {self.pid}, has "
                        f"not answered for {patience_s + limit_s:g} s"
                    )
            events = msgspec.msgpack.decode(await called, type=Events)
            if self._is_silent:
                self._note_silence(is_silent=False)
            logs.write_lines(events.lines.decode(errors="replace"))
            self._engine.note_usage(self.number, events)
            for link, reply in events.replies:
                if link in self._links and not self._links[link].is_closing():
                    self._links[link].write(reply)
            async with self._polled:
                self._polls = events.number
                self._polled.notify_all()

    def _note_silence(self, *, is_silent: bool) -> None:
        """Tell the worker whether the actor answers."""
        self._is_silent = is_silent
        body = ENCODER.encode(Waits(is_silent))
        for writer in self._links.values():
            writer.write(encode_varint(len(body)) + body)


async def _read(reader: asyncio.StreamReader) -> bytes:
    """Return what comes next; nothing once the worker has closed the link."""
    try:
        return await reader.read(_READ_BYTES)
    except ConnectionError:
        return b""


def _check_versions(description: Description) -> None:
    """Raise EngineError if an actor has other versions than this process."""
    ours = versions()
    for name, version in description.versions.items():
        if ours.get(name) != version:
            raise EngineError(
                f"Ray's node {description.node} has {name} {version}, and this machine "
                f"{ours.get(name)}; install the same version"
            )


def _log_streams() -> None:
    """Log what Ray writes to the standard streams at level debug: it repeats what kapudf logs."""
    read_end, write_end = os.pipe()
    for stream in (1, 2):
        os.dup2(write_end, stream)
    os.close(write_end)

    def log_lines() -> None:
        with open(read_end, errors="replace") as lines:
            for line in lines:
                logs.get_logger().debug("Ray writes", line=line.rstrip())

    threading.Thread(target=log_lines, name="ray output", daemon=True).start()


def main(descriptor: int) -> NoReturn:
    """Be the Ray engine of a worker, until the end of the process."""
    processes.ignore_stop_signals()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=descriptor))
    received = channel.receive()
    if received is None:
        sys.exit(0)  # The worker ended before it began.
    begin, (dump, record) = received
    logs.configure(begin.log_format, begin.log_level)
    log_format = logs.resolved_format(begin.log_format)
    _log_streams()
    processes.end_with_parent()
    faulthandler.enable(file=dump)
    engine = Engine(channel, begin, WorkerRecord(record), dump, log_format)
    status = 0
    try:
        engine.connect()
        # Nothing is closed at the end: the process exits.
        asyncio.new_event_loop().run_until_complete(engine.run())
    except EngineError as error:
        engine.report(Failed(shorten(str(error), TEXT_CHARACTERS), error.is_usage_error))
        status = 1
    except Exception as error:  # noqa: BLE001 - a bug of kapudf, or of Ray
        logs.get_logger().exception("Ray engine crashes")
        engine.report(Failed(describe(error), is_usage_error=False))
        status = 1
    engine.disconnect()
    logs.exit_at_once(status)


if __name__ == "__main__":
    main(int(sys.argv[1]))
