"""The checks of snapshots and of restoring them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kapudf_cli.client.errors import UdfFaultError
from kapudf_cli.client.session import drain
from kapudf_cli.protocol.udf_pb2 import RestoreRequest, RestoreResponse
from kapudf_cli.tools.check.data import batch, points
from kapudf_cli.tools.check.trial import Check, NotApplicableError

if TYPE_CHECKING:
    from kapudf_cli.client.session import Session
    from kapudf_cli.tools.check.trial import Trial

_ASKED: Final = (
    "Kapacitor asks for one again and again, from a minute after the task's start: "
    "[task] snapshot-interval"
)
_GIVEN_BACK: Final = (
    "Kapacitor gives it back when the task starts again, and the task fails if that fails: "
    "Restore in udf/server.go"
)
_COUNT: Final = 100
_AFTER_RESTORE: Final = "a keepalive behind points that followed Restore"


def _before_data(trial: Trial) -> None:
    with trial.started() as session:
        drain(session.snapshot())
        drain(session.exchange())


def _after_data(trial: Trial) -> None:
    with trial.shared() as session:
        drain(session.exchange(trial.data(_COUNT), f"a keepalive behind {_COUNT} points"))
        drain(session.snapshot())
        what = "a keepalive behind points that followed a snapshot"
        drain(session.exchange(trial.data(_COUNT), what))


def _inside_a_batch(trial: Trial) -> None:
    trial.needs_batches()
    messages = list(batch(list(points(10, trial.options or ()))))
    with trial.shared() as session:
        session.post(*messages[:5])
        drain(session.snapshot())
        what = "a keepalive after a batch with a snapshot inside"
        drain(session.exchange(messages[5:], what))


def _restores_an_unused_one(trial: Trial) -> None:
    unused, _ = trial.snapshots(_COUNT)
    with trial.started() as session:
        _restore(session, unused)
        drain(session.exchange(trial.data(_COUNT), _AFTER_RESTORE))


def _restores_a_used_one(trial: Trial) -> None:
    _, used = trial.snapshots(_COUNT)
    with trial.started() as session:
        _restore(session, used)
        drain(session.exchange(trial.data(_COUNT), _AFTER_RESTORE))
        drain(session.snapshot())


def _keeps_what_was_restored(trial: Trial) -> None:
    unused, used = trial.snapshots(_COUNT)
    if used == unused:
        raise NotApplicableError("its snapshot is the same before and after data")
    with trial.started() as session:
        _restore(session, used)
        restored = drain(session.snapshot())
    if restored == unused:
        problem = (
            "took its own snapshot back with success, and forgot it: its next one is that of a "
            "task without any data"
        )
        raise UdfFaultError(problem)


def _answers_a_foreign_one(trial: Trial) -> None:
    for snapshot in (b"\xff\xfe no snapshot of this UDF \x00" * 40, b"{}"):
        with trial.started() as session:
            response = _answer(session, snapshot)
        if not response.success and not response.error.strip():
            raise UdfFaultError("refused a snapshot that is not its own without a reason")


def _restore(session: Session, snapshot: bytes) -> None:
    """Give a snapshot of the UDF back.

    Raises:
        NotApplicableError: it is empty.
        UdfFaultError: the UDF refuses it.
    """
    if not snapshot:
        raise NotApplicableError("its snapshot is empty, and Kapacitor never restores an empty one")
    response = _answer(session, snapshot)
    if not response.success:
        reason = " ".join(response.error.split()) or "no reason given"
        problem = f"refused its own snapshot of {len(snapshot)} bytes: {reason:.300}"
        raise UdfFaultError(problem)


def _answer(session: Session, snapshot: bytes) -> RestoreResponse:
    return drain(session.ask(RestoreRequest(snapshot=snapshot), RestoreResponse, "Restore"))


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
