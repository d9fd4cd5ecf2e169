"""A real `kapudf serve` process, and what it logs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

#: Far more than anything here takes, so that a slow machine fails no test.
PATIENCE_S = 30.0

#: As long as a server with nothing to do needs to stop.
_MOMENT_S = 1.0

KAPUDF = (sys.executable, "-m", "kapudf_cli")


class ServeProcess:
    """`kapudf serve ARGUMENTS` with its log as JSON; ended, at the latest, on exit."""

    def __init__(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        kapudf: Sequence[str] = KAPUDF,
    ) -> None:
        """Start it; `env` is added to the environment, `kapudf` is how it is called."""
        self._process = subprocess.Popen(
            [*kapudf, "serve", "--log-format", "json", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(env or {})},
        )
        #: Each event logged so far, as a dictionary.
        self.events: list[dict[str, Any]] = []
        #: Each line on stderr that is no event.
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            # The second one ends it at once, and its workers with it; a kill would leave
            # these to serve what they serve.
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_MOMENT_S)
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        self._process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        if self._process.stdout:
            self._process.stdout.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ready(self) -> Self:
        """Wait until it listens."""
        self.event("listening")
        return self

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        """Wait until it has ended and return its exit status."""
        status = self._process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return status

    def stop(self) -> int:
        """End it with SIGTERM and return its exit status."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def event(self, name: str, **facts: object) -> dict[str, Any]:
        """Wait for the first event of this name with these facts, and return it."""
        return next(iter(self.await_events(name, 1, **facts)))

    def await_events(self, name: str, count: int, **facts: object) -> list[dict[str, Any]]:
        """Wait until there are `count` events of this name with these facts."""

        def enough() -> bool:
            return len(list(self.matching(name, **facts))) >= count or self._ended

        with self._changed:
            self._changed.wait_for(enough, PATIENCE_S)
        found = list(self.matching(name, **facts))
        assert len(found) >= count, (name, facts, self.events, self.lines)
        return found

    def await_line(self, line: str) -> None:
        """Wait for a line that is no event."""
        with self._changed:
            self._changed.wait_for(lambda: line in self.lines or self._ended, PATIENCE_S)
        assert line in self.lines, self.lines

    def matching(self, name: str, **facts: object) -> Iterator[dict[str, Any]]:
        """Yield the events so far of this name with these facts."""
        for event in list(self.events):
            if event["event"] == name and facts.items() <= event.items():
                yield event

    def rss_bytes(self) -> int:
        """Return how much memory the process has resident."""
        with open(f"/proc/{self.pid}/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def _read_log(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as log:
            for raw in log:
                line = raw.decode()
                with self._changed:
                    if line.startswith("{"):
                        self.events.append(json.loads(line))
                    else:
                        self.lines.append(line.rstrip())
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()
