"""Protects connections from child processes that a handler forks.

A handler may call `os.fork()` and let the child return into kapudf. The child has the same
sockets and the same shared memory as its parent, and would corrupt both. So in a child,
the methods that the agent calls next are replaced by one that ends the process. The parent
pays nothing for this.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final, NoReturn

from kapudf_cli.system import loggers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_log = loggers.get(__name__)

#: Called in each child: one entry for each connection of this process.
_disable_connections: Final[dict[int, Callable[[], None]]] = {}


@contextlib.contextmanager
def disabled_in_children(disable: Callable[[], None]) -> Iterator[None]:
    """Call `disable` in each process that is forked inside this context."""
    key = id(disable)
    _disable_connections[key] = disable
    try:
        yield
    finally:
        del _disable_connections[key]


def end_child(*_arguments: object, **_more: object) -> NoReturn:
    """End this process, the child of a fork."""
    try:
        _log.error(
            "forked process returned into kapudf and is ended",
            extra={"advice": "end a forked process in the handler, with os._exit(0)"},
        )
    finally:
        os._exit(1)


def end_child_on_call(owner: object, *methods: str) -> None:
    """Replace methods of an object: a call ends this process."""
    for method in methods:
        setattr(owner, method, end_child)


def _disable_all() -> None:
    for disable in list(_disable_connections.values()):
        disable()


os.register_at_fork(after_in_child=_disable_all)
