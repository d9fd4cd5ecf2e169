"""The metrics of functions, as text."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from kapudf_cli.supervisor import metrics
from kapudf_cli.supervisor.counters import Counters
from kapudf_cli.supervisor.metrics import METRICS, Kind
from kapudf_cli.transport.meter import BOUNDS_NS

parser = pytest.importorskip("prometheus_client.parser", reason="needs kapudf[metrics]")

METRICS_PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"

Status = dict[str, Any]


@pytest.fixture
def status() -> Status:
    """Give a status with a worker and three connections, one of them before Init."""
    counters = Counters(points_in=7, handler_s=0.25, handler_buckets=[0] * (len(BOUNDS_NS) + 1))
    counters.handler_buckets[3] = counters.handler_buckets[-1] = 2
    connection = {
        "connection": 1, "task_id": "cpu", "node_id": "udf2", "worker": 1, "state": "busy",
        "busy_s": 2.5, "points_per_s": 3.0, "points_in_flight": 1, "waiting_bytes": 100,
        "queue_delay_s": 2.5, "checkpoint_age_s": 4.0, "journal_bytes": 4096, "kept_bytes": 90,
        "kept_limit_bytes": 1000, "age_s": 9.0, **counters.as_dict(),
    }  # fmt: skip
    replay = {**connection, "connection": 2, "busy_s": 0.5}
    asks_info = {**connection, "connection": 3, "task_id": "", "node_id": ""}
    return {
        "version": "1.2", "function": "smooth", "handler": "Count", "code": None, "socket": "/s",
        "supervisor": {"pid": 1, "rss_mb": 30.5, "age_s": 60.0}, "templates": [],
        "worker_starts": 3, "worker_deaths": 2, "worker_deaths_by_cause": {"SIGKILL": 2},
        "busy_limit_s": 300.0, "snapshot_interval_s": 10.0, "totals": counters.as_dict(),
        "ended_connections": {"closed": 4, "handler_error": 1},
        "workers": [{"worker": 3, "pid": 2, "state": "serving", "connections": 3, "rss_mb": 36.0,
                     "age_s": 5.0,
                     "partitions": [
                         {"partition": 0, "node": None, "pid": 4, "rss_mb": 9.0, "cpu_s": 1.5}
                     ]}],
        "connections": [connection, replay, asks_info],
    }  # fmt: skip


def values(*statuses: Status) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return all samples, as Prometheus' own parser reads them."""
    text = "".join(f"{line}\n" for line in metrics.prometheus(statuses))
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }


def value_of(status: Status, name: str, **labels: str) -> float | None:
    return values(status).get((name, frozenset(labels.items())))


TASK = {"function": "smooth", "task_id": "cpu", "node_id": "udf2"}


def test_each_description_is_well_formed() -> None:
    for metric in METRICS:
        assert re.fullmatch(r"kapudf_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
        assert metric.help
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)


def test_each_metric_has_a_value(status: Status) -> None:
    families = metrics.families([status])
    assert [family.metric for family in families] == list(METRICS)
    for family in families:
        assert family.samples
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(family.metric.all_labels)


@pytest.mark.parametrize(
    ("name", "labels", "value"),
    [
        ("kapudf_supervisor_info", {"version": "1.2"}, 1),
        ("kapudf_supervisor_resident_memory_bytes", {}, 30.5e6),
        ("kapudf_function_connections", {"function": "smooth"}, 3),
        ("kapudf_function_points_in_total", {"function": "smooth"}, 7),
        ("kapudf_function_worker_deaths_total", {"function": "smooth", "cause": "SIGKILL"}, 2),
        (
            "kapudf_function_ended_connections_total",
            {"function": "smooth", "reason": "handler_error"},
            1,
        ),
        ("kapudf_worker_connections", {"function": "smooth", "worker": "3"}, 3),
        # Two connections of the same node are added up, or the largest value stands for both.
        ("kapudf_task_points_in_total", TASK, 14),
        ("kapudf_task_busy_seconds", TASK, 2.5),
        ("kapudf_task_state", {**TASK, "worker": "1", "state": "busy"}, 1),
        ("kapudf_task_handler_seconds_bucket", {**TASK, "le": "1e-05"}, 0),
        ("kapudf_task_handler_seconds_bucket", {**TASK, "le": "3e-05"}, 4),
        ("kapudf_task_handler_seconds_bucket", {**TASK, "le": "+Inf"}, 8),
        ("kapudf_task_handler_seconds_count", TASK, 8),
        ("kapudf_task_handler_seconds_sum", TASK, 0.5),
        # A connection before Init has no task.
        ("kapudf_task_points_in_total", {**TASK, "task_id": "", "node_id": ""}, None),
    ],
)
def test_a_value_has_its_labels(
    status: Status, name: str, labels: dict[str, str], value: float | None
) -> None:
    assert value_of(status, name, **labels) == value


def test_a_connection_without_a_worker_has_an_empty_label(status: Status) -> None:
    status["connections"] = [{**status["connections"][0], "worker": None}]
    assert value_of(status, "kapudf_task_state", **TASK, worker="", state="busy") == 1


def test_several_functions_have_their_own_samples_and_one_supervisor(status: Status) -> None:
    other = copy.deepcopy(status) | {"function": "other"}
    found = values(status, other)
    assert found["kapudf_function_worker_starts_total", frozenset({("function", "other")})] == 3
    assert sum(name == "kapudf_supervisor_uptime_seconds" for name, _ in found) == 1


EVIL = 'a"b\\c\nd,e=f g'


def test_names_of_tasks_are_escaped_for_prometheus(status: Status) -> None:
    status["connections"] = [{**status["connections"][0], "task_id": EVIL}]
    labels = {**TASK, "task_id": EVIL}
    assert value_of(status, "kapudf_task_points_in_total", **labels) == 7


def test_line_protocol_has_a_line_per_scope_and_labels(status: Status) -> None:
    status["connections"] = [{**status["connections"][0], "task_id": EVIL}]
    lines = list(metrics.influx([status]))
    (task,) = [line for line in lines if "points_in_flight=" in line]
    head = r'kapudf_task,function=smooth,task_id=a"b\c\nd\,e\=f\ g,node_id=udf2 '
    assert task.startswith(head)
    fields = dict(pair.split("=") for pair in task.removeprefix(head).split(","))
    assert (fields["points_in_total"], fields["handler_seconds_sum"]) == ("7.0", "0.25")
    assert "kapudf_supervisor,version=1.2 info=1.0" in lines
    assert "kapudf_function,function=smooth,cause=SIGKILL worker_deaths_total=2.0" in lines


def test_the_documentation_has_all_metrics() -> None:
    rows: dict[tuple[str, str], list[str]] = {}
    labels: dict[tuple[str, str], set[str]] = {}
    for metric in METRICS:
        key = (metric.base, metric.help)
        rows.setdefault(key, []).append(f"`{metric.name}`")
        labels.setdefault(key, set()).update(metric.labels)
    expected = []
    for key, names in rows.items():
        further = ", ".join(f"`{each}`" for each in sorted(labels[key]))
        expected.append(f"| {'<br>'.join(names)} | {further} | {key[1]} |")
    text = METRICS_PAGE.read_text(encoding="utf-8")
    shown = [line for line in text.splitlines() if line.startswith("| `kapudf_")]
    assert shown == expected
