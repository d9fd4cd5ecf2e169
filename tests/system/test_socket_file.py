"""Socket files: ownership of a path, and permissions; with real sockets and processes."""

from __future__ import annotations

import contextlib
import grp
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.system.errors import SocketInUseError, SocketPathError, StaleSocketError
from kapudf_cli.system.peers import PeerCredentials, peer_credentials
from kapudf_cli.system.socket_file import (
    MAX_PATH_BYTES,
    SocketFile,
)
from tests.plugins.unprivileged import run_unprivileged
from tests.serve_process import KAPUDF, PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

#: A server that is not kapudf, told on the command line how many connections may wait.
PLAIN_LISTENER = """
import socket, sys
listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
listener.bind(sys.argv[1])
listener.listen(int(sys.argv[2]))
print("ready", flush=True)
sys.stdin.read()
"""

#: Takes the path by the project's own means and holds it until the end of its input.
OWNER = """
import sys
from kapudf_cli.system.socket_file import SocketFile
owned = SocketFile.bind(sys.argv[1])
print("ready", flush=True)
sys.stdin.read()
"""

#: A line is a path and an instant: binds then, says how it went, and releases at the next line.
RACER = """
import sys, time
from kapudf_cli.system.socket_file import SocketFile
for line in iter(sys.stdin.readline, ""):
    path, instant = line.split()
    while time.monotonic() < float(instant):
        pass
    try:
        owned = SocketFile.bind(path, remove_stale=True)
    except Exception as error:
        print(type(error).__name__, flush=True)
    else:
        print("owner", flush=True)
        sys.stdin.readline()
        owned.release()
        print("released", flush=True)
"""

#: Binds and releases again and again; a flag made with O_EXCL shows a second owner.
CONTENDER = """
import os, sys
from kapudf_cli.system.errors import SocketInUseError
from kapudf_cli.system.socket_file import SocketFile
path, rounds = sys.argv[1], int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
while rounds:
    try:
        owned = SocketFile.bind(path, remove_stale=True)
    except SocketInUseError:
        continue
    flag = os.open(path + ".flag", os.O_CREAT | os.O_EXCL)
    os.close(flag)
    os.unlink(path + ".flag")
    owned.release()
    rounds -= 1
print("done", flush=True)
"""

#: Looks at a path without a pause until PATH.done exists, and says which modes it saw.
WATCHER = """
import os, stat, sys
path = sys.argv[1]
seen = set()
def look():
    try:
        seen.add(stat.S_IMODE(os.lstat(path).st_mode))
    except FileNotFoundError:
        pass
print("ready", flush=True)
while not os.path.exists(path + ".done"):
    look()
look()
print(*sorted(seen))
"""

IMPORTS = "import sys\nfrom kapudf_cli.system.socket_file import SocketFile\n"
BIND = """
try:
    SocketFile.bind(sys.argv[1], group=(sys.argv + [None])[2])
except Exception as error:
    print(f"{type(error).__name__}: {error}")
else:
    print("bound")
"""


