"""A task that sends points until the test ends it, and handlers that change meanwhile."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import threading
import time
from typing import TYPE_CHECKING, Any, Self

from kapudf_cli.protocol.udf_pb2 import Point
from kapudf_cli.supervisor import control
from tests.run_kapudf import run_kapudf
from tests.serve_process import PATIENCE_S
from tests.supervisor.tasks import started_task

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

#: How many points are sent at once, and the pause after them.
_AT_ONCE = 10
_PAUSE_S = 0.002

#: A handler that counts points, and adds its version to each.
COUNT = """
from kapudf_cli import Handler, State, set_field

VERSION = {version}


class Tally(State):
    count: int = 0


class Count(Handler):
    state: Tally

    def point(self, point):
        self.state.count += 1
        set_field(point, "count", self.state.count)
        set_field(point, "version", VERSION)
        self.agent.write_point(point)
"""


#: The same, with calls that end in another order than they begin.
ASYNC_COUNT = (
    COUNT.replace("    def point", "    async def point")
    .replace(
        "        self.agent",
        "        await asyncio.sleep(point.time * 7 % 5 * 0.001)\n        self.agent",
    )
    .replace("\nfrom kapudf_cli", "\nimport asyncio\nfrom kapudf_cli", 1)
)


class Code:
    """A handler's file, which `change` replaces by its next version."""

    def __init__(self, folder: Path, template: str = COUNT) -> None:
        """Write the first version into `folder`."""
        self._template = template
        self.file = folder / "count.py"
        self.version = 0
        self.change()

    @property
    def handler(self) -> str:
        """The value for `--handler`."""
        return f"{self.file}:Count"

    def change(self, more: str = "") -> int:
        """Write the next version, with `more` code at its end; return its number."""
        self.version += 1
        self.file.write_text(self._template.format(version=self.version) + more, encoding="utf-8")
        # Same time and size for all versions: a bytecode cache checked by these would be stale.
        os.utime(self.file, (1, 1))
        return self.version


class OngoingTask:
    """Sends numbered points until `finish`, and collects the responses."""

    def __init__(self, path: str, task: str = "task") -> None:
        """Connect, send Init, and start to send points."""
        self._side = started_task(path, task, timeout_s=4 * PATIENCE_S)
        self._ends = threading.Event()
        self._changed = threading.Condition()
        self._ended = False
        self.sent = 0
        #: The responses, and an error if the connection broke.
        self.back: list[Any] = []
        self._threads = [
            threading.Thread(target=call, daemon=True) for call in (self._send, self._receive)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        self._side.__exit__(kind, error, trace)

    def await_point(self, condition: Callable[[Point], bool]) -> None:
        """Wait for a point that meets a condition."""
        seen = len(self.back)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with self._changed:
                while len(self.back) == seen and not self._ended:
                    assert self._changed.wait(PATIENCE_S)
            new = self.back[seen:]
            seen += len(new)
            if any(isinstance(each, Point) and condition(each) for each in new):
                return
            assert new, self.back[-1:]
            assert time.monotonic() < deadline, self.back[-1:]

    def await_version(self, version: int) -> None:
        """Wait for a point that a version of the handler has handled."""
        self.await_point(lambda point: point.fieldsInt["version"] == version)

    def await_more(self) -> None:
        """Wait until a point comes back that is sent after this call."""
        sent = self.sent
        self.await_point(lambda point: point.time > sent)

    def finish(self) -> list[Any]:
        """Stop sending, half-close, and return `back` once the connection has ended."""
        self._ends.set()
        for thread in self._threads:
            thread.join(4 * PATIENCE_S)
            assert not thread.is_alive()
        return self.back

    def _send(self) -> None:
        with contextlib.suppress(OSError):
            while not self._ends.wait(_PAUSE_S):
                for _ in range(_AT_ONCE):
                    self._side.send(Point(time=self.sent, name="m"))
                    self.sent += 1
            self._side.half_close()

    def _receive(self) -> None:
        try:
            for response in self._side.responses():
                with self._changed:
                    self.back.append(response)
                    self._changed.notify_all()
        except OSError as error:
            self.back.append(error)
        with self._changed:
            self._ended = True
            self._changed.notify_all()


def check_count(task: OngoingTask) -> list[int]:
    """Finish a task of `Count`; check that each point came back once, in order, with its count.

    Returns:
        The versions that handled the points, in order, without repetitions.
    """
    back = task.finish()
    odd = [each for place, each in enumerate(back) if not _is_right(each, place)]
    assert (odd, len(back)) == ([], task.sent), (odd[:3], len(back), task.sent)
    versions = [each.fieldsInt["version"] for each in back]
    return [version for version, _ in itertools.groupby(versions)]


def _is_right(back: Any, place: int) -> bool:
    return isinstance(back, Point) and back.time == place and back.fieldsInt["count"] == place + 1


def kapudf(*arguments: str, status: int = 0) -> str:
    """Run a kapudf command and check its exit status; return its output, or its errors."""
    result = run_kapudf(*arguments)
    assert result.returncode == status, (result.stdout, result.stderr)
    assert "Traceback" not in result.stderr
    return result.stderr if status and result.stderr else result.stdout


def status_of(path: str) -> dict[str, Any]:
    """Return the status of the function at a socket."""
    return control.ask(path, "status", timeout_s=PATIENCE_S)


def serving_pid(path: str) -> int:
    """Return the pid of the first serving worker; retiring workers may be listed, too."""
    workers = status_of(path)["workers"]
    return next(int(worker["pid"]) for worker in workers if worker["state"] == "serving")


def await_status(path: str, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """Poll the status until it meets a condition, and return it.

    The supervisor does not announce changes.
    """
    pause = threading.Event()
    for _ in range(round(PATIENCE_S / 0.02)):
        status = status_of(path)
        if condition(status):
            return status
        pause.wait(0.02)
    raise AssertionError(status)


def write_config(file: Path, functions: object, **top: object) -> None:
    """Write a configuration file."""
    # JSON is YAML.
    file.write_text(json.dumps({"functions": functions, **top}), encoding="utf-8")
