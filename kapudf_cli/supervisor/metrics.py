"""All metrics, described once, and the text formats that are written from them.

They are read from the status of functions, as `control_commands.status_of` returns it. So the HTTP
endpoint and `kapudf status` have the same metrics.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

from kapudf_cli.transport.meter import BOUNDS_NS

#: The state of a function, a worker or a connection: a part of a status.
Row: TypeAlias = dict[str, Any]
#: A number, or those of a histogram: the points of each bucket, and the time of all points.
Value: TypeAlias = "float | tuple[Sequence[int], float]"
#: The values of a metric in a row, by further labels.
Reader: TypeAlias = Callable[[Row], dict[tuple[str, ...], Value]]


class Scope(enum.Enum):
    """What a metric describes: the beginning of its name, and its labels."""

    SUPERVISOR = ("kapudf_supervisor", ())
    FUNCTION = ("kapudf_function", ("function",))
    WORKER = ("kapudf_worker", ("function", "worker"))
    #: A node of a task, from Init until its connection ends.
    TASK = ("kapudf_task", ("function", "task_id", "node_id"))


class Kind(enum.StrEnum):
    """The type of a metric in Prometheus."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Metric:
    """The description of a metric.

    Attributes:
        scope: what it describes.
        kind: its type.
        base: its name, without the scope's and without `_total`.
        help: one sentence.
        read: returns its values in a row of the status.
        labels: its labels besides those of the scope.
        takes_largest: whether the largest value stands for several connections of one node of a
            task, as for an age; otherwise they are added.
    """

    scope: Scope
    kind: Kind
    base: str
    help: str
    read: Reader
    labels: tuple[str, ...] = ()
    takes_largest: bool = False

    @property
    def name(self) -> str:
        """The name of the metric, as queries have it."""
        ending = "_total" if self.kind is Kind.COUNTER else ""
        return f"{self.scope.value[0]}_{self.base}{ending}"

    @property
    def all_labels(self) -> tuple[str, ...]:
        """Its labels, without `le` of a histogram."""
        return (*self.scope.value[1], *self.labels)

    def combined(self, first: Value, second: Value) -> Value:
        """Return the value that stands for two connections."""
        if isinstance(first, tuple) and isinstance(second, tuple):
            counts = [a + b for a, b in zip(first[0], second[0], strict=True)]
            return counts, first[1] + second[1]
        if isinstance(first, tuple) or isinstance(second, tuple):
            raise TypeError(self.name)
        return max(first, second) if self.takes_largest else first + second


# --- the descriptions ---


def _field(*path: str, factor: float = 1) -> Reader:
    """Return a reader of a number."""

    def read(row: Row) -> dict[tuple[str, ...], Value]:
        value: Any = row
        for name in path:
            value = value[name]
        return {(): value * factor}

    return read


def _histogram(*path: str) -> Reader:
    """Return a reader of the histogram of handler time."""

    def read(row: Row) -> dict[tuple[str, ...], Value]:
        for name in path:
            row = row[name]
        return {(): (row["handler_buckets"], row["handler_s"])}

    return read


def _by(name: str) -> Reader:
    """Return a reader of an object that has a number for each value of a label."""
    return lambda row: {(label,): value for label, value in row[name].items()}


def _of_partitions(name: str, *, factor: float = 1) -> Reader:
    """Return a reader of a number of each partition of a worker."""
    return lambda row: {
        (str(each["partition"]), each["node"] or ""): each[name] * factor
        for each in row["partitions"]
    }


def _one(*names: str) -> Reader:
    """Return a reader of texts, as labels of the value 1."""
    return lambda row: {tuple(str(row[name] or "") for name in names): 1}


_MEGABYTE: Final = 1e6

#: Counters that each task has, and each function for all connections that it has had: the field of
#: the status, the name, and the description.
_COUNTERS: Final = (
    ("points_in", "points_in", "points received from Kapacitor and handled"),
    ("points_out", "points_out", "points sent to Kapacitor"),
    ("batches_in", "batches_in", "batches received from Kapacitor and handled"),
    ("batches_out", "batches_out", "batches sent to Kapacitor"),
    ("bytes_in", "bytes_in", "bytes received from Kapacitor"),
    ("bytes_out", "bytes_out", "bytes sent to Kapacitor"),
    ("failures", "failures", "exceptions of the handler that on_error has passed over"),
    ("dropped_points", "dropped_points", "points that on_error has dropped"),
    ("restarts", "handler_restarts", "new handlers after an exception, with on_error: restart"),
    ("takeovers", "takeovers", "takeovers by another worker after a death"),
    ("takeover_pause_s", "takeover_pause_seconds", "time from a death until a worker went on"),
    ("handovers", "handovers", "handovers to another worker, as by a reload"),
    ("handover_pause_s", "handover_pause_seconds", "time for which handovers paused the input"),
    ("kapacitor_wait_s", "kapacitor_wait_seconds", "time that output has waited for Kapacitor"),
)
_HANDLER_TIME: Final = "time of the handler per point, with decoding and encoding"


