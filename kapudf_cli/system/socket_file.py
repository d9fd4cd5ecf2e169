"""A listening Unix socket in the file system, with exclusive use of its path."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from typing import TYPE_CHECKING, NamedTuple, Self

from kapudf_cli.system.errors import SocketInUseError, SocketPathError, StaleSocketError
from kapudf_cli.system.peers import PeerFilter, group_id, peer_credentials

if TYPE_CHECKING:
    from collections.abc import Iterator

#: sun_path has 108 bytes, the last one a NUL (unix(7)).
MAX_PATH_BYTES = 107
#: Kapacitor connects once per task, and once at its start. Connections are accepted only as fast
#: as workers start them, and a full queue refuses more (EAGAIN). The kernel's cap is somaxconn.
BACKLOG = 4096
#: How many connections of other users are closed at once.
_MAX_REFUSED = 64
#: The longest content of a lock file: a process number.
_LOCK_BYTES = 32
_HAS_O_PATH = hasattr(os, "O_PATH")


class Access(NamedTuple):
    """Who may connect to a socket.

    Attributes:
        mode: the permission bits of its path.
        group: the group of its path, None for the group of the process.
        users: the users whose connections are accepted, by name or number; None for all of them.
        groups: the same for groups. With both, a peer needs to be in one of them.
    """

    mode: int = 0o660
    group: str | None = None
    users: tuple[str, ...] | None = None
    groups: tuple[str, ...] | None = None


class SocketFile:
    """A Unix socket at a path that only this process serves.

    While it is open it holds a lock on `PATH.lock`. If two servers that may remove a stale
    socket start at the same time, the one without the lock never touches the path.
    """

    def __init__(
        self,
        path: str,
        listener: socket.socket,
        lock: _PathLock | None,
        held: _HeldFile,
        *,
        is_ours: bool = True,
    ) -> None:
        """Do not call this; use `bind`, `adopt` or `borrow`."""
        self.path = path
        self.listener = listener
        self._lock = lock
        self._held = held
        # Whether this process sets its permissions, and removes it in the end.
        self._is_ours = is_ours
        self._peers: PeerFilter | None = None

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
        """Create a socket at `path`, never open to more users than `mode` and `group` allow.

        Do not call this while other threads run: it sets the process's umask.

        Args:
            path: of the socket; its folder must exist.
            mode: the socket's permission bits; users with write permission may connect.
            group: the socket's group, None for the group of the process.
            remove_stale: whether to remove a socket that no process serves.
            listens: whether to listen at once; otherwise connections are refused until `listen`.

        Raises:
            SocketInUseError: a live process serves the path, or is starting to.
            StaleSocketError: a leftover socket exists, and `remove_stale` is False.
            SocketPathError: the socket cannot be created for another reason.
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

    @classmethod
    def adopt(cls, listener: socket.socket, *, mode: int, group: str | None) -> Self:
        """Go on with a socket that an earlier process has bound, and did not release.

        Raises:
            SocketPathError: its path is gone, or served by another process.
        """
        path = listener.getsockname()
        with contextlib.ExitStack() as undo:
            lock = _PathLock(path)
            undo.callback(lock.release)
            with _explained(path):
                held = _HeldFile(path)
            undo.callback(held.close)
            listener.settimeout(0)
            socket_file = cls(path, listener, lock, held)
            socket_file.set_access(mode, group)
            undo.pop_all()
        return socket_file

    @classmethod
    def borrow(cls, listener: socket.socket) -> Self:
        """Accept connections of a socket that belongs to systemd, as it is.

        Raises:
            SocketPathError: its path is gone.
        """
        path = listener.getsockname()
        with _explained(path):
            held = _HeldFile(path)
        listener.settimeout(0)
        return cls(path, listener, None, held, is_ours=False)

    def bind_beside(self, suffix: str, *, mode: int, group: str | None) -> SocketFile:
        """Also listen at this path with a suffix, guarded by the same lock.

        A socket left there by an earlier holder of the lock is removed.

        Raises:
            SocketPathError: that socket cannot be created.
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
                # Created without permissions, so that no user connects before group and mode
                # are set. It listens before that, so that no permitted user is refused.
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
        """Start to listen: connections wait in the queue until they are accepted."""
        self.listener.listen(BACKLOG)

    def set_access(self, mode: int, group: str | None) -> None:
        """Set the permission bits and the group (None for the group of the process).

        Raises:
            SocketPathError: the group does not exist, or this process may not set it.
        """
        if not self._is_ours:
            return
        gid = _group_id(self.path, group)
        with _explained(self.path):
            os.chown(self._held.name, -1, os.getegid() if gid is None else gid)
            os.chmod(self._held.name, mode)

    def filter_peers(self, access: Access) -> None:
        """Accept connections of some users only.

        Raises:
            SocketPathError: there is no such user or group.
        """
        self._peers = PeerFilter.of(self.path, access.users, access.groups)

    def accept(self) -> socket.socket | None:
        """Return the next connection, None if none waits; close those of other users.

        Raises:
            OSError: no descriptor or memory is left.
        """
        for _ in range(_MAX_REFUSED):
            try:
                connection, _ = self.listener.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return None
            if self._peers is None or self._peers.allows(connection):
                return connection
            connection.close()
        return None  # The loop comes back for the others.

    def close(self) -> None:
        """Stop accepting; the path stays locked."""
        self.listener.close()

    def release(self) -> None:
        """Close, remove the socket if it is still this one, and release the lock."""
        self.close()
        with contextlib.suppress(OSError):
            if self._is_ours and self._held.is_at(self.path):
                os.unlink(self.path)
        self._held.close()
        if self._lock is not None:
            self._lock.release()


class _HeldFile:
    """A reference to a file that stays valid when its path is removed or replaced.

    While it is open, the file's inode number is not reused, and `name` refers to this file even
    if the path becomes a link. Both need Linux's O_PATH; elsewhere `name` is the path.
    """

    def __init__(self, path: str) -> None:
        """Open the file at `path`."""
        self._descriptor = -1
        self.name = path
        if _HAS_O_PATH:
            self._descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            self.name = f"/proc/self/fd/{self._descriptor}"
        self._identity = _identity(os.lstat(path) if not _HAS_O_PATH else os.stat(self.name))

    def is_at(self, path: str) -> bool:
        """Return whether `path` still refers to this file."""
        return _identity(os.lstat(path)) == self._identity

    def close(self) -> None:
        """Close the reference."""
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
                # The last holder may have removed the file between open() and flock(). Then
                # other processes see another file, or none.
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
        # The process number is for messages only; on a full disk it is missing.
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def _open(self) -> int:
        """Open or create the lock file, without blocking on any kind of file."""
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        while True:
            # Opening a device can have side effects, so the kind is checked first.
            with _explained(self._path), contextlib.suppress(FileNotFoundError):
                _check_lock_kind(self._path, os.lstat(self._path))
            with _explained(self._path):
                try:
                    return os.open(self._path, flags | os.O_CREAT | os.O_EXCL, 0o600)
                except FileExistsError:
                    with contextlib.suppress(FileNotFoundError):
                        return os.open(self._path, flags)

    def release(self) -> None:
        """Remove the lock file and release the lock."""
        with contextlib.suppress(OSError):
            os.unlink(self._path)
        os.close(self._descriptor)


def _check_lock_kind(path: str, found: os.stat_result) -> None:
    """Raise SocketPathError unless the lock file is a regular file owned by this user."""
    what, way_out = "not a lock of kapudf", "remove it or choose another path"
    if not stat.S_ISREG(found.st_mode):
        kind = _kind(found.st_mode)
    elif found.st_uid != os.geteuid():
        kind = f"a file of user {found.st_uid}"
        what = "possibly the lock of a kapudf that this user runs"
        way_out = "stop that process, remove the file if none runs, or choose another path"
    elif found.st_nlink > 1:
        kind = "a file with another name (a hard link)"
    else:
        return
    raise SocketPathError(path, f"{kind} is here, {what}; it was left unchanged; {way_out}")


def _check_lock(path: str, descriptor: int) -> bytes:
    """Return the process number in a lock file, b"" if there is none, or raise SocketPathError."""
    found = os.fstat(descriptor)
    _check_lock_kind(path, found)
    holder = os.pread(descriptor, _LOCK_BYTES, 0).strip()
    if found.st_size > _LOCK_BYTES or (holder and not holder.isdigit()):
        problem = "this is not a lock of kapudf, and was left unchanged; choose another path"
        raise SocketPathError(path, problem)
    return holder


def check(path: str, access: Access) -> None:
    """Check whether a socket can be created at a path, without creating anything.

    Raises:
        SocketPathError: the path is too long, its folder does not exist, another file
            exists there, or a user or group does not exist.
    """
    _check_path(path)
    _group_id(path, access.group)
    PeerFilter.of(path, access.users, access.groups)
    with contextlib.suppress(OSError):
        _check_kind(path, os.lstat(path).st_mode)


def _check_kind(path: str, mode: int) -> None:
    if not stat.S_ISSOCK(mode):
        problem = f"{_kind(mode)} is here, not a socket; it was left unchanged; choose another path"
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
    return None if group is None else group_id(path, group)


def _make_way(path: str, *, remove_stale: bool) -> None:
    """Remove a stale socket at `path` or raise; the caller holds the lock."""
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
    """Return False if no process listens at a socket; raise if one does, or may."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        trial.settimeout(0)
        try:
            trial.connect(path)
        except ConnectionRefusedError:
            return False
        except FileNotFoundError:
            return False
        except BlockingIOError:
            # Its queue of connections is full, so a process serves it.
            raise SocketInUseError(path, None) from None
        except OSError as error:
            problem = (
                f"a socket is here, and kapudf cannot tell whether it is served: {_explain(error)}"
            )
            raise SocketPathError(path, problem) from error
        peer = peer_credentials(trial)
        raise SocketInUseError(path, peer.pid if peer else None)


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turn an OSError into a SocketPathError with the path and advice."""
    try:
        yield
    except OSError as error:
        raise SocketPathError(path, _explain(error)) from error


def _explain(error: OSError) -> str:
    match error.errno:
        case errno.EACCES | errno.EPERM:
            return "permission denied; check the permissions of the folder, the group and the file"
        case errno.EADDRINUSE:
            return "another process has just created this path; try again"
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
