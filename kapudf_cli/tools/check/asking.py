"""Checks of what a UDF says that it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kapudf_cli.protocol.udf_pb2 import EdgeType, ValueType
from kapudf_cli.tickscript.identifiers import IDENTIFIER
from kapudf_cli.tickscript.snippets import signatures
from kapudf_cli.tools.check.errors import RuleBrokenError
from kapudf_cli.tools.check.model import Check

if TYPE_CHECKING:
    from kapudf_cli.protocol.udf_pb2 import InfoResponse
    from kapudf_cli.tools.check.trial import Trial


def _answers(trial: Trial) -> None:
    with trial.connected() as conversation:
        info = conversation.info()
        conversation.finish()
    trial.info = info


def _declares_what_there_is(trial: Trial) -> None:
    info = trial.known()
    for which, edge in (("wants", info.wants), ("provides", info.provides)):
        if edge not in EdgeType.values():
            raise RuleBrokenError(f"{which} edge {edge}; there are 0 (stream) and 1 (batch)")
    for name, option in sorted(info.options.items()):
        if not IDENTIFIER.fullmatch(name):
            raise RuleBrokenError(f"declares an option '{name}', which no TICKscript can call")
        for kind in option.valueTypes:
            if kind not in ValueType.values():
                raise RuleBrokenError(
                    f"declares .{name}() with a value of type {kind}; there is none"
                )


def _says_the_same_again(trial: Trial) -> None:
    before = trial.known()
    with trial.connected() as conversation:
        now = conversation.info()
        conversation.finish()
    if now != before:
        problem = f"said {_told(before)} at first, and {_told(now)} when it was asked again"
        raise RuleBrokenError(problem)


def _told(info: InfoResponse) -> str:
    options = " ".join(signatures(info)) or "no options"
    return f"wants {info.wants}, provides {info.provides}, {options}"


CHECKS: Final = (
    Check(
        "info",
        "Info is answered with what the UDF wants, provides and takes as options; at the end of "
        "its input the UDF closes the connection.",
        "Kapacitor asks so at its start, and waits for both: services/udf/service.go",
        _answers,
    ),
    Check(
        "info-declares",
        "The edges and the types of options are those of the protocol, and options have names "
        "that a TICKscript can call.",
        "EdgeType and ValueType of udf.proto; identifiers in tick/ast/lex.go",
        _declares_what_there_is,
    ),
    Check(
        "info-again",
        "Asked again on another connection, the UDF says the same.",
        "Kapacitor asks once, at its start, and checks every TICKscript by that answer: "
        "services/udf/service.go",
        _says_the_same_again,
    ),
)