def _counters() -> Iterator[Metric]:
    for key, base, text in _COUNTERS:
        yield Metric(Scope.FUNCTION, Kind.COUNTER, base, text, _field("totals", key))
        yield Metric(Scope.TASK, Kind.COUNTER, base, text, _field(key))
    name = "handler_seconds"
    yield Metric(Scope.FUNCTION, Kind.HISTOGRAM, name, _HANDLER_TIME, _histogram("totals"))
    yield Metric(Scope.TASK, Kind.HISTOGRAM, name, _HANDLER_TIME, _histogram())


def _gauge(
    scope: Scope,
    base: str,
    text: str,
    read: Reader,
    labels: tuple[str, ...] = (),
    *,
    takes_largest: bool = False,
) -> Metric:
    return Metric(scope, Kind.GAUGE, base, text, read, labels, takes_largest)


METRICS: Final = (
    _gauge(
        Scope.SUPERVISOR, "info", "the version of kapudf; always 1", _one("version"), ("version",)
    ),
    _gauge(
        Scope.SUPERVISOR,
        "resident_memory_bytes",
        "memory of the supervisor",
        _field("supervisor", "rss_mb", factor=_MEGABYTE),
    ),
    _gauge(
        Scope.SUPERVISOR,
        "uptime_seconds",
        "time since the supervisor was started",
        _field("supervisor", "age_s"),
    ),
    _gauge(Scope.FUNCTION, "info", "the handler's class; always 1", _one("handler"), ("handler",)),
    _gauge(
        Scope.FUNCTION,
        "connections",
        "connections that have not ended",
        lambda row: {(): len(row["connections"])},
    ),
    Metric(
        Scope.FUNCTION,
        Kind.COUNTER,
        "ended_connections",
        "connections that have ended, by reason; for handler_error, protocol_error and refused, "
        "the task has failed",
        _by("ended_connections"),
        ("reason",),
    ),
    Metric(
        Scope.FUNCTION,
        Kind.COUNTER,
        "worker_starts",
        "workers that were started",
        _field("worker_starts"),
    ),
    Metric(
        Scope.FUNCTION,
        Kind.COUNTER,
        "worker_deaths",
        "workers that have died unexpectedly, by cause: a signal, exit, hung, frozen or "
        "unresponsive",
        _by("worker_deaths_by_cause"),
        ("cause",),
    ),
    _gauge(
        Scope.FUNCTION,
        "busy_limit_seconds",
        "how long a call of the handler may take",
        _field("busy_limit_s"),
    ),
    _gauge(
        Scope.FUNCTION,
        "snapshot_interval_seconds",
        "the longest time between two checkpoints, as configured",
        _field("snapshot_interval_s"),
    ),
    _gauge(
        Scope.WORKER,
        "resident_memory_bytes",
        "memory of the worker and its partitions, shared memory included",
        _field("rss_mb", factor=_MEGABYTE),
    ),
    _gauge(
        Scope.WORKER,
        "partition_resident_memory_bytes",
        "memory of a partition, shared memory included",
        _of_partitions("rss_mb", factor=_MEGABYTE),
        ("partition", "node"),
    ),
    Metric(
        Scope.WORKER,
        Kind.COUNTER,
        "partition_cpu_seconds",
        "processor time of a partition",
        _of_partitions("cpu_s"),
        ("partition", "node"),
    ),
    _gauge(Scope.WORKER, "age_seconds", "time since the worker was started", _field("age_s")),
    _gauge(
        Scope.WORKER, "connections", "connections that the worker serves", _field("connections")
    ),
    _gauge(
        Scope.TASK,
        "state",
        "the state of the connection, as in kapudf status, and its worker; always 1",
        _one("worker", "state"),
        ("worker", "state"),
        takes_largest=True,
    ),
    _gauge(
        Scope.TASK,
        "busy_seconds",
        "how long the current call of the handler has taken",
        _field("busy_s"),
        takes_largest=True,
    ),
    _gauge(
        Scope.TASK,
        "points_in_flight",
        "points that the handler has and has not answered: more than one if it is async or has "
        "partitions",
        _field("points_in_flight"),
    ),
    _gauge(
        Scope.TASK,
        "waiting_bytes",
        "input that has arrived and is not handled",
        _field("waiting_bytes"),
    ),
    _gauge(
        Scope.TASK,
        "queue_delay_seconds",
        "how long new input waits until it is handled, as an estimate",
        _field("queue_delay_s"),
        takes_largest=True,
    ),
    _gauge(
        Scope.TASK,
        "checkpoint_age_seconds",
        "time since the handler's last snapshot for the journal, 0 without input since",
        _field("checkpoint_age_s"),
        takes_largest=True,
    ),
    _gauge(Scope.TASK, "journal_bytes", "memory that the journal takes", _field("journal_bytes")),
    _gauge(
        Scope.TASK,
        "journal_input_bytes",
        "input that the journal keeps, with the checkpoint before it",
        _field("kept_bytes"),
    ),
    _gauge(
        Scope.TASK,
        "journal_input_limit_bytes",
        "how much input the journal can keep; beyond it, a worker's death ends the task",
        _field("kept_limit_bytes"),
    ),
    *_counters(),
)

