"""A Ray cluster on the loopback interface, whose nodes can be killed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_RAY = str(Path(sysconfig.get_path("scripts")) / "ray")
_HOST = "127.0.0.1"
#: Each node is told to have so many processors, so that actors are spread.
_CPUS = 2
_STORE_BYTES = 80_000_000
#: On a busy machine, Ray itself gives a start up after 30 s.
_ATTEMPTS = 3

#: A lost node is noticed after 3 s instead of 15, and a lost head after 5 instead of 60.
QUICK = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
    "RAY_USAGE_STATS_ENABLED": "0",
    # On a busy machine, a node takes longer than Ray allows by default.
    "RAY_raylet_start_wait_time_s": "120",
}


class Node:
    """One node: `ray start --block` and the processes that it starts, which are one group."""

    def __init__(self, folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        """Start it, and wait until it is up."""
        said = []
        for _ in range(_ATTEMPTS):
            self._process = _started(folder, *arguments, env=env)
            assert self._process.stdout is not None
            for line in self._process.stdout:
                said.append(line)
                if "Ray runtime started" in line:
                    return
            self.kill()
        raise AssertionError("".join(said))

    @property
    def group(self) -> int:
        """The group of its processes."""
        return self._process.pid

    def kill(self) -> None:
        """Kill its processes, as if its machine had lost its power."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(PATIENCE_S)
        assert self._process.stdout is not None
        self._process.stdout.close()


def _started(folder: Path, *arguments: str, env: Mapping[str, str] | None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(_RAY, "start", "--block", *arguments),
            *("--node-ip-address", _HOST, "--num-cpus", str(_CPUS)),
            *("--object-store-memory", str(_STORE_BYTES), "--disable-usage-stats"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env={**os.environ, **QUICK, **(env or {})},
        start_new_session=True,
        text=True,
    )


class RayCluster:
    """A head, and other nodes."""

    def __init__(self, folder: Path) -> None:
        """Choose a free port; nothing is started."""
        self._folder = folder
        with socket.create_server((_HOST, 0)) as head, socket.create_server((_HOST, 0)) as client:
            self._port, self._client_port = head.getsockname()[1], client.getsockname()[1]
        self.head: Node | None = None
        self.nodes: list[Node] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.kill()
        if self.head is not None:
            self.head.kill()

    @property
    def address(self) -> str:
        """For a machine of the cluster."""
        return f"{_HOST}:{self._port}"

    @property
    def client_address(self) -> str:
        """For any other machine."""
        return f"ray://{_HOST}:{self._client_port}"

    def start_head(self) -> None:
        """Start the head, at the same address each time."""
        self.head = Node(
            self._folder,
            *("--head", "--port", str(self._port), "--include-dashboard", "false"),
            *("--ray-client-server-port", str(self._client_port)),
            *("--temp-dir", str(self._folder / "ray")),
        )

    def add_node(self, *arguments: str, env: Mapping[str, str] | None = None) -> Node:
        """Start another node."""
        node = Node(self._folder, "--address", self.address, *arguments, env=env)
        self.nodes.append(node)
        return node

    @contextlib.contextmanager
    def another_node(self, *arguments: str, env: Mapping[str, str] | None = None) -> Iterator[None]:
        """Have another node for a while."""
        node = self.add_node(*arguments, env=env)
        try:
            yield
        finally:
            self.kill_node(node)

    def host_of(self, actor: int) -> Node | None:
        """Return the node on which an actor has this process id, None for the head."""
        with open(f"/proc/{actor}/stat", encoding="ascii") as stat:
            raylet = int(stat.read().rpartition(")")[2].split()[1])
        group = os.getpgid(raylet)
        return next((node for node in self.nodes if node.group == group), None)

    def kill_node(self, node: Node) -> None:
        """Kill a node that is not the head."""
        self.nodes.remove(node)
        node.kill()

    def kill_head(self) -> None:
        """Kill the head, and the nodes, which end without it anyway."""
        assert self.head is not None
        self.head.kill()
        self.head = None
        while self.nodes:
            self.nodes.pop().kill()
