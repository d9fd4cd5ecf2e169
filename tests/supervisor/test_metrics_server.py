"""The HTTP endpoint for Prometheus."""

from __future__ import annotations

import selectors
import socket
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from kapudf_cli.config import metrics_address
from kapudf_cli.supervisor import metrics
from kapudf_cli.supervisor.errors import MetricsAddressError
from kapudf_cli.system import logs
from tests.peers import in_thread
from tests.serve_process import PATIENCE_S

pytest.importorskip("prometheus_client", reason="needs kapudf[metrics]")

from kapudf_cli.supervisor import metrics_server
from kapudf_cli.supervisor.metrics_server import MetricsServer

if TYPE_CHECKING:
    from collections.abc import Iterator

STATUS: dict[str, Any] = {
    "version": "1.2", "function": "f", "handler": "H", "worker_starts": 3, "connections": [],
    "supervisor": {"rss_mb": 30.5, "age_s": 60.0}, "worker_deaths_by_cause": {"SIGKILL": 2},
    "busy_limit_s": 300.0, "snapshot_interval_s": 10.0, "ended_connections": {"closed": 1},
    "workers": [], "totals": {},
}  # fmt: skip


@pytest.fixture(autouse=True)
def few_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the metrics out whose values a status without totals does not have."""
    some = tuple(each for each in metrics.METRICS if each.base in {"info", "worker_starts"})
    monkeypatch.setattr(metrics, "METRICS", some)


class Endpoint:
    """A server of metrics, and a loop that supplies them when it is told to."""

    def __init__(self) -> None:
        with capture_logs() as events:
            self.server = MetricsServer(("127.0.0.1", 0), logs.get_logger()).__enter__()
        (event,) = events
        self.port: int = event["port"]
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.server, selectors.EVENT_READ)
        self.asked = 0

    def scrape(self, accept: str = "text/plain") -> str:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/metrics", headers={"Accept": accept}
        )
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:  # noqa: S310 - http
            text: str = answer.read().decode()
        return text

    def turn(self) -> None:
        """Wait for a request, and supply the status."""
        assert self.selector.select(PATIENCE_S)
        self.server.supply(self._statuses)

    def _statuses(self) -> list[dict[str, Any]]:
        self.asked += 1
        return [STATUS]

    def close(self) -> None:
        self.selector.close()
        self.server.__exit__(None, None, None)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    """Give an endpoint at a free port."""
    endpoint = Endpoint()
    yield endpoint
    endpoint.close()


@pytest.mark.parametrize(
    ("accept", "last"),
    [
        ("text/plain", 'kapudf_function_worker_starts_total{function="f"} 3.0'),
        ("application/openmetrics-text; version=1.0.0", "# EOF"),
    ],
)
def test_the_answer_has_the_format_that_was_asked_for(
    endpoint: Endpoint, accept: str, last: str
) -> None:
    scraped = in_thread(lambda: endpoint.scrape(accept))
    endpoint.turn()
    lines = scraped.result(PATIENCE_S).splitlines()
    assert 'kapudf_function_worker_starts_total{function="f"} 3.0' in lines
    assert 'kapudf_supervisor_info{version="1.2"} 1.0' in lines
    assert lines[-1] == last


def test_clients_that_send_nothing_hold_nobody_up(endpoint: Endpoint) -> None:
    silent = [socket.create_connection(("127.0.0.1", endpoint.port)) for _ in range(3)]
    scraped = in_thread(endpoint.scrape)
    endpoint.turn()
    assert "kapudf_function_info" in scraped.result(PATIENCE_S)
    for each in silent:
        each.close()


def test_a_loop_that_does_not_answer_is_an_error(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_server, "_STATUS_TIMEOUT_S", 0.05)
    with pytest.raises(urllib.error.HTTPError, match="503"):
        endpoint.scrape()
    assert endpoint.asked == 0


def test_an_address_in_use_is_an_error(endpoint: Endpoint) -> None:
    problem = f"metrics: 127.0.0.1:{endpoint.port} cannot be bound: Address already in use"
    with pytest.raises(MetricsAddressError, match=problem):
        MetricsServer(("127.0.0.1", endpoint.port), logs.get_logger())


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9464", ("127.0.0.1", 9464)),
        (":9464", ("127.0.0.1", 9464)),
        ("[::1]:9464", ("::1", 9464)),
        ("metrics.example:80", ("metrics.example", 80)),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, address: tuple[str, int]) -> None:
    assert metrics_address(text) == address
