"""Every built-in handler in a real `kapudf serve`, with real traffic and recordings."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import pytest
from kapudf_handlers.default import DefaultOptions
from kapudf_handlers.mirror import MirrorOptions
from kapudf_handlers.moving_average import MovingAverageOptions
from kapudf_handlers.outliers import OutliersOptions
from kapudf_handlers.ttest import TTestOptions
from scipy import special

from kapudf_cli.client.driver import KapacitorSide
from kapudf_cli.handler.batches import Batch, batch_messages
from kapudf_cli.handler.options import calls_of
from kapudf_cli.protocol.udf_pb2 import (
    BeginBatch,
    EndBatch,
    InfoRequest,
    InfoResponse,
    InitRequest,
    InitResponse,
    KeepaliveRequest,
    KeepaliveResponse,
    Point,
    RestoreRequest,
    RestoreResponse,
    SnapshotRequest,
    SnapshotResponse,
)
from kapudf_cli.testing import grouped
from tests.handlers import recordings
from tests.peers import responses_to
from tests.serve_process import PATIENCE_S
from tests.supervisor.tasks import HEARTBEAT
from tests.test_captures import CAPTURES, requests_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kapudf_cli.handler.options import Options
    from kapudf_cli.protocol.codec import RequestMessage, ResponseMessage
    from tests.serve_process import ServeProcess

    Serve = Callable[..., ServeProcess]

#: A handler's options, and what they give for points or batches, by other means.
StreamCase = tuple[str, "Options", "Callable[[list[Point]], list[Point]]"]
BatchCase = tuple[str, "Options", "Callable[[list[Batch]], list[Batch]]"]


def mirrored(points: list[Point]) -> list[Point]:
    """Set what the options of the mirrors here set."""
    for point in points:
        point.fieldsInt.pop("n_cpus", None)
        point.fieldsDouble["n_cpus"] = 42.0
        point.tags["host"] = "everywhere"
    return points


def defaulted(points: list[Point]) -> list[Point]:
    for point in points:
        if "usage_idle" not in point.fieldsDouble:
            point.fieldsDouble["usage_idle"] = 100.0
        if "state" not in point.fieldsString:
            point.fieldsString["state"] = "unknown"
        if "up" not in point.fieldsBool:
            point.fieldsBool["up"] = False
        point.fieldsInt["errors"] = 0
        point.tags["dc"] = "none"
        if "host" not in point.tags:
            point.tags["host"] = "none"
    return points


def averaged(points: list[Point]) -> list[Point]:
    seen: dict[str, list[float]] = defaultdict(list)
    for point in points:
        if "n_cpus" in point.fieldsInt:
            seen[point.group].append(float(point.fieldsInt["n_cpus"]))
            recent = seen[point.group][-7:]
            # The sums of these are whole numbers, and so exact.
            point.fieldsDouble["mean"] = math.fsum(recent) / len(recent)
    return points


def outlying(batches: list[Batch]) -> list[Batch]:
    found = []
    for batch in batches:
        values = [point.fieldsDouble["usage_idle"] for point in batch.points]
        first, third = np.percentile(values, [25, 75])
        reach = third - first
        low, high = first - reach, third + reach
        pairs = zip(values, batch.points, strict=True)
        found.append(batch.copy_with([p for value, p in pairs if not low <= value <= high]))
    return found


def differing(batches: list[Batch]) -> list[Point]:
    """Return the points of a t-test with a history of 60 and an alpha of 0.5, by Welch."""
    histories: dict[str, list[float]] = defaultdict(list)
    found = []
    for batch in batches:
        values = [point.fieldsDouble["usage_idle"] for point in batch.points]
        history = histories[batch.group]
        if min(len(values), len(history)) >= 2:
            first = statistics.variance(history) / len(history)
            second = statistics.variance(values) / len(values)
            t = (statistics.fmean(history) - statistics.fmean(values)) / math.sqrt(first + second)
            df = (first + second) ** 2 / (
                first**2 / (len(history) - 1) + second**2 / (len(values) - 1)
            )
            p = float(special.betainc(df / 2, 0.5, df / (df + t * t)))
            if p < 0.5:
                point = Point(time=batch.end_ns, name=batch.name, tags=batch.tags)
                point.dimensions.extend(batch.tags)
                point.fieldsDouble.update({"t": t, "p": p, "df": df})
                found.append(point)
                continue
        histories[batch.group] = [*history, *values][-60:]
    return found


STREAM_CASES: dict[str, StreamCase] = {
    "mirror": ("mirror", MirrorOptions(), lambda points: points),
    "mirror, options": (
        "mirror",
        MirrorOptions(field=[("n_cpus", 42.0)], tag=[("host", "everywhere")]),
        mirrored,
    ),
    "default": (
        "default",
        DefaultOptions(
            field=[("usage_idle", 100.0)],
            field_int=[("errors", 0)],
            field_string=[("state", "unknown")],
            field_bool=[("up", False)],
            tag=[("dc", "none"), ("host", "none")],
        ),
        defaulted,
    ),
    "moving-average": (
        "moving-average",
        MovingAverageOptions(field="n_cpus", size=7, as_="mean"),
        averaged,
    ),
}
BATCH_CASES: dict[str, BatchCase] = {
    "batch-mirror": ("batch-mirror", MirrorOptions(), lambda batches: batches),
    "batch-mirror, options": (
        "batch-mirror",
        MirrorOptions(field=[("n_cpus", 42.0)], tag=[("host", "everywhere")]),
        lambda batches: [batch.copy_with(mirrored(batch.points)) for batch in batches],
    ),
    "outliers": ("outliers", OutliersOptions(field="usage_idle", scale=1.0), outlying),
}

STREAM_CAPTURES = [path for path in CAPTURES if path.stem.startswith("stream")]
BATCH_CAPTURES = [path for path in CAPTURES if path.stem.startswith("batch")]


def stream_requests(source: str) -> list[RequestMessage]:
    """Return the requests of a capture by its stem, or those that a recording makes."""
    if source == "stream.srpl":
        return [InitRequest(), *grouped(recordings.read_stream(recordings.STREAM), "host")]
    (path,) = [path for path in CAPTURES if path.stem == source]
    return requests_of(path.read_bytes())


def batch_requests(source: str) -> list[RequestMessage]:
    """Return the requests of a capture by its stem, or those that a recording makes."""
    if source == "batch.brpl":
        batches = recordings.read_batches(recordings.BATCH)
        return [InitRequest(), *(each for batch in batches for each in batch_messages(batch))]
    return stream_requests(source)


def points_of(messages: Sequence[RequestMessage | ResponseMessage]) -> list[Point]:
    return [message for message in messages if isinstance(message, Point)]


def batches_of(messages: Sequence[RequestMessage | ResponseMessage]) -> list[Batch]:
    """Return the batches among messages, which must have no point outside of them."""
    batches: list[Batch] = []
    points: list[Point] | None = None
    begin = BeginBatch()
    for message in messages:
        match message:
            case BeginBatch():
                begin, points = message, []
            case Point():
                assert points is not None
                points.append(message)
            case EndBatch():
                assert points is not None
                assert (begin.name, begin.group, begin.tags) == (
                    message.name, message.group, message.tags,
                )  # fmt: skip
                assert begin.size == len(points)
                batches.append(
                    Batch(
                        message.name, points, dict(message.tags), message.group, message.tmax,
                        begin.byName,
                    )
                )  # fmt: skip
                points = None
    assert points is None
    return batches


def play(
    socket_path: str, requests: list[RequestMessage], options: Options
) -> list[ResponseMessage]:
    """Play requests, with these options in the place of the captured ones; return the answers."""
    for request in requests:
        if isinstance(request, InitRequest):
            del request.options[:]
            request.options.extend(calls_of(options))
    with KapacitorSide.connect(socket_path, timeout_s=PATIENCE_S) as side:
        return list(responses_to(side, requests))


def control(answers: Sequence[ResponseMessage]) -> list[ResponseMessage]:
    """Return the answers to requests other than data and Info, without the content of snapshots.

    Heartbeats are left out: they may come at any time.
    """
    data = (BeginBatch, Point, EndBatch)
    return [
        SnapshotResponse() if isinstance(answer, SnapshotResponse) else answer
        for answer in answers
        if not isinstance(answer, (*data, InfoResponse)) and answer != HEARTBEAT
    ]


def expected_control(requests: Sequence[RequestMessage]) -> list[ResponseMessage]:
    """Return what every request but data and Info must be answered with, in this order."""
    expected: list[ResponseMessage] = []
    for request in requests:
        match request:
            case KeepaliveRequest():
                expected.append(KeepaliveResponse(time=request.time))
            case InitRequest():
                expected.append(InitResponse(success=True))
            case SnapshotRequest():
                expected.append(SnapshotResponse())
            case RestoreRequest():
                # The captured snapshot is of another handler, and no reason to fail.
                expected.append(RestoreResponse(success=True))
    return expected


def infos(messages: Sequence[RequestMessage | ResponseMessage]) -> int:
    return sum(isinstance(message, InfoRequest | InfoResponse) for message in messages)


def assert_close(found: list[Point], wanted: list[Point]) -> None:
    """Assert that points are equal but for the rounding of their floats."""
    for one, other in zip(found, wanted, strict=True):
        assert dict(one.fieldsDouble) == pytest.approx(dict(other.fieldsDouble), rel=1e-9)
        one.fieldsDouble.clear()
        other.fieldsDouble.clear()
        assert one == other


@pytest.mark.parametrize("source", [*(path.stem for path in STREAM_CAPTURES), "stream.srpl"])
@pytest.mark.parametrize("case", STREAM_CASES)
def test_a_stream_gives_what_it_should(
    serve: Serve, socket_path: str, case: str, source: str
) -> None:
    handler, options, wanted = STREAM_CASES[case]
    process = serve(handler)
    requests = stream_requests(source)
    answers = play(socket_path, requests, options)
    assert points_of(answers) == wanted(points_of(requests))
    assert control(answers) == expected_control(requests)
    assert infos(answers) == infos(requests)
    assert process.event("connection finished")["reason"] == "closed"


@pytest.mark.parametrize("source", [*(path.stem for path in BATCH_CAPTURES), "batch.brpl"])
@pytest.mark.parametrize("case", BATCH_CASES)
def test_batches_give_what_they_should(
    serve: Serve, socket_path: str, case: str, source: str
) -> None:
    handler, options, wanted = BATCH_CASES[case]
    process = serve(handler)
    requests = batch_requests(source)
    answers = play(socket_path, requests, options)
    assert batches_of(answers) == wanted(batches_of(requests))
    assert control(answers) == expected_control(requests)
    assert infos(answers) == infos(requests)
    assert process.event("connection finished")["reason"] == "closed"


@pytest.mark.parametrize("source", [*(path.stem for path in BATCH_CAPTURES), "batch.brpl"])
def test_the_t_test_of_batches_gives_what_it_should(
    serve: Serve, socket_path: str, source: str
) -> None:
    process = serve("ttest")
    requests = batch_requests(source)
    options = TTestOptions(field="usage_idle", size=60, alpha=0.5)
    answers = play(socket_path, requests, options)
    assert not any(isinstance(answer, BeginBatch | EndBatch) for answer in answers)
    wanted = differing(batches_of(requests))
    assert bool(wanted) == (len(batches_of(requests)) > 3)
    assert_close(points_of(answers), wanted)
    assert control(answers) == expected_control(requests)
    assert infos(answers) == infos(requests)
    assert process.event("connection finished")["reason"] == "closed"


def test_the_cases_find_something() -> None:
    points = points_of(stream_requests("stream-01"))
    assert averaged(points)[-1].fieldsDouble["mean"] != points[-1].fieldsInt["n_cpus"]
    found = outlying(batches_of(batch_requests("batch.brpl")))
    assert 0 < sum(len(batch.points) for batch in found) < 60
    assert 0 < len(differing(batches_of(batch_requests("batch.brpl")))) < 27


def test_the_recording_of_batches_is_what_was_captured() -> None:
    captured = batches_of(batch_requests("batch-query-01"))
    assert batches_of(batch_requests("batch.brpl")) == captured
    assert len(captured) == 30


@pytest.mark.parametrize(
    ("handler", "options", "sources"),
    [
        (
            "moving-average",
            MovingAverageOptions(field="usage_idle", size=20),
            ["stream-01", "stream-03"],
        ),
        (
            "ttest",
            TTestOptions(field="usage_idle", size=60, alpha=0.3),
            ["batch-01", "batch-02"],
        ),
    ],
)
def test_a_snapshot_goes_to_the_next_connection(
    serve: Serve, socket_path: str, handler: str, options: Options, sources: list[str]
) -> None:
    process = serve(handler)
    first, second = (
        [r for r in stream_requests(source) if isinstance(r, BeginBatch | Point | EndBatch)]
        for source in sources
    )
    init = InitRequest(taskID="t", nodeID="n")
    undisturbed = points_of(play(socket_path, [init, *first, *second], options))
    before = play(socket_path, [init, *first, SnapshotRequest()], options)
    assert isinstance(before[-1], SnapshotResponse)
    restore = RestoreRequest(snapshot=before[-1].snapshot)
    after = play(socket_path, [init, restore, *second], options)
    assert points_of(before) + points_of(after) == undisturbed
    assert points_of(after)
    afresh = points_of(play(socket_path, [init, *second], options))
    assert afresh != points_of(after)
    process.await_events("connection finished", 4, reason="closed")
