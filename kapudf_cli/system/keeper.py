"""The keeper: the parent of `kapudf serve`, which keeps its descriptors and starts it again.

It is a program of its own, started by its path and without site-packages, so that it is small and
can hardly fail: it imports a few modules of the standard library, and none of kapudf.

    python -I -S keeper.py COMMAND...

It runs the command, and speaks systemd's protocol with it: see `systemd` and `descriptor_store`.
If the command dies, the keeper starts it again, and passes on the descriptors that it has kept.
As PID 1 of a container, it reaps orphans.
"""

from __future__ import annotations

import fcntl
import os
import resource
import select
import signal
import socket
import sys
import time

_FIRST_DESCRIPTOR = 3
_MESSAGE_BYTES = 64 * 1024
_INT_BYTES = 4
#: Room for the process id of the sender, and for more descriptors than a message has.
_ANCILLARY_BYTES = socket.CMSG_SPACE(3 * _INT_BYTES) + socket.CMSG_SPACE(64 * _INT_BYTES)
#: These are passed on to the command.
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
#: The command ends by these.
_STOPS = (signal.SIGTERM, signal.SIGINT)
#: A command that has served this long is started again at once.
_LONG_LIFE_S = 10.0
#: Otherwise it is after a pause, which is doubled each time, up to a limit that is longer for
#: a command that has not served at all.
_FIRST_PAUSE_S = 0.1
_MAX_PAUSE_S = 2.0
_MAX_PAUSE_IN_VAIN_S = 30.0


