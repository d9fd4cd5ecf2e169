"""An actor: one partition of a worker, with an instance of the handler for each connection.

It is a process on a node of the cluster, where kapudf is installed. Ray calls its methods in an
event loop; each connection has a thread of its own, as in a local partition.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import queue
import tempfile
import threading
import time
from typing import TYPE_CHECKING, Final

import msgspec

from kapudf_cli.errors import describe
from kapudf_cli.plugin_errors import PluginError
from kapudf_cli.ray_engine.messages import (
    Description,
    Events,
    Load,
    Loaded,
    chunks_within,
    encode,
    poll_s,
    versions,
)
from kapudf_cli.system import logs, processes
from kapudf_cli.worker.busy_watchdog import HEARTBEAT_INTERVAL_S
from kapudf_cli.worker.connections import Function
from kapudf_cli.worker.loading import code_of, load_handler
from kapudf_cli.worker.partition_connection import PartitionConnection

if TYPE_CHECKING:
    from collections.abc import Mapping

#: How much of the log waits for a poll; more waits in a pipe, and is then dropped.
_LOG_BYTES: Final = 1024 * 1024
_PIPE_BYTES: Final = 64 * 1024
#: The length of the number before the chunks of a result.
NUMBER_BYTES: Final = 8


class PartitionActor:
    """The actor's methods. All are called by the engine, and are not for others."""

    def __init__(self) -> None:
        """Wait for `load`."""
        self._stack = contextlib.ExitStack()
        self._changed = asyncio.Event()
        self._connections: dict[int, _Connection] = {}
        self._replies: list[tuple[int, bytes]] = []
        self._lines = bytearray()
        self._polls = 0

    async def describe(self) -> bytes:
        """Return a `Description`."""
        import ray  # noqa: PLC0415 - only where this is an actor

        node = ray.get_runtime_context().get_node_id()
        return encode(Description(os.getpid(), node, versions()))

    async def load(self, message: bytes) -> bytes:
        """Load the handler as a `Load` says, and return `Loaded`."""
        load = msgspec.msgpack.decode(message, type=Load)
        self._loop = asyncio.get_running_loop()
        self._poll_s = poll_s(load.settings.busy_limit_s)
        self._collect_log(load)
        # Not in the event loop's thread, which code of a handler may want to have its own loop in.
        loaded = await self._loop.run_in_executor(None, self._load, load)
        self._progress = asyncio.create_task(self._report_progress())
        return encode(loaded)

    def _collect_log(self, load: Load) -> None:
        """Log to a pipe, whose content the engine gets with polls."""
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        logs.configure(load.log_format, load.log_level, descriptor=write_end)
        self._stack.enter_context(logs.prints_logged())
        self._log_end = read_end
        self._loop.add_reader(read_end, self._read_log)

    def _read_log(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._lines += os.read(self._log_end, _PIPE_BYTES)
        if len(self._lines) >= _LOG_BYTES:
            self._loop.remove_reader(self._log_end)
        self._changed.set()

    def _load(self, load: Load) -> Loaded:
        facts = {"function": load.function, "partition": load.partition, "node": load.node}
        logs.bind_facts(**facts)
        self._facts = facts
        try:
            settings = msgspec.structs.replace(load.settings, handler=load.code.unpack())
            handler = load_handler(settings, function=load.function, log=logs.get_logger())
        except PluginError as error:
            return Loaded(error.with_notes, error.is_usage_error)
        except OSError as error:
            return Loaded(f"the handler's code cannot be written: {describe(error)}")
        self._function = Function(load.function, handler, settings)
        return Loaded(sha256=code_of(handler).sha256)

    async def execute(
        self, link: int, number: int, facts: Mapping[str, object], *order: bytes
    ) -> list[bytes] | bytes:
        """Execute an order.

        Ray may begin with calls in any order; their numbers restore it.

        Args:
            link: for which link.
            number: which order of it.
            facts: what log events of the connection name; only with the first order.
            order: the order, in chunks.

        Returns:
            After how many polls with replies the reply is sent on, in `NUMBER_BYTES`, and the
            reply, in as many chunks as the order has.
        """
        connection = self._connections.get(link)
        if connection is None:
            connection = self._connections[link] = _Connection(self, link)
        done = connection.put(number, b"".join(order), facts)
        reply = await done
        # What was written before is in a poll that was answered, or will be in the next one.
        polls = self._polls + bool(self._replies)
        result = polls.to_bytes(NUMBER_BYTES, "little") + reply
        return result if len(order) == 1 else chunks_within(result, len(order))

    async def close(self, link: int) -> None:
        """End a connection, whose link was closed."""
        connection = self._connections.pop(link, None)
        if connection is not None:
            connection.close()

    async def poll(self) -> bytes:
        """Wait for events, for a limited time, and return `Events`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), self._poll_s)
        self._changed.clear()
        replies, self._replies = self._replies, []
        end = self._lines.rfind(b"\n") + 1 or len(self._lines) // _LOG_BYTES * _LOG_BYTES
        lines = bytes(self._lines[:end])
        del self._lines[:end]
        if lines:
            self._loop.add_reader(self._log_end, self._read_log)
        self._polls += bool(replies)
        rss_bytes = processes.rss_bytes(os.getpid())
        return encode(Events(self._polls, replies, lines, rss_bytes, time.process_time_ns()))

    async def stacks(self) -> bytes:
        """Return the stacks of all threads, as faulthandler writes them."""
        with tempfile.TemporaryFile() as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            return file.read()

    async def _report_progress(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_INTERVAL_S)
            for connection in list(self._connections.values()):
                connection.report_progress()

    # --- for the threads of connections ---

    def create_partition(self, link: int, facts: Mapping[str, object]) -> PartitionConnection:
        """Return what executes the orders of a link in the current thread."""
        logs.bind_facts(**{**facts, **self._facts})

        def send(reply: bytes) -> None:
            self._loop.call_soon_threadsafe(self._note, link, reply)

        return PartitionConnection(self._function, send)

    def _note(self, link: int, reply: bytes) -> None:
        self._replies.append((link, reply))
        self._changed.set()

    def resolve(self, done: asyncio.Future[bytes], reply: bytes | Exception) -> None:
        """Return the reply to an order, or raise where it is awaited."""
        if isinstance(reply, Exception):
            self._loop.call_soon_threadsafe(done.set_exception, reply)
        else:
            self._loop.call_soon_threadsafe(done.set_result, reply)


class _Connection:
    """The orders of one link, and the thread that executes them."""

    def __init__(self, actor: PartitionActor, link: int) -> None:
        self._actor = actor
        self._link = link
        self._next = 0
        self._early: dict[int, tuple[bytes, asyncio.Future[bytes]]] = {}
        self._orders: queue.SimpleQueue[tuple[bytes, asyncio.Future[bytes]] | None]
        self._orders = queue.SimpleQueue()
        self._partition: PartitionConnection | None = None

    def put(self, number: int, order: bytes, facts: Mapping[str, object]) -> asyncio.Future[bytes]:
        """Have an order executed after those before it; return its reply."""
        done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._early[number] = order, done
        if number == 0:
            name = f"link-{self._link}"
            threading.Thread(target=self._run, args=(facts,), name=name, daemon=True).start()
        while self._next in self._early:
            self._orders.put(self._early.pop(self._next))
            self._next += 1
        return done

    def close(self) -> None:
        """End the thread after the orders before."""
        self._orders.put(None)

    def report_progress(self) -> None:
        """See `PartitionConnection.report_progress`."""
        if self._partition is not None:
            self._partition.report_progress()

    def _run(self, facts: Mapping[str, object]) -> None:
        partition = None
        while (given := self._orders.get()) is not None:
            order, done = given
            try:
                if partition is None:
                    partition = self._partition = self._actor.create_partition(self._link, facts)
                reply: bytes | Exception = partition.execute(order)
            except Exception as error:  # noqa: BLE001 - out of memory, or a bug of kapudf
                reply = error  # The engine ends over it.
            self._actor.resolve(done, reply)
        if partition is not None:
            partition.close()
