"""The checks of a connection: Info, Init, keepalives, and the end."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from kapudf_cli.client.command_target import CommandTarget
from kapudf_cli.client.errors import TargetError, UdfFaultError
from kapudf_cli.client.session import drain
from kapudf_cli.protocol.codec import REQUESTS
from kapudf_cli.protocol.udf_pb2 import EdgeType, InitRequest, Option, ValueType
from kapudf_cli.tickscript.identifiers import name_problem
from kapudf_cli.tickscript.snippets import signatures
from kapudf_cli.tools.check.data import mistyped, without_values
from kapudf_cli.tools.check.trial import Check, NotApplicableError
from kapudf_cli.tools.options import first_accepted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kapudf_cli.client.session import Session
    from kapudf_cli.client.target import Ending
    from kapudf_cli.protocol.udf_pb2 import InfoResponse, InitResponse
    from kapudf_cli.tools.check.trial import Trial

# --- Info ---


def _answers_info(trial: Trial) -> None:
    with trial.connected() as session:
        info = trial.ask_info(session)
        drain(session.finish())
    trial.info = info


def _declares_what_exists(trial: Trial) -> None:
    info = trial.known()
    for which, edge in (("wants", info.wants), ("provides", info.provides)):
        if edge not in EdgeType.values():
            raise UdfFaultError(f"{which} edge {edge}; there are 0 (stream) and 1 (batch)")
    for name, option in sorted(info.options.items()):
        if (problem := name_problem(name)) is not None:
            raise UdfFaultError(
                f"declares an option '{name}', which no TICKscript can call; {problem}"
            )
        for kind in option.valueTypes:
            if kind not in ValueType.values():
                raise UdfFaultError(
                    f"declares .{name}() with a value of type {kind}; there is none"
                )


def _answers_info_alike(trial: Trial) -> None:
    before = trial.known()
    with trial.connected() as session:
        now = trial.ask_info(session)
        drain(session.finish())
    if now != before:
        problem = f"said {_text(before)} at first, and {_text(now)} when it was asked again"
        raise UdfFaultError(problem)


def _text(info: InfoResponse) -> str:
    options = " ".join(signatures(info)) or "no options"
    return f"wants {info.wants}, provides {info.provides}, {options}"


INFO_CHECKS: Final = (
    Check(
        "info",
        "The UDF answers Info with its edges and options, and closes the connection at the end of "
        "its input.",
        "Kapacitor asks at its start, and waits for both: services/udf/service.go",
        _answers_info,
    ),
    Check(
        "info-declares",
        "The edges and the types of options are those of the protocol, and a TICKscript can call "
        "each option by its name.",
        "EdgeType and ValueType of udf.proto; identifiers in tick/ast/lex.go",
        _declares_what_exists,
    ),
    Check(
        "info-again",
        "The UDF gives the same answer to Info on another connection.",
        "Kapacitor asks once, at its start, and checks every TICKscript against that answer: "
        "services/udf/service.go",
        _answers_info_alike,
    ),
)


# --- Init ---

#: How long to wait for a second answer to Init, which would be a fault.
_QUIET_S: Final = 0.2

_STALE: Final = (
    "Kapacitor checks options against the answer from its start; a UDF that was replaced since "
    "then gets options that it no longer has: services/udf/service.go"
)


def _takes_good_options(trial: Trial) -> None:
    def init(options: Sequence[Option]) -> InitResponse:
        with trial.connected() as session:
            response = trial.init(session, options)
            if response.success:
                drain(session.quiet(min(_QUIET_S, trial.timeout_s)))
            return response

    trial.options = first_accepted(
        trial.candidates(), init, are_generated=trial.given_options is None
    )


def _answers_without_options(trial: Trial) -> None:
    _answers_init(trial, ())


def _answers_repeated_options(trial: Trial) -> None:
    trial.needs_task()
    options = trial.options or ()
    if not options:
        raise NotApplicableError("it was started without options")
    _answers_init(trial, [*options, *options])


def _answers_unknown_options(trial: Trial) -> None:
    _answers_init(trial, [*(trial.options or ()), Option(name="no_such_option")])


def _answers_mistyped_options(trial: Trial) -> None:
    options = mistyped(trial.known())
    if not options:
        raise NotApplicableError("it declares no options")
    _answers_init(trial, options)


def _answers_options_without_values(trial: Trial) -> None:
    options = without_values(trial.known())
    if not options:
        raise NotApplicableError("it declares no options that take values")
    _answers_init(trial, options)


def _answers_init(trial: Trial, options: Sequence[Option]) -> None:
    """Check that Init is accepted, or refused with a reason."""
    trial.known()
    with trial.connected() as session:
        response = trial.init(session, options)
    if not response.success and not response.error.strip():
        raise UdfFaultError("refused the options without a reason, so the user cannot see it")


INIT_CHECKS: Final = (
    Check(
        "init",
        "Init with the right options is answered with success.",
        "A task begins with it; without success the task fails: Init in udf/server.go",
        _takes_good_options,
    ),
    Check(
        "init-without-options",
        "Init without options is answered, with success or with a reason.",
        "A TICKscript need not call any option: UDFNode in pipeline/udf.go",
        _answers_without_options,
    ),
    Check(
        "init-repeated-options",
        "Init with every option called twice is answered, with success or with a reason.",
        "A TICKscript may call an option again, and each call is sent: pipeline/udf.go",
        _answers_repeated_options,
    ),
    Check(
        "init-unknown-option",
        "Init with an option that the UDF does not declare is answered, with success or with a "
        "reason.",
        _STALE,
        _answers_unknown_options,
    ),
    Check(
        "init-mistyped-options",
        "Init with values of other types and of another number is answered, with success or "
        "with a reason.",
        _STALE,
        _answers_mistyped_options,
    ),
    Check(
        "init-no-values",
        "Init with options that lack their values is answered, with success or with a reason.",
        _STALE,
        _answers_options_without_values,
    ),
)


# --- keepalives ---

_TIMEOUT: Final = (
    "Kapacitor sends one at each half of the timeout, and ends the task after a whole timeout "
    "without a response: watchKeepalive in udf/server.go"
)
#: Enough points that a UDF is busy for a while.
_MANY: Final = 2_000
#: A UDF that is quiet for this long has processed a few points.
_REST_S: Final = 0.5
_FEW: Final = 8


def _answers_before_init(trial: Trial) -> None:
    trial.known()
    with trial.connected() as session:
        drain(session.exchange())


def _answers_at_rest(trial: Trial) -> None:
    with trial.shared() as session:
        for _ in range(3):
            drain(session.exchange())


def _answers_behind_data(trial: Trial) -> None:
    with trial.shared() as session:
        drain(session.exchange(trial.data(_MANY), f"a keepalive behind {_MANY} points"))


def _holds_nothing_back(trial: Trial) -> None:
    with trial.shared() as session:
        session.post(*trial.data(_FEW))
        drain(session.quiet(min(_REST_S, trial.timeout_s)))
        before = session.counts.messages_received
        drain(session.exchange())
        held = session.counts.messages_received - before
    if held:
        problem = (
            f"held {held} messages back until a keepalive came, though it was idle; "
            "flush when there is no more input"
        )
        raise UdfFaultError(problem)


KEEPALIVE_CHECKS: Final = (
    Check(
        "keepalive-before-init",
        "A keepalive before Init is answered in time.",
        "Kapacitor's timer starts with the connection: Start in udf/server.go",
        _answers_before_init,
    ),
    Check("keepalive", "Keepalives are answered in time.", _TIMEOUT, _answers_at_rest),
    Check(
        "keepalive-busy",
        f"A keepalive behind {_MANY} points is answered, and the UDF is not silent for a whole "
        "timeout meanwhile.",
        _TIMEOUT,
        _answers_behind_data,
    ),
    Check(
        "flush",
        "Output is sent at once, and not only with the answer to the next keepalive.",
        "Otherwise alerts are late by up to half of the timeout; the usual cause is a buffer that "
        "is not flushed: Agent in udf/agent/py",
        _holds_nothing_back,
    ),
)


# --- ends ---

_REPLAY: Final = (
    "A replay half-closes when all is sent, and reads until the UDF closes: Stop in udf/server.go"
)
_DISABLED: Final = "Kapacitor cuts the connection of a disabled task, even with unread data"
_COUNT: Final = 1_000
_PIECES: Final = 10
_CONNECTIONS: Final = 4


def _closes(trial: Trial) -> None:
    with trial.take_shared() as session:
        drain(session.finish())


def _answers_what_was_on_its_way(trial: Trial) -> None:
    data = trial.data(_COUNT)
    piece = len(data) // _PIECES
    with trial.started() as calm:
        for start in range(0, len(data), piece):
            drain(calm.exchange(data[start : start + piece], "a keepalive between points"))
        drain(calm.finish())
    with trial.started() as hurried:
        drain(hurried.finish(data))
    with_time, without = calm.counts.messages_received, hurried.counts.messages_received
    if without < with_time:
        problem = (
            f"sent {without} messages for {_COUNT} points when its input ended right after them, "
            f"and {with_time} when it had time: {with_time - without} were lost; process all "
            "input, and flush, before closing"
        )
        raise UdfFaultError(problem)


def _exits_cleanly(trial: Trial) -> None:
    if not isinstance(trial.target, CommandTarget):
        raise NotApplicableError("only the exit of a process that check starts can be seen")
    with trial.started() as session:
        drain(session.exchange(trial.data(10), "a keepalive behind 10 points"))
        drain(session.finish())
        ending = _ending(trial, session)
    if ending is not None and not ending.clean:
        raise UdfFaultError(str(ending))


def _serves_several(trial: Trial) -> None:
    data = trial.data(100)
    with contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(trial.started()) for _ in range(_CONNECTIONS)]
        for _ in range(3):
            for session in sessions:
                drain(session.exchange(data, f"a keepalive, with {_CONNECTIONS} connections open"))
        first, *others = sessions
        drain(first.settle())
        first.cut()
        for session in others:
            drain(session.exchange(data, "a keepalive, after another connection was cut"))
            drain(session.finish())
        counts = [session.counts.messages_received for session in others]
        if len(set(counts)) > 1:
            text = ", ".join(map(str, counts))
            raise UdfFaultError(f"sent {text} messages on connections that were sent the same")


def _ending(trial: Trial, session: Session) -> Ending | None:
    """Wait for the end of the connection's process or handler; None if it cannot be seen."""
    if not trial.sees_endings:
        return None
    ending = session.ending(trial.timeout_s)
    if ending is None:
        problem = f"still runs {trial.timeout_s:g} s after its connection was closed"
        raise UdfFaultError(problem)
    return ending


