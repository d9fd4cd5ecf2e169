"""A listening Unix socket in the file system: who may have the path, and who may connect."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import socket
import stat
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from kapudf_cli.system.errors import SocketInUseError, SocketPathError, StaleSocketError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: sun_path has 108 bytes, the last one a NUL (unix(7)).
MAX_PATH_BYTES = 107
#: The largest number of a group; chown(2) takes the one after it for "unchanged".
MAX_GROUP = 2**32 - 2
#: Kapacitor connects once a task and probes once; the kernel caps this at somaxconn. Connections
#: are accepted only as fast as workers begin with them, and a full queue refuses more (EAGAIN).
BACKLOG = 4096
#: Room for the number of a process.
_LOCK_BYTES = 32
_HAS_O_PATH = hasattr(os, "O_PATH")


@dataclass(frozen=True)
class PeerCredentials:
    """The process at the other end of a Unix socket, as the kernel vouches for it."""

    pid: int
    uid: int
    gid: int


def peer_credentials(connection: socket.socket) -> PeerCredentials | None:
    """Return who is at the other end, None on a system that does not say."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    layout = "3i"
    answer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(layout))
    return PeerCredentials(*struct.unpack(layout, answer))


class SocketFile:
    """A path that this process listens at, and no other.

    For as long as it is open it holds a lock on `PATH.lock`. Of two servers
    that start at one instant, both told to remove a stale socket, the one
    without the lock never looks at the path.
    """

    def __init__(
        self, path: str, listener: socket.socket, lock: _PathLock | None, held: _HeldFile
    ) -> None:
        """Keep what `bind` made; use `bind`."""
        self.path = path
        self.listener = listener
        self._lock = lock
        self._held = held

    @classmethod
    def bind(
        cls,
        path: str,
        *,
        mode: int = 0o660,
        group: str | None = None,
        remove_stale: bool = False,
        listens: bool = True,
    ) -> Self:
        """Take `path`, with no moment in which more people may connect than asked.

        Not to be called while other threads run: it sets the process's umask.

        Args:
            path: where; the folder must exist.
            mode: the socket's permission bits; who may write to it may connect.
            group: the socket's group, None for the process's own.
            remove_stale: whether to remove a socket that nobody serves.
            listens: whether to listen at once; until `listen`, connections are refused.

        Raises:
            SocketInUseError: a live process serves the path, or is about to.
            StaleSocketError: a socket is left over there, and may not be removed.
            SocketPathError: the path cannot be had for another reason.
        """
        _check_path(path)
        gid = _group_id(path, group)
        path = os.path.abspath(path)
        with contextlib.ExitStack() as undo:
            lock = _PathLock(path)
            undo.callback(lock.release)
            _make_way(path, remove_stale=remove_stale)
            socket_file = cls._bind(path, mode, gid, lock, listens=listens)
            undo.pop_all()
        return socket_file

    def bind_beside(self, suffix: str, *, mode: int, group: str | None) -> SocketFile:
        """Listen at this path with a suffix as well, which the same lock guards.

        What is left there by a server that held the lock before is removed.

        Raises:
            SocketPathError: that path cannot be had.
        """
        path = self.path + suffix
        _check_path(path)
        _make_way(path, remove_stale=True)
        return self._bind(path, mode, _group_id(path, group), None, listens=True)

    @classmethod
    def _bind(
        cls, path: str, mode: int, gid: int | None, lock: _PathLock | None, *, listens: bool
    ) -> Self:
        with contextlib.ExitStack() as undo:
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            undo.callback(listener.close)
            with _explained(path):
                # Created without a single permission, so that nobody connects
                # before group and mode are what they should be. It listens
                # before that, so that nobody who may connect finds it deaf.
                umask = os.umask(0o777)
                try:
                    listener.bind(path)
                finally:
                    os.umask(umask)
                undo.callback(os.unlink, path)
                held = _HeldFile(path)
                undo.callback(held.close)
                if listens:
                    listener.listen(BACKLOG)
                if gid is not None:
                    os.chown(held.name, -1, gid)
                os.chmod(held.name, mode)
            listener.settimeout(0)
            socket_file = cls(path, listener, lock, held)
            undo.pop_all()
        return socket_file

    def listen(self) -> None:
        """Let connections wait in the queue until they are accepted."""
        self.listener.listen(BACKLOG)

    def set_access(self, mode: int, group: str | None) -> None:
        """Change who may connect: the permission bits, and the group, None for the process's own.

        Raises:
            SocketPathError: there is no such group, or it may not be given.
        """
        gid = _group_id(self.path, group)
        with _explained(self.path):
            os.chown(self._held.name, -1, os.getegid() if gid is None else gid)
            os.chmod(self._held.name, mode)

    def accept(self) -> socket.socket | None:
        """Return the next connection, None if none waits.

        Raises:
            OSError: there is no descriptor or memory left for it.
        """
        try:
            connection, _ = self.listener.accept()
        except (BlockingIOError, ConnectionAbortedError, InterruptedError):
            return None
        return connection

    def close(self) -> None:
        """Accept no more; the path stays taken."""
        self.listener.close()

    def release(self) -> None:
        """Give the path up: close, and remove the socket if it is still this one."""
        self.close()
        with contextlib.suppress(OSError):
            if self._held.is_at(self.path):
                os.unlink(self.path)
        self._held.close()
        if self._lock is not None:
            self._lock.release()


