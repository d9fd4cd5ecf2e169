"""Read coalescing, for sequences of reads."""

from __future__ import annotations

import itertools

import pytest

from kapudf_cli.agent.read_coalescing import MAX_LINGER_MS, ReadCoalescing

MICROSECOND = 1e-6


def pauses(linger: ReadCoalescing, reads: list[tuple[float, int]]) -> list[float]:
    """Return the pause after each read, given its interval and number of messages."""
    now_s = 100.0
    found = []
    for gap_s, messages in reads:
        now_s += gap_s
        found.append(linger.pause_s(now_s, messages))
        now_s += found[-1]
    return found


def test_slow_traffic_is_never_delayed() -> None:
    reads = [(990 * MICROSECOND, 1), (10 * MICROSECOND, 1)] * 500
    assert set(pauses(ReadCoalescing(0.5), reads)) == {0.0}


def test_dense_traffic_is_read_in_pauses() -> None:
    reads = [(25 * MICROSECOND, 1)] * 9 + [(10 * MICROSECOND, 10)] * 50
    found = pauses(ReadCoalescing(0.5), reads)
    assert found[0] == 0.0
    assert found[-50:] == [0.0005] * 50


def test_a_steady_rate_is_read_in_pauses_if_each_yields_two_messages() -> None:
    linger = ReadCoalescing(0.5)
    found = pauses(linger, [(10 * MICROSECOND, 1), (190 * MICROSECOND, 0)] * 4)
    assert set(found) == {0.0}
    found = pauses(linger, [(10 * MICROSECOND, 1)] + [(100 * MICROSECOND, 3), (0.0, 2)] * 50)
    assert set(found) == {0.0005}


def test_a_peer_that_waits_for_each_answer_is_rarely_delayed() -> None:
    linger = ReadCoalescing(0.5)
    found = pauses(linger, [(50 * MICROSECOND, 1)] * 100_000)
    tried = [place for place, pause in enumerate(found) if pause]
    assert 0 < len(tried) <= 10
    gaps = [later - earlier for earlier, later in itertools.pairwise(tried)]
    assert gaps == sorted(gaps)


def test_the_end_of_dense_traffic_ends_the_pauses() -> None:
    linger = ReadCoalescing(0.5)
    pauses(linger, [(25 * MICROSECOND, 1)] * 20 + [(10 * MICROSECOND, 10)] * 10)
    assert linger.pause_s(200.0, 1) == 0.0
    assert linger.pause_s(200.1, 1) == 0.0


def test_full_reads_need_no_pause() -> None:
    assert set(pauses(ReadCoalescing(0.5), [(10 * MICROSECOND, 180)] * 1000)) == {0.0}


def test_a_setting_of_0_disables_pauses() -> None:
    assert set(pauses(ReadCoalescing(0), [(10 * MICROSECOND, 1)] * 1000)) == {0.0}


@pytest.mark.parametrize("gap_us", [1, 10, 50, 150, 250, 1000])
@pytest.mark.parametrize("messages", [1, 3, 4, 20, 63, 64, 500])
def test_no_pause_is_longer_than_the_setting(gap_us: int, messages: int) -> None:
    found = pauses(ReadCoalescing(MAX_LINGER_MS), [(gap_us * MICROSECOND, messages)] * 2000)
    assert max(found) <= MAX_LINGER_MS / 1000
