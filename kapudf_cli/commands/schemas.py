"""The types of what commands print with --json; `kapudf schema` prints them as JSON Schema.

A field is never left out: it is null where it has no value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias, TypedDict

import msgspec
from msgspec import Meta

if TYPE_CHECKING:
    from collections.abc import Mapping

Time: TypeAlias = Annotated[str, Meta(description="A time of RFC 3339, in UTC.")]
Fields: TypeAlias = Annotated[
    dict[str, float | int | str | bool | None],
    Meta(description="The fields by name; null for NaN and infinity."),
]
Edge: TypeAlias = Annotated[str, Meta(description="`stream`, `batch`, or an unknown number.")]


class Option(TypedDict):
    """An option of a UDF. A handler in this process tells more than a UDF at a socket."""

    name: Annotated[str, Meta(description="Its name in a TICKscript.")]
    types: Annotated[list[str], Meta(description="The type of each argument, as STRING.")]
    required: Annotated[bool | None, Meta(description="Whether it must be called.")]
    repeated: Annotated[bool | None, Meta(description="Whether it may be called repeatedly.")]
    default: Annotated[
        Any,
        Meta(description="Its value if it is not called; a duration as in TICKscript."),
    ]
    doc: Annotated[str | None, Meta(description="The description in its declaration.")]


class HandlerRow(TypedDict):
    """A handler of `kapudf list-handlers`."""

    name: str
    wants: Annotated[Edge | None, Meta(description="Null if the handler is broken.")]
    provides: Annotated[Edge | None, Meta(description="Null if the handler is broken.")]
    options: Annotated[list[Option] | None, Meta(description="Null if the handler is broken.")]
    distribution: Annotated[str | None, Meta(description="The distribution that provides it.")]
    version: Annotated[str | None, Meta(description="The version of that distribution.")]
    target: Annotated[str, Meta(description="Its class as module:Class, or its script.")]
    summary: Annotated[str, Meta(description="The first line of its docstring.")]
    error: Annotated[str | None, Meta(description="Why it cannot be used.")]


class Probe(TypedDict):
    """The answer of a UDF to Info."""

    socket: str
    wants: Edge
    provides: Edge
    options: list[Option]
    tickscript: Annotated[str, Meta(description="A call to paste into a TICKscript.")]
    round_trip_s: float


class Process(TypedDict):
    """A process of `kapudf serve`."""

    pid: int
    rss_mb: Annotated[float, Meta(description="Resident memory in 10^6 bytes.")]
    age_s: float


class Supervisor(Process):
    """The supervisor."""

    starts: Annotated[
        int, Meta(description="How many supervisors have served the tasks, one after the other.")
    ]
    version: str


class Template(Process):
    """A process that has loaded the handler, and forks workers."""

    state: Literal["starting", "ready"]


class Partition(TypedDict):
    """A partition of a worker, which is a process."""

    partition: Annotated[int, Meta(description="Its number, from 0 in each worker.")]
    node: Annotated[
        str | None,
        Meta(description="Address and id of its node in a Ray cluster, null on this machine."),
    ]
    pid: int
    rss_mb: float
    cpu_s: Annotated[float, Meta(description="Processor time that it has used.")]


class Worker(TypedDict):
    """A worker process."""

    worker: Annotated[int, Meta(description="Its number.")]
    pid: int | None
    state: str
    is_adopted: Annotated[bool, Meta(description="Whether an earlier supervisor started it.")]
    connections: int
    rss_mb: Annotated[float, Meta(description="Resident memory, with that of its partitions.")]
    age_s: float
    partitions: list[Partition]


class Code(TypedDict):
    """The file that a handler was loaded from."""

    path: str
    modified_s: Annotated[float, Meta(description="When it was saved, in seconds since 1970.")]
    sha256: Annotated[str, Meta(description="The beginning of the hash of its content.")]


class Counters(TypedDict):
    """What is counted for a connection, or for all."""

    points_in: int
    points_out: int
    batches_in: int
    batches_out: int
    bytes_in: int
    bytes_out: int
    failures: Annotated[int, Meta(description="Exceptions that `on_error` has passed over.")]
    restarts: Annotated[int, Meta(description="How often the handler was replaced after one.")]
    dropped_points: int
    takeovers: Annotated[int, Meta(description="Deaths of workers that served it.")]
    takeover_pause_s: float
    handovers: int
    handover_pause_s: float
    handler_s: Annotated[float, Meta(description="Time in the handler.")]
    kapacitor_wait_s: Annotated[float, Meta(description="Time that output waited.")]
    handler_buckets: Annotated[
        list[int], Meta(description="The histogram of handler time per point; see metrics.md.")
    ]


class Connection(Counters):
    """A connection, which is a node of a task."""

    connection: Annotated[int, Meta(description="Its number in the log.")]
    task_id: Annotated[str, Meta(description="Empty before Init.")]
    node_id: str
    worker: int | None
    state: str
    busy_s: Annotated[float, Meta(description="For how long the handler has been in one call.")]
    points_per_s: float
    points_in_flight: int
    waiting_bytes: int
    queue_delay_s: float
    checkpoint_age_s: float
    journal_bytes: int
    kept_bytes: int
    kept_limit_bytes: int
    age_s: float


class Status(TypedDict):
    """The state of a function."""

    version: str
    function: str
    handler: str
    code: Code | None
    socket: str
    supervisor: Supervisor
    templates: list[Template]
    worker_starts: int
    worker_deaths: int
    worker_deaths_by_cause: dict[str, int]
    busy_limit_s: float
    snapshot_interval_s: float
    totals: Annotated[Counters, Meta(description="Of all connections, also those that ended.")]
    ended_connections: Annotated[dict[str, int], Meta(description="Their number by reason.")]
    workers: list[Worker]
    connections: list[Connection]


class Reload(TypedDict):
    """The reload of a function."""

    function: str
    connections: Annotated[int, Meta(description="How many were handed over.")]
    stay: Annotated[int, Meta(description="How many the old code keeps.")]
    code: Annotated[str, Meta(description="The loaded file, as text.")]


class Upgrade(TypedDict):
    """The replacement of a running kapudf."""

    before: Annotated[str, Meta(description="The version that ran.")]
    after: Annotated[str, Meta(description="The version that runs now.")]
    connections: int


class PointContent(TypedDict):
    """The content of a point."""

    fields: Fields
    tags: dict[str, str]
    time: Time


class ReplayedPoint(PointContent):
    """A point of a stream."""

    name: str
    database: str
    retentionPolicy: str
    group: str
    dimensions: list[str]
    byname: bool


class ReplayedBatch(TypedDict):
    """A batch."""

    points: list[PointContent]
    name: str
    group: str
    byname: bool
    tags: dict[str, str]
    tmax: Time


class ReplayedDifference(PointContent):
    """With --diff: what happened to a point."""

    fate: Annotated[
        Literal["same", "changed", "lost", "new"],
        Meta(description="`lost` points did not come back, `new` ones were not sent."),
    ]
    name: str
    changes: Annotated[list[str], Meta(description="What changed, as in the output for people.")]


class CheckResult(TypedDict):
    """The result of one check."""

    name: str
    outcome: Literal["passed", "failed", "not_applicable"]
    reason: Annotated[str, Meta(description="Empty if it passed.")]
    rule: Annotated[str, Meta(description="What a UDF must do.")]
    source: Annotated[str, Meta(description="The source of the rule.")]
    duration_s: float


class Check(TypedDict):
    """The results of all checks of a UDF."""

    target: str
    passed: int
    failed: int
    not_applicable: int
    checks: list[CheckResult]


class Load(TypedDict):
    """The results of a load run."""

    target: str
    options: Annotated[str, Meta(description="The options of the tasks, in TICKscript.")]
    points_sent: int
    points_returned: int
    elapsed_s: float
    points_per_s: float
    rate: Annotated[float | None, Meta(description="Points per second that were requested.")]
    timed: Literal["points", "batches", "keepalives"]
    latency_ms: Annotated[dict[str, float], Meta(description="Percentiles (`p50`) and `max`.")]
    cpu_s: float | None
    cpu_us_per_point: float | None
    rss_mb: Annotated[float | None, Meta(description="The most resident memory, 10^6 bytes.")]
    pids: list[int]
    interrupted: Annotated[bool, Meta(description="Whether Ctrl-C ended the run early.")]


class ConfiguredFunction(TypedDict):
    """A function of a configuration file."""

    name: str
    handler: Annotated[str, Meta(description="As it is written in the file.")]
    socket: Annotated[str, Meta(description="The absolute path.")]


class CheckConfig(TypedDict):
    """A configuration file without errors."""

    file: str
    functions: list[ConfiguredFunction]
    not_checked: Annotated[list[str], Meta(description="What the command cannot check.")]


class New(TypedDict):
    """A project that was written."""

    files: Annotated[list[str], Meta(description="The written files.")]
    next: Annotated[list[str], Meta(description="Commands that install, test and serve it.")]


#: What each command prints with --json: one of these types, and in which form.
_OUTPUTS: Final[Mapping[str, tuple[tuple[Any, ...], str]]] = {
    "list-handlers": ((list[HandlerRow],), "An array."),
    "probe": ((Probe, list[Probe]), "An object; with --config, an array with one per function."),
    "status": (
        (Status, list[Status]),
        "An object; with --config, an array with one for each function that answers.",
    ),
    "reload": (
        (Reload, list[Reload]),
        "An object; with --config, an array with one for each function that was reloaded.",
    ),
    "upgrade": ((Upgrade,), "An object."),
    "replay": (
        (ReplayedPoint, ReplayedBatch, ReplayedDifference),
        "An object on each line: a point, a batch, or with --diff a difference.",
    ),
    "check": ((Check,), "An object."),
    "load": ((Load,), "An object."),
    "check-config": ((CheckConfig,), "An object."),
    "new": ((New,), "An object."),
}
#: The commands with a schema.
COMMANDS: Final = tuple(_OUTPUTS)


def schema_of(command: str) -> dict[str, Any]:
    """Return the JSON Schema of what a command prints with --json."""
    types, form = _OUTPUTS[command]
    schemas, definitions = msgspec.json.schema_components(types)
    schema = {"anyOf": list(schemas)} if len(schemas) > 1 else schemas[0]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"kapudf {command} --json",
        "description": form,
        **schema,
        "$defs": definitions,
    }
