"""kapudf as a service of a real systemd, booted in a container."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.deploy.containers import MISSING, ROOT, Container, Traffic, build, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.deploy,
    pytest.mark.skipif(MISSING is not None, reason=MISSING or ""),
    pytest.mark.timeout(1800),
]

SOCKET = "/run/kapudf/count.sock"
#: How often the supervisor is killed and restarted under traffic.
TIMES = 5
DOCKERFILE = """
FROM {image}
USER 0
RUN groupadd --system kapacitor
COPY count.py /srv/
COPY systemd/ /etc/systemd/system/
COPY kapudf/ /etc/kapudf/
ENTRYPOINT []
CMD ["/sbin/init"]
"""
#: kapacitord's unit, as far as its order counts.
KAPACITOR = """
[Service]
ExecStart=/bin/sleep infinity
"""
#: The watchdog of the unit takes too long for a test.
WATCHDOG = """
[Service]
WatchdogSec=3s
"""


def config_of(name: str, folder: str) -> str:
    path = f"/run/{folder}/{name}.sock"
    function = {"handler": "/srv/count.py:Count", "socket": path, "socket_group": "kapacitor"}
    return json.dumps({"functions": {name: function}})


@pytest.fixture(scope="module")
def machine(image: str, count_folder: Path) -> Iterator[Container]:
    """Give a container in which systemd runs, with kapudf installed as the docs say."""
    units = count_folder / "systemd"
    shutil.copytree(ROOT / "deploy" / "systemd", units)
    (units / "kapacitor.service").write_text(KAPACITOR, encoding="utf-8")
    (units / "kapudf.service.d").mkdir()
    (units / "kapudf.service.d" / "watchdog.conf").write_text(WATCHDOG, encoding="utf-8")
    socket_unit = (units / "kapudf.socket").read_text(encoding="utf-8")
    (units / "kapudf.socket").write_text(socket_unit.replace("mirror", "count"), encoding="utf-8")
    settings = count_folder / "kapudf"
    settings.mkdir()
    (settings / "config.yaml").write_text(config_of("count", "kapudf"), encoding="utf-8")
    (settings / "other.yaml").write_text(config_of("other", "kapudf-other"), encoding="utf-8")
    dockerfile = count_folder / "Dockerfile.systemd"
    dockerfile.write_text(DOCKERFILE.format(image=image), encoding="utf-8")
    built = build("kapudf-test-systemd", dockerfile, count_folder)
    with Container(built, "--systemd=always") as container:
        wait_until(lambda: container.try_exec("systemctl", "is-system-running").stdout != "\n")
        state = container.try_exec("systemctl", "is-system-running", "--wait").stdout.strip()
        assert state in {"running", "degraded"}
        yield container


@pytest.fixture
def service(machine: Container) -> Iterator[Container]:
    """Give the machine with kapudf running, and stop it in the end."""
    machine.exec("systemctl", "reset-failed")
    machine.exec("systemctl", "start", "kapudf")
    yield machine
    machine.exec("systemctl", "stop", "kapudf.socket", "kapudf")


def status_of(machine: Container) -> dict[str, Any] | None:
    """Return the status of the function, None while it does not answer."""
    asked = machine.try_exec("kapudf", "status", "--socket", SOCKET, "--json")
    status: dict[str, Any] | None = None if asked.returncode else json.loads(asked.stdout)
    return status


def show(machine: Container, unit: str, setting: str) -> str:
    return machine.exec("systemctl", "show", "--value", f"--property={setting}", unit).strip()


def logs(machine: Container) -> list[dict[str, Any]]:
    """Return the events that kapudf has logged."""
    lines = machine.exec("journalctl", "--output=cat", "--unit=kapudf").splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def pids(status: dict[str, Any] | None, part: str) -> set[int]:
    """Return the process ids of the supervisor or the workers."""
    if status is None:
        return set()
    processes = [status["supervisor"]] if part == "supervisor" else status["workers"]
    return {each["pid"] for each in processes}


def signal(machine: Container, part: str, number: int) -> None:
    """Send a signal to the supervisor or the workers, and wait until another one serves."""
    before = status_of(machine)
    assert before is not None
    machine.signal(pids(before, part), number)
    await_change(machine, before, part)


def await_change(machine: Container, before: dict[str, Any], part: str) -> None:
    """Wait until other processes serve, and the task has gone on."""

    def has_changed() -> bool:
        now = status_of(machine)
        if now is None or pids(now, part) & pids(before, part):
            return False
        counts = [each["points_in"] for each in now["connections"]]
        return counts > [each["points_in"] for each in before["connections"]]

    wait_until(has_changed)


def test_the_service_is_up_and_restricted(service: Container) -> None:
    assert show(service, "kapudf", "ActiveState") == "active"
    assert "serves 0 connections of 1 function" in show(service, "kapudf", "StatusText")
    shown = service.exec("stat", "--format=%U:%G %a", SOCKET)
    assert shown.strip() == "kapudf:kapacitor 660"
    score = service.exec("systemd-analyze", "security", "kapudf").splitlines()[-1]
    assert float(score.split("kapudf.service:")[1].split()[0]) < 2.5


def test_reloads_restarts_and_kills_stop_no_task(service: Container) -> None:
    before = len(logs(service))
    with Traffic(service, SOCKET) as traffic:
        status = status_of(service)
        assert status is not None
        service.exec("systemctl", "reload", "kapudf")
        await_change(service, status, "worker")
        for _ in range(TIMES):
            status = status_of(service)
            assert status is not None
            service.exec("systemctl", "restart", "kapudf")
            await_change(service, status, "supervisor")
            signal(service, "supervisor", 9)
            signal(service, "worker", 9)
        # A supervisor that does nothing: the watchdog bites.
        signal(service, "supervisor", 19)
        assert not traffic.has_failed
    assert traffic.points > 100
    finished = [each for each in logs(service)[before:] if each["event"] == "connection finished"]
    (summary,) = [each for each in finished if each["task_id"]]
    assert (summary["reason"], summary["points_in"]) == ("closed", traffic.points)
    assert summary["points_out"] == traffic.points
    assert show(service, "kapudf", "NRestarts") != "0"


def test_a_restart_with_wrong_settings_stops_no_task(service: Container) -> None:
    config = "/etc/kapudf/config.yaml"
    with Traffic(service, SOCKET) as traffic:
        status = status_of(service)
        assert status is not None
        service.exec("sh", "-c", f"cp {config} /srv/good.yaml && echo workerz: 1 >> {config}")
        assert service.try_exec("systemctl", "restart", "kapudf").returncode
        # A second each.
        wait_until(lambda: int(show(service, "kapudf", "NRestarts")) >= 6)
        service.exec("cp", "/srv/good.yaml", config)
        await_change(service, status, "supervisor")
        assert show(service, "kapudf", "ActiveState") == "active"
    # Its points were answered meanwhile, too.
    assert traffic.pause_s < 5.0


def test_a_stop_ends_tasks_and_leaves_no_process(service: Container) -> None:
    with Traffic(service, SOCKET) as traffic:
        service.exec("systemctl", "stop", "kapudf")
        traffic.await_failure()
    assert show(service, "kapudf", "ActiveState") == "inactive"
    assert "kapudf serve" not in service.exec("ps", "-eo", "args")
    assert "kapudf_cli" not in service.exec("ps", "-eo", "args")


def test_a_connection_starts_the_service_of_a_socket_unit(machine: Container) -> None:
    machine.exec("systemctl", "start", "kapudf.socket")
    try:
        assert show(machine, "kapudf", "ActiveState") == "inactive"
        with Traffic(machine, SOCKET) as traffic:
            assert show(machine, "kapudf", "ActiveState") == "active"
            status = status_of(machine)
            assert status is not None
            machine.exec("systemctl", "restart", "kapudf")
            await_change(machine, status, "supervisor")
        assert traffic.points
    finally:
        machine.exec("systemctl", "stop", "kapudf.socket", "kapudf")


def test_the_template_unit_serves_another_configuration(machine: Container) -> None:
    machine.exec("systemctl", "start", "kapudf@other")
    machine.exec("kapudf", "probe", "--socket", "/run/kapudf-other/other.sock")
    machine.exec("systemctl", "stop", "kapudf@other")


def test_kapudf_starts_before_kapacitor_and_stops_after_it(machine: Container) -> None:
    machine.exec("systemctl", "start", "kapudf", "kapacitor")
    machine.exec("systemctl", "stop", "kapudf", "kapacitor")
    began, ended = (
        {
            unit: int(show(machine, unit, f"{change}TimestampMonotonic"))
            for unit in ("kapudf", "kapacitor")
        }
        for change in ("ActiveEnter", "InactiveEnter")
    )
    assert began["kapudf"] <= began["kapacitor"]
    assert ended["kapudf"] >= ended["kapacitor"]
