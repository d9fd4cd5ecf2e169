"""A real kapacitord on loopback, with a temporary folder of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

T = TypeVar("T")

#: How long kapacitord gets to stop by itself.
_STOP_S = 10.0
_POLL_INTERVAL_S = 0.02

_CONFIG = """\
hostname = "localhost"
data_dir = "{folder}/data"
[http]
  bind-address = "127.0.0.1:0"
  log-enabled = false
[replay]
  dir = "{folder}/data/replay"
[storage]
  boltdb = "{folder}/data/kapacitor.db"
[task]
  dir = "{folder}/data/tasks"
  snapshot-interval = "{snapshot_interval}"
[load]
  enabled = false
[[influxdb]]
  enabled = false
[logging]
  file = "STDERR"
  level = "INFO"
[reporting]
  enabled = false
[stats]
  enabled = false
[deadman]
  global = false
"""


class RefusedError(Exception):
    """The command `kapacitor` failed; the message is what it said."""


@dataclass(frozen=True)
class Binaries:
    """Kapacitor's two programs."""

    kapacitord: str
    kapacitor: str


@dataclass(frozen=True)
class TaskStatus:
    """What `kapacitor show` says of a task."""

    enabled: bool
    executing: bool
    error: str


@dataclass(frozen=True)
class Series:
    """What a node httpOut last saw of one group: a point, or a batch."""

    name: str
    tags: Mapping[str, str]
    columns: Sequence[str]
    values: Sequence[Sequence[Any]]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Each point as a dictionary, its `time` included."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.values]

    @property
    def last(self) -> dict[str, Any]:
        """The last point, without its time."""
        return {column: value for column, value in self.rows[-1].items() if column != "time"}


def find_program(name: str) -> str | None:
    """Return the path of `kapacitord` or `kapacitor`, None if it is not there.

    It is what the environment variable of that name says, or else on PATH.
    """
    return shutil.which(os.environ.get(name.upper()) or name)


