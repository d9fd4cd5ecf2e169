"""The protocol of systemd for its services: notices, and descriptors that it passes on.

See sd_notify(3) and sd_listen_fds(3). `keeper` speaks the same protocol.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: The first descriptor that is passed on.
FIRST_DESCRIPTOR: Final = 3
#: How long a notice may wait until systemd, or the keeper, has read earlier ones.
_TIMEOUT_S: Final = 2.0
#: How systemd names descriptors without a name.
_NO_NAME: Final = "unknown"
#: How long `systemctl` may take to answer.
_SYSTEMCTL_S: Final = 5.0


def notify(state: str, descriptors: Sequence[int] = ()) -> bool:
    """Send a state such as "READY=1", and duplicates of descriptors.

    Returns:
        Whether it was sent. It is not if nothing has asked for notices.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    rights = array.array("i", descriptors)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
    # A notification that fails must not stop the service.
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel,
    ):
        channel.settimeout(_TIMEOUT_S)
        channel.sendmsg([state.encode()], ancillary, 0, address)
        return True
    return False


def notify_reload(*, begins: bool) -> None:
    """Tell systemd that a reload begins, or is done."""
    if begins:
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        notify(f"RELOADING=1\nMONOTONIC_USEC={now_us}")
    else:
        notify("READY=1")


def watchdog_s() -> float | None:
    """Return how often WATCHDOG=1 is to be sent, in seconds; None if it is not expected."""
    limit_us = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID", "")
    if not limit_us.isdecimal() or int(limit_us) == 0 or pid not in {"", str(os.getpid())}:
        return None
    return int(limit_us) / 1e6 / 3


def main_service() -> dict[str, str]:
    """Return properties of the service whose main process this is; none if it is not.

    They are Id, MainPID, ActiveState and FileDescriptorStoreMax; see systemctl(1).
    """
    names = ("Id", "MainPID", "ActiveState", "FileDescriptorStoreMax")
    unit = _own_unit()
    if unit is None:
        return {}
    shown = _systemctl("show", *(f"--property={name}" for name in names), unit)
    found = dict(line.partition("=")[::2] for line in shown.splitlines())
    return found if found.get("MainPID") == str(os.getpid()) else {}


def is_restarting() -> bool:
    """Return whether systemd has told this process to end only to start it again.

    It keeps the stored descriptors then. For a stop, there is a job; a restart has none until
    the process has ended. In both cases, the service is being deactivated, unlike after a kill.
    """
    service = main_service()
    if service.get("ActiveState") != "deactivating":
        return False
    jobs = [line.split() for line in _systemctl("list-jobs", "--no-legend").splitlines()]
    return not any(service["Id"] in job and "stop" in job for job in jobs)


def _own_unit() -> str | None:
    """Return the name of the service that this process belongs to, None if there is none."""
    try:
        groups = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    parts = [part for group in groups for part in group.split("/")]
    return next((part for part in reversed(parts) if part.endswith(".service")), None)


def _systemctl(*arguments: str) -> str:
    """Return what systemctl prints; nothing if it fails."""
    path = shutil.which("systemctl")
    if path is None:
        return ""
    of_user = ["--user"] if os.environ.get("MANAGERPID", "1") != "1" and os.getuid() else []
    try:
        result = subprocess.run(  # noqa: S603 - no input of others
            [path, *of_user, *arguments],
            capture_output=True,
            text=True,
            timeout=_SYSTEMCTL_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout


def take_descriptors() -> list[tuple[str, int]]:
    """Return the descriptors that were passed on to this process, each with its name.

    Only the first call returns them. No child process inherits them or their names.
    """
    names = os.environ.pop("LISTEN_FDNAMES", "")
    count = os.environ.pop("LISTEN_FDS", "")
    pid = os.environ.pop("LISTEN_PID", "")
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    given = names.split(":") if names else []
    found = []
    for place in range(int(count)):
        descriptor = FIRST_DESCRIPTOR + place
        try:
            os.set_inheritable(descriptor, False)  # noqa: FBT003 - its only form
        except OSError:
            continue  # It was closed.
        found.append((given[place] if place < len(given) else _NO_NAME, descriptor))
    return found


def pass_descriptors(descriptors: Mapping[str, int]) -> dict[str, str]:
    """Prepare descriptors for another program that this process is about to become by exec.

    Returns:
        The environment variables that tell it of them.
    """
    count = len(descriptors)
    end = FIRST_DESCRIPTOR + count
    # First out of the way: one of them may have the number that another one is to get.
    moved = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, end) for each in descriptors.values()]
    for place, each in enumerate(moved):
        os.dup2(each, FIRST_DESCRIPTOR + place, inheritable=True)
        os.close(each)
    return {
        "LISTEN_PID": str(os.getpid()),
        "LISTEN_FDS": str(count),
        "LISTEN_FDNAMES": ":".join(descriptors),
    }
