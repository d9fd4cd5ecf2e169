"""Python processes started by fork, from one that has imported kapudf already.

An interpreter that imports kapudf costs half a second of processor time, and the tests start
thousands. In the block of `forking()`, `subprocess.Popen` starts `python -m kapudf_cli ...`,
`python -m tests.peers...` and the workers of `kapudf serve` by fork. They are real processes,
with their own descriptors, signals and memory, and children of the process that starts them.

    pytest ── this module (imports kapudf) ── intermediate ── kapudf serve
                                              (exits: the new process becomes pytest's child)

With `KAPUDF_TESTS_EXEC=1` in the environment, processes start by exec, as in `make test-long`.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import gc
import importlib.machinery
import os
import pickle
import pkgutil
import resource
import runpy
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import kapudf_cli

if TYPE_CHECKING:
    from collections.abc import Iterator

_PR_SET_CHILD_SUBREAPER: Final = 36
_REQUEST_BYTES: Final = 1024 * 1024
#: The first descriptor of those that are moved out of the way.
_FIRST_FREE: Final = 256
_MAX_DESCRIPTOR: Final = 1 << 20
_ROOT: Final = Path(__file__).parent.parent
#: The modules of processes that are forked.
_PROGRAMS: Final = {"kapudf_cli", "kapacitor.udf", "kapudf_cli.worker.main"}
#: Modules whose libraries take much memory, which only pictures and Ray need.
_LARGE: Final = {
    "kapudf_cli.ray_engine.cluster",
    "kapudf_cli.tools.plot.chart",
    "kapudf_cli.tools.plot.page",
}
#: Variables that the interpreter reads when it starts, and so does not see after a fork.
_READ_AT_START: Final = ("PYTHON", "LC_", "LANG", "COVERAGE")
_INTERPRETER: Final = sys.executable
#: What the environment put on the path, after the first folder.
_PATHS: Final = [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]
_exec_child: Final[Any] = subprocess.Popen._execute_child  # type: ignore[attr-defined]


class Forks:
    """The connection to the process that forks others."""

    def __init__(self, connection: socket.socket) -> None:
        """Send requests over `connection`, as this process and no child of it."""
        self._connection = connection
        self._owner = os.getpid()
        self._ids = (os.geteuid(), os.getegid())
        self._interpreter = interpreter_environment(os.environ)

    def can_start(self, how: dict[str, Any]) -> bool:
        """Return whether a process is one that the fork can stand for."""
        env = os.environ if how["env"] is None else how["env"]
        return (
            module_of(how["args"]) is not None
            and "KAPUDF_TESTS_EXEC" not in env
            and os.getpid() == self._owner
            and self._ids == (os.geteuid(), os.getegid())
            and how["preexec_fn"] is None
            and how["uid"] is how["gid"] is how["gids"] is None
            and interpreter_environment(env) == self._interpreter
            and not hides_modules(paths_of(env))
        )

    def start(self, how: dict[str, Any], streams: list[int]) -> int:
        """Start a process and return its number."""
        kept = sorted(how["pass_fds"])
        request = {
            "arguments": [os.fspath(each) for each in how["args"]],
            "cwd": os.fspath(how["cwd"] or os.getcwd()),
            "environment": dict(os.environ if how["env"] is None else how["env"]),
            "descriptors": [0, 1, 2, *kept],
            "new_session": how["start_new_session"],
            "process_group": how["process_group"],
            "files": resource.getrlimit(resource.RLIMIT_NOFILE),
            "umask": umask(),
        }
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs:
                socket.send_fds(
                    self._connection, [pickle.dumps(request)], [theirs.fileno(), *streams, *kept]
                )
            answer = ours.recv(64)
        if not answer:
            raise RuntimeError("the process that forks others has ended")
        pid, number = pickle.loads(answer)  # noqa: S301 - from our own process
        if number:
            os.waitpid(pid, 0)
            raise OSError(number, os.strerror(number), request["cwd"])
        return int(pid)


def interpreter_environment(env: Any) -> dict[str, str]:
    return {
        key: value
        for key, value in env.items()
        if key.startswith(_READ_AT_START) and key != "PYTHONPATH"
    }


def paths_of(env: Any) -> list[str]:
    return [each for each in env.get("PYTHONPATH", "").split(os.pathsep) if each]


def hides_modules(paths: list[str]) -> bool:
    """Return whether folders have a module that may be imported already, from elsewhere."""
    names = {name.partition(".")[0] for path in paths if path not in sys.path for name in (
        os.listdir(path) if os.path.isdir(path) else ()
    ) if name.endswith(".py") or "." not in name}  # fmt: skip
    return any(importlib.machinery.PathFinder.find_spec(name) for name in names)


def module_of(args: Any) -> str | None:
    """Return the module that `python [-P] -m MODULE` runs, if it is one that is forked."""
    if not isinstance(args, (list, tuple)) or not args or args[0] != _INTERPRETER:
        return None
    has_path = args[1:2] != ["-P"]
    options = list(args[1:] if has_path else args[2:])
    if len(options) < 2 or options[0] != "-m":
        return None
    module = str(options[1])
    if has_path and module.startswith("tests.peers."):
        return module
    return module if module in _PROGRAMS else None


def umask() -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        return next(int(line.split()[1], 8) for line in status if line.startswith("Umask:"))


def install(forks: Forks) -> None:
    """Have `subprocess.Popen` start processes by fork where that makes no difference."""
    names = _exec_child.__code__.co_varnames[1 : _exec_child.__code__.co_argcount]

    def execute_child(self: Any, *args: Any) -> None:
        how = dict(zip(names, args, strict=True))
        if how["shell"] or how["executable"] or not forks.can_start(how):
            _exec_child(self, *args)
            return
        given = [how["p2cread"], how["c2pwrite"], how["errwrite"]]
        streams = [number if each == -1 else each for number, each in enumerate(given)]
        self.pid = forks.start(how, streams)
        self._child_created = True
        self._close_pipe_fds(
            *(how[name] for name in names if name in {
                "p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite"
            })
        )  # fmt: skip

    subprocess.Popen._execute_child = execute_child  # type: ignore[attr-defined]


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent exits."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


@contextlib.contextmanager
def forking() -> Iterator[None]:
    """Start processes by fork in this block."""
    adopt_orphans()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.forked", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            cwd=_ROOT,
            pass_fds=[theirs.fileno()],
        )
    with process, ours:
        install(Forks(ours))
        yield
        subprocess.Popen._execute_child = _exec_child  # type: ignore[attr-defined]


# --- in the process that forks others ---


def main(connection: socket.socket) -> None:
    """Fork processes until the connection ends; go on as the new process in each of them."""
    import_everything()
    gc.freeze()
    request = serve(connection)
    while request is not None:
        if starts_others(request["arguments"]) and (connection_of_fork := fork_of_its_own()):
            request = serve(connection_of_fork)
        else:
            run(request["arguments"])
            return


def import_everything() -> None:
    """Import kapudf, and the slow libraries of its handlers."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # No threads before a fork.
    for library in ("numpy", "scipy.special"):
        with contextlib.suppress(ImportError):
            importlib.import_module(library)
    for module in pkgutil.walk_packages(kapudf_cli.__path__, "kapudf_cli."):
        if not module.name.endswith("__main__") and module.name not in _PROGRAMS | _LARGE:
            # Some need a package that need not be installed.
            with contextlib.suppress(ImportError):
                importlib.import_module(module.name)


