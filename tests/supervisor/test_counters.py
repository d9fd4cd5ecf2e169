"""Counters that one supervisor leaves to the next one."""

from __future__ import annotations

import mmap
import os

import pytest

from kapudf_cli.supervisor.counters import Counters, History, decode, encode
from kapudf_cli.supervisor.numbers import Numbers


def test_histories_are_read_as_they_were_written() -> None:
    history = History(Counters(points_in=3, handler_s=0.5), {"closed": 2}, worker_starts=4)
    history.add_death("SIGKILL")
    history.add_death("SIGKILL")
    histories = {"f": history, "g": History()}
    assert decode(encode(histories)) == histories
    assert history.worker_deaths == {"SIGKILL": 2}


@pytest.mark.parametrize("data", [b"", b"{", b'{"f": 1}', b'{"f": {"ended": {"points_in": "x"}}}'])
def test_what_cannot_be_read_counts_from_zero(data: bytes) -> None:
    assert decode(data) == {}


def test_the_next_supervisor_gets_the_last_counters() -> None:
    memory = os.memfd_create("numbers")
    os.ftruncate(memory, mmap.PAGESIZE)
    first = Numbers(memory)
    assert first.counters == b""
    assert next(first.connections) == 1
    for data in (b"one", b"twenty-two", b"3"):
        first.keep_counters(data)
        second = Numbers(os.dup(memory))
        assert second.counters == data
        second.close()
    # Longer ones than there is room for are not kept.
    first.keep_counters(b"x" * 2_000_000)
    assert first.counters == b"3"
    assert next(first.connections) == 2
    first.close()
