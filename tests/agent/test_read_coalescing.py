"""Read coalescing, for sequences of reads and for arrivals recorded behind a real kapacitord."""

from __future__ import annotations

import bisect
import itertools
from pathlib import Path

import pytest

from kapudf_cli.agent.read_coalescing import MAX_LINGER_MS, ReadCoalescing

MICROSECOND = 1e-6
ARRIVALS = Path(__file__).with_name("arrivals.txt")
#: The length of telegraf's `cpu` points.
POINT_BYTES = 378
#: About what a read through the journal costs while kapacitord uses the same cores, and what a
#: point costs.
READ_S = 150 * MICROSECOND
POINT_S = 3 * MICROSECOND


def pauses(coalescing: ReadCoalescing, reads: list[tuple[float, int]]) -> list[float]:
    """Return the pause after each read, given its interval and number of messages."""
    now_s = 100.0
    found = []
    for gap_s, messages in reads:
        now_s += gap_s
        found.append(coalescing.pause_s(now_s, messages, messages * POINT_BYTES))
        now_s += found[-1]
    return found


def recorded_arrivals() -> list[float]:
    """Return when each point arrived, in seconds."""
    now_s = 0.0
    found: list[float] = []
    for line in ARRIVALS.read_text(encoding="ascii").splitlines():
        if not line.startswith("#"):
            gap_us, count = map(int, line.split())
            now_s += gap_us * MICROSECOND
            found += [now_s] * count
    return found


def read(arrivals: list[float], linger_ms: float) -> tuple[int, list[float]]:
    """Return how many reads it takes to read the arrivals, and the sorted delay of each."""
    coalescing = ReadCoalescing(linger_ms)
    now_s = 0.0
    place = reads = 0
    delays: list[float] = []
    while place < len(arrivals):
        now_s = max(now_s, arrivals[place])
        end = bisect.bisect_right(arrivals, now_s)
        now_s += READ_S + (end - place) * POINT_S
        delays += [now_s - at_s for at_s in arrivals[place:end]]
        reads += 1
        now_s += coalescing.pause_s(now_s, end - place, (end - place) * POINT_BYTES)
        place = end
    return reads, sorted(delays)


@pytest.mark.parametrize(("linger_ms", "fewer"), [(1.0, 2.5), (2.0, 3.5), (5.0, 5.0)])
def test_behind_kapacitord_pauses_save_most_reads(linger_ms: float, fewer: float) -> None:
    arrivals = recorded_arrivals()
    eager, eager_delays = read(arrivals, 0)
    reads, delays = read(arrivals, linger_ms)
    assert len(delays) == len(eager_delays) == len(arrivals)
    assert reads * fewer <= eager
    # No point waits for longer than one pause, and for the work on the points before it.
    assert delays[-1] <= linger_ms / 1000 + READ_S + 2 * eager_delays[-1]


def test_slow_traffic_is_never_delayed() -> None:
    reads = [(990 * MICROSECOND, 1), (10 * MICROSECOND, 1)] * 500
    assert set(pauses(ReadCoalescing(2.0), reads)) == {0.0}


def test_a_steady_rate_of_5000_is_read_in_the_longest_pauses() -> None:
    found = pauses(ReadCoalescing(2.0), [(200 * MICROSECOND, 1)] * 100 + [(0.0001, 10)] * 50)
    assert found[0] == 0.0
    assert found[-50:] == [0.002] * 50


def test_a_pause_is_no_longer_than_needed_at_the_rate() -> None:
    arrivals = [each * 25 * MICROSECOND for each in range(40_000)]
    reads, delays = read(arrivals, 5.0)
    assert reads <= len(arrivals) / 50
    assert delays[len(delays) * 9 // 10] < 0.003


def test_a_burst_that_ends_ends_the_pauses() -> None:
    coalescing = ReadCoalescing(2.0)
    pauses(coalescing, [(25 * MICROSECOND, 1)] * 20 + [(10 * MICROSECOND, 10)] * 10)
    assert coalescing.pause_s(200.0, 1, POINT_BYTES) == 0.0
    assert coalescing.pause_s(200.1, 1, POINT_BYTES) == 0.0


def test_one_pause_in_which_nothing_came_does_not_end_them() -> None:
    # kapacitord did not run for 8 ms, and then the first point came alone.
    reads = [(100 * MICROSECOND, 20)] * 50 + [(0.008, 1)] + [(100 * MICROSECOND, 20)] * 5
    assert all(pauses(ReadCoalescing(2.0), reads)[10:])


def test_a_peer_that_waits_for_each_answer_is_rarely_delayed() -> None:
    found = pauses(ReadCoalescing(2.0), [(50 * MICROSECOND, 1)] * 100_000)
    tried = [place for place, pause in enumerate(found) if pause]
    assert 0 < len(tried) <= 10
    gaps = [later - earlier for earlier, later in itertools.pairwise(tried)]
    assert gaps == sorted(gaps)


def test_a_peer_that_begins_to_wait_for_answers_is_delayed_a_few_times() -> None:
    reads = [(100 * MICROSECOND, 20)] * 50 + [(50 * MICROSECOND, 1)] * 1000
    assert sum(pause > 0 for pause in pauses(ReadCoalescing(2.0), reads)[51:]) <= 5


def test_full_reads_need_no_pause() -> None:
    for gap_us in (400, 4000):
        reads = [(gap_us * MICROSECOND, 260)] * 1000
        assert set(pauses(ReadCoalescing(2.0), reads)) == {0.0}


def test_a_setting_of_0_disables_pauses() -> None:
    assert set(pauses(ReadCoalescing(0), [(10 * MICROSECOND, 1)] * 1000)) == {0.0}


@pytest.mark.parametrize("gap_us", [1, 10, 50, 150, 250, 1000])
@pytest.mark.parametrize("messages", [1, 3, 4, 20, 63, 64, 500])
def test_no_pause_is_longer_than_the_setting(gap_us: int, messages: int) -> None:
    coalescing = ReadCoalescing(MAX_LINGER_MS)
    found = pauses(coalescing, [(gap_us * MICROSECOND, messages)] * 2000)
    assert max(found) <= MAX_LINGER_MS / 1000
