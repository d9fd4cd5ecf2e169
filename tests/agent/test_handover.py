"""An agent stands still until it is decided who serves the connection."""

from __future__ import annotations

import threading

import pytest

from kapudf_cli.agent.handover import HandedOver, Handover
from tests.peers import in_thread
from tests.serve_process import PATIENCE_S


def test_an_agent_waits_for_a_decision_and_goes_on() -> None:
    """It says so first, and what was decided before counts for nothing."""
    paused = threading.Event()
    handover = Handover(takes_over=False)
    handover.request(paused.set)
    handover.go()
    noted: list[str] = []

    def pause() -> None:
        handover.pause()
        noted.append("gone on")

    pausing = in_thread(pause)
    assert paused.wait(PATIENCE_S)
    noted.append("told")
    handover.go()
    pausing.result(PATIENCE_S)
    assert noted == ["told", "gone on"]


@pytest.mark.parametrize("takes_over", [False, True])
def test_an_agent_that_is_released_lets_go(*, takes_over: bool) -> None:
    """Whether it had the connection or was about to take it over."""
    handover = Handover(takes_over=takes_over)
    handover.release()
    with pytest.raises(HandedOver):
        handover.wait()


@pytest.mark.parametrize("takes_over", [False, True])
def test_where_nobody_decides_whoever_has_the_connection_keeps_it(*, takes_over: bool) -> None:
    """The other one stands still and goes on, so that two would serve it."""
    handover = Handover(takes_over=takes_over)
    handover.cancel()
    if takes_over:
        with pytest.raises(HandedOver):
            handover.wait()
    else:
        handover.wait()


def test_an_agent_that_took_over_keeps_the_connection_where_nobody_decides() -> None:
    """Once it was told to go, it is the one that has it."""
    handover = Handover(takes_over=True)
    handover.go()
    handover.wait()
    handover.cancel()
    handover.wait()


@pytest.mark.parametrize("how", ["cancel", "stop_waiting"])
def test_an_agent_that_need_wait_for_nobody_does_not_stand_still(how: str) -> None:
    """Later pauses are over as soon as they are told of."""
    noted: list[str] = []
    handover = Handover(takes_over=False)
    handover.request(lambda: noted.append("paused"))
    getattr(handover, how)()
    for _ in range(2):
        in_thread(handover.pause).result(PATIENCE_S)
    assert noted == ["paused", "paused"]


def test_without_a_proposal_nobody_stands_still() -> None:
    """There is nobody who would decide."""
    Handover(takes_over=False).pause()