@contextlib.contextmanager
def python(script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a script in a process of its own until it is ready; killed at the latest on exit."""
    with subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert said(process) == "ready"
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def racers(count: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Run processes that race for a path whenever they are told to."""
    command = [sys.executable, "-c", RACER]
    with contextlib.ExitStack() as undo:
        processes = []
        for _ in range(count):
            process = undo.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            undo.callback(process.kill)
            processes.append(process)
        yield processes


def said(process: subprocess.Popen[str]) -> str:
    """Return the next line of a process's output, without its end."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def tell(process: subprocess.Popen[str], line: str) -> None:
    """Send a process a line."""
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def leave_stale(path: str) -> None:
    """Leave a stale socket at a path."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()


def fingerprint(path: str) -> tuple[object, ...]:
    """Return what changes when a process touches the file at a path."""
    found = os.lstat(path)
    content: object = None
    if stat.S_ISREG(found.st_mode):
        content = Path(path).read_bytes()
    elif stat.S_ISLNK(found.st_mode):
        content = os.readlink(path)
    elif stat.S_ISDIR(found.st_mode):
        content = os.listdir(path)
    return (found.st_ino, found.st_mode, found.st_gid, found.st_mtime_ns, content)


def connect(path: str) -> socket.socket:
    """Connect to a socket."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(PATIENCE_S)
    try:
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection


def server_pid(path: str) -> int:
    """Return the process that listens at a path."""
    with connect(path) as connection:
        peer = peer_credentials(connection)
    assert peer is not None
    return peer.pid


def another_group() -> grp.struct_group:
    """Return a group that is not this process's own, and that it may give files to."""
    allowed = None if os.geteuid() == 0 else set(os.getgroups())
    for group in grp.getgrall():
        if group.gr_gid != os.getegid() and (allowed is None or group.gr_gid in allowed):
            return group
    pytest.skip("this user has one group only")


def states_during(path: str, act: Callable[[], SocketFile]) -> list[tuple[int, int]]:
    """Return the mode and group that a path had after each single call that `act` made."""
    states = []

    def tick(frame: FrameType, event: str, argument: object) -> None:
        del frame, event, argument
        with contextlib.suppress(FileNotFoundError):
            found = os.lstat(path)
            states.append((stat.S_IMODE(found.st_mode), found.st_gid))

    sys.setprofile(tick)
    try:
        socket_file = act()
    finally:
        sys.setprofile(None)
    socket_file.release()
    return states


# --- mode and group ---


def test_a_bound_path_listens_and_takes_connections(socket_path: str) -> None:
    socket_file = SocketFile.bind(socket_path)
    assert socket_file.accept() is None
    with connect(socket_path) as connection:
        accepted = socket_file.accept()
        assert accepted is not None
        with accepted:
            connection.sendall(b"hello")
            assert accepted.recv(16) == b"hello"
    socket_file.release()


def test_the_peer_is_the_one_whom_the_kernel_names(socket_path: str) -> None:
    socket_file = SocketFile.bind(socket_path)
    with connect(socket_path):
        accepted = socket_file.accept()
        assert accepted is not None
        with accepted:
            me = PeerCredentials(os.getpid(), os.getuid(), os.getgid())
            assert peer_credentials(accepted) == me
    socket_file.release()


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o770, 0o000], ids="{:04o}".format)
@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777], ids="umask {:04o}".format)
def test_the_mode_is_as_asked_whatever_the_umask(socket_path: str, mode: int, umask: int) -> None:
    before = os.umask(umask)
    try:
        socket_file = SocketFile.bind(socket_path, mode=mode)
    finally:
        after = os.umask(before)
    assert stat.S_IMODE(os.lstat(socket_path).st_mode) == mode
    assert after == umask
    socket_file.release()


@pytest.mark.parametrize("by_number", [False, True])
def test_the_group_is_as_asked(socket_path: str, *, by_number: bool) -> None:
    group = another_group()
    name = str(group.gr_gid) if by_number else group.gr_name
    socket_file = SocketFile.bind(socket_path, group=name)
    found = os.lstat(socket_path)
    assert (found.st_gid, found.st_uid) == (group.gr_gid, os.geteuid())
    socket_file.release()


def test_without_a_group_it_is_the_process_s_own(socket_path: str) -> None:
    socket_file = SocketFile.bind(socket_path)
    assert os.lstat(socket_path).st_gid == os.getegid()
    socket_file.release()


def test_the_socket_is_closed_to_all_until_group_and_mode_are_right(socket_path: str) -> None:
    group = another_group()
    before = os.umask(0)
    try:
        states = states_during(
            socket_path, lambda: SocketFile.bind(socket_path, mode=0o660, group=group.gr_name)
        )
    finally:
        os.umask(before)
    assert {mode for mode, _ in states} == {0, 0o660}
    assert all(gid == group.gr_gid for mode, gid in states if mode)


def test_another_process_never_sees_the_socket_wider_open(socket_path: str) -> None:
    before = os.umask(0)
    try:
        with python(WATCHER, socket_path) as watcher:
            for _ in range(300):
                SocketFile.bind(socket_path, mode=0o600).release()
            last = SocketFile.bind(socket_path, mode=0o600)
            Path(f"{socket_path}.done").touch()
            seen = {int(mode) for mode in said(watcher).split()}
            last.release()
    finally:
        os.umask(before)
    assert seen <= {0, 0o600}
    assert 0o600 in seen


def test_no_other_user_can_open_the_lock(socket_path: str) -> None:
    before = os.umask(0)
    try:
        socket_file = SocketFile.bind(socket_path, mode=0o666)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.lstat(f"{socket_path}.lock").st_mode) == 0o600
    socket_file.release()


@pytest.mark.parametrize("group", ["kapudf-no-such-group", "4294967295", "9" * 5000, "-1", "²"])
def test_an_unknown_group_is_named_and_nothing_is_made(socket_path: str, group: str) -> None:
    with pytest.raises(SocketPathError, match=f"no group '{group}'"):
        SocketFile.bind(socket_path, group=group)
    assert os.listdir(os.path.dirname(socket_path)) == []


