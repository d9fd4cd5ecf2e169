"""Images and containers of real podman and buildah, without network."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests import waiting

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

ROOT = Path(__file__).parents[2]
#: The tools that these tests need, each with the name of its package in Debian.
TOOLS = ("podman", "buildah", "runc", "debootstrap")
#: Why the tests are skipped, None if they are not.
MISSING = next(
    (f"needs {tool} (Debian: {tool})" for tool in TOOLS if not shutil.which(tool)),
    "needs root" if os.geteuid() else None,
)

#: Long enough for a slow machine that boots systemd.
PATIENCE_S = 120.0
_PODMAN = ("podman", "--runtime", "runc")
#: What a sandbox allows; a container asks for more by default.
_LIMITS = ("--network", "none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096")
#: A minimal Debian with systemd and Python, which is made once and stays in podman's storage.
BASE = "localhost/kapudf-test-base"
_PACKAGES = "systemd,systemd-sysv,dbus,python3,python3-venv,procps"
_SUITE = "bookworm"

_names = (f"kapudf-test-{os.getpid()}-{number}" for number in itertools.count(1))


def run(*command: str, check: bool = True, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a command; its output is in the error if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **more)
    if check and done.returncode:
        raise AssertionError(command, done.returncode, done.stdout, done.stderr)
    return done


#: Commands in containers take longer than processes of the host.
wait_until = functools.partial(waiting.wait_until, patience_s=PATIENCE_S)


# --- images ---


def make_base(folder: Path) -> None:
    """Make the base image, unless there is one."""
    if run("podman", "image", "exists", BASE, check=False).returncode == 0:
        return
    root = folder / "base"
    run("debootstrap", "--variant=minbase", f"--include={_PACKAGES}", _SUITE, str(root))
    with contextlib.suppress(OSError):
        shutil.rmtree(root / "var/cache/apt")
    archive = folder / "base.tar"
    run("tar", "--one-file-system", "-C", str(root), "-cf", str(archive), ".")
    run("podman", "import", "--quiet", str(archive), BASE)
    archive.unlink()


def make_wheels(folder: Path) -> Path:
    """Return a folder with the wheels that kapudf is built from and needs, without its own."""
    wheels = folder / "wheels"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    run(*pip, "--wheel-dir", str(wheels), ".[metrics]", "hatchling", cwd=ROOT)
    for own in wheels.glob("kapudf-*.whl"):
        own.unlink()
    return wheels


def build(name: str, dockerfile: Path, context: Path, *options: str) -> str:
    """Build an image and return its name."""
    image = f"localhost/{name}"
    command = ["buildah", "bud", "--quiet", "--isolation", "chroot", "--format", "docker"]
    run(*command, *options, "--file", str(dockerfile), "--tag", image, str(context))
    return image


def make_image(folder: Path) -> str:
    """Build kapudf's image from deploy/docker, and return its name."""
    make_base(folder)
    return build(
        "kapudf-test",
        ROOT / "deploy" / "docker" / "Dockerfile",
        ROOT,
        *("--build-arg", f"BASE={BASE}"),
        *("--build-arg", "PIP_NO_INDEX=1", "--build-arg", "PIP_FIND_LINKS=/wheels"),
        *("--volume", f"{make_wheels(folder)}:/wheels:ro"),
    )


# --- containers ---


class Container:
    """A container, from `__init__` until the end of the context."""

    def __init__(self, image: str, *options: str, command: Sequence[str] = ()) -> None:
        """Start it."""
        self.name = next(_names)
        run(*_PODMAN, "run", "--detach", "--name", self.name, *_LIMITS, *options, image, *command)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is not None:
            sys.stderr.write(self.logs())
        run(*_PODMAN, "rm", "--force", "--time", "0", self.name)

    def logs(self) -> str:
        done = run(*_PODMAN, "logs", self.name, check=False)
        return done.stdout + done.stderr

    def podman(self, command: str, *arguments: str) -> str:
        """Run a command of podman for this container."""
        return run(*_PODMAN, *command.split(), self.name, *arguments).stdout

    def try_exec(self, *command: str, user: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command in it."""
        options = ["--user", user] if user else []
        return run(*_PODMAN, "exec", *options, self.name, *command, check=False)

    def exec(self, *command: str, user: str = "") -> str:
        """Run a command in it, which must succeed; return its output."""
        done = self.try_exec(*command, user=user)
        assert done.returncode == 0, (command, done.stdout, done.stderr, self.logs()[-4000:])
        return done.stdout

    def python(self, code: str, *arguments: str, user: str = "") -> str:
        """Run Python code in it, with kapudf at hand; return its output."""
        return self.exec("/opt/kapudf/bin/python3", "-c", code, *arguments, user=user)

    def signal(self, pids: Iterable[int], number: int) -> None:
        """Send a signal to processes in it; one may have ended."""
        code = "import contextlib, os, sys\nfor pid in sys.argv[2:]:\n"
        code += "    with contextlib.suppress(ProcessLookupError):\n"
        code += "        os.kill(int(pid), int(sys.argv[1]))"
        self.python(code, str(number), *map(str, pids))


@contextlib.contextmanager
def volume() -> Iterator[str]:
    """Give the name of a volume, which containers share."""
    name = next(_names)
    run("podman", "volume", "create", name)
    try:
        yield name
    finally:
        run("podman", "volume", "rm", "--force", name)


#: A task for the handler of `ongoing.COUNT`: each answer must have the next number.
_TRAFFIC = """
import sys, threading, time
from kapudf_cli.client.driver import KapacitorSide
from kapudf_cli.protocol.udf_pb2 import InitRequest, Point

ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
number, longest_s = 0, 0.0
with KapacitorSide.connect(sys.argv[1], timeout_s=100) as side:
    side.send(InitRequest(taskID="task", nodeID="node"))
    assert side.receive().success
    print("started", flush=True)
    while not ended.wait(0.001):
        number += 1
        began_s = time.monotonic()
        side.extend(100)
        side.send(Point(time=number))
        answer = side.receive()
        assert answer is not None and answer.fieldsInt["count"] == number, (number, answer)
        longest_s = max(longest_s, time.monotonic() - began_s)
print(number, longest_s)
"""


class Traffic:
    """A task in a container, which sends points until the end of the context.

    Attributes:
        points: how many were answered, once it has ended.
        pause_s: the longest time until an answer, once it has ended.
    """

    def __init__(self, container: Container, path: str, *, user: str = "") -> None:
        options = ["--user", user] if user else []
        python = ["/opt/kapudf/bin/python3", "-c", _TRAFFIC, path]
        self._process = subprocess.Popen(
            [*_PODMAN, "exec", "--interactive", *options, container.name, *python],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.points = 0
        self.pause_s = 0.0
        self._is_failure_expected = False

    def __enter__(self) -> Self:
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "started\n":
            _, errors = self._process.communicate()
            raise AssertionError(errors)
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        output, errors = self._process.communicate("", timeout=PATIENCE_S)
        if error is None and not self._is_failure_expected:
            assert self._process.returncode == 0, errors
            points, pause_s = output.split()
            self.points, self.pause_s = int(points), float(pause_s)

    def await_failure(self) -> None:
        """Wait until it has failed, which is then expected."""
        self._is_failure_expected = True
        assert self._process.wait(PATIENCE_S)

    @property
    def has_failed(self) -> bool:
        """Whether it has ended by itself."""
        return self._process.poll() is not None
