"""`Agent` and `Server` of `kapacitor.udf.agent`, for a script that is run by itself.

    python -u script.py

Kapacitor starts the script (`prog` and `args`) or connects to its socket. The connections are
those of kapudf, in one process without workers: keepalives are answered while a handler is busy,
and memory is bounded. What a script logs, and what kapudf logs of it, goes to `logging`.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import itertools
import os
import selectors
import signal
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

from kapudf_cli.agent.checkpoints import NoCheckpoints
from kapudf_cli.config import FunctionSettings
from kapudf_cli.influx_scripts.adapter import ScriptHandler
from kapudf_cli.influx_scripts.agent import NOT_STARTED, ScriptAgent
from kapudf_cli.influx_scripts.interface import defaultIn, defaultOut
from kapudf_cli.system import logs
from kapudf_cli.system.signals import SignalQueue
from kapudf_cli.system.socket_file import SocketFile
from kapudf_cli.transport import SocketStream
from kapudf_cli.worker.connections import Connections, Function, Heartbeats
from kapudf_cli.worker.listeners import Listeners
from kapudf_cli.worker.server import drain, take_over_stdio

if TYPE_CHECKING:
    from kapudf_cli.agent.agent import ConnectionSummary
    from kapudf_cli.transport import Stream

#: How long connections may take to finish after a signal.
_GRACE_PERIOD_S: Final = 10.0
_PIECE_BYTES: Final = 64 * 1024


class Agent(ScriptAgent):
    """Serves one connection of Kapacitor with a handler."""

    def __init__(
        self,
        _in: Any = defaultIn,
        out: Any = defaultOut,
        handler: Any = None,
    ) -> None:
        """Use a stream to read from and one to write to: stdin and stdout, or a connection."""
        super().__init__(handler)
        # `sys.stdin` itself is a stream of text, and has the one of bytes.
        self._in = getattr(_in, "buffer", _in)
        self._out = getattr(out, "buffer", out)
        self._thread: threading.Thread | None = None
        self._copies: list[threading.Thread] = []

    def start(self) -> None:
        """Serve the connection in a thread, which keeps the process alive; return at once.

        Raises:
            RuntimeError: it was called before.
        """
        if self._thread is not None:
            problem = "the agent has started already; make another one for another connection"
            raise RuntimeError(problem)
        # Here, because what the script prints from now on must not be sent to Kapacitor.
        stream = self._stream()
        self._thread = threading.Thread(target=self._serve, args=(stream,), name="kapudf-agent")
        self._thread.start()

    def wait(self) -> None:
        """Wait until the connection has ended.

        Raises:
            RuntimeError: `start` was not called.
        """
        if self._thread is None:
            raise RuntimeError(NOT_STARTED)
        self._thread.join()
        for thread in self._copies:
            thread.join()
        for file in (self._in, self._out):
            # A script may print after this.
            if file is not defaultIn and file is not defaultOut:
                with contextlib.suppress(OSError, ValueError):
                    file.close()

    def _stream(self) -> Stream:
        """Return the stream over the files of this agent."""
        if isinstance(self._in, _Connection) and self._in is self._out:
            return self._in.take()
        if self._in is defaultIn and self._out is defaultOut:
            return take_over_stdio()
        ours, theirs = socket.socketpair()
        threading.Thread(target=_copy_input, args=(self._in, theirs), daemon=True).start()
        output = threading.Thread(target=_copy_output, args=(theirs, self._out), daemon=True)
        output.start()
        self._copies.append(output)
        return SocketStream(ours)

    def _serve(self, stream: Stream) -> None:
        summary = _process.serve(self, stream)
        if self._in is defaultIn and (summary.error or summary.stop_error):
            _process.failed = True


class Accepter(Protocol):
    """Makes an agent for each connection."""

    def accept(self, conn: Any, addr: Any, /) -> object:
        """Serve a connection, with `Agent(conn, conn)`; called in a thread of its own."""


class Server:
    """Serves connections at a Unix socket, each with an agent that `accepter` makes."""

    def __init__(self, socket_path: str, accepter: Accepter) -> None:
        """Create the socket. A leftover one, which no process serves, is removed.

        Raises:
            SocketInUseError: a process serves it.
            SocketPathError: it cannot be created.
        """
        umask = os.umask(0)
        os.umask(umask)
        self._accepter = accepter
        path = os.fspath(socket_path)
        self._socket: SocketFile | None = SocketFile.bind(
            path, mode=0o777 & ~umask, remove_stale=True
        )
        self._signals = SignalQueue(())

    def serve(self) -> None:
        """Accept connections until `stop`, SIGINT or SIGTERM, and remove the socket.

        After a signal, connections first handle the input that has arrived. If the script
        handles these signals itself, it should call `stop`.
        """
        try:
            if threading.current_thread() is threading.main_thread():
                self._signals = SignalQueue(_unhandled_signals())
                with self._signals:
                    self._accept_until_stopped()
            else:
                self._accept_until_stopped()
        except (KeyboardInterrupt, SystemExit):
            pass  # Raised by the script's own signal handler, to end this.
        finally:
            self.stop()

    def stop(self) -> None:
        """Accept no more connections, and remove the socket; from any thread, also repeatedly."""
        socket_file, self._socket = self._socket, None
        if socket_file is not None:
            socket_file.release()
            self._signals.wake()

    def _accept_until_stopped(self) -> None:
        if self._socket is None:
            return
        with selectors.DefaultSelector() as selector:
            selector.register(self._signals, selectors.EVENT_READ)
            listeners = Listeners(selector, self._accept, _process.log)
            listeners.add(self._socket.path, self._socket)
            while self._socket is not None:
                for key, _ in selector.select(listeners.wait_s(time.monotonic())):
                    if key.data is not None and self._socket is not None:
                        key.data()
                if self._signals.take():
                    self.stop()
                    _process.drain(self._signals)

    def _accept(self, path: str, socket_file: SocketFile) -> bool:
        """Give the next connection to the accepter, if there is one; see `Listeners`."""
        del path
        accepted = socket_file.accept()
        if accepted is None:
            return False
        threading.Thread(target=self._give, args=(_Connection(accepted),)).start()
        return True

    def _give(self, connection: _Connection) -> None:
        try:
            self._accepter.accept(connection, "")
        finally:
            if not connection.served:
                connection.close()


class _Connection(io.BufferedRWPair):
    """A connection that was accepted, as a file.

    Attributes:
        socket: the connection.
        served: whether an agent serves it.
    """

    def __init__(self, accepted: socket.socket) -> None:
        accepted.settimeout(None)
        raw = socket.SocketIO(accepted, "rw")
        super().__init__(raw, raw)
        self.socket = accepted
        self.served = False

    def take(self) -> Stream:
        """Return the stream for an agent."""
        self.served = True
        return SocketStream(self.socket)

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(OSError):
            super().close()
        self.socket.close()


class _Process:
    """What the agents of this process share.

    Attributes:
        log: where events of connections go.
        failed: whether the connection over stdin and stdout has ended with an error.
    """

    def __init__(self) -> None:
        self.log = logs.to_logging()
        self.failed = False
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._connections = Connections(self.log, self._on_end)
        self._ends: dict[int, threading.Event] = {}
        self._summaries: dict[int, ConnectionSummary] = {}
        self._heartbeats: Heartbeats | None = None
        self._signals: SignalQueue | None = None

    def serve(self, agent: ScriptAgent, stream: Stream) -> ConnectionSummary:
        """Serve a connection to its end and return its summary."""

        class Connected(ScriptHandler):
            def open(self) -> ScriptAgent:
                return agent

        if agent.handler is not None:
            Connected.__name__ = type(agent.handler).__name__
        name = os.path.basename(sys.argv[0] or "script")
        settings = FunctionSettings(handler=name, socket="stdio", workers=0)
        with self._lock:
            if self._heartbeats is None:
                self._heartbeats = Heartbeats(self._connections, lambda _: settings.busy_limit_s)
                self._heartbeats.start()
            number = next(self._numbers)
            ended = self._ends[number] = threading.Event()
        self._connections.start(
            number,
            Function(name, Connected, settings),
            stream,
            None,
            checkpoints=NoCheckpoints(),
        )
        if self._signals is not None and (started := self._connections.get(number)) is not None:
            started.agent.stop()  # The signal came while the script made its agent.
        ended.wait()
        return self._summaries.pop(number)

    def drain(self, signals: SignalQueue) -> None:
        """Let all connections finish."""
        self._signals = signals
        if drain(self._connections, signals, grace_period_s=_GRACE_PERIOD_S, log=self.log):
            logs.exit_at_once(1)

    def exit(self) -> None:
        """At the end of the process: exit with status 1 if its connection has failed."""
        if self.failed:
            for file in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):  # A script may have replaced or closed it.
                    file.flush()
            logs.exit_at_once(1)

    def _on_end(self, number: int, summary: ConnectionSummary) -> None:
        self._summaries[number] = summary
        self._ends.pop(number).set()
        if self._signals is not None:
            self._signals.wake()


def _copy_input(source: Any, sink: socket.socket) -> None:
    read = getattr(source, "read1", source.read)
    with contextlib.suppress(OSError, ValueError):
        while piece := read(_PIECE_BYTES):
            sink.sendall(piece)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def _copy_output(source: socket.socket, sink: Any) -> None:
    with source, contextlib.suppress(OSError, ValueError):
        while piece := source.recv(_PIECE_BYTES):
            sink.write(piece)
            sink.flush()


def _unhandled_signals() -> list[signal.Signals]:
    """Return those of SIGINT and SIGTERM that the script does not handle."""
    defaults = (signal.SIG_DFL, signal.default_int_handler)
    numbers = (signal.SIGINT, signal.SIGTERM)
    return [number for number in numbers if signal.getsignal(number) in defaults]


_process: Final = _Process()
# Registered first, so that it runs last: it may end the process.
atexit.register(_process.exit)