# --- a path that is taken ---


@pytest.mark.parametrize("remove_stale", [False, True])
def test_a_live_socket_is_left_alone(socket_path: str, *, remove_stale: bool) -> None:
    with python(OWNER, socket_path) as owner:
        before = fingerprint(socket_path)
        with pytest.raises(SocketInUseError) as caught:
            SocketFile.bind(socket_path, remove_stale=remove_stale)
        assert caught.value.pid == owner.pid
        assert f"process {owner.pid}" in str(caught.value)
        assert fingerprint(socket_path) == before
        assert server_pid(socket_path) == owner.pid


@pytest.mark.parametrize("remove_stale", [False, True])
def test_the_live_socket_of_a_stranger_is_left_alone(
    socket_path: str, *, remove_stale: bool
) -> None:
    with python(PLAIN_LISTENER, socket_path, "16") as stranger:
        before = fingerprint(socket_path)
        with pytest.raises(SocketInUseError) as caught:
            SocketFile.bind(socket_path, remove_stale=remove_stale)
        assert caught.value.pid == stranger.pid
        assert fingerprint(socket_path) == before
        assert server_pid(socket_path) == stranger.pid
    assert os.listdir(os.path.dirname(socket_path)) == [os.path.basename(socket_path)]


def test_a_server_whose_queue_is_full_is_alive(socket_path: str) -> None:
    with python(PLAIN_LISTENER, socket_path, "0"), contextlib.ExitStack() as waiting:
        with contextlib.suppress(BlockingIOError):
            while True:
                connection = waiting.enter_context(socket.socket(socket.AF_UNIX))
                connection.settimeout(0)
                connection.connect(socket_path)
        before = fingerprint(socket_path)
        with pytest.raises(SocketInUseError):
            SocketFile.bind(socket_path, remove_stale=True)
        assert fingerprint(socket_path) == before


def test_one_process_cannot_have_a_path_twice(socket_path: str) -> None:
    socket_file = SocketFile.bind(socket_path)
    with pytest.raises(SocketInUseError) as caught:
        SocketFile.bind(socket_path, remove_stale=True)
    assert caught.value.pid == os.getpid()
    assert server_pid(socket_path) == os.getpid()
    socket_file.release()


def test_a_stale_socket_is_refused_with_the_way_out(socket_path: str) -> None:
    leave_stale(socket_path)
    before = fingerprint(socket_path)
    with pytest.raises(StaleSocketError, match="--remove-stale"):
        SocketFile.bind(socket_path)
    assert fingerprint(socket_path) == before
    assert os.listdir(os.path.dirname(socket_path)) == [os.path.basename(socket_path)]


def test_a_stale_socket_is_replaced_on_request(socket_path: str) -> None:
    leave_stale(socket_path)
    socket_file = SocketFile.bind(socket_path, remove_stale=True)
    assert server_pid(socket_path) == os.getpid()
    socket_file.release()


def test_leave_to_remove_is_no_duty(socket_path: str) -> None:
    socket_file = SocketFile.bind(socket_path, remove_stale=True)
    assert server_pid(socket_path) == os.getpid()
    socket_file.release()


def make_file(path: str) -> None:
    """Make a file with something in it."""
    Path(path).write_text("precious")


def make_folder(path: str) -> None:
    """Make an empty folder, which would be easy to remove."""
    os.mkdir(path)


def make_fifo(path: str) -> None:
    """Make a named pipe."""
    os.mkfifo(path)


def make_dangling_link(path: str) -> None:
    """Make a symbolic link to nothing."""
    os.symlink(f"{path}.nothing", path)


def make_link_to_stale_socket(path: str) -> None:
    """Make a symbolic link to a stale socket."""
    leave_stale(f"{path}.stale")
    os.symlink(f"{path}.stale", path)


