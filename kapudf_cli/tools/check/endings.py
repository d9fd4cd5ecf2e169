"""Checks of how connections end, and of several at once."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from kapudf_cli.client import CommandTarget
from kapudf_cli.client.errors import TargetError
from kapudf_cli.protocol.codec import REQUESTS
from kapudf_cli.protocol.udf_pb2 import InitRequest
from kapudf_cli.tools.check.conversation import told
from kapudf_cli.tools.check.errors import NotApplicableError, RuleBrokenError
from kapudf_cli.tools.check.model import Check

if TYPE_CHECKING:
    from kapudf_cli.tools.check.trial import Trial

_REPLAY: Final = (
    "A replay half-closes when all is sent, and reads until the UDF closes: Stop in udf/server.go"
)
_DISABLED: Final = "A disabled task's connection is cut, whatever is on its way"
_COUNT: Final = 1_000
_PIECES: Final = 10
_CONNECTIONS: Final = 4


def _closes(trial: Trial) -> None:
    with trial.started() as conversation:
        conversation.finish()


def _answers_what_was_on_its_way(trial: Trial) -> None:
    data = trial.data(_COUNT)
    piece = len(data) // _PIECES
    with trial.started() as calm:
        for start in range(0, len(data), piece):
            calm.exchange(data[start : start + piece], "a keepalive between points")
        calm.finish()
    with trial.started() as hurried:
        hurried.finish(data)
    lost = calm.messages - hurried.messages
    if lost > 0:
        problem = (
            f"sent {hurried.messages} messages for {_COUNT} points when its input ended right "
            f"behind them, and {calm.messages} when it was given time: {lost} were lost; deal "
            "with all that has come, and flush, before closing"
        )
        raise RuleBrokenError(problem)


def _exits_cleanly(trial: Trial) -> None:
    if not isinstance(trial.target, CommandTarget):
        raise NotApplicableError("only a process that is started for it can be seen to exit")
    with trial.started() as conversation:
        conversation.exchange(trial.data(10), "a keepalive behind 10 points")
        conversation.finish()
        ending = conversation.expect_end()
    if ending is not None and not ending.clean:
        raise RuleBrokenError(told(ending))


def _survives_a_cut(trial: Trial) -> None:
    with trial.started() as conversation:
        conversation.send(*trial.data(100))
        conversation.break_off()
        conversation.expect_end()
    _still_serves(trial, "a connection that was cut with data on its way")


def _survives_a_cut_frame(trial: Trial) -> None:
    frame = REQUESTS.encode(trial.data(10)[0])
    with trial.started() as conversation:
        conversation.send_bytes(frame[: len(frame) // 2])
        conversation.break_off()
        conversation.expect_end()
    _still_serves(trial, "a connection that was cut inside a frame")


def _survives_a_silent_one(trial: Trial) -> None:
    trial.known()
    with trial.connected() as conversation:
        conversation.break_off()
        conversation.expect_end()
    _still_serves(trial, "a connection that was closed without a word")


def _survives_an_unread_one(trial: Trial) -> None:
    """Cut right behind Init, whose answer nobody reads."""
    trial.known()
    with trial.connected() as conversation:
        conversation.send(InitRequest(taskID="kapudf-check", options=trial.options or ()))
        conversation.break_off()
        conversation.expect_end()
    _still_serves(trial, "a connection that was cut right after Init")


def _serves_several(trial: Trial) -> None:
    data = trial.data(100)
    with contextlib.ExitStack() as stack:
        conversations = [stack.enter_context(trial.started()) for _ in range(_CONNECTIONS)]
        for _ in range(3):
            for conversation in conversations:
                conversation.exchange(data, f"a keepalive, with {_CONNECTIONS} connections open")
        first, *others = conversations
        first.settle()
        first.break_off()
        for conversation in others:
            conversation.exchange(data, "a keepalive, after another connection was cut")
            conversation.finish()
        if len({conversation.messages for conversation in others}) > 1:
            counts = ", ".join(str(conversation.messages) for conversation in others)
            raise RuleBrokenError(f"sent {counts} messages on connections that were sent the same")


def _still_serves(trial: Trial, what: str) -> None:
    try:
        with trial.connected() as conversation:
            conversation.info()
            conversation.finish()
    except RuleBrokenError as error:
        raise RuleBrokenError(f"serves no connection after {what}: it {error}") from error
    except TargetError as error:
        raise RuleBrokenError(f"serves no connection after {what}: {error.problem}") from error


CHECKS: Final = (
    Check("half-close", "At the end of its input the UDF closes the connection.", _REPLAY, _closes),
    Check(
        "half-close-in-flight",
        "What has come before the end of the input is dealt with and answered.",
        _REPLAY,
        _answers_what_was_on_its_way,
        cuts=True,
    ),
    Check(
        "exit",
        "A process exits at the end of its input, with status 0.",
        "Kapacitor waits for it, and fails the task for another status: Open in udf.go",
        _exits_cleanly,
    ),
    Check(
        "connections",
        f"{_CONNECTIONS} connections are served at once, and the end of one ends no other.",
        "Each task that calls the UDF has one: services/udf/service.go",
        _serves_several,
    ),
    Check(
        "cut-at-once",
        "A connection that is closed without a word ends alone.",
        _DISABLED,
        _survives_a_silent_one,
        cuts=True,
    ),
    Check(
        "cut-in-frame",
        "A connection that is cut inside a frame ends alone.",
        _DISABLED,
        _survives_a_cut_frame,
        cuts=True,
    ),
    Check(
        "cut-after-init",
        "A connection that is cut right after Init ends alone.",
        _DISABLED,
        _survives_an_unread_one,
        cuts=True,
    ),
    Check(
        "cut-in-data",
        "A connection that is cut with data on its way ends alone.",
        _DISABLED,
        _survives_a_cut,
        cuts=True,
    ),
)