class KapacitorDaemon:
    """kapacitord, from `__enter__` to `__exit__`; its UDFs must be served before it starts."""

    def __init__(
        self, binaries: Binaries, folder: Path, udf_section: str, *, snapshot_interval: str
    ) -> None:
        """Keep all its files in `folder`; `udf_section` goes into its configuration."""
        self._binaries = binaries
        self._folder = folder
        self._log = folder / "kapacitord.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._url = ""
        self._config = _CONFIG.format(folder=folder, snapshot_interval=snapshot_interval)
        self._configure(udf_section)

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def restart(self, udf_section: str | None = None) -> None:
        """Stop it, and start it again with the tasks and snapshots that it has stored.

        Args:
            udf_section: replaces that of its configuration.
        """
        assert self.alive, self.log_lines()
        self._stop()
        if udf_section is not None:
            self._configure(udf_section)
        self._start()

    def log_lines(self) -> list[str]:
        """Return what it has logged since it was last started."""
        return self._log.read_text(encoding="utf-8", errors="replace").splitlines()

    def await_log(self, *parts: str) -> str:
        """Wait for a line in the log that has these parts, and return it."""

        def line() -> str | None:
            lines = self.log_lines()
            return next((line for line in lines if all(part in line for part in parts)), None)

        return self.wait_for(line, f"{parts} in the log")

    # --- tasks ---

    def define(
        self, task: str, script: str, *, kind: str = "stream", dbrp: str = "telegraf.autogen"
    ) -> None:
        """Define a task of a kind, `stream` or `batch`, that reads a database.retention-policy."""
        path = self._folder / f"{task}.tick"
        path.write_text(script, encoding="utf-8")
        self._kapacitor("define", task, "-type", kind, "-dbrp", dbrp, "-tick", str(path))

    def enable(self, task: str) -> None:
        """Enable a task. Whether its UDF takes it shows later, in its status."""
        self._kapacitor("enable", task)

    def start_task(self, task: str, script: str) -> None:
        """Define a stream task and enable it."""
        self.define(task, script)
        self.enable(task)

    def disable(self, task: str) -> None:
        """Disable a task, which had better be idle: kapacitord has races there."""
        self._kapacitor("disable", task)

    def status(self, task: str) -> TaskStatus:
        shown = self._kapacitor("show", task)
        facts = dict(re.findall(r"^(Status|Executing|Error): *(.*)$", shown, re.MULTILINE))
        return TaskStatus(
            enabled=facts["Status"] == "enabled",
            executing=facts["Executing"] == "true",
            error=facts["Error"],
        )

    def await_failure(self, task: str, *lines: str) -> str:
        """Wait until a task has failed, writing points meanwhile; return its error.

        Kapacitor notes that a UDF has gone when the next point is due for it.
        """

        def error() -> str | None:
            if lines:
                self.write(*lines)
            status = self.status(task)
            return None if status.executing else status.error

        return self.wait_for(error, f"the failure of {task}")

    def await_snapshot(self, record: Path, noted: str) -> None:
        """Wait until a snapshot is stored for which the handler noted this line in `record`.

        Kapacitor asks for one at a time: with the next one noted, this one is stored.
        """
        self.wait_for(
            lambda: record.read_text(encoding="utf-8").split().count(noted) >= 2,
            f"two snapshots noted as {noted}",
        )

    # --- data ---

    def write(self, *lines: str) -> None:
        """Write points in line protocol, their times in nanoseconds.

        A lone surrogate stands for a byte that is not UTF-8, as with `surrogateescape`.
        """
        query = "db=telegraf&rp=autogen&precision=ns"
        data = "\n".join(lines).encode("utf-8", "surrogateescape")
        status, body = self._http("POST", f"write?{query}", data)
        assert status == 204, body

    def http_out(self, task: str, endpoint: str = "out") -> list[Series]:
        """Return what a node httpOut last saw of each group."""
        status, body = self._http("GET", f"tasks/{task}/{endpoint}")
        if status == 404:  # the task does not run, or not yet
            return []
        assert status == 200, body
        return [
            Series(one["name"], one.get("tags", {}), one["columns"], one.get("values", []))
            for one in json.loads(body)["series"] or []
            if one is not None  # a group of which no batch has ended yet
        ]

    def await_groups(self, task: str, count: int) -> list[Series]:
        """Wait until httpOut has seen so many groups, and return them."""

        def groups() -> list[Series] | None:
            found = self.http_out(task)
            return found if len(found) >= count else None

        return self.wait_for(groups, f"{count} groups of {task}")

    def await_point(self, task: str, **fields: object) -> Series:
        """Wait until the last point of some group has these fields or tags."""

        def group() -> Series | None:
            for found in self.http_out(task):
                if found.values and fields.items() <= {**found.tags, **found.last}.items():
                    return found
            return None

        return self.wait_for(group, f"a point of {task} with {fields}")

    def taken(self, task: str, node: str) -> int:
        """Return how many points a node of a task has taken so far."""
        _, body = self._http("GET", "debug/vars")
        for one in json.loads(body)["kapacitor"].values():
            tags = one["tags"]
            if (one["name"], tags.get("task"), tags.get("child")) == ("edges", task, node):
                return int(one["values"]["emitted"])
        return 0

    def wait_for(self, condition: Callable[[], T | None], what: str) -> T:
        """Call `condition` again and again until it gives something true, and return that.

        kapacitord does not report changes, so tests must poll;
        it is done here, and ends when kapacitord does.
        """
        assert self._process is not None
        for _ in range(round(PATIENCE_S / _POLL_INTERVAL_S)):
            found = condition()
            if found:
                return found
            try:
                self._process.wait(_POLL_INTERVAL_S)
            except subprocess.TimeoutExpired:
                continue
            break
        state = "runs" if self.alive else "has died"
        log = "\n".join(self.log_lines())
        raise AssertionError(f"waited in vain for {what}; kapacitord {state}:\n{log}")

    # --- inside ---

    def _configure(self, udf_section: str) -> None:
        text = self._config + udf_section
        (self._folder / "kapacitor.conf").write_text(text, encoding="utf-8")

    def _start(self) -> None:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [self._binaries.kapacitord, "-config", str(self._folder / "kapacitor.conf")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._url = self.wait_for(self._logged_url, "kapacitord to listen")
        self.wait_for(lambda: self._http("GET", "ping")[0] == 204, "an answer to ping")

    def _stop(self) -> None:
        if self._process is None:
            return
        if self.alive:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(PATIENCE_S)

    def _logged_url(self) -> str | None:
        """Return the URL with the port that the system chose, once it is in the log."""
        found = re.search(r'"listening on".* addr=(\S+:[1-9]\d*) ', "\n".join(self.log_lines()))
        return f"http://{found[1]}" if found else None

    def _kapacitor(self, *arguments: str) -> str:
        result = subprocess.run(
            [self._binaries.kapacitor, "-url", self._url, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        if result.returncode:
            raise RefusedError(result.stderr.strip())
        return result.stdout

    def shell(self, command: str) -> str:
        """Run a shell command that calls `kapacitor`; return its output, with errors."""
        folder = os.path.dirname(os.path.abspath(self._binaries.kapacitor))
        path = os.pathsep.join([folder, os.environ["PATH"]])
        result = subprocess.run(
            ["/bin/sh", "-c", command],
            env={**os.environ, "PATH": path, "KAPACITOR_URL": self._url},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
            check=True,
        )
        return result.stdout

    def _http(self, method: str, path: str, body: bytes | None = None) -> tuple[int, str]:
        url = f"{self._url}/kapacitor/v1/{path}"
        request = urllib.request.Request(url, data=body, method=method)  # noqa: S310 - loopback
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:  # noqa: S310
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