class Keeper:
    """Runs a command, and keeps the descriptors that it stores."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        # Names may occur several times, as with systemd.
        self._kept: list[tuple[str, int]] = _inherited()
        self._pid = 0
        self._started_s = self._due_s = 0.0
        self._is_ready = self._was_ready = self._stops = False
        self._early_ends = 0
        # How the last command ended, for the log of the next one.
        self._last_end = ""
        self._notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notices.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._notices.bind("")  # The kernel chooses an abstract address.
        self._notices.settimeout(0)
        self._address = self._notices.getsockname()
        self._wakeup, sender = os.pipe()
        os.set_blocking(self._wakeup, False)
        os.set_blocking(sender, False)
        signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, *_FORWARDED):
            signal.signal(number, lambda *_: None)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    def run(self) -> int:
        """Run the command until it ends for good; return its exit status, negative for a signal."""
        poll = select.poll()
        poll.register(self._notices, select.POLLIN)
        poll.register(self._wakeup, select.POLLIN)
        while True:
            if not self._pid and time.monotonic() >= self._due_s:
                self._start()
            rest_s = self._due_s - time.monotonic()
            poll.poll(None if self._pid else max(rest_s, 0.0) * 1000)
            self._read_notices()
            for number in self._read_signals():
                if number in _FORWARDED:
                    self._forward(number)
            status = self._reap()
            if status is not None:
                # What it has stored last.
                self._read_notices()
                if self._ends_with(status):
                    return status
            if self._stops and not self._pid:
                return 0

    def _start(self) -> None:
        self._started_s = time.monotonic()
        self._is_ready = False
        self._pid = os.fork()
        if not self._pid:
            try:
                self._become_command()
            finally:
                os._exit(1)

    def _become_command(self) -> None:
        # A Ctrl-C comes to the whole group of a terminal: only the keeper is to pass it on.
        os.setpgid(0, 0)
        count = len(self._kept)
        moved = [
            fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _FIRST_DESCRIPTOR + count)
            for _, descriptor in self._kept
        ]
        for place, descriptor in enumerate(moved):
            os.dup2(descriptor, _FIRST_DESCRIPTOR + place, inheritable=True)
        pid = str(os.getpid())
        environment = dict(os.environ)
        environment.update(
            NOTIFY_SOCKET="@" + self._address[1:].decode("ascii"),
            FDSTORE=str(1 << 20),
            LISTEN_PID=pid,
            LISTEN_FDS=str(count),
            LISTEN_FDNAMES=":".join(name for name, _ in self._kept),
            KAPUDF_LAST_END=self._last_end,
        )
        if "WATCHDOG_PID" in environment:
            environment["WATCHDOG_PID"] = pid
        os.execve(self._command[0], self._command, environment)  # noqa: S606 - no shell is needed

    def _forward(self, number: int) -> None:
        self._stops = self._stops or number in _STOPS
        if self._pid:
            os.kill(self._pid, number)

    def _reap(self) -> int | None:
        """Reap every child that has ended; return the status of the command if it is one."""
        found = None
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return found
            if not pid:
                return found
            if pid == self._pid:
                found = os.waitstatus_to_exitcode(status)

    def _ends_with(self, status: int) -> bool:
        """Note that the command has ended; return whether it is not started again."""
        self._pid = 0
        if self._stops or not (self._is_ready or self._was_ready):
            # It was told to, or could not even start: the same would happen again.
            return True
        lived_s = time.monotonic() - self._started_s
        if self._is_ready and lived_s >= _LONG_LIFE_S:
            self._early_ends = 0
        most_s = _MAX_PAUSE_S if self._is_ready else _MAX_PAUSE_IN_VAIN_S
        pause_s = 0.0
        if self._early_ends:
            pause_s = min(_FIRST_PAUSE_S * 2.0 ** min(self._early_ends, 16), most_s)
        self._early_ends += 1
        self._due_s = time.monotonic() + pause_s
        self._last_end = f"exit status {status}"
        if status < 0:
            try:
                self._last_end = signal.Signals(-status).name
            except ValueError:
                self._last_end = f"signal {-status}"
        return False

    def _read_signals(self) -> bytes:
        try:
            return os.read(self._wakeup, 4096)
        except BlockingIOError:
            return b""

    def _read_notices(self) -> None:
        while True:
            try:
                data, ancillary, _, _ = self._notices.recvmsg(
                    _MESSAGE_BYTES, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            descriptors: list[int] = []
            sender = 0
            for _, kind, content in ancillary:
                numbers = [
                    int.from_bytes(content[place : place + _INT_BYTES], sys.byteorder, signed=True)
                    for place in range(0, len(content), _INT_BYTES)
                ]
                if kind == socket.SCM_RIGHTS:
                    descriptors += numbers
                else:
                    sender = numbers[0]
            if sender == self._pid and self._pid:
                self._handle(data.decode("utf-8", "replace").split("\n"), descriptors)
            else:
                _close(descriptors)

    def _handle(self, lines: list[str], descriptors: list[int]) -> None:
        """Handle a message of the command."""
        values = dict(line.partition("=")[::2] for line in lines)
        name = values.get("FDNAME", "stored")
        if values.get("FDSTORE") == "1":
            self._kept += [(name, descriptor) for descriptor in descriptors]
            return
        _close(descriptors)
        if values.get("FDSTOREREMOVE") == "1":
            _close([descriptor for kept, descriptor in self._kept if kept == name])
            self._kept = [each for each in self._kept if each[0] != name]
            return
        if values.get("READY") == "1":
            self._is_ready = self._was_ready = True
        self._stops = self._stops or values.get("STOPPING") == "1"
        _forward_notice("\n".join(lines))


def _inherited() -> list[tuple[str, int]]:
    """Return the sockets that systemd listens on for this service, and their names."""
    count = os.environ.get("LISTEN_FDS", "0")
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal():
        return []
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    found = []
    for place in range(int(count)):
        descriptor = fcntl.fcntl(_FIRST_DESCRIPTOR + place, fcntl.F_DUPFD_CLOEXEC, 3)
        os.close(_FIRST_DESCRIPTOR + place)
        found.append((names[place] if place < len(names) else "unknown", descriptor))
    return found


def _forward_notice(state: str) -> None:
    """Send a notice on to systemd, if systemd has started the keeper."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.settimeout(2.0)
            channel.sendto(state.encode(), "\0" + address[1:] if address[0] == "@" else address)
    except OSError:
        return  # A notice that is lost must not stop the service.


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def main() -> None:
    """Run the command of the arguments."""
    status = Keeper(sys.argv[1:]).run()
    if status < 0:
        # End by the same signal, as the command would have without a keeper.
        signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    main()
