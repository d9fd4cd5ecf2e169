"""Checks of snapshots and of restoring them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kapudf_cli.tools.check.data import batch, points
from kapudf_cli.tools.check.errors import NotApplicableError, RuleBrokenError
from kapudf_cli.tools.check.model import Check

if TYPE_CHECKING:
    from kapudf_cli.tools.check.conversation import Conversation
    from kapudf_cli.tools.check.trial import Trial

_ASKED: Final = (
    "Kapacitor asks for one again and again, from a minute after the task's start: "
    "[task] snapshot-interval"
)
_GIVEN_BACK: Final = (
    "Kapacitor gives it back when the task starts anew, and the task fails where that fails: "
    "Restore in udf/server.go"
)
_COUNT: Final = 100


def _before_data(trial: Trial) -> None:
    with trial.started() as conversation:
        conversation.snapshot()
        conversation.keepalive()


def _after_data(trial: Trial) -> None:
    with trial.started() as conversation:
        conversation.exchange(trial.data(_COUNT), f"a keepalive behind {_COUNT} points")
        conversation.snapshot()
        conversation.exchange(
            trial.data(_COUNT), "a keepalive behind points that followed a snapshot"
        )


def _inside_a_batch(trial: Trial) -> None:
    trial.needs_batches()
    options = trial.options or ()
    messages = list(batch(list(points(10, options))))
    with trial.started() as conversation:
        conversation.send(*messages[:5])
        conversation.snapshot()
        conversation.exchange(messages[5:], "a keepalive after a batch with a snapshot inside")


def _restores_an_unused_one(trial: Trial) -> None:
    with trial.started() as conversation:
        snapshot = conversation.snapshot()
    _needs_bytes(snapshot)
    with trial.started() as conversation:
        _restore(conversation, snapshot)
        conversation.exchange(trial.data(_COUNT), "a keepalive behind points that followed Restore")


def _restores_a_used_one(trial: Trial) -> None:
    with trial.started() as conversation:
        conversation.exchange(trial.data(_COUNT), f"a keepalive behind {_COUNT} points")
        snapshot = conversation.snapshot()
    _needs_bytes(snapshot)
    with trial.started() as conversation:
        _restore(conversation, snapshot)
        conversation.exchange(trial.data(_COUNT), "a keepalive behind points that followed Restore")
        conversation.snapshot()


def _keeps_what_was_restored(trial: Trial) -> None:
    with trial.started() as conversation:
        unused = conversation.snapshot()
        conversation.exchange(trial.data(_COUNT), f"a keepalive behind {_COUNT} points")
        used = conversation.snapshot()
    if used == unused:
        raise NotApplicableError("its snapshot is the same before and after data")
    _needs_bytes(used)
    with trial.started() as conversation:
        _restore(conversation, used)
        restored = conversation.snapshot()
    if restored == unused:
        problem = (
            "took its own snapshot back with success, and forgot it: its next one is that of a "
            "task without any data"
        )
        raise RuleBrokenError(problem)


def _answers_a_foreign_one(trial: Trial) -> None:
    for snapshot in (b"\xff\xfe no snapshot of this UDF \x00" * 40, b"{}"):
        with trial.started() as conversation:
            response = conversation.restore(snapshot)
        if not response.success and not response.error.strip():
            raise RuleBrokenError("refused a snapshot that is not its own without a reason")


def _needs_bytes(snapshot: bytes) -> None:
    """Raise NotApplicableError for an empty snapshot."""
    if not snapshot:
        raise NotApplicableError("its snapshot is empty, and Kapacitor never restores an empty one")


def _restore(conversation: Conversation, snapshot: bytes) -> None:
    response = conversation.restore(snapshot)
    if not response.success:
        reason = " ".join(response.error.split()) or "no reason given"
        problem = f"refused its own snapshot of {len(snapshot)} bytes: {reason:.300}"
        raise RuleBrokenError(problem)


CHECKS: Final = (
    Check(
        "snapshot-before-data",
        "A snapshot is given before any data has come.",
        _ASKED,
        _before_data,
    ),
    Check("snapshot-after-data", "A snapshot is given between data.", _ASKED, _after_data),
    Check(
        "snapshot-in-batch",
        "A snapshot is given inside a batch.",
        f"{_ASKED}; it does not wait for the end of a batch",
        _inside_a_batch,
    ),
    Check(
        "restore-unused",
        "The UDF's own snapshot of before any data is restored with success.",
        _GIVEN_BACK,
        _restores_an_unused_one,
    ),
    Check(
        "restore-used",
        "The UDF's own snapshot of after data is restored with success, and it goes on from there.",
        _GIVEN_BACK,
        _restores_a_used_one,
    ),
    Check(
        "restore-keeps",
        "What was restored is there: a snapshot right after Restore is not that of a new task.",
        _GIVEN_BACK,
        _keeps_what_was_restored,
    ),
    Check(
        "restore-foreign",
        "A snapshot that is not its own is taken, or refused with a reason.",
        "Kapacitor keeps snapshots by task and node, so new code gets those of the old: issues 679 "
        "and 757 of influxdata/kapacitor",
        _answers_a_foreign_one,
    ),
)
