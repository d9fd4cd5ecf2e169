"""The files for production are valid."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import click
import pytest
import yaml

from kapudf_cli import config
from kapudf_cli.commands import main
from kapudf_cli.commands.serve import serve

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNITS = {each.name: each for each in sorted((DEPLOY / "systemd").iterdir())}
SERVICES = ["kapudf.service", "kapudf@.service"]

needs_systemd = pytest.mark.skipif(
    not shutil.which("systemd-analyze"), reason="needs systemd-analyze"
)


def section(unit: str, name: str) -> dict[str, list[str]]:
    """Return a section of a unit; a setting may be there several times."""
    found: dict[str, list[str]] = {}
    current = ""
    for line in UNITS[unit].read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            current = line.strip("[]")
        elif "=" in line and not line.startswith("#") and current == name:
            setting, _, value = line.partition("=")
            found.setdefault(setting, []).append(value)
    return found


@needs_systemd
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_accepts_the_units(unit: str) -> None:
    command = ["systemd-analyze", "verify", "--man=no", str(UNITS[unit])]
    verdict = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (verdict.returncode, verdict.stderr) == (0, "")


@needs_systemd
@pytest.mark.parametrize("unit", SERVICES)
def test_the_services_are_restricted(unit: str) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=25", str(UNITS[unit])]
    rated = subprocess.run(command, capture_output=True, text=True, check=False)
    assert rated.returncode == 0, rated.stdout


@pytest.mark.parametrize(
    ("unit", "config"),
    [("kapudf.service", "/etc/kapudf/config.yaml"), ("kapudf@.service", "/etc/kapudf/%i.yaml")],
)
def test_the_services_call_serve_with_options_that_there_are(unit: str, config: str) -> None:
    (command,) = section(unit, "Service")["ExecStart"]
    words = shlex.split(command)
    assert words[:3] == ["/usr/bin/env", "kapudf", "serve"]
    context = serve.make_context("serve", words[3:])
    assert context.params["config_file"] == Path(config)
    assert context.params["remove_stale"] is True


def test_the_services_leave_workers_and_connections_to_the_supervisor() -> None:
    service = section("kapudf.service", "Service")
    assert service["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    assert (service["KillMode"], service["OOMPolicy"]) == (["process"], ["continue"])
    assert int(*service["FileDescriptorStoreMax"]) > 1000
    assert service["RuntimeDirectoryPreserve"] == ["yes"]


def test_both_services_have_the_same_settings() -> None:
    one, template = (section(unit, "Service") for unit in SERVICES)
    for setting in ("ExecStart", "RuntimeDirectory"):
        del one[setting], template[setting]
    assert one == template


def test_the_socket_unit_listens_where_the_service_may_write() -> None:
    (path,) = section("kapudf.socket", "Socket")["ListenStream"]
    assert path.startswith(f"/run/{section('kapudf.service', 'Service')['RuntimeDirectory'][0]}/")


# --- containers ---


def variables_of_serve() -> set[str]:
    found = {option.envvar for option in serve.params if isinstance(option, click.Option)}
    return {each for each in found if isinstance(each, str)}


def test_compose_shares_the_folder_of_the_socket() -> None:
    text = (DEPLOY / "docker" / "compose.yaml").read_text(encoding="utf-8")
    services = yaml.safe_load(text)["services"]
    environment = services["kapudf"]["environment"]
    assert set(environment) <= variables_of_serve()
    function = {
        "handler": environment["KAPUDF_HANDLER"],
        "socket": environment["KAPUDF_SOCKET"],
        "socket_mode": environment["KAPUDF_SOCKET_MODE"],
        "allow_users": environment["KAPUDF_ALLOW_USERS"].split(","),
    }
    top = {"metrics": environment["KAPUDF_METRICS"]}
    read = config.check({"functions": {"mirror": function}, **top}, source="compose.yaml")
    assert read.functions["mirror"].access.users == ("0",)
    for name in ("kapudf", "kapacitor"):
        assert "sockets:/run/kapudf" in services[name]["volumes"]
    text = (DEPLOY / "docker" / "kapacitor.conf").read_text(encoding="utf-8")
    functions = tomllib.loads(text)["udf"]["functions"]
    assert functions["mirror"]["socket"] == function["socket"]
    for service in services.values():
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert not source.startswith("./") or (DEPLOY / "docker" / source).exists()


def test_kubernetes_runs_what_there_is_with_settings_that_are_valid() -> None:
    text = (DEPLOY / "kubernetes" / "kapacitor.yaml").read_text(encoding="utf-8")
    settings, stateful = yaml.safe_load_all(text)
    pod = stateful["spec"]["template"]["spec"]
    (sidecar,), (kapacitor,) = pod["initContainers"], pod["containers"]
    read = config.check(yaml.safe_load(settings["data"]["kapudf.yaml"]), source="kapudf.yaml")
    udf = tomllib.loads(settings["data"]["kapacitor.conf"])["udf"]["functions"]
    assert {name: each["socket"] for name, each in udf.items()} == {
        name: function.socket for name, function in read.functions.items()
    }
    assert {each["name"] for each in sidecar["env"]} <= variables_of_serve()
    for probe in ("startupProbe", "livenessProbe"):
        program, command, *words = sidecar[probe]["exec"]["command"]
        assert program == "kapudf"
        found = main.get_command(main.make_context("kapudf", [command]), command)
        assert found is not None
        found.make_context(command, words)
    folders = [
        next(each["mountPath"] for each in one["volumeMounts"] if each["name"] == "sockets")
        for one in (sidecar, kapacitor)
    ]
    assert folders == ["/run/kapudf"] * 2


def test_the_image_is_built_from_files_that_are_in_its_context() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    context = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert all((ROOT / each).exists() for each in context)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {each.partition("/")[0] for each in wheel} <= context


def test_the_source_distribution_has_what_make_works_on() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    included = settings["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    words = set(re.findall(r"[\w.-]+", makefile))
    named = {entry.name for entry in ROOT.iterdir() if not entry.name.startswith(".")} & words
    assert {"tests", "constraints.txt"} <= named
    # Hatchling adds pyproject.toml by itself.
    assert named - {path.strip("/") for path in included} <= {"pyproject.toml", "build", "dist"}
