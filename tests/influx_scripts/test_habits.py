"""Scripts for InfluxData's agent, each with one habit of public ones, run in two ways.

By themselves (`python -m kapacitor.udf`), and by kapudf (`kapudf exec`).
"""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from kapudf_cli.client.command_target import CommandTarget
from kapudf_cli.protocol.framing import HEARTBEAT_TIME
from kapudf_cli.protocol.udf_pb2 import (
    BeginBatch,
    EndBatch,
    ErrorResponse,
    InitResponse,
    KeepaliveResponse,
    Point,
    RestoreRequest,
    RestoreResponse,
    SnapshotRequest,
    SnapshotResponse,
)
from tests.peers import INIT, INITIALIZED, responses_to
from tests.serve_process import KAPUDF, PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kapudf_cli.client.driver import KapacitorSide
    from kapudf_cli.protocol.codec import RequestMessage, ResponseMessage

    Requests = Sequence[RequestMessage]
    Responses = Sequence[ResponseMessage]

SCRIPTS = Path(__file__).parent / "scripts"
ALONE = (sys.executable, "-m", "kapacitor.udf")
BY_KAPUDF = (*KAPUDF, "exec", "--log-format", "console", "--handler")


@dataclass(frozen=True)
class Outcome:
    """What a script has done with requests."""

    responses: Responses
    log: str
    status: str


def answers_to(side: KapacitorSide, requests: Requests) -> Responses:
    """Send requests, and return the responses until the end, without those of a busy handler."""
    heartbeat = KeepaliveResponse(time=HEARTBEAT_TIME)
    return [each for each in responses_to(side, requests) if each != heartbeat]


def outcome(command: Sequence[str], requests: Requests) -> Outcome:
    """Run a script with requests until it ends."""
    log = io.BytesIO()
    with CommandTarget("script", tuple(command), log).open(timeout_s=PATIENCE_S) as connection:
        responses = answers_to(connection.side, requests)
        ending = connection.ending(PATIENCE_S)
        assert ending is not None
    return Outcome(responses, log.getvalue().decode(), ending.text)


def commands(script: str, *arguments: str) -> dict[str, tuple[str, ...]]:
    path = str(SCRIPTS / script)
    return {
        "alone": (*ALONE, path, *arguments),
        "by kapudf": (*BY_KAPUDF, " ".join([path, *arguments])),
    }


def point(time: int, value: float) -> Point:
    return Point(time=time, name="cpu", fieldsDouble={"value": value})


class Case(NamedTuple):
    """A script, its requests after Init, its responses, and the beginning of its warning."""

    script: str
    requests: Requests
    responses: Responses
    warning: str = ""


def empty() -> list[ResponseMessage]:
    return [SnapshotResponse()]


POINTS = [point(1, 1.5), point(2, 2.5)]
BATCH: Requests = [BeginBatch(name="cpu", size=2), *POINTS, EndBatch(name="cpu", tmax=9)]
SNAPSHOT: list[RequestMessage] = [SnapshotRequest()]

LENIENT = [
    Case(
        "empty_text.py", SNAPSHOT * 2, empty() * 2, "a snapshot is a str: its UTF-8 bytes are used"
    ),
    Case(
        "returned_text.py",
        SNAPSHOT * 2,
        [SnapshotResponse(snapshot=b"state")] * 2,
        "snapshot() returns a str: its UTF-8 bytes are used",
    ),
    Case("no_answer.py", SNAPSHOT * 2, empty() * 2, "snapshot() returns None"),
    Case("late_handler.py", SNAPSHOT * 2, empty() * 2, "the handler has no snapshot()"),
    Case("empty_response.py", SNAPSHOT * 2, empty() * 2, "snapshot() returns an empty Response"),
    Case(
        "other_answer.py",
        SNAPSHOT * 2,
        empty() * 2,
        "snapshot() returns an answer to restore: the snapshot is empty",
    ),
    Case(
        "other_answer.py",
        [RestoreRequest(snapshot=b"state"), *POINTS],
        [RestoreResponse(success=True), *POINTS],
        "restore() takes no argument",
    ),
    Case(
        "text_snapshot.py",
        [
            RestoreRequest(snapshot='{"count": 5, "unit": "µs"}'.encode()),
            Point(time=1),
            SnapshotRequest(),
        ],
        [
            RestoreResponse(success=True),
            Point(time=1, fieldsInt={"count": 6}),
            SnapshotResponse(snapshot=b'{"count": 6, "unit": "\\u00b5s"}'),
        ],
        "a snapshot is a str: its UTF-8 bytes are used",
    ),
    Case("returns_response.py", POINTS, [], "point() returns a Response, which is ignored"),
    Case("bare_points.py", BATCH, list(POINTS), "points outside of a batch, although info()"),
]


