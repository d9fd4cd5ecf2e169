"""Handover: an agent waits for the decision which agent serves the connection."""

from __future__ import annotations

import threading

import pytest

from kapudf_cli.agent.handover import HandedOver, Handover
from tests.peers import in_thread
from tests.serve_process import PATIENCE_S


def test_an_agent_waits_for_a_decision_and_goes_on() -> None:
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
def test_a_released_agent_raises(*, takes_over: bool) -> None:
    handover = Handover(takes_over=takes_over)
    handover.release()
    with pytest.raises(HandedOver):
        handover.wait()


@pytest.mark.parametrize("takes_over", [False, True])
def test_the_agent_that_has_the_connection_keeps_it_on_cancel(*, takes_over: bool) -> None:
    handover = Handover(takes_over=takes_over)
    handover.cancel()
    if takes_over:
        with pytest.raises(HandedOver):
            handover.wait()
    else:
        handover.wait()


def test_an_agent_that_took_over_keeps_the_connection_on_cancel() -> None:
    handover = Handover(takes_over=True)
    handover.go()
    handover.wait()
    handover.cancel()
    handover.wait()


@pytest.mark.parametrize("how", ["cancel", "stop_waiting"])
def test_pauses_end_at_once_after_cancel(how: str) -> None:
    noted: list[str] = []
    handover = Handover(takes_over=False)
    handover.request(lambda: noted.append("paused"))
    getattr(handover, how)()
    for _ in range(2):
        in_thread(handover.pause).result(PATIENCE_S)
    assert noted == ["paused", "paused"]


def test_a_pause_that_was_not_requested_does_not_wait() -> None:
    Handover(takes_over=False).pause()