def starts_others(arguments: list[str]) -> bool:
    return arguments[1:3] == ["-m", "kapudf_cli"] and (
        arguments[3:4] in (["serve"], ["check"], ["dev"]) or "--exec" in arguments
    )


def serve(connection: socket.socket) -> dict[str, Any] | None:
    """Fork a process for each request; return, in the new process, what it is to run."""
    while True:
        data, descriptors, _, _ = socket.recv_fds(connection, _REQUEST_BYTES, 64)
        if not data:
            return None
        answer, *given = descriptors
        read, write = os.pipe()
        intermediate = os.fork()
        if intermediate == 0:
            if os.fork():
                os._exit(0)
            request: dict[str, Any] = pickle.loads(data)  # noqa: S301 - from our own parent
            connection.detach()
            return request if become(request, given, write) else None
        os.close(write)
        # The new process has its new parent once the intermediate one is gone.
        os.waitpid(intermediate, 0)
        with contextlib.suppress(OSError):
            os.write(answer, os.read(read, 64))
        for each in (read, *descriptors):
            os.close(each)


def become(request: dict[str, Any], given: list[int], report: int) -> bool:
    """Take over descriptors, folder, environment and limits; report how it went."""
    targets: list[int] = request["descriptors"]
    first = max(_FIRST_FREE, *targets) + 1
    report = fcntl.fcntl(report, fcntl.F_DUPFD_CLOEXEC, first)
    moved = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, first) for each in given]
    os.closerange(3, first)
    for source, target in zip(moved, targets, strict=True):
        os.dup2(source, target)
        os.close(source)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.umask(request["umask"])
    resource.setrlimit(resource.RLIMIT_NOFILE, request["files"])
    if request["new_session"]:
        os.setsid()
    if request["process_group"] >= 0:
        os.setpgid(0, request["process_group"])
    number = 0
    try:
        os.chdir(request["cwd"])
    except OSError as error:
        number = error.errno or 1
    os.write(report, pickle.dumps((os.getpid(), number)))
    os.close(report)
    return number == 0


def fork_of_its_own() -> socket.socket | None:
    """Give a command that starts processes another process that forks them.

    Returns the connection to serve in that process, and None in the command.
    """
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] <= _FIRST_FREE:
        return None  # The connection would take one of the few descriptors.
    adopt_orphans()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork():
        theirs.close()
        # Out of the way of the descriptors that tests count on.
        number = fcntl.fcntl(ours.detach(), fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE)
        install(Forks(socket.socket(fileno=number)))
        return None
    os.setpgid(0, 0)
    os.dup2(theirs.detach(), 3)
    ours.detach()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    os.closerange(4, _MAX_DESCRIPTOR)
    return socket.socket(fileno=3)


def run(arguments: list[str]) -> None:
    """Run `python [-P] -m MODULE ...` as the interpreter does."""
    has_path = arguments[1] == "-m"
    _, module, *rest = arguments[1:] if has_path else arguments[2:]
    first = [os.getcwd()] if has_path else []
    sys.path[: 1 + len(_PATHS)] = [*first, *paths_of(os.environ)]
    importlib.invalidate_caches()
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # type: ignore[misc]  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # type: ignore[misc]  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(  # type: ignore[misc]  # noqa: SIM115
        2, "w", buffering=1, errors="backslashreplace", closefd=False
    )
    sys.argv = [module, *rest]
    status: str | int | None = None
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code
    end_quickly(status)


def end_quickly(status: str | int | None) -> None:
    """End this process without destroying its objects, where the interpreter would do only that.

    This takes a quarter of the processor time of a short command. Where threads are left, or
    output cannot be written, the interpreter ends the process.
    """
    if isinstance(status, int | None) and threading.active_count() == 1:
        atexit._run_exitfuncs()
        with contextlib.suppress(OSError, ValueError):
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
            os._exit(status or 0)
    sys.exit(status)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
