"""Checks that a process which has loaded a handler can be forked.

A fork copies the memory and the open descriptors, but no thread except the one that forks. A lock
that another thread holds stays locked in the copy, and a connection would be used by two
processes.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import os
import re
import socket
import stat
import struct
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from kapudf_cli.plugin_errors import PreloadError
from kapudf_cli.system.log_writer import THREAD_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kapudf_cli.handler.handler import Handler

#: How long threads may take to end after the handler was loaded.
_PATIENCE_S: Final = 1.0
_PAUSE_S: Final = 0.02
#: Libraries that end their threads before a fork, and start them again in the copy. GNU's
#: libgomp does not: a parallel loop in the copy would never end.
_SAFE_LIBRARIES: Final = re.compile(r"openblas|libiomp5|libomp[.-]|mkl_")
#: Libraries that any thread calls, and that do not tell who has started it.
_COMMON_LIBRARIES: Final = re.compile(r"lib(c|pthread|python\d.*)[.-]|ld-linux|/python[\d.]*$")
#: How much of a thread's stack is searched for the library that has started it.
_STACK_BYTES: Final = 16 * 1024
_WORD: Final = struct.Struct("@Q")


class Baseline:
    """What a process had before a handler was loaded, which is no fault of the handler."""

    def __init__(self) -> None:
        """Note the threads, event loops and connections that there are now."""
        self._descriptors = set(_streams())
        self._known = collections.Counter(self._reasons())

    def check(self, handler: type[Handler]) -> None:
        """Check that the process can be forked.

        Raises:
            PreloadError: it cannot; the error names each thread, event loop and connection.
        """
        deadline = time.monotonic() + _PATIENCE_S
        while (reasons := self._new_reasons()) and time.monotonic() < deadline:
            time.sleep(_PAUSE_S)
        if reasons:
            raise PreloadError(handler.__name__, reasons)

    def _new_reasons(self) -> list[str]:
        # Two threads may be described by the same words.
        return list(collections.Counter(self._reasons()) - self._known)

    def _reasons(self) -> list[str]:
        """Return why the process cannot be forked now; nothing if it can."""
        reasons = [*_threads(), *_native_threads(), *_event_loops()]
        for descriptor, name in _streams().items():
            if descriptor not in self._descriptors:
                reasons.append(f"{name} is open")
        return reasons


def _threads() -> Iterator[str]:
    """Describe each thread of Python code, other than this one and kapudf's own."""
    frames = sys._current_frames()  # noqa: SLF001 - the documented way
    for thread in threading.enumerate():
        if thread is threading.current_thread() or thread.name == THREAD_NAME:
            continue
        frame = frames.get(thread.ident or 0)
        module = ""
        while frame is not None:
            name = frame.f_globals.get("__name__", "")
            module = module if name == "threading" else name
            frame = frame.f_back
        yield f"the thread {thread.name!r} runs" + (f" in module {module}" if module else "")


def _native_threads() -> Iterator[str]:
    """Describe each thread that a library has started without Python."""
    # This one by itself: after a fork, the attribute of the main thread is that of the parent.
    known = {threading.get_native_id(), *(each.native_id for each in threading.enumerate())}
    with contextlib.suppress(OSError):  # Not on Linux, or no descriptor is left.
        for task in map(int, os.listdir("/proc/self/task")):
            if task in known:
                continue
            library = _library_of(task)
            if library is None:
                yield f"a thread {_command(task)!r} of an unknown library runs"
            elif not _SAFE_LIBRARIES.search(library):
                yield f"a thread {_command(task)!r} of {library} runs"


def _command(task: int) -> str:
    """Return the name of a thread, as its library has set it."""
    with open(f"/proc/self/task/{task}/comm", encoding="utf-8", errors="replace") as comm:
        return comm.read().strip()


def _library_of(task: int) -> str | None:
    """Return the library that a waiting thread has been started by, None if it is unknown.

    That is the innermost one on its stack that is not a library which every thread calls.
    """
    with open(f"/proc/self/task/{task}/syscall", encoding="ascii") as file:
        call = file.read().split()
    if call[0] == "running":
        return None
    libraries = _code_ranges()
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        stack = os.pread(memory.fileno(), _STACK_BYTES, int(call[-2], 16))
    whole = stack[: len(stack) // _WORD.size * _WORD.size]
    for word in (int(call[-1], 16), *(word for (word,) in _WORD.iter_unpack(whole))):
        for start, end, path in libraries:
            if start <= word < end:
                return os.path.basename(path)
    return None


def _code_ranges() -> list[tuple[int, int, str]]:
    """Return the address ranges with code of libraries, without those that any thread calls."""
    ranges = []
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            addresses, mode, _, _, _, *path = line.split(maxsplit=5)
            if "x" in mode and path and path[0].startswith("/"):
                name = path[0].strip()
                if not _COMMON_LIBRARIES.search(name):
                    start, _, end = addresses.partition("-")
                    ranges.append((int(start, 16), int(end, 16), name))
    return ranges


def _event_loops() -> Iterator[str]:
    """Describe each event loop that is not closed."""
    events: Any = sys.modules.get("asyncio.events")
    if events is None:
        return
    for each in gc.get_objects():
        if isinstance(each, events.AbstractEventLoop) and not each.is_closed():
            yield f"an event loop ({type(each).__module__}.{type(each).__name__}) is open"


def _streams() -> dict[int, str]:
    """Return the open connections of this process by their descriptors, described."""
    found = {}
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                with socket.socket(fileno=os.dup(descriptor)) as copy:
                    if copy.type == socket.SOCK_STREAM and (name := _peer(copy)) is not None:
                        found[descriptor] = name
    return found


def _peer(stream: socket.socket) -> str | None:
    """Describe the other end of a connection; None for a socket without one, or without a name."""
    try:
        address: Any = stream.getpeername()
    except OSError:
        return None
    if isinstance(address, tuple):
        return f"a connection to {address[0]}:{address[1]}"
    return f"a connection to {os.fsdecode(address)}" if address else None