def _still_serves(trial: Trial, what: str) -> None:
    """Check that the UDF accepts another connection."""
    if isinstance(trial.target, CommandTarget):
        # Each connection has a new process: it does not show whether the old one survived.
        return
    try:
        with trial.connected() as session:
            trial.ask_info(session)
            drain(session.finish())
    except UdfFaultError as error:
        problem = f"serves no connection after {what}: it {error.problem}"
        raise UdfFaultError(problem) from error
    except TargetError as error:
        raise UdfFaultError(f"serves no connection after {what}: {error.problem}") from error


def _cut_check(
    name: str, how: str, send: Callable[[Trial, Session], None], *, has_task: bool = True
) -> Check:
    """Return the check that the UDF survives a connection that ends early.

    Args:
        name: see `Check`.
        how: how the connection ends, for messages: `cut inside a frame`.
        send: sends something before the end.
        has_task: whether a task is started first.
    """

    def run(trial: Trial) -> None:
        if not has_task:
            trial.known()
        with trial.started() if has_task else trial.connected() as session:
            send(trial, session)
            session.cut()
            _ending(trial, session)
        _still_serves(trial, f"a connection that was {how}")

    return Check(name, f"A connection that is {how} ends alone.", _DISABLED, run, cuts=True)


def _send_part_of_a_frame(trial: Trial, session: Session) -> None:
    frame = REQUESTS.encode(trial.data(10)[0])
    session.post_bytes(frame[: len(frame) // 2])


def _send_init(trial: Trial, session: Session) -> None:
    session.post(InitRequest(taskID="kapudf-check", options=trial.options or ()))


END_CHECKS: Final = (
    Check("half-close", "At the end of its input the UDF closes the connection.", _REPLAY, _closes),
    Check(
        "half-close-in-flight",
        "All input before the end is processed and answered.",
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
        f"The UDF serves {_CONNECTIONS} connections at once, and the end of one does not end "
        "others.",
        "Each task that calls the UDF has one: services/udf/service.go",
        _serves_several,
    ),
    _cut_check("cut-at-once", "closed without any request", lambda *_: None, has_task=False),
    _cut_check("cut-in-frame", "cut inside a frame", _send_part_of_a_frame),
    _cut_check("cut-after-init", "cut right after Init", _send_init, has_task=False),
    _cut_check(
        "cut-in-data",
        "cut with unread data",
        lambda trial, session: session.post(*trial.data(100)),
    ),
)
