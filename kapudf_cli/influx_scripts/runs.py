"""Runs scripts in a process of kapudf, with `Agent` and `Server` bound to its connections.

The main part of a script decides how handlers are made. So it is run, in a thread of its own, where
`Agent.wait` and `Server.serve` block as usual.

- A script that starts an agent on stdin and stdout is run for each connection, with module
  variables of its own, just as Kapacitor starts a process for each.
- A script that serves a socket is run once in a process. Its accepter is called for each
  connection. The script's socket itself is not used.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import sys
import threading
import types
from concurrent.futures import Future, InvalidStateError
from typing import TYPE_CHECKING, Any, ClassVar, Final

from kapudf_cli.influx_scripts import environment, interface, main_module
from kapudf_cli.influx_scripts.adapter import ScriptHandler
from kapudf_cli.influx_scripts.agent import NOT_STARTED, ScriptAgent
from kapudf_cli.protocol import udf_pb2
from kapudf_cli.system import loggers

if TYPE_CHECKING:
    from collections.abc import Callable

    from kapudf_cli.influx_scripts.recognition import ScriptCall

_log = loggers.get("kapudf")

#: How long the end of a connection waits for what the script does after `Agent.wait`.
_END_S: Final = 5.0
_UNAWAITED_END_S: Final = 1.0


class NothingStartedError(Exception):
    """A script has ended and started neither an agent nor a server."""


class Agent(ScriptAgent):
    """`kapacitor.udf.agent.Agent`: the agent of a connection of kapudf."""

    def __init__(self, _in: Any = None, out: Any = None, handler: Any = None) -> None:
        """Use a connection that an accepter got, or that of the current run of the script."""
        super().__init__(handler)
        self._in = _in
        self._out = out
        self._part = _in.part if isinstance(_in, _Accepted) else _current_part()
        self._started = False
        self._ended = threading.Event()
        self._is_awaited = False

    def start(self) -> None:
        """Serve the connection; return at once."""
        self._part.start_serving(self)
        self._started = True

    def wait(self) -> None:
        """Wait until the connection has ended.

        Raises:
            RuntimeError: `start` was not called.
        """
        if not self._started:
            raise RuntimeError(NOT_STARTED)
        self._is_awaited = True
        self._ended.wait()

    def end(self) -> None:
        """Let `wait` return, and wait a while for what the script does then."""
        self._connected.set()
        self._ended.set()
        # Some scripts do not call `wait`, and their main part never ends.
        self._part.join(_END_S if self._is_awaited else _UNAWAITED_END_S)


class Server:
    """`kapacitor.udf.agent.Server`: has the accepter called for each connection of kapudf."""

    def __init__(self, socket_path: str, accepter: Any) -> None:
        """Use no socket of its own, so what the script does with the file has no effect."""
        self.accepter = accepter
        environment.SERVED_PATHS.add(os.fspath(socket_path))
        self._part = _current_part()
        self._stopped = threading.Event()

    def serve(self) -> None:
        """Have connections accepted until `stop` is called."""
        self._part.start_serving(self)
        self._stopped.wait()

    def stop(self) -> None:
        """Let `serve` return."""
        self._stopped.set()

    def end(self) -> None:
        """Let `serve` return, and wait a while for what the script does then."""
        self.stop()
        self._part.join(_END_S)


class _Part(main_module.ScriptThread):
    """A part of a script that runs until it ends, and meanwhile starts an agent or a server."""

    def __init__(self, name: str, call: Callable[[], object]) -> None:
        super().__init__(name=name, daemon=True)
        self._call = call
        #: What it has started.
        self.started: Future[Agent | Server] = Future()

    def run(self) -> None:
        """Run it; the target of the thread."""
        error: BaseException = NothingStartedError(
            "it ends without an agent: its main part starts neither an Agent nor a Server"
        )
        try:
            self._call()
        except SystemExit as exit_:
            error = NothingStartedError(
                f"it exits ({exit_}) before it starts an agent; its arguments follow its path: "
                f"--handler '{self.name} ARGUMENT'"
            )
        except BaseException as raised:  # noqa: BLE001 - a script may raise anything
            error = raised
        if not self.started.done():
            self.started.set_exception(error)
        elif not isinstance(error, NothingStartedError):
            _log.error("script failed", extra={"script": self.name}, exc_info=error)

    def start_serving(self, started: Agent | Server) -> None:
        """Take what the script has started."""
        try:
            self.started.set_result(started)
        except InvalidStateError:
            problem = f"{self.name} starts a second agent on one connection"
            raise RuntimeError(problem) from None


class _Accepted(io.BytesIO):
    """What an accepter gets as a connection.

    Attributes:
        part: the thread that calls the accepter.
    """

    part: _Part


class Script:
    """A script, and the connections that it serves in this process."""

    def __init__(self, call: ScriptCall) -> None:
        """Run nothing yet."""
        self._call = call
        self.name = call.path.name
        self._code = compile(call.path.read_bytes(), call.path, "exec", dont_inherit=True)
        self._server: Server | None = None
        self._unused: list[Agent] = []

    def prepare(self) -> None:
        """Run the script until it has started an agent, for the first connection, or a server.

        Raises:
            NothingStartedError: it has started neither.
            Exception: what the script raised.
        """
        started = self._run()
        if isinstance(started, Agent):
            self._unused.append(started)

    def open(self) -> Agent:
        """Return an agent for a new connection. Raises as `prepare` does."""
        with contextlib.suppress(IndexError):
            return self._unused.pop()
        server = self._server
        if server is None:
            started = self._run()
            if isinstance(started, Agent):
                return started
            server = started
        connection = _Accepted()
        part = connection.part = _Part(
            self.name, functools.partial(server.accepter.accept, connection, "")
        )
        part.start()
        accepted = part.started.result()
        assert isinstance(accepted, Agent)
        return accepted

    @property
    def handler_name(self) -> str:
        """The name of the handler's class, as far as it is known, else that of the script."""
        if self._unused and self._unused[0].handler is not None:
            return type(self._unused[0].handler).__name__
        return self._call.path.stem

    def end_unused(self) -> None:
        """End what `prepare` has started, because a fork would not have its threads.

        The script is run again for the next connection.
        """
        while self._unused:
            self._unused.pop().end()
        if self._server is not None:
            self._server.end()
            self._server = None

    def _run(self) -> Agent | Server:
        """Run the script in a new thread, and return what it has started."""
        path = self._call.path
        environment.prepare()
        environment.provide(self._call.packages, _agent_module(), udf_pb2)
        sys.argv[:] = [str(path), *self._call.arguments]
        if str(path.parent) not in sys.path:
            sys.path.insert(0, str(path.parent))
        run = _Part(self.name, lambda: exec(self._code, vars(run.module)))  # noqa: S102 - its purpose
        main_module.begin_run(run, path)
        run.start()
        started = run.started.result()
        if isinstance(started, Server):
            self._server = started
        return started