class _HeldFile:
    """A file held fast, whatever becomes of its path.

    While it is held its number goes to no other file, even if somebody removes
    it, and `name` leads to it and nowhere else, even if somebody puts a link in
    its place. (Both need Linux's O_PATH; elsewhere the path has to do.)
    """

    def __init__(self, path: str) -> None:
        """Hold the file at `path`."""
        self._descriptor = -1
        self.name = path
        if _HAS_O_PATH:
            self._descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            self.name = f"/proc/self/fd/{self._descriptor}"
        self._identity = _identity(os.lstat(path) if not _HAS_O_PATH else os.stat(self.name))

    def is_at(self, path: str) -> bool:
        """Return whether `path` still is this file."""
        return _identity(os.lstat(path)) == self._identity

    def close(self) -> None:
        """Let go of it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class _PathLock:
    """An exclusive lock on `PATH.lock`, which the system releases when the process ends."""

    def __init__(self, path: str) -> None:
        """Take the lock, or raise SocketPathError."""
        self._path = f"{path}.lock"
        while True:
            self._descriptor = self._open()
            try:
                holder = _check_lock(self._path, self._descriptor)
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The last holder may have removed the file between our open and our
                # lock. Then other processes see another file, or none.
                with contextlib.suppress(FileNotFoundError):
                    if _identity(os.fstat(self._descriptor)) == _identity(os.lstat(self._path)):
                        break
            except BlockingIOError:
                os.close(self._descriptor)
                raise SocketInUseError(path, int(holder) if holder else None) from None
            except BaseException:
                os.close(self._descriptor)
                raise
            os.close(self._descriptor)
        # The process's number is for people; on a full disk it is missing.
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def _open(self) -> int:
        """Open the file, or create it; never wait for it, whatever is there."""
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        while True:
            # Of a device, even the opening may do something, so the kind is looked at first.
            with _explained(self._path), contextlib.suppress(FileNotFoundError):
                _check_lock_kind(self._path, os.lstat(self._path))
            with _explained(self._path):
                try:
                    return os.open(self._path, flags | os.O_CREAT | os.O_EXCL, 0o600)
                except FileExistsError:
                    with contextlib.suppress(FileNotFoundError):
                        return os.open(self._path, flags)

    def release(self) -> None:
        """Remove the lock's file and release the lock."""
        with contextlib.suppress(OSError):
            os.unlink(self._path)
        os.close(self._descriptor)


def _check_lock_kind(path: str, found: os.stat_result) -> None:
    """Raise SocketPathError unless a lock's file is a regular file of this user's."""
    what, way_out = "no lock of kapudf's", "remove it or choose another path"
    if not stat.S_ISREG(found.st_mode):
        kind = _kind(found.st_mode)
    elif found.st_uid != os.geteuid():
        kind = f"a file of user {found.st_uid}"
        what = "perhaps the lock of a kapudf that this user runs"
        way_out = "stop that, or remove the file if nothing runs, or choose another path"
    elif found.st_nlink > 1:
        kind = "a file with another name (a hard link)"
    else:
        return
    raise SocketPathError(path, f"{kind} is here, {what}; it was left alone, {way_out}")


