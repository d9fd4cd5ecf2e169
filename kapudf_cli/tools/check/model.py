"""What a check is, and what comes of it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from kapudf_cli.tools.check.trial import Trial


class Outcome(enum.StrEnum):
    """What came of a check."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True)
class Check:
    """One rule, and how it is tested.

    Attributes:
        name: short, unique, of words with hyphens.
        rule: what a UDF has to do, in a sentence.
        source: where the rule comes from.
        run: tests it; returns where it holds, raises RuleBrokenError where it does not and
            NotApplicableError where it does not apply to this UDF.
        cuts: whether it ends connections that the UDF still writes to, as Kapacitor does
            when a task is disabled. The server of a UDF that cannot stand that may exit.
    """

    name: str
    rule: str
    source: str
    run: Callable[[Trial], None]
    cuts: bool = False


@dataclass(frozen=True)
class Result:
    """What came of one check.

    Attributes:
        check: the check.
        outcome: what came of it.
        reason: why it failed or does not apply; empty where it passed.
        duration_s: how long it took.
    """

    check: Check
    outcome: Outcome
    reason: str
    duration_s: float
