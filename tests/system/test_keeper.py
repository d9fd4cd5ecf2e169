"""The keeper: it starts its command again, with the descriptors that the command has stored."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.system import keeper, systemd
from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: What each command begins with: `say` appends a line to the file of the first argument.
BEGIN = """
import os, signal, socket, sys, time
from kapudf_cli.system import systemd

def say(text):
    with open(sys.argv[1], "a") as file:
        file.write(f"{text}\\n")

found = dict(systemd.take_descriptors())
say(f"start {os.environ['KAPUDF_LAST_END']} {sorted(found)}")
"""


class Kept:
    """A command that a keeper runs."""

    def __init__(self, folder: Path, code: str, env: dict[str, str]) -> None:
        self._file = folder / "said"
        self._file.touch()
        command = [sys.executable, "-c", BEGIN + code, str(self._file)]
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", keeper.__file__, *command],
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
        )

    @property
    def said(self) -> list[str]:
        return self._file.read_text("utf-8").splitlines()

    def await_said(self, count: int) -> list[str]:
        """Wait until the command has said so many lines."""
        deadline = time.monotonic() + PATIENCE_S
        while len(self.said) < count:
            assert time.monotonic() < deadline, self.said
            time.sleep(0.01)
        return self.said

    def wait(self) -> int:
        return self.process.wait(PATIENCE_S)


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Callable[..., Kept]]:
    """Give a function that starts a command under a keeper."""
    started = []

    def start(code: str, **env: str) -> Kept:
        started.append(Kept(tmp_path, code, env))
        return started[-1]

    yield start
    for each in started:
        with contextlib.suppress(ProcessLookupError):
            each.process.kill()
        each.process.wait(PATIENCE_S)


def test_a_command_that_cannot_start_is_not_started_again(kept: Callable[..., Kept]) -> None:
    command = kept("sys.exit(3)")
    assert command.wait() == 3
    assert command.said == ["start  []"]


def test_a_command_that_has_served_is_started_again_with_what_it_has_stored(
    kept: Callable[..., Kept],
) -> None:
    command = kept(
        """
if not found:
    ours, theirs = socket.socketpair()
    theirs.send(b"kept")
    systemd.notify("FDSTORE=1\\nFDNAME=end\\nFDPOLL=0", [ours.fileno()])
    systemd.notify("FDSTORE=1\\nFDNAME=gone\\nFDPOLL=0", [theirs.fileno()])
    systemd.notify("FDSTOREREMOVE=1\\nFDNAME=gone")
    systemd.notify("READY=1")
    os.kill(os.getpid(), signal.SIGKILL)
end = socket.socket(fileno=found["end"])
# The other end was removed from the store, so it is closed.
say(end.recv(10) + end.recv(10))
systemd.notify("READY=1")
systemd.notify("STOPPING=1")
sys.exit(4)
"""
    )
    assert command.wait() == 4
    assert command.said == ["start  []", "start SIGKILL ['end']", "b'kept'"]


def test_signals_are_passed_on_and_a_stop_ends_the_keeper(kept: Callable[..., Kept]) -> None:
    command = kept(
        """
ends = []
for number in (signal.SIGHUP, signal.SIGUSR2):
    signal.signal(number, lambda number, _: say(signal.Signals(number).name))
signal.signal(signal.SIGTERM, lambda *_: ends.append(1))
systemd.notify("READY=1")
say("ready")
while not ends:
    time.sleep(0.01)
sys.exit(0)
"""
    )
    command.await_said(2)
    for count, number in enumerate((signal.SIGHUP, signal.SIGUSR2), 3):
        command.process.send_signal(number)
        command.await_said(count)
    command.process.send_signal(signal.SIGTERM)
    assert command.wait() == 0
    assert command.said == ["start  []", "ready", "SIGHUP", "SIGUSR2"]


def test_notices_are_sent_on(kept: Callable[..., Kept], short_folder: Path) -> None:
    path = str(short_folder / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(PATIENCE_S)
        manager.bind(path)
        command = kept(
            """
systemd.notify("READY=1\\nSTATUS=all is well")
signal.pause()
""",
            NOTIFY_SOCKET=path,
        )
        assert manager.recv(100) == b"READY=1\nSTATUS=all is well"
    command.process.send_signal(signal.SIGTERM)
    assert command.wait() == -signal.SIGTERM


def test_the_keeper_imports_nothing_of_kapudf() -> None:
    code = f"""
import sys
sys.argv = ["keeper"]
with open({keeper.__file__!r}) as file:
    exec(compile(file.read(), "keeper", "exec"), {{"__name__": "keeper"}})
print([name for name in sys.modules if "kapudf" in name or name in ("click", "google", "ctypes")])
"""
    result = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"


def test_passed_descriptors_are_found_once_and_not_inherited() -> None:
    code = """
import os, sys
from kapudf_cli.system import systemd
read, write = os.pipe()
os.environ.update(systemd.pass_descriptors({"write": write, "read": read}))
if "again" not in sys.argv:
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:], "again"])
"""
    # Descriptors 3 and 4 are those of the pipe itself, in the other order.
    code += """
found = dict(systemd.take_descriptors())
os.write(found["write"], b"x")
print(os.read(found["read"], 1), systemd.take_descriptors(), os.get_inheritable(found["read"]))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "b'x' [] False\n"


def test_a_name_without_a_descriptor_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", "1")
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert systemd.take_descriptors() == []
    assert "LISTEN_FDS" not in os.environ