class SupervisedHandler(ScriptHandler):
    """The handler of one connection of kapudf; a subclass for each script."""

    script: ClassVar[Script]
    script_agent: Agent

    def open(self) -> Agent:
        """Return an agent of the script for this connection."""
        return self.script.open()

    def teardown(self) -> None:
        """Let the script end."""
        self.script_agent.end()


def load(call: ScriptCall) -> type[SupervisedHandler]:
    """Run a script until it has started an agent or a server; return a handler for connections.

    Raises:
        NothingStartedError: it has started neither.
        Exception: what the script raised.
    """
    if (folder := environment.other_package(call.path.parent)) is not None:
        _log.warning("another package kapacitor comes first, kapudf does not use it: %s", folder)
    script = Script(call)
    script.prepare()
    # Others look up the file of a handler's class by its module.
    module = types.ModuleType(f"kapudf_script_{abs(hash(call))}")
    module.__file__ = str(call.path)
    sys.modules[module.__name__] = module
    attributes = {
        "script": script,
        "__module__": module.__name__,
        "__doc__": "A script for InfluxData's agent.",
    }
    return type(script.handler_name, (SupervisedHandler,), attributes)


@functools.cache
def _agent_module() -> types.ModuleType:
    """Return the module `kapacitor.udf.agent` for scripts in this process."""
    module = types.ModuleType("kapacitor.udf.agent")
    vars(module).update(
        {name: value for name, value in vars(interface).items() if not name.startswith("_")},
        Agent=Agent,
        Server=Server,
        udf_pb2=udf_pb2,
    )
    return module


def _current_part() -> _Part:
    """Return the run of the script that calls this."""
    run = main_module.current_run()
    assert isinstance(run, _Part)
    return run
