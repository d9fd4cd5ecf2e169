"""UDFs that are each wrong in one way, and the check that finds it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.client import CommandTarget, HandlerTarget
from kapudf_cli.handler.handler import Handler
from kapudf_cli.protocol.udf_pb2 import RestoreResponse
from kapudf_cli.tools.check.runner import CHECKS, run
from kapudf_cli.tools.check.snapshot_checks import CHECKS as SNAPSHOTS
from kapudf_cli.tools.check.trial import Outcome, Trial
from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from kapudf_cli.protocol.udf_pb2 import Point, RestoreRequest
    from kapudf_cli.tools.check.trial import Result

ROOT = Path(__file__).parent.parent.parent
PEERS = ROOT / "tests" / "peers"

#: For a UDF that hangs: every other answer has to come within it, a process's start included.
SHORT_S = 4.0

CRASH = "kapacitord would crash, and every task with it"
LOST = "Kapacitor would drop the points that it has collected"

#: For each script: the check that finds it, and what that says.
FOUND = {
    "hangs_at_info": ("info", f"gave no answer to Info within {SHORT_S:g} s"),
    "garbage": ("info", "35 bytes came that are not a whole frame: b'This is a UDF"),
    "announces_terabytes": ("info", "kapacitord allocates all of it at once, and may crash"),
    "answers_with_another": ("info", "sent an InitResponse that was not requested"),
    "keepalives_for_ever": ("info", "is still not done after"),
    "declares_no_name": ("info-declares", "an option 'my-field', which no TICKscript can call"),
    "changes_its_mind": ("info-again", "said wants 0, provides 0, option"),
    "answers_init_twice": ("init", "sent an InitResponse that was not requested"),
    "refuses_in_silence": ("init-without-options", "refused the options without a reason"),
    "dies_of_an_option": (
        "init-unknown-option",
        "instead of answering Init; it exited with status 1, after saying: KeyError",
    ),
    "answers_keepalives_late": ("keepalive", f"no answer to a keepalive within {SHORT_S:g} s"),
    "never_flushes": ("flush", "held 8 messages back until a keepalive came"),
    "dies_at_snapshot": (
        "snapshot-before-data",
        (
            "instead of answering a snapshot request; it exited with status 3, "
            "after saying: snapshots are not implemented"
        ),
    ),
    "empty_snapshot": (
        "restore-unused",
        "refused its own snapshot of 8 bytes: the snapshot is empty",
    ),
    "forgets_its_state": ("restore-keeps", "took its own snapshot back with success, and forgot"),
    "empty_response": ("point-types", f"sent a Response in which no message is set; {CRASH}"),
    "prints": ("point-types", "sent bytes that are not frames: "),
    "batches_into_a_stream": ("point-types", "sent a BeginBatch, and provides a stream"),
    "fails_without_field": ("point-lacks-field", "failed the task: KeyError: 'val"),
    "ends_what_was_not_begun": (
        "batch-types",
        f"sent an EndBatch without a BeginBatch before it; {CRASH}",
    ),
    "begins_without_end": ("batch-types", f"sent a BeginBatch inside a batch; {LOST}"),
    "points_without_batch": ("batch-types", "sent a Point outside a batch, and provides batches"),
    "negative_size": ("batch-types", f"size -1, not 0 (unknown) to 16777216; {CRASH}"),
    "absurd_size": ("batch-types", f"size {1 << 60}, not 0 (unknown) to 16777216; {CRASH}"),
    "stays_at_the_end": ("info", f"did not close the connection within {SHORT_S:g} s"),
    "swallows_the_end": (
        "half-close-in-flight",
        (
            "sent 988 messages for 1000 points when its input ended right behind them, and 1000 "
            "when it was given time: 12 were lost"
        ),
    ),
    "exits_with_1": ("exit", "exited with status 1, after saying: unexpected end of file"),
}
#: Those that are found by the time they take.
SLOW = {
    "garbage", "hangs_at_info", "answers_keepalives_late", "stays_at_the_end",
    "keepalives_for_ever",
}  # fmt: skip


def peer(name: str) -> CommandTarget:
    return CommandTarget(name, (sys.executable, "-m", f"tests.peers.{name}"))


def results(name: str, *checks: str, timeout_s: float) -> dict[str, Result]:
    """Run the named checks, and what they need to have run before."""
    chosen = [check for check in CHECKS if check.name in {"info", "init", *checks}]
    return {result.check.name: result for result in run(Trial(peer(name), timeout_s), chosen)}


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("name", FOUND)
def test_a_broken_udf_is_found_by_the_check_that_is_for_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kapudf_cli.client.command_target._EXIT_S", 0.1)
    if name == "keepalives_for_ever":
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
    scripts = {path.stem for path in PEERS.glob("*.py")} - {
        "__init__", "plain_udf", "go_agent_server"
    }  # fmt: skip
    assert scripts == set(FOUND)


class WithoutState(Handler):
    """Has an empty snapshot, and could not restore one."""

    def restore(self, request: RestoreRequest, /) -> RestoreResponse:
        return RestoreResponse(success=bool(request.snapshot), error="the snapshot is empty")

    def point(self, point: Point, /) -> None:
        self.agent.write_point(point)


def test_an_empty_snapshot_is_not_restored() -> None:
    chosen = [check for check in CHECKS if check.name in {"info", "init"} or check in SNAPSHOTS]
    trial = Trial(HandlerTarget("without-state", WithoutState), PATIENCE_S)
    found = {result.check.name: result for result in run(trial, chosen)}
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


def test_a_udf_that_does_everything_right_fails_nothing() -> None:
    found = [*run(Trial(peer("plain_udf"), PATIENCE_S))]
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