@pytest.mark.parametrize("way", ["alone", "by kapudf"])
@pytest.mark.parametrize("case", LENIENT, ids=lambda case: case.script)
def test_a_mistake_that_does_no_harm_is_warned_of_once(case: Case, way: str) -> None:
    seen = outcome(commands(case.script)[way], [INIT, *case.requests])
    assert seen.responses == [INITIALIZED, *case.responses], seen.log
    assert seen.log.count(f"{case.script}: {case.warning}") == 1
    assert seen.status == "exited with status 0"


FLAWLESS = [
    Case("late_handler.py", [*POINTS], [*POINTS]),
    Case("same_name.py", [*POINTS], [*POINTS]),
    Case(
        "one_response.py",
        BATCH,
        [BeginBatch(name="cpu"), point(1, 3), point(2, 5), EndBatch(name="cpu", tmax=9)],
    ),
    Case("keeps_points.py", BATCH, [point(2, 3.5), point(1, 2.5)]),
    Case(
        "values.py",
        [Point(time=7, name="cpu", tags={"host": "a"}, fieldsDouble={"value": 2})],
        [
            Point(
                time=7,
                name="cpu",
                tags={"host": "a"},
                fieldsDouble={"int": 1, "float32": 0.5, "value": 2},
                fieldsInt={"int32": 7},
                fieldsBool={"bool": True},
                fieldsString={"bytes": "text", "missing": "None"},
            )
        ],
    ),
    Case("thread.py", [*POINTS, SnapshotRequest()], [*POINTS, SnapshotResponse(snapshot=b"")]),
    Case("early_thread.py", [Point(name="cpu")], [Point(name="tick"), Point(name="cpu")]),
    Case("flat.py", [*POINTS], [*POINTS]),
    Case("package.py", [*POINTS], [*POINTS]),
    Case("loose.py", [*POINTS], [*POINTS]),
    Case(
        "module_state.py",
        [Point(time=1), Point(time=2)],
        [Point(time=1, fieldsInt={"seen": 1}), Point(time=2, fieldsInt={"seen": 2})],
    ),
    Case("fails_task.py", POINTS[:1], [ErrorResponse(error="too hot")]),
]


@pytest.mark.parametrize("way", ["alone", "by kapudf"])
@pytest.mark.parametrize("case", FLAWLESS, ids=lambda case: case.script)
def test_a_script_runs_unmodified(case: Case, way: str) -> None:
    seen = outcome(commands(case.script)[way], [INIT, *case.requests])
    assert seen.responses == [INITIALIZED, *case.responses], seen.log
    assert seen.status == "exited with status 0"
    assert f"{case.script}: " not in seen.log


@pytest.mark.parametrize("way", ["alone", "by kapudf"])
def test_batches_of_a_stream_are_sent_where_kapacitord_takes_them(way: str) -> None:
    seen = outcome(commands("batches_of_stream.py")[way], [INIT, *POINTS])
    batches = [
        [
            BeginBatch(name="cpu", size=9),
            BeginBatch(name="cpu", size=1),
            each,
            EndBatch(name="cpu", tmax=each.time),
        ]
        for each in POINTS
    ]
    assert seen.responses == [INITIALIZED, *batches[0], *batches[1]]
    assert seen.log.count("a batch, although info() declares that STREAM is provided") == 1
    assert seen.log.count("the begin of a batch before the last one has ended") == 1


