"""The rules and the dashboard in deploy/, with the tools of Prometheus."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from kapudf_cli.client.driver import KapacitorSide
from kapudf_cli.protocol.udf_pb2 import InitRequest, Point
from kapudf_cli.supervisor.metrics import METRICS, Kind
from tests.serve_process import PATIENCE_S
from tests.supervisor.ongoing import Code, status_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.serve_process import ServeProcess

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yml"
DASHBOARD = DEPLOY / "grafana" / "kapudf.json"
#: What Grafana puts in the place of variables.
VARIABLES = {
    "$job": ".*", "$function": ".*", "$task": ".*", "$__rate_interval": "10s", "$__range": "10s",
}  # fmt: skip
#: A comparison at the end of an alert, which is false as long as all is well.
COMPARISON = re.compile(r" (>|>=|==) [\d.]+$")


def alerts() -> list[str]:
    (group,) = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule["expr"] for rule in group["rules"]]


def queries() -> list[str]:
    """Return the expressions of the dashboard."""
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    for (name, value), number in itertools.product(VARIABLES.items(), range(len(found))):
        found[number] = found[number].replace(name, value)
    return found


@pytest.mark.parametrize("expression", [*alerts(), *queries()])
def test_an_expression_has_only_metrics_and_labels_that_exist(expression: str) -> None:
    names: set[str] = set()
    labels = {"job", "instance", "le"}
    for metric in METRICS:
        endings = ["_bucket", "_sum", "_count"] if metric.kind is Kind.HISTOGRAM else [""]
        names |= {metric.name + ending for ending in endings}
        labels |= set(metric.all_labels)
    assert set(re.findall(r"kapudf_\w+", expression)) <= names
    matched = re.findall(r"[{,]\s*(\w+)=", expression)
    grouped = re.findall(r"(?:by|on) \(([\w, ]+)\)", expression)
    assert {*matched, *", ".join(grouped).split(", ")} - {""} <= labels


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool (Debian: prometheus)")
@pytest.mark.parametrize(
    "arguments",
    [["check", "rules", "rules.yml"], ["test", "rules", "rules_test.yml"],
     ["check", "config", "prometheus.yml"]],
    ids=" ".join,
)  # fmt: skip
def test_promtool_accepts(arguments: list[str]) -> None:
    done = subprocess.run(
        ["promtool", *arguments], cwd=RULES.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


# --- a real Prometheus ---


class Prometheus:
    """A Prometheus that scrapes a port every second."""

    def __init__(self, folder: Path, port: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port: int = free.getsockname()[1]
        config = yaml.safe_load((RULES.parent / "prometheus.yml").read_text(encoding="utf-8"))
        config["global"] = {"scrape_interval": "1s"}
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{port}"]
        config["rule_files"] = [str(RULES)]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
        self._process = subprocess.Popen(
            ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data",
             f"--web.listen-address=127.0.0.1:{self._port}", "--log.level=warn"],
            cwd=folder,
        )  # fmt: skip

    def query(self, expression: str) -> list[dict[str, Any]]:
        query = urllib.parse.urlencode({"query": expression})
        url = f"http://127.0.0.1:{self._port}/api/v1/query?{query}"
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return found

    def await_data(self, expression: str) -> list[dict[str, Any]]:
        """Wait until an expression returns data, and return it."""
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(OSError):
                if found := self.query(expression):
                    return found
            assert time.monotonic() < deadline_s, expression
            time.sleep(0.2)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE_S)


@contextlib.contextmanager
def traffic(path: str) -> Iterator[None]:
    """Send points to a function, each after the answer to the one before."""
    ended = threading.Event()

    def send() -> None:
        with KapacitorSide.connect(path, timeout_s=PATIENCE_S) as side:
            side.send(InitRequest(taskID="cpu_alert", nodeID="udf2"))
            side.receive()
            for number in itertools.count():
                if ended.wait(0.01):
                    return
                side.send(Point(time=number))
                side.receive()

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        ended.set()
        sender.join()


@pytest.mark.deploy
@pytest.mark.skipif(not shutil.which("prometheus"), reason="needs prometheus (Debian: prometheus)")
def test_each_expression_returns_data_of_a_running_kapudf(
    serve: Callable[..., ServeProcess], socket_path: str, tmp_path: Path
) -> None:
    process = serve(Code(tmp_path).handler, "--metrics", "127.0.0.1:0")
    port = process.event("metrics are served")["port"]
    with traffic(socket_path), contextlib.closing(Prometheus(tmp_path, port)) as prometheus:
        os.kill(status_of(socket_path)["workers"][0]["pid"], signal.SIGKILL)
        for expression in [*(COMPARISON.sub("", each) for each in alerts()), *queries()]:
            prometheus.await_data(expression)
        (deaths,) = prometheus.await_data("sum(kapudf_function_worker_deaths_total)")
        assert deaths["value"][1] == "1"
        (task,) = prometheus.query("kapudf_task_points_in_total")
        assert {"function": "udf", "task_id": "cpu_alert", "node_id": "udf2"}.items() <= (
            task["metric"].items()
        )
    assert process.stop() == 0
