"""Processes that a handler forks: they never touch the connections of their parent.

A handler may call `os.fork()` and let the child return into kapudf. The child would go on with the
same sockets and the same shared memory as its parent, and corrupt both. So the child of a
fork is prepared to end as soon as its handler returns. The parent pays nothing for that.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, Final, NoReturn

from kapudf_cli.agent.errors import ConnectionClosedError
from kapudf_cli.agent.outbox import Outbox
from kapudf_cli.protocol.raw_points import KNOWN_FRAMES
from kapudf_cli.system import loggers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kapudf_cli.agent.dispatcher import Dispatcher
    from kapudf_cli.protocol.request_reader import RequestReader

_log = loggers.get(__name__)

#: What is done in a child, for each connection of this process.
_preparations: Final[dict[int, Callable[[], None]]] = {}

#: What a handler calls to write, and what these call.
_WRITES: Final = frozenset(
    {
        "write_point",
        "write_begin_batch",
        "write_end_batch",
        "forward",
        "_write",
        "_forward_checked",
    }
)


@contextlib.contextmanager
def prepared(prepare: Callable[[], None]) -> Iterator[None]:
    """Have `prepare` called in each process that is forked meanwhile."""
    key = id(prepare)
    _preparations[key] = prepare
    try:
        yield
    finally:
        del _preparations[key]


def end_child(*_arguments: object, **_more: object) -> NoReturn:
    """End this process, the child of a fork."""
    try:
        _log.error(
            "forked process returned into kapudf and is ended",
            extra={"advice": "end a forked process in the handler, with os._exit(0)"},
        )
    finally:
        os._exit(1)


def disable(outbox: Outbox, dispatcher: Dispatcher, requests: RequestReader) -> None:
    """Have a connection's parts end this process when they are used, except by a handler.

    A handler's writes raise ConnectionClosedError.
    """
    outbox.__class__ = _ChildsOutbox
    dispatcher.dispatch = dispatcher.drop = end_child  # type: ignore[method-assign]
    requests.decode = end_child
    # Frames that are known by their heads are decoded without `requests.decode`.
    KNOWN_FRAMES.clear()


class Disabled:
    """Takes the place of an object whose every use ends this process."""

    def __getattr__(self, name: str) -> NoReturn:
        """End this process."""
        end_child(name)


class _ChildsOutbox(Outbox):
    """An outbox that sends nothing. Not even its lock is used: another thread may have held it."""

    def __getattribute__(self, name: str) -> Any:
        if name in _WRITES:
            return _refuse
        if name == "_passes_points":
            return False
        if name.startswith("__") or name in {"current_frame", "_owner"}:
            return super().__getattribute__(name)
        end_child(name)


def _refuse(*_arguments: object, **_more: object) -> NoReturn:
    problem = "this process was forked by the handler; only its parent can write"
    raise ConnectionClosedError(problem)


def _prepare_child() -> None:
    for prepare in list(_preparations.values()):
        prepare()


os.register_at_fork(after_in_child=_prepare_child)
