"""Processes at the other end of a Unix socket: who they are, and whether they may connect."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from kapudf_cli.system import loggers
from kapudf_cli.system.errors import SocketPathError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_log = loggers.get(__name__)

#: The largest number of a user or group; the next one means "unchanged" to chown(2).
MAX_ID: Final = 2**32 - 2
#: The socket option with the supplementary groups of the peer, which Python has no name for
#: (Linux 4.13). It is another number on the rare architectures parisc and sparc.
_SO_PEERGROUPS: Final = 59
#: The longest answer that Python's getsockopt takes: 256 groups. Of a process in more groups, only
#: the first one is known.
_GROUPS_BYTES: Final = 1024
#: How many refused peers are remembered, so that each is logged once.
_MAX_REFUSED: Final = 1024


@dataclass(frozen=True)
class PeerCredentials:
    """The process at the other end of a Unix socket, as reported by the kernel."""

    pid: int
    uid: int
    gid: int


def peer_credentials(connection: socket.socket) -> PeerCredentials | None:
    """Return the process at the other end, None if the system does not tell."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    layout = "3i"
    answer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(layout))
    return PeerCredentials(*struct.unpack(layout, answer))


def group_id(path: str, group: str) -> int:
    """Return the number of a group.

    Args:
        path: of the socket, for the error.
        group: its name, or its number in digits.

    Raises:
        SocketPathError: there is no such group.
    """
    return _number(path, group, "group", lambda name: grp.getgrnam(name).gr_gid)


def _user_id(path: str, user: str) -> int:
    return _number(path, user, "user", lambda name: pwd.getpwnam(name).pw_uid)


def _number(path: str, name: str, what: str, look_up: Callable[[str], int]) -> int:
    try:
        return look_up(name)
    except (KeyError, ValueError):
        if name.isascii() and name.isdigit() and int(name[:11]) <= MAX_ID:
            return int(name)  # A number needs no name, as in a container.
        problem = f"there is no {what} {name!r}; create it or choose another {what}"
        raise SocketPathError(path, problem) from None


class PeerFilter:
    """Refuses connections of other users than those that are allowed; logs each peer once."""

    def __init__(self, path: str, users: frozenset[int], groups: frozenset[int]) -> None:
        """Allow these users, all members of these groups, and the user of this process.

        Args:
            path: of the socket, for the log.
            users: their numbers.
            groups: their numbers.
        """
        self._path = path
        self._users = users | {os.geteuid()}
        self._groups = groups
        self._refused: set[tuple[int, int]] = set()

    @classmethod
    def of(
        cls, path: str, users: Sequence[str] | None, groups: Sequence[str] | None
    ) -> Self | None:
        """Return the filter for names or numbers, None if both are None: everybody is allowed.

        Raises:
            SocketPathError: there is no such user or group.
        """
        if users is None and groups is None:
            return None
        return cls(
            path,
            frozenset(_user_id(path, each) for each in users or ()),
            frozenset(group_id(path, each) for each in groups or ()),
        )

    def allows(self, connection: socket.socket) -> bool:
        """Return whether the peer of a connection may use it; log the first refusal of a peer."""
        peer = peer_credentials(connection)
        if peer is not None and (
            peer.uid in self._users
            or (self._groups and not self._groups.isdisjoint(_groups(connection, peer)))
        ):
            return True
        pid, uid = (-1, -1) if peer is None else (peer.pid, peer.uid)
        if (pid, uid) not in self._refused:
            if len(self._refused) >= _MAX_REFUSED:
                self._refused.clear()
            self._refused.add((pid, uid))
            _log.warning(
                "peer refused",
                extra={
                    "socket": self._path,
                    "peer_pid": pid,
                    "peer_uid": uid,
                    "advice": f"add {uid} to allow_users, or one of its groups to allow_groups",
                },
            )
        return False


def _groups(connection: socket.socket, peer: PeerCredentials) -> set[int]:
    """Return the groups of the peer, when it connected."""
    try:
        answer = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES)
    except OSError:
        return {peer.gid}
    return {peer.gid} | {group for (group,) in struct.iter_unpack("@I", answer)}