def _check_lock(path: str, descriptor: int) -> bytes:
    """Return which process a lock's file names, b"" if none, or raise SocketPathError."""
    found = os.fstat(descriptor)
    _check_lock_kind(path, found)
    holder = os.pread(descriptor, _LOCK_BYTES, 0).strip()
    if found.st_size > _LOCK_BYTES or (holder and not holder.isdigit()):
        problem = "this is not a lock of kapudf's, and was left alone; choose another path"
        raise SocketPathError(path, problem)
    return holder


def check(path: str, *, group: str | None) -> None:
    """Check that a socket could be at a path, as far as that shows without a trace.

    Raises:
        SocketPathError: the path is too long, its folder does not exist, something else is
            there, or there is no such group.
    """
    _check_path(path)
    _group_id(path, group)
    with contextlib.suppress(OSError):
        _check_kind(path, os.lstat(path).st_mode)


def _check_kind(path: str, mode: int) -> None:
    if not stat.S_ISSOCK(mode):
        problem = f"{_kind(mode)} is here, not a socket; it was left alone, choose another path"
        raise SocketPathError(path, problem)


def _check_path(path: str) -> None:
    length = len(os.fsencode(os.path.abspath(path)))
    if length > MAX_PATH_BYTES:
        problem = (
            f"the path has {length} bytes, a Unix socket allows {MAX_PATH_BYTES}; "
            "choose a shorter one"
        )
        raise SocketPathError(path, problem)
    folder = os.path.dirname(os.path.abspath(path))
    try:
        mode = os.stat(folder).st_mode
    except (FileNotFoundError, NotADirectoryError):
        problem = f"the folder {folder} does not exist; create it or choose another path"
        raise SocketPathError(path, problem) from None
    except OSError as error:
        raise SocketPathError(path, _explain(error)) from error
    if not stat.S_ISDIR(mode):
        problem = f"{folder} is not a folder; choose another path"
        raise SocketPathError(path, problem)


def _group_id(path: str, group: str | None) -> int | None:
    if group is None:
        return None
    try:
        return grp.getgrnam(group).gr_gid
    except (KeyError, ValueError):
        if group.isascii() and group.isdigit() and int(group[:11]) <= MAX_GROUP:
            return int(group)  # A number needs no name, as in a container.
        problem = f"there is no group {group!r}; create it or choose another group"
        raise SocketPathError(path, problem) from None


def _make_way(path: str, *, remove_stale: bool) -> None:
    """See to it that nothing is at `path`, or raise; the lock is held."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise SocketPathError(path, _explain(error)) from error
    _check_kind(path, found.st_mode)
    if not _is_served(path):
        if not remove_stale:
            raise StaleSocketError(path)
        with _explained(path):
            os.unlink(path)


def _is_served(path: str) -> bool:
    """Return False if nobody listens at a socket; raise if somebody does, or might."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        trial.settimeout(0)
        try:
            trial.connect(path)
        except ConnectionRefusedError:
            return False
        except FileNotFoundError:
            return False
        except BlockingIOError:
            # Its queue of connections is full: alive, and busy.
            raise SocketInUseError(path, None) from None
        except OSError as error:
            problem = (
                f"a socket is here, and whether it is served cannot be told: {_explain(error)}"
            )
            raise SocketPathError(path, problem) from error
        peer = peer_credentials(trial)
        raise SocketInUseError(path, peer.pid if peer else None)


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turn the system's refusals into errors that name the path and the way out."""
    try:
        yield
    except OSError as error:
        raise SocketPathError(path, _explain(error)) from error


def _explain(error: OSError) -> str:
    match error.errno:
        case errno.EACCES | errno.EPERM:
            return "permission denied; this user may not do that here (folder, group or file)"
        case errno.EADDRINUSE:
            return "something appeared at this path just now; try again"
        case errno.EROFS:
            return "the file system is read-only; choose another path"
    return error.strerror or str(error)


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFREG: "a file",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "a device")


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