# --- their values ---


class Sample(NamedTuple):
    """A value with its name and labels."""

    name: str
    labels: dict[str, str]
    value: float


@dataclass(frozen=True)
class Family:
    """A metric, and its samples."""

    metric: Metric
    samples: list[Sample]


def families(statuses: Sequence[Row]) -> list[Family]:
    """Return all metrics that have values.

    Args:
        statuses: those of some functions of one `kapudf serve`.
    """
    result = []
    for metric in METRICS:
        values: dict[tuple[str, ...], Value] = {}
        for labels, row in _rows(statuses, metric.scope):
            for further, value in metric.read(row).items():
                key = labels + further
                values[key] = metric.combined(values[key], value) if key in values else value
        if values:
            samples = itertools.chain.from_iterable(
                _samples(metric, dict(zip(metric.all_labels, labels, strict=True)), value)
                for labels, value in values.items()
            )
            result.append(Family(metric, list(samples)))
    return result


def _rows(statuses: Sequence[Row], scope: Scope) -> Iterator[tuple[tuple[str, ...], Row]]:
    """Yield the rows of a scope, each with its labels."""
    for status in statuses[:1] if scope is Scope.SUPERVISOR else statuses:
        function = status["function"]
        match scope:
            case Scope.SUPERVISOR:
                yield (), status
            case Scope.FUNCTION:
                yield (function,), status
            case Scope.WORKER:
                for row in status["workers"]:
                    yield (function, str(row["worker"])), row
            case Scope.TASK:
                for row in status["connections"]:
                    if row["task_id"]:
                        yield (function, row["task_id"], row["node_id"]), row


def _samples(metric: Metric, labels: dict[str, str], value: Value) -> Iterator[Sample]:
    if not isinstance(value, tuple):
        yield Sample(metric.name, labels, value)
        return
    counts, total_s = value
    below = list(itertools.accumulate(counts))
    bounds = [f"{bound / 1e9:g}" for bound in BOUNDS_NS]
    for bound, count in zip([*bounds, "+Inf"], below, strict=True):
        yield Sample(f"{metric.name}_bucket", {**labels, "le": bound}, count)
    yield Sample(f"{metric.name}_sum", labels, total_s)
    yield Sample(f"{metric.name}_count", labels, below[-1])


# --- text formats ---


def prometheus(statuses: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of Prometheus' text format (version 0.0.4)."""
    for family in families(statuses):
        metric = family.metric
        yield f"# HELP {metric.name} {metric.help}"
        yield f"# TYPE {metric.name} {metric.kind}"
        for name, labels, value in family.samples:
            pairs = ",".join(f'{label}="{_quoted(text)}"' for label, text in labels.items())
            yield f"{name}{{{pairs}}} {value!r}" if pairs else f"{name} {value!r}"


def _quoted(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def influx(statuses: Sequence[Row]) -> Iterator[str]:
    """Yield lines of InfluxDB's line protocol, without a time.

    A scope is a measurement, the labels are tags, and the metrics are fields, all of them floats.
    """
    lines: dict[str, list[str]] = {}
    for family in families(statuses):
        measurement = family.metric.scope.value[0]
        for name, labels, value in family.samples:
            tags = "".join(f",{label}={_tag(text)}" for label, text in labels.items() if text)
            fields = lines.setdefault(measurement + tags, [])
            fields.append(f"{name.removeprefix(measurement + '_')}={float(value)!r}")
    for series, fields in lines.items():
        yield f"{series} {','.join(fields)}"


def _tag(text: str) -> str:
    """Return the value of a tag; line protocol cannot have a newline or end with a backslash."""
    text = text.replace("\n", r"\n")
    text = text + " " if text.endswith("\\") else text
    for character in ",= ":
        text = text.replace(character, f"\\{character}")
    return text
