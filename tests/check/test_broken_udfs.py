"""UDFs that each do one thing wrong, and the check that finds it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.client.command_target import CommandTarget
from kapudf_cli.client.target import HandlerTarget
from kapudf_cli.handler.handler import Handler
from kapudf_cli.protocol.udf_pb2 import RestoreResponse
from kapudf_cli.tools.check import CHECKS, run
from kapudf_cli.tools.check.data_checks import SNAPSHOT_CHECKS
from kapudf_cli.tools.check.trial import Outcome, Trial
from tests.peers.broken_udfs import BROKEN_UDFS
from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from kapudf_cli.protocol.udf_pb2 import Point, RestoreRequest
    from kapudf_cli.tools.check.trial import Result

ROOT = Path(__file__).parent.parent.parent

#: The timeout for UDFs that hang. The start of a process and its first answer must fit into it.
SHORT_S = 4.0

CRASH = "kapacitord would crash, and every task with it"
LOST = "Kapacitor would drop the points that it has collected"

#: For each class: the check that fails, and a part of its reason.
FOUND = {
    "HangsAtInfo": ("info", f"gave no answer to Info within {SHORT_S:g} s"),
    "Garbage": ("info", "35 bytes came that are not a whole frame: b'This is a UDF"),
    "AnnouncesTerabytes": ("info", "kapacitord allocates all of it at once, and may crash"),
    "AnswersWithAnother": ("info", "sent an InitResponse that was not requested"),
    "KeepalivesForEver": ("info", "is still not done after"),
    "DeclaresNoName": ("info-declares", "an option 'my-field', which no TICKscript can call"),
    "ChangesItsMind": ("info-again", "said wants 0, provides 0, option"),
    "AnswersInitTwice": ("init", "sent an InitResponse that was not requested"),
    "RefusesInSilence": ("init-without-options", "refused the options without a reason"),
    "DiesOfAnOption": (
        "init-unknown-option",
        "instead of answering Init; it exited with status 1, after saying: KeyError",
    ),
    "AnswersKeepalivesLate": ("keepalive", f"no answer to a keepalive within {SHORT_S:g} s"),
    "NeverFlushes": ("flush", "held 8 messages back until a keepalive came"),
    "DiesAtSnapshot": (
        "snapshot-before-data",
        (
            "instead of answering a snapshot request; it exited with status 3, "
            "after saying: snapshots are not implemented"
        ),
    ),
    "EmptySnapshot": (
        "restore-unused",
        "refused its own snapshot of 8 bytes: the snapshot is empty",
    ),
    "ForgetsItsState": ("restore-keeps", "restored its own snapshot with success, and forgot"),
    "EmptyResponse": ("point-types", f"sent a Response in which no message is set; {CRASH}"),
    "Prints": ("point-types", "sent bytes that are not frames: "),
    "BatchesIntoAStream": ("point-types", "sent a BeginBatch, and provides a stream"),
    "FailsWithoutField": ("point-lacks-field", "failed the task: KeyError: 'val"),
    "EndsWhatWasNotBegun": (
        "batch-types",
        f"sent an EndBatch without a BeginBatch before it; {CRASH}",
    ),
    "BeginsWithoutEnd": ("batch-types", f"sent a BeginBatch inside a batch; {LOST}"),
    "PointsWithoutBatch": ("batch-types", "sent a Point outside a batch, and provides batches"),
    "NegativeSize": ("batch-types", f"size -1, not 0 (unknown) to 16777216; {CRASH}"),
    "AbsurdSize": ("batch-types", f"size {1 << 60}, not 0 (unknown) to 16777216; {CRASH}"),
    "StaysAtTheEnd": ("info", f"did not close the connection within {SHORT_S:g} s"),
    "SwallowsTheEnd": (
        "half-close-in-flight",
        (
            "sent 988 messages for 1000 points when its input ended right after them, and 1000 "
            "when it had time: 12 were lost"
        ),
    ),
    "ExitsWith1": ("exit", "exited with status 1, after saying: unexpected end of file"),
}
#: The UDFs that are found by a timeout.
SLOW = {
    "Garbage", "HangsAtInfo", "AnswersKeepalivesLate", "StaysAtTheEnd",
    "KeepalivesForEver",
}  # fmt: skip


def broken_udf(name: str) -> CommandTarget:
    return CommandTarget(name, (sys.executable, "-m", "tests.peers.broken_udfs", name))


def results(name: str, *checks: str, timeout_s: float) -> dict[str, Result]:
    """Run the named checks, and the checks that they depend on."""
    chosen = [check for check in CHECKS if check.name in {"info", "init", *checks}]
    return {result.check.name: result for result in run(Trial(broken_udf(name), timeout_s), chosen)}


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("name", FOUND)
def test_a_broken_udf_is_found_by_the_check_that_is_for_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kapudf_cli.client.command_target._EXIT_S", 0.1)
    if name == "KeepalivesForEver":
        monkeypatch.setattr("kapudf_cli.tools.check.trial._MAX_TIMEOUTS", 1)
    check, words = FOUND[name]
    found = results(name, check, timeout_s=SHORT_S if name in SLOW else PATIENCE_S)
    result = found.pop(check)
    assert result.outcome is Outcome.FAILED
    assert words in result.reason
    assert "\n" not in result.reason
    if check != "info":
        assert {other.outcome for other in found.values()} == {Outcome.PASSED}


def test_every_broken_udf_is_in_the_list() -> None:
    assert set(FOUND) == set(BROKEN_UDFS)


class WithoutState(Handler):
    """Has an empty snapshot, and could not restore one."""

    def restore(self, request: RestoreRequest, /) -> RestoreResponse:
        return RestoreResponse(success=bool(request.snapshot), error="the snapshot is empty")

    def point(self, point: Point, /) -> None:
        self.agent.write_point(point)


def test_an_empty_snapshot_is_not_restored() -> None:
    first = [check for check in CHECKS if check.name in {"info", "init"}]
    trial = Trial(HandlerTarget("without-state", WithoutState), PATIENCE_S)
    found = {result.check.name: result for result in run(trial, [*first, *SNAPSHOT_CHECKS])}
    assert [each for each in found.values() if each.outcome is Outcome.FAILED] == []
    for name in ("restore-unused", "restore-used"):
        assert "Kapacitor never restores an empty one" in found[name].reason


class Overflows(WithoutState):
    """Fails after more points than one check sends."""

    points = 0

    def point(self, point: Point, /) -> None:
        self.points += 1
        if self.points > 2004:
            raise OverflowError
        super().point(point)


def test_a_check_is_not_blamed_for_the_data_of_earlier_ones_without_saying_so() -> None:
    names = {"info", "init", "keepalive-busy", "flush", "point-types"}
    chosen = [check for check in CHECKS if check.name in names]
    trial = Trial(HandlerTarget("overflows", Overflows), PATIENCE_S)
    found = {result.check.name: result for result in run(trial, chosen)}
    assert [name for name, each in found.items() if each.outcome is Outcome.FAILED] == ["flush"]
    assert found["flush"].reason == (
        "failed the task: Overflows.point raised OverflowError; "
        "this did not happen without the data of earlier checks"
    )


class ForgetsToReturn(Handler):
    """Changes the point and returns nothing."""

    def point(self, point: Point, /) -> None:
        point.name = "changed"


class WritesOnlyAnomalies(ForgetsToReturn):
    """Says that it may write nothing."""

    may_drop_all = True


@pytest.mark.parametrize(
    ("handler", "outcome", "reason"),
    [
        (ForgetsToReturn, Outcome.FAILED, "wrote nothing for 1000 points. What `point`"),
        (WritesOnlyAnomalies, Outcome.NOT_APPLICABLE, "wrote nothing, which may be right"),
        (WithoutState, Outcome.PASSED, ""),
    ],
)
def test_a_handler_that_writes_nothing_must_say_so(
    handler: type[Handler], outcome: Outcome, reason: str
) -> None:
    chosen = [check for check in CHECKS if check.name in {"info", "init", "writes"}]
    *_, result = run(Trial(HandlerTarget("handler", handler), PATIENCE_S), chosen)
    assert (result.check.name, result.outcome) == ("writes", outcome)
    assert reason in result.reason


def test_a_udf_that_does_everything_right_fails_nothing() -> None:
    target = CommandTarget("plain_udf", (sys.executable, "-m", "tests.peers.plain_udf"))
    found = [*run(Trial(target, PATIENCE_S))]
    assert [result for result in found if result.outcome is Outcome.FAILED] == []
    not_applicable = {
        result.check.name for result in found if result.outcome is Outcome.NOT_APPLICABLE
    }
    assert {name for name in not_applicable if not name.startswith("batch-")} == {
        "init-repeated-options",
        "init-mistyped-options",
        "init-no-values",
        "snapshot-in-batch",
    }