@pytest.mark.parametrize("way", ["alone", "by kapudf"])
@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("raises.py", "Raising.point raised ValueError: value 1.5 is bad"),
        ("lone_end.py", "Ending.point raised InvalidWriteError: an EndBatch without a BeginBatch"),
        ("nothing_set.py", "Nothing.point raised InvalidWriteError: a Response in which no"),
        ("writes_none.py", "Writing.point raised TypeError: cannot write None; write_response"),
    ],
)
def test_an_error_is_the_tasks_error_and_its_traceback_is_logged(
    script: str, error: str, way: str
) -> None:
    seen = outcome(commands(script)[way], [INIT, *POINTS])
    assert seen.responses[0] == INITIALIZED
    (failure,) = seen.responses[1:]
    assert isinstance(failure, ErrorResponse)
    assert failure.error.startswith(error)
    assert "Traceback (most recent call last)" in seen.log
    assert f'{script}", line' in seen.log
    assert seen.status == "exited with status 1"


@pytest.mark.parametrize("way", ["alone", "by kapudf"])
def test_a_pickle_of_the_scripts_own_class_is_restored(way: str) -> None:
    seen = outcome(commands("module_state.py")[way], [INIT, Point(time=1), SnapshotRequest()])
    snapshot = seen.responses[-1]
    assert isinstance(snapshot, SnapshotResponse)
    again: Requests = [INIT, RestoreRequest(snapshot=snapshot.snapshot), Point(time=2)]
    restored = outcome(commands("module_state.py")[way], again)
    assert restored.responses[1:] == [
        RestoreResponse(success=True),
        Point(time=2, fieldsInt={"seen": 2}),
    ]


@pytest.mark.parametrize("way", ["alone", "by kapudf"])
def test_the_main_part_has_arguments_signal_handlers_prints_and_code_after_the_end(
    way: str, tmp_path: Path
) -> None:
    record = tmp_path / "record"
    command = commands("main_part.py", "--tag", "t", "--record", str(record))[way]
    seen = outcome(command, [INIT, Point(time=1)])
    assert seen.responses == [INITIALIZED, Point(time=1, tags={"tag": "t"})]
    assert "a point 1" in seen.log
    assert seen.status == "exited with status 0"
    # kapudf runs the script twice: the first time, to find out that it works.
    assert set(record.read_text(encoding="utf-8").splitlines()) == {"after the end"}


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("starts_nothing.py", "its main part starts neither an Agent nor a Server"),
        ("exits_early.py", "it exits (usage: exits_early.py MODEL) before it starts an agent"),
        ("waits_first.py", "the agent has not started; call its start() first"),
        ("import_fails.py", "No module named 'no_such_package' ("),
    ],
)
def test_kapudf_tells_why_a_script_cannot_be_run(script: str, told: str) -> None:
    seen = outcome(commands(script)["by kapudf"], [])
    assert seen.responses == []
    assert told in seen.log
    assert seen.status != "exited with status 0"


def test_a_second_start_of_an_agent_is_refused_and_the_first_goes_on() -> None:
    seen = outcome(commands("starts_twice.py")["alone"], [INIT, *POINTS])
    assert seen.responses == [INITIALIZED, *POINTS]
    assert "RuntimeError: the agent has started already" in seen.log
    assert seen.status == "exited with status 1"


def test_init_that_is_refused_is_answered() -> None:
    init = type(INIT)(taskID="task")
    option = init.options.add(name="as")
    option.values.add(stringValue="")
    seen = outcome(commands("counting.py")["alone"], [init])
    assert seen.responses == [InitResponse(error="invalid as name")]


@pytest.mark.parametrize("on_error", ["skip", "restart"])
def test_a_script_that_raises_may_go_on(on_error: str) -> None:
    command = (*commands("raises.py")["by kapudf"], "--on-error", on_error)
    seen = outcome(command, [INIT, *POINTS])
    assert seen.responses == [INITIALIZED]
    assert seen.status == "exited with status 0"
    assert "point dropped: Raising.point raised ValueError: value 1.5 is bad" in seen.log