@pytest.mark.parametrize("remove_stale", [False, True])
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (make_file, "a file"),
        (make_folder, "a folder"),
        (make_fifo, "a named pipe"),
        (make_dangling_link, "a symbolic link"),
        (make_link_to_stale_socket, "a symbolic link"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_file_that_is_no_socket_is_not_changed(
    socket_path: str, make: Callable[[str], None], kind: str, *, remove_stale: bool
) -> None:
    make(socket_path)
    before = fingerprint(socket_path)
    listing = sorted(os.listdir(os.path.dirname(socket_path)))
    with pytest.raises(SocketPathError, match=f"{kind} is here, not a socket"):
        SocketFile.bind(socket_path, remove_stale=remove_stale)
    assert fingerprint(socket_path) == before
    assert sorted(os.listdir(os.path.dirname(socket_path))) == listing


@pytest.mark.parametrize("remove_stale", [False, True])
def test_a_link_to_a_live_socket_is_left_alone(socket_path: str, *, remove_stale: bool) -> None:
    target = f"{socket_path}.target"
    with python(PLAIN_LISTENER, target, "16") as server:
        os.symlink(target, socket_path)
        before = fingerprint(socket_path), fingerprint(target)
        with pytest.raises(SocketPathError, match="a symbolic link is here"):
            SocketFile.bind(socket_path, remove_stale=remove_stale)
        assert (fingerprint(socket_path), fingerprint(target)) == before
        assert server_pid(target) == server.pid


# --- paths that cannot be used ---


@pytest.mark.parametrize("letter", ["x", "é", "漢", "😀"])
def test_a_path_may_have_107_bytes(short_folder: Path, letter: str) -> None:
    path = filled(short_folder, letter, MAX_PATH_BYTES)
    assert len(os.fsencode(path)) == 107
    socket_file = SocketFile.bind(path)
    assert server_pid(path) == os.getpid()
    socket_file.release()
    assert os.listdir(short_folder) == []


@pytest.mark.parametrize("letter", ["x", "é", "漢", "😀"])
def test_a_path_may_not_have_108_bytes(short_folder: Path, letter: str) -> None:
    path = filled(short_folder, letter, 108)
    with pytest.raises(SocketPathError, match="108 bytes, a Unix socket allows 107"):
        SocketFile.bind(path)
    assert os.listdir(short_folder) == []


def filled(folder: Path, letter: str, size: int) -> str:
    """Return a path in `folder` of exactly `size` bytes, made of one letter as far as it goes."""
    left = size - len(os.fsencode(folder)) - 1
    count, rest = divmod(left, len(letter.encode()))
    return f"{folder}/{letter * count}{'x' * rest}"


def test_a_relative_path_is_counted_from_the_root(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(short_folder)
    socket_file = SocketFile.bind("udf.sock")
    assert socket_file.path == os.path.abspath("udf.sock")
    monkeypatch.chdir("/")
    socket_file.release()
    assert os.listdir(short_folder) == []


def test_a_missing_folder_is_named(short_folder: Path) -> None:
    with pytest.raises(SocketPathError, match=f"the folder {short_folder}/no does not exist"):
        SocketFile.bind(f"{short_folder}/no/udf.sock")


def test_a_folder_that_is_a_file_is_not_called_missing(short_folder: Path) -> None:
    (short_folder / "plain").touch()
    with pytest.raises(SocketPathError) as caught:
        SocketFile.bind(f"{short_folder}/plain/udf.sock")
    assert "does not exist" not in str(caught.value)


def test_a_folder_without_permission_is_a_clear_line(short_folder: Path) -> None:
    short_folder.chmod(0o555)
    result = run_unprivileged(IMPORTS, BIND, f"{short_folder}/udf.sock")
    lock = f"{short_folder}/udf.sock.lock"
    assert result.stdout.startswith(f"SocketPathError: {lock}: permission denied")
    assert os.listdir(short_folder) == []


def test_a_folder_that_may_not_be_entered_is_not_called_missing(short_folder: Path) -> None:
    (short_folder / "closed" / "inner").mkdir(parents=True)
    short_folder.chmod(0o755)
    (short_folder / "closed").chmod(0)
    result = run_unprivileged(IMPORTS, BIND, f"{short_folder}/closed/inner/udf.sock")
    (short_folder / "closed").chmod(0o700)
    assert "permission denied" in result.stdout
    assert "does not exist" not in result.stdout


def test_a_socket_that_may_not_be_asked_is_left_alone(short_folder: Path) -> None:
    path = f"{short_folder}/udf.sock"
    leave_stale(path)
    os.chmod(path, 0)
    short_folder.chmod(0o777)
    before = fingerprint(path)
    result = run_unprivileged(
        IMPORTS, BIND.replace("group=(sys.argv + [None])[2]", "remove_stale=True"), path
    )
    assert "kapudf cannot tell whether it is served: permission denied" in result.stdout
    assert fingerprint(path) == before


def test_a_group_that_may_not_be_given_leaves_nothing_behind(short_folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs a user without a group that exists")
    short_folder.chmod(0o777)
    result = run_unprivileged(IMPORTS, BIND, f"{short_folder}/udf.sock", "root")
    assert "permission denied" in result.stdout
    assert os.listdir(short_folder) == []


# --- the lock ---


def make_socket(path: str) -> None:
    """Make a stale socket."""
    leave_stale(path)


def make_link_to_file(path: str) -> None:
    """Make a symbolic link to a file with something in it."""
    make_file(f"{path}.target")
    os.symlink(f"{path}.target", path)


def make_hard_link(path: str) -> None:
    """Make a second name for a file that could be a lock."""
    Path(f"{path}.other").write_text("1\n")
    os.link(f"{path}.other", path)


def make_long_number(path: str) -> None:
    """Make a file that begins as a lock could."""
    Path(path).write_text("1" * 100)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (make_file, "not a lock of kapudf"),
        (make_long_number, "not a lock of kapudf"),
        (make_folder, "a folder is here"),
        (make_fifo, "a named pipe is here"),
        (make_socket, "a socket is here"),
        (make_dangling_link, "a symbolic link is here"),
        (make_link_to_file, "a symbolic link is here"),
        (make_hard_link, "a file with another name"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_file_that_is_no_lock_is_refused_at_once_and_not_changed(
    socket_path: str, make: Callable[[str], None], problem: str
) -> None:
    lock = f"{socket_path}.lock"
    make(lock)
    before = fingerprint(lock)
    listing = sorted(os.listdir(os.path.dirname(socket_path)))
    with pytest.raises(SocketPathError, match=f"{lock}: .*{problem}"):
        SocketFile.bind(socket_path, remove_stale=True)
    assert fingerprint(lock) == before
    assert sorted(os.listdir(os.path.dirname(socket_path))) == listing


def test_a_pipe_with_a_writer_at_the_lock_s_path_is_refused_at_once(socket_path: str) -> None:
    lock = f"{socket_path}.lock"
    os.mkfifo(lock)
    writer = os.open(lock, os.O_RDWR | os.O_NONBLOCK)
    with pytest.raises(SocketPathError, match="a named pipe is here"):
        SocketFile.bind(socket_path)
    os.close(writer)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to other users")
def test_a_lock_of_another_user_is_refused_and_left_as_it_is(socket_path: str) -> None:
    lock = f"{socket_path}.lock"
    Path(lock).write_text("1\n")
    os.chown(lock, 65534, -1)
    before = fingerprint(lock)
    with pytest.raises(SocketPathError, match="a file of user 65534 is here"):
        SocketFile.bind(socket_path)
    assert fingerprint(lock) == before


def test_a_lock_that_cannot_be_written_is_an_error_of_the_path(socket_path: str) -> None:
    code = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
    command = [sys.executable, "-c", IMPORTS + code + BIND, socket_path]
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_S, env=env, check=False
    )
    assert result.stdout.startswith(("SocketPathError", "bound")), (result.stdout, result.stderr)


def test_the_lock_of_a_process_about_to_bind_is_respected(socket_path: str) -> None:
    with python(OWNER, socket_path) as owner:
        os.unlink(socket_path)
        with pytest.raises(SocketInUseError) as caught:
            SocketFile.bind(socket_path, remove_stale=True)
        assert caught.value.pid == owner.pid
        assert not os.path.lexists(socket_path)


def test_the_files_of_a_killed_process_are_no_obstacle(socket_path: str) -> None:
    with python(OWNER, socket_path) as owner:
        owner.send_signal(signal.SIGKILL)
        owner.wait(PATIENCE_S)
    assert os.path.exists(f"{socket_path}.lock")
    with pytest.raises(StaleSocketError):
        SocketFile.bind(socket_path)
    socket_file = SocketFile.bind(socket_path, remove_stale=True)
    assert server_pid(socket_path) == os.getpid()
    socket_file.release()


def test_a_lock_left_by_a_dead_process_is_no_obstacle(socket_path: str) -> None:
    Path(f"{socket_path}.lock").write_text("1\n")
    socket_file = SocketFile.bind(socket_path)
    assert Path(f"{socket_path}.lock").read_text() == f"{os.getpid()}\n"
    socket_file.release()


# --- races ---


@pytest.mark.parametrize(("count", "rounds"), [(2, 150), (8, 60)])
def test_of_processes_that_start_at_one_instant_one_has_the_path(
    short_folder: Path, count: int, rounds: int
) -> None:
    with racers(count) as processes:
        for number in range(rounds):
            path = f"{short_folder}/{number}.sock"
            leave_stale(path)
            instant = time.monotonic() + 0.003
            for process in processes:
                tell(process, f"{path} {instant}")
            answers = [said(process) for process in processes]
            assert sorted(answers) == ["SocketInUseError"] * (count - 1) + ["owner"]
            owner = processes[answers.index("owner")]
            assert server_pid(path) == owner.pid
            tell(owner, "release")
            assert said(owner) == "released"
    assert os.listdir(short_folder) == []


def test_a_path_never_has_two_owners_while_it_changes_hands(socket_path: str) -> None:
    with contextlib.ExitStack() as undo:
        contenders = [undo.enter_context(python(CONTENDER, socket_path, "100")) for _ in range(4)]
        for process in contenders:
            tell(process, "go")
        assert [said(process) for process in contenders] == ["done"] * 4
    assert os.listdir(os.path.dirname(socket_path)) == []


def test_of_servers_that_start_at_one_instant_one_serves(socket_path: str) -> None:
    leave_stale(socket_path)
    arguments = ["--socket", socket_path, "--handler", "mirror", "--remove-stale"]
    command = [*KAPUDF, "serve", "--log-format", "json", *arguments]
    with contextlib.ExitStack() as undo:
        processes = []
        for _ in range(8):
            process = undo.enter_context(
                subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            )
            undo.callback(process.kill)
            processes.append(process)
        first_lines = []
        for process in processes:
            assert process.stderr is not None
            first_lines.append(process.stderr.readline())
        listening = [line for line in first_lines if '"listening"' in line]
        assert len(listening) == 1, first_lines
        owner = processes.pop(first_lines.index(listening[0]))
        assert [process.wait(PATIENCE_S) for process in processes] == [1] * 7
        refusals = [line for line in first_lines if "already serves this socket" in line]
        assert len(refusals) == 7
        assert server_pid(socket_path) == owner.pid
        owner.terminate()
        assert owner.wait(PATIENCE_S) == 0


# --- the end ---


def test_a_released_path_is_empty(socket_path: str) -> None:
    SocketFile.bind(socket_path).release()
    assert os.listdir(os.path.dirname(socket_path)) == []
    SocketFile.bind(socket_path).release()


def test_a_closed_path_accepts_no_more_and_stays_taken(socket_path: str) -> None:
    socket_file = SocketFile.bind(socket_path)
    socket_file.close()
    with pytest.raises(ConnectionRefusedError):
        connect(socket_path)
    with pytest.raises(SocketInUseError):
        SocketFile.bind(socket_path, remove_stale=True)
    socket_file.release()


def test_a_socket_that_took_its_place_stays(socket_path: str) -> None:
    socket_file = SocketFile.bind(socket_path)
    os.unlink(socket_path)
    with python(PLAIN_LISTENER, socket_path, "16") as stranger:
        before = fingerprint(socket_path)
        socket_file.release()
        assert fingerprint(socket_path) == before
        assert server_pid(socket_path) == stranger.pid


def test_a_file_that_took_its_place_stays(socket_path: str) -> None:
    socket_file = SocketFile.bind(socket_path)
    os.unlink(socket_path)
    make_file(socket_path)
    socket_file.release()
    assert Path(socket_path).read_text() == "precious"


def test_a_socket_that_is_gone_already_is_no_error(socket_path: str) -> None:
    socket_file = SocketFile.bind(socket_path)
    os.unlink(socket_path)
    socket_file.release()
    assert os.listdir(os.path.dirname(socket_path)) == []


def test_no_descriptor_is_left(socket_path: str) -> None:
    before = os.listdir("/proc/self/fd")
    SocketFile.bind(socket_path).release()
    leave_stale(socket_path)
    with pytest.raises(StaleSocketError):
        SocketFile.bind(socket_path)
    with python(PLAIN_LISTENER, f"{socket_path}.live", "16"):
        with pytest.raises(SocketInUseError):
            SocketFile.bind(f"{socket_path}.live")
        inside = len(os.listdir("/proc/self/fd"))
    assert len(os.listdir("/proc/self/fd")) == len(before)
    assert inside == len(before) + 2  # the pipes of the process above


def test_the_listener_is_not_inherited(socket_path: str) -> None:
    socket_file = SocketFile.bind(socket_path)
    assert not os.get_inheritable(socket_file.listener.fileno())
    assert select.select([socket_file.listener], [], [], 0) == ([], [], [])
    socket_file.release()
