"""Who may connect to a socket, by the kernel's word."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.system.errors import SocketPathError
from kapudf_cli.system.socket_file import Access, SocketFile
from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Connects as a user with a group and a supplementary group, as often as it is told to, and prints
#: what it reads each time.
CONNECT = f"""
import os, socket, sys
os.setgroups([4242])
os.setgid(4141)
os.setuid(4040)
for _ in range(int(sys.argv[2])):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout({PATIENCE_S})
        connection.connect(sys.argv[1])
        print(connection.recv(16).decode(), flush=True)
"""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the user")


@pytest.fixture
def socket_file(socket_path: str, short_folder: Path) -> Iterator[SocketFile]:
    """Give a socket that its permissions open to everybody."""
    short_folder.chmod(0o755)
    bound = SocketFile.bind(socket_path, mode=0o666)
    yield bound
    bound.release()


def answers(socket_file: SocketFile, access: Access, times: int = 1) -> list[str]:
    """Return what the other user reads: "yes" if its connection is accepted, else nothing."""
    socket_file.filter_peers(access)
    command = [sys.executable, "-S", "-c", CONNECT, socket_file.path, str(times)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as peer:
        ended = os.pidfd_open(peer.pid)
        # One call may refuse several connections, so they are not counted here.
        while (
            ended
            not in select.select([socket_file.listener.fileno(), ended], [], [], PATIENCE_S)[0]
        ):
            connection = socket_file.accept()
            if connection is not None:
                with connection:
                    connection.sendall(b"yes")
        os.close(ended)
        assert peer.stdout is not None
        return peer.stdout.read().split("\n")[:-1]


@as_root
@pytest.mark.parametrize(
    ("access", "answer"),
    [
        (Access(), "yes"),
        (Access(users=("4040",)), "yes"),
        (Access(users=("1", "4040")), "yes"),
        (Access(users=("4041",)), ""),
        (Access(groups=("4141",)), "yes"),
        # A supplementary group.
        (Access(groups=("1", "4242")), "yes"),
        (Access(groups=("4040",)), ""),
        (Access(users=("1",), groups=("4242",)), "yes"),
        (Access(users=("4040",), groups=("1",)), "yes"),
        (Access(users=("1",), groups=("1",)), ""),
        (Access(users=("root",), groups=("root",)), ""),
    ],
)
def test_a_peer_needs_to_be_allowed(socket_file: SocketFile, access: Access, answer: str) -> None:
    assert answers(socket_file, access) == [answer]


@as_root
def test_a_refusal_is_logged_once_for_each_peer(
    socket_file: SocketFile, caplog: pytest.LogCaptureFixture
) -> None:
    access = Access(users=("1",))
    assert answers(socket_file, access, times=3) == [""] * 3
    (record,) = caplog.records
    assert record.message == "peer refused"
    facts = vars(record)
    assert (facts["peer_uid"], facts["socket"]) == (4040, socket_file.path)
    assert facts["advice"] == "add 4040 to allow_users, or one of its groups to allow_groups"
    assert facts["peer_pid"] > 0


def test_the_user_of_the_process_itself_is_always_allowed(socket_file: SocketFile) -> None:
    socket_file.filter_peers(Access(users=("4040",)))
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(socket_file.path)
        accepted = socket_file.accept()
        assert accepted is not None
        accepted.close()


@pytest.mark.parametrize(
    ("access", "problem"),
    [
        (
            Access(users=("no such",)),
            "there is no user 'no such'; create it or choose another user",
        ),
        (Access(groups=("no such",)), "there is no group 'no such'; create it or choose another"),
    ],
)
def test_an_unknown_name_is_an_error(socket_file: SocketFile, access: Access, problem: str) -> None:
    with pytest.raises(SocketPathError, match=problem):
        socket_file.filter_peers(access)
