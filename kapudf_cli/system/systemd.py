"""The protocol of systemd for its services: notices, and descriptors that it passes on.

See sd_notify(3) and sd_listen_fds(3). `keeper` speaks the same protocol.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import socket
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: The first descriptor that is passed on.
FIRST_DESCRIPTOR: Final = 3
#: How long a notice may wait until systemd, or the keeper, has read earlier ones.
_TIMEOUT_S: Final = 2.0
#: How systemd names descriptors without a name.
_NO_NAME: Final = "unknown"


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
