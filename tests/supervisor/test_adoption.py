"""Which worker goes on with which connection after the death of a supervisor."""

from __future__ import annotations

import pytest

from kapudf_cli.supervisor.adoption import Decision, decide
from kapudf_cli.worker.channel import Code, Identity, Ready
from tests.supervisor.workers import SETTINGS

LOADED = Ready("Mirror", Code("/mirror.py", 0.0, "abc"))


def identity(
    *,
    serving: tuple[int, ...] = (),
    paused: tuple[tuple[int, int], ...] = (),
    waiting: tuple[int, ...] = (),
) -> Identity:
    return Identity("f", SETTINGS, LOADED, serving, paused, waiting)


@pytest.mark.parametrize(
    ("identities", "ended", "decision"),
    [
        pytest.param({}, set(), Decision({}, {}, []), id="no worker is left"),
        pytest.param(
            {1: identity(serving=(7, 8)), 2: identity(serving=(9,))},
            set(),
            Decision({7: 1, 8: 1, 9: 2}, {}, []),
            id="each goes on with what it serves",
        ),
        pytest.param(
            {1: identity(paused=((7, 1234),)), 2: identity(waiting=(7,))},
            set(),
            Decision({7: 1}, {7: 1234}, [(2, 7)]),
            id="a handover is undone",
        ),
        pytest.param(
            {1: identity(waiting=(7,)), 2: identity(paused=((7, 1234),))},
            set(),
            Decision({7: 2}, {7: 1234}, [(1, 7)]),
            id="in any order of the workers",
        ),
        pytest.param(
            {1: identity(paused=((7, 1234),))},
            set(),
            Decision({7: 1}, {7: 1234}, []),
            id="a paused worker goes on if the other one has ended",
        ),
        pytest.param(
            {2: identity(waiting=(7,))},
            set(),
            Decision({}, {}, [(2, 7)]),
            id="one that waits may not have the last state",
        ),
        pytest.param(
            {1: identity(paused=((7, 1234),)), 2: identity(serving=(7,))},
            set(),
            Decision({7: 2}, {}, [(1, 7)]),
            id="a handover that is decided is completed",
        ),
        pytest.param(
            {1: identity(serving=(7, 8), paused=((9, 1),))},
            {7, 9},
            Decision({8: 1}, {}, [(1, 9)]),
            id="what has ended is not served again",
        ),
    ],
)
def test_a_connection_goes_on_at_the_worker_with_its_last_state(
    identities: dict[int, Identity], ended: set[int], decision: Decision
) -> None:
    assert decide(identities, ended) == decision
