"""What `kapudf dev` does: run again when code is saved, and compare the results of two runs.

Each run is a process of its own, so that the code is really loaded again. It reports over a pipe
which files it loads, and each difference between what the UDF was sent and what came back.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import os
import select
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from kapudf_cli.client.command_target import end_group

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: What a file is recognized by after a save: its inode, modification time and size.
Signature: TypeAlias = "tuple[int, int, int] | None"

#: How often the files are looked at. A save is complete when they stay the same for that long.
_POLL_S: Final = 0.15
#: The longest wait for that, while files go on changing.
_LONGEST_S: Final = 2.0
#: How many differences of a run are kept, about 150 bytes each.
MAX_LINES: Final = 100_000
_READ_BYTES: Final = 64 * 1024


def _signature(path: str) -> Signature:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


class Saves:
    """Finds saved files by polling: those that it follows, and all Python files beside them.

    Notifications of the kernel would miss a save between the start of a run, which loads a file,
    and its report of the file. Here, the report has the state of the file before it was loaded.
    """

    def __init__(self) -> None:
        self._files: dict[str, Signature] = {}
        self._folders: set[str] = set()
        self._saved: set[str] = set()
        self._next_s = 0.0

    def follow(self, path: str, signature: Signature = None) -> None:
        """Follow a file that had this signature when it was last read; None for that of now."""
        path = os.path.abspath(path)
        folder = os.path.dirname(path)
        if path.endswith(".py") and folder not in self._folders:
            self._folders.add(folder)
            for beside in _python_files(folder):
                self._files.setdefault(beside, _signature(beside))
        self._files[path] = signature or _signature(path)

    def look(self) -> bool:
        """Return whether a file was saved since the last `take`; look at most every 150 ms."""
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + _POLL_S
            paths = {*self._files, *itertools.chain(*map(_python_files, self._folders))}
            found = {path: _signature(path) for path in paths}
            self._saved |= {path for path in paths if found[path] != self._files.get(path)}
            self._files = found
        return bool(self._saved)

    def take(self) -> set[str]:
        """Wait for a save, and until nothing has changed for 150 ms; return the files."""
        while not self.look():
            time.sleep(_POLL_S)
        saved: set[str] = set()
        until_s = time.monotonic() + _LONGEST_S
        while self._saved and time.monotonic() < until_s:
            saved |= self._saved
            self._saved = set()
            time.sleep(_POLL_S)
            self.look()
        return saved


def _python_files(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.path for entry in entries if entry.name.endswith(".py")]
    except OSError:
        return []


def python_files_below(folder: str) -> Iterator[str]:
    """Yield the Python files in a folder and those below it, without those of environments."""
    for path, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "." and name != "site-packages"]
        yield from (os.path.join(path, name) for name in files if name.endswith(".py"))


class Report:
    """A run's end of the pipe."""

    def __init__(self, descriptor: int) -> None:
        """Write to this descriptor."""
        self._descriptor = descriptor
        self._lines = 0
        self._lock = threading.Lock()

    def file(self, path: str) -> None:
        """Report a file of code that is loaded next."""
        self._write({"file": path, "signature": _signature(path)})

    def line(self, line: str) -> None:
        """Report a line of the output, up to the first 100,000."""
        self._lines += 1
        if self._lines <= MAX_LINES:
            self._write({"line": line})

    def complete(self) -> None:
        """Report that the UDF has handled all input."""
        self._write({"complete": True})

    def _write(self, content: dict[str, object]) -> None:
        data = json.dumps(content).encode() + b"\n"
        with self._lock:
            while data:
                data = data[os.write(self._descriptor, data) :]


@dataclass
class Run:
    """A run that has ended.

    Attributes:
        status: its exit status, None if a save ended it.
        lines: the differences that it reported.
        is_complete: whether it reported that the UDF has handled all input.
    """

    status: int | None = None
    is_complete: bool = False
    lines: list[str] = field(default_factory=list)


def run(command: Sequence[str], saves: Saves, *, reports: bool) -> Run:
    """Run a command until it ends or a file is saved, and follow the files that it reports.

    Args:
        command: the program and its arguments.
        saves: the followed files.
        reports: whether to add `--report`, with the descriptor for a `Report`.
    """
    result = Run()
    with contextlib.ExitStack() as stack:
        read, write = os.pipe()
        try:
            # In a process group of its own: Ctrl-C comes to this process only, which ends it.
            with _held_signals():
                child = subprocess.Popen(  # noqa: S603 - this Python
                    [*command, f"--report={write}"] if reports else command,
                    stdin=subprocess.DEVNULL,
                    process_group=0,
                    pass_fds=[write] if reports else (),
                )
                stack.callback(end_group, child, first_wait_s=0.0)
        finally:
            os.close(write)
            # This runs first: a child that waits for room in the pipe goes on.
            stack.callback(os.close, read)
        pipes, rest = [read], b""
        while True:
            ended = child.poll() is not None
            ready, _, _ = select.select(pipes, (), (), 0.0 if ended else _POLL_S / 3)
            if ready:
                data = os.read(pipes[0], _READ_BYTES)
                *whole, rest = (rest + data).split(b"\n")
                for line in whole:
                    _take(json.loads(line), result, saves)
                if not data:
                    pipes.clear()
            elif ended:
                result.status = child.returncode
                return result
            if not ended and saves.look():
                return result


@contextlib.contextmanager
def _held_signals() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM until the end of the block.

    If they raised while a child starts, nothing would end the child.
    """
    came: list[int] = []
    numbers = signal.SIGINT, signal.SIGTERM
    before = {each: signal.signal(each, lambda number, _: came.append(number)) for each in numbers}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    for number in came:
        signal.raise_signal(number)


def _take(content: dict[str, object], result: Run, saves: Saves) -> None:
    match content:
        case {"file": str(path), "signature": [int(inode), int(mtime), int(size)]}:
            saves.follow(path, (inode, mtime, size))
        case {"line": str(line)}:
            result.lines.append(line)
        case {"complete": True}:
            result.is_complete = True


def differing(before: Sequence[str], now: Sequence[str]) -> Iterator[tuple[list[str], list[str]]]:
    """Yield what two runs say about each point on which they differ, in the order of the points.

    Args:
        before: the differences of the earlier run, a line for each point.
        now: those of the later run.
    """
    runs = collections.Counter(before), collections.Counter(now)
    points: dict[str, tuple[list[str], list[str]]] = {}
    for number, lines in enumerate((before, now)):
        left = runs[number] - runs[1 - number]
        for line in lines:
            if left[line] > 0:
                left[line] -= 1
                # The fate stands before the series and the time, the changes after.
                point = line[1:].partition("  ")[0]
                points.setdefault(point, ([], []))[number].append(line)
    yield from points.values()
