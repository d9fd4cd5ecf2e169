"""Upgrade in place: this program is replaced by the installed version of it, and tasks go on.

The new version is checked first: it must start, accept the settings, and be able to read all that
this one leaves. Then it replaces this program by exec(2), under the same process id, and goes on
like any other supervisor after the death of the last one; see `adoption`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import selectors
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Final, NoReturn

from kapudf_cli import __version__
from kapudf_cli.errors import shorten
from kapudf_cli.journal.header import READABLE_FORMATS
from kapudf_cli.system import keeping, logs

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from structlog.stdlib import BoundLogger

    from kapudf_cli.supervisor.control import ControlClient
    from kapudf_cli.system.descriptor_store import DescriptorStore

#: How long the check may take.
_CHECK_S: Final = 30.0
#: How long clients have to read their answers before the replacement.
_ANSWER_S: Final = 0.5
_TOO_LONG: Final = f"its check took longer than {_CHECK_S:.0f} s"
_TEXT_CHARACTERS: Final = 500
_READ_BYTES: Final = 64 * 1024
#: A signal that comes during the replacement waits until the new version handles it.
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)
#: Variables of the service manager, which is not to take the checked program for this one.
_NOT_FOR_CHECK: Final = ("NOTIFY_SOCKET", "FDSTORE", "WATCHDOG_USEC")


def describe_version() -> str:
    """Return what `Verdict.of` reads: this version, and the formats that it can read."""
    return json.dumps({"version": __version__, "formats": sorted(READABLE_FORMATS)})


@dataclass(frozen=True)
class Verdict:
    """Whether the installed version can replace this one.

    Attributes:
        version: its version, "" if it is not known.
        problem: why it cannot, None if it can.
        starts: whether it starts. One that does not leaves everything as it is.
    """

    version: str = ""
    problem: str | None = None
    starts: bool = True

    @classmethod
    def of(cls, output: str, formats: Collection[int]) -> Verdict:
        """Return the verdict.

        Args:
            output: what the installed version has printed when it was checked. The last line is
                that of `describe_version`, or else an error.
            formats: the formats of all that it is to go on with.
        """
        last = (output.strip() or "it printed nothing").splitlines()[-1]
        try:
            answer = json.loads(last)
            installed, readable = str(answer["version"]), set(answer["formats"])
        except (ValueError, TypeError, KeyError):
            return cls(problem=f"it does not start: {shorten(last, _TEXT_CHARACTERS)}")
        unreadable = sorted(set(formats) - readable)
        if not unreadable:
            return cls(installed)
        problem = (
            f"version {installed} cannot read format {unreadable[0]} of the running one, only "
            f"{sorted(readable)}; stop kapudf, start it again, and reload the tasks"
        )
        return cls(installed, problem)


class Upgrade:
    """Checks the installed version of this program, and then replaces this one by it."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        store: DescriptorStore,
        log: BoundLogger,
        *,
        formats: Callable[[], set[int]],
    ) -> None:
        """Do nothing yet.

        Args:
            selector: the check is registered with it, with a callable as data.
            store: what the new version gets.
            log: where the result goes.
            formats: returns the formats of all that the new version is to go on with.
        """
        self._selector = selector
        self._store = store
        self._log = log
        self._formats = formats
        self._clients: list[ControlClient] = []
        self._check: subprocess.Popen[bytes] | None = None
        self._output = b""
        self._began_s = 0.0
        self._due_s: float | None = None

    @property
    def is_under_way(self) -> bool:
        """Whether `step` is to be called a few times a second."""
        return self._check is not None or self._due_s is not None

    def begin(self, client: ControlClient | None = None) -> None:
        """Check the installed version; `client` gets the result."""
        if client is not None:
            self._clients.append(client)
        if self.is_under_way:
            return
        self._log.info("upgrade begins")
        self._began_s, self._output = time.monotonic(), b""
        try:
            self._check = _start_check()
        except OSError as error:
            self._fail(f"it does not start: {error}")
            return
        self._selector.register(_output_of(self._check), selectors.EVENT_READ, self._read)

    def check_now(self) -> Verdict:
        """Check whether the installed version can go on if it is started; wait for the verdict."""
        try:
            with _start_check() as check:
                try:
                    output, _ = check.communicate(timeout=_CHECK_S)
                except subprocess.TimeoutExpired:
                    check.kill()
                    return Verdict(problem=_TOO_LONG, starts=False)
        except OSError as error:
            return Verdict(problem=f"it does not start: {error}", starts=False)
        verdict = Verdict.of(output.decode("utf-8", "replace"), self._formats())
        return dataclasses.replace(verdict, starts=check.returncode == 0)

    def step(self) -> None:
        """Do what is due."""
        now_s = time.monotonic()
        if self._check is not None and now_s - self._began_s > _CHECK_S:
            self._check.kill()
            self._forget_check()
            self._fail(_TOO_LONG)
        if self._due_s is not None and now_s >= self._due_s:
            self._due_s = None
            self._replace()

    def _read(self) -> None:
        if self._check is None:
            return
        data = os.read(_output_of(self._check).fileno(), _READ_BYTES)
        # Only the end matters.
        self._output = (self._output + data)[-_READ_BYTES:]
        if data:
            return
        self._forget_check()
        verdict = Verdict.of(self._output.decode("utf-8", "replace"), self._formats())
        if verdict.problem is not None:
            self._fail(verdict.problem)
            return
        self._log.info("supervisor is replaced", version=verdict.version)
        for client in self._clients:
            client.reply({"version": verdict.version})
        self._clients.clear()
        self._due_s = time.monotonic() + _ANSWER_S

    def _forget_check(self) -> None:
        check, self._check = self._check, None
        if check is not None:
            self._selector.unregister(_output_of(check))
            _output_of(check).close()
            check.poll()

    def _fail(self, problem: str) -> None:
        self._log.error("upgrade failed, the old version goes on", error=problem)
        for client in self._clients:
            client.reply({"error": f"the old version goes on: {problem}"})
        self._clients.clear()

    def _replace(self) -> NoReturn:
        """Become the installed version.

        Raises:
            OSError: the system refuses it; everything goes on.
        """
        command = keeping.this_command()
        logs.flush()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            environment = {
                **os.environ,
                **self._store.pass_on(),
                keeping.LAST_END_VARIABLE: "upgrade",
            }
            os.execve(command[0], command, environment)  # noqa: S606 - no shell is needed
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _start_check() -> subprocess.Popen[bytes]:
    """Start the installed version, which then only calls `describe_version`."""
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_CHECK}
    return subprocess.Popen(  # noqa: S603 - the command of this process
        keeping.this_command(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**environment, keeping.CHECK_VARIABLE: "1"},
        process_group=0,
    )


def _output_of(check: subprocess.Popen[bytes]) -> IO[bytes]:
    if check.stdout is None:
        raise ValueError(check)
    return check.stdout
