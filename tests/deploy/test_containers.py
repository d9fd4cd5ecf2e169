"""kapudf in real containers: the image, shared folders, kills, and a real kapacitord."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.deploy.containers import MISSING, Container, Traffic, volume, wait_until
from tests.kapacitor.daemon import find_program

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.deploy,
    pytest.mark.skipif(MISSING is not None, reason=MISSING or ""),
    pytest.mark.timeout(1800),
]

SOCKET = "/run/kapudf/count.sock"
#: What a container should be given, and no more.
HARDENED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")


@pytest.fixture
def folder() -> Iterator[str]:
    """Give a volume for the folder of the socket, as an option of `podman run`."""
    with volume() as name:
        yield f"--volume={name}:/run/kapudf"


def kapudf(image: str, folder: str, *options: str) -> Container:
    """Start kapudf in a container, and wait until it is healthy."""
    container = Container(image, *HARDENED, folder, *options)
    wait_until(lambda: container.try_exec("kapudf", "probe").returncode == 0)
    return container


def idle(image: str, folder: str, *options: str) -> Container:
    """Start a container that does nothing by itself."""
    return Container(image, "--entrypoint", "sleep", folder, *options, command=["infinity"])


def status_of(container: Container) -> dict[str, Any]:
    status: dict[str, Any] = json.loads(container.exec("kapudf", "status", "--json"))
    return status


def pids_of(status: dict[str, Any], part: str) -> set[int]:
    """Return the process ids of the supervisor or of the workers."""
    processes = [status["supervisor"]] if part == "supervisor" else status["workers"]
    return {each["pid"] for each in processes}


def kill(container: Container, part: str) -> dict[str, Any]:
    """Kill the supervisor or the workers; return the status before, with the part killed."""
    before = status_of(container)
    container.signal(pids_of(before, part), 9)
    return {**before, "killed": part}


def test_the_image_needs_no_root_and_no_init(count_image: str, folder: str) -> None:
    with kapudf(count_image, folder) as container:
        assert container.exec("id", "-u").strip() == "990"
        assert container.try_exec("touch", "/opt/kapudf/x").returncode != 0
        container.podman("healthcheck run")
        # An orphan becomes a child of PID 1, which reaps it.
        container.exec("sh", "-c", "(sleep 0.1 &)")
        wait_until(lambda: "sleep" not in container.exec("ps", "-eo", "stat,comm"))
        assert "Z" not in container.exec("ps", "-eo", "stat=")
        container.podman("stop --time 30")
        assert '"event": "stopped"' in container.logs()


def test_two_containers_share_the_folder_under_different_users(
    count_image: str, folder: str
) -> None:
    access = ("--env", "KAPUDF_SOCKET_MODE=0666", "--env", "KAPUDF_ALLOW_USERS=1234")
    with (
        kapudf(count_image, folder, *access) as container,
        idle(count_image, folder) as other,
    ):
        with Traffic(other, SOCKET, user="1234:1234") as traffic:
            wait_until(lambda: status_of(container)["totals"]["points_in"] > 100)
        assert traffic.points > 100
        assert other.try_exec("kapudf", "probe", user="4321:4321").returncode == 1
        assert other.try_exec("kapudf", "status", user="4321:4321").returncode == 1
        refused = [json.loads(line) for line in container.logs().splitlines() if "refused" in line]
        assert {each["peer_uid"] for each in refused} == {4321}


def test_kills_stop_no_task(count_image: str, folder: str) -> None:
    with kapudf(count_image, folder) as container, idle(count_image, folder) as other:
        with Traffic(other, SOCKET) as traffic:
            for part in ["worker", "supervisor"] * 3:
                before = kill(container, part)
                wait_until(lambda: is_serving_again(container, before))  # noqa: B023 - called at once
            assert not traffic.has_failed
        # In a volume, the killed container leaves its socket behind.
        container.podman("kill --signal KILL")
        with kapudf(count_image, folder):
            assert other.exec("kapudf", "probe")


def is_serving_again(container: Container, before: dict[str, Any]) -> bool:
    """Return whether the task has gone on since `kill`."""
    asked = container.try_exec("kapudf", "status", "--json")
    if asked.returncode:
        return False
    now = json.loads(asked.stdout)
    part = before["killed"]
    points = [each["points_in"] for each in now["connections"]]
    return not pids_of(now, part) & pids_of(before, part) and points > [
        each["points_in"] for each in before["connections"]
    ]


# --- a real kapacitord ---

KAPACITORD, KAPACITOR = find_program("kapacitord"), find_program("kapacitor")
CONFIG = """
hostname = "localhost"
data_dir = "/tmp/kapacitor"
[http]
  bind-address = "127.0.0.1:9092"
[replay]
  dir = "/tmp/kapacitor/replay"
[storage]
  boltdb = "/tmp/kapacitor/kapacitor.db"
[task]
  dir = "/tmp/kapacitor/tasks"
[[influxdb]]
  enabled = false
[reporting]
  enabled = false
[udf.functions.count]
  socket = "/run/kapudf/count.sock"
  timeout = "10s"
"""
TICK = """
dbrp "telegraf"."autogen"
stream
    |from().measurement('cpu')
    @count()
    |httpOut('counted')
"""
WRITE = """
import sys, urllib.request
url = "http://127.0.0.1:9092/write?db=telegraf&rp=autogen"
urllib.request.urlopen(url, data=f"cpu value=1 {sys.argv[1]}".encode())
"""
#: Prints the field that the handler has added to the last point, 0 before the first one.
READ = """
import json, urllib.request
answer = urllib.request.urlopen("http://127.0.0.1:9092/kapacitor/v1/tasks/count/counted")
series = json.load(answer)["series"]
print(dict(zip(series[0]["columns"], series[0]["values"][-1]))["count"] if series else 0)
"""


@pytest.mark.skipif(not (KAPACITORD and KAPACITOR), reason="needs kapacitord and kapacitor")
def test_a_real_kapacitord_is_served_from_another_container(count_image: str, folder: str) -> None:
    assert KAPACITORD is not None
    assert KAPACITOR is not None
    programs = [
        f"--volume={os.path.realpath(path)}:/usr/local/bin/{name}:ro"
        for name, path in (("kapacitord", KAPACITORD), ("kapacitor", KAPACITOR))
    ]
    access = ("--env", "KAPUDF_SOCKET_MODE=0666", "--env", "KAPUDF_ALLOW_USERS=1234")
    start = f"cat > /tmp/k.conf <<'EOF'\n{CONFIG}\nEOF\nexec kapacitord -config /tmp/k.conf"
    define = (
        f"cat > /tmp/count.tick <<'EOF'\n{TICK}\nEOF\n"
        "kapacitor define count -tick /tmp/count.tick && kapacitor enable count"
    )
    with (
        kapudf(count_image, folder, *access) as container,
        Container(
            count_image,
            *("--entrypoint", "sh", "--user", "1234:1234", folder, *programs),
            command=["-c", start],
        ) as kapacitor,
    ):
        wait_until(lambda: kapacitor.try_exec("kapacitor", "list", "tasks").returncode == 0)
        kapacitor.exec("sh", "-c", define)
        victims = iter(["", "worker", "supervisor"])
        for number in range(1, 7):
            kapacitor.python(WRITE, str(number))
            wait_until(lambda: int(kapacitor.python(READ)) == number)  # noqa: B023 - called at once
            if number % 2 == 0 and (part := next(victims)):
                kill(container, part)
        shown = kapacitor.exec("kapacitor", "show", "count")
        assert "Executing: true" in shown
