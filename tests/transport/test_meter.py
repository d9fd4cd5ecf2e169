"""The meter of a connection, in memory that outlives its worker."""

from __future__ import annotations

import time

import pytest

from kapudf_cli.transport.meter import BOUNDS_NS, END_REASONS, HANDLER_NS, METER_BYTES, Meter
from tests.peers import in_thread
from tests.serve_process import PATIENCE_S


def test_what_was_published_is_known_to_the_next_worker() -> None:
    memory = bytearray(8 + METER_BYTES)
    first = Meter(memory, 8)
    first.counts[3] += 5
    first.counts[HANDLER_NS] += 2_000_000_000
    assert Meter(memory, 8).handler_s == 0
    first.publish()
    second = Meter(memory, 8)
    assert (second.handler_s, second.buckets[3]) == (2.0, 5)
    second.counts[HANDLER_NS] += 1_000_000_000
    second.publish()
    # The first worker has measured nothing since: it does not overwrite what the second has.
    first.publish()
    assert Meter(memory, 8).handler_s == 3.0
    assert memory[:8] == bytes(8)


def test_a_wait_for_kapacitor_is_no_time_of_the_handler() -> None:
    meter = Meter()
    meter.adopt()
    meter.began_ns = before_ns = time.monotonic_ns()
    meter.begin_wait()
    assert meter.wait_s > 0
    meter.end_wait()
    waited_s = meter.wait_s
    assert meter.began_ns - before_ns == round(waited_s * 1e9)
    # There is nothing to end.
    meter.end_wait()
    assert meter.wait_s == waited_s


def test_a_wait_of_another_thread_is_not_taken_from_the_handlers_time() -> None:
    meter = Meter()
    meter.adopt()
    meter.begin_wait()
    in_thread(meter.end_wait).result(PATIENCE_S)
    assert meter.wait_s > 0
    assert meter.began_ns == 0


def test_the_reads_of_a_batch_count_as_one() -> None:
    meter = Meter()
    assert meter.add_to_batch(2, 30, ends=False) == (0, 0)
    assert meter.add_to_batch(3, 40, ends=False) == (0, 0)
    assert meter.add_to_batch(0, 500, ends=True) == (5, 570)
    assert meter.add_to_batch(1, 7, ends=True) == (1, 7)


def test_takeovers_and_handovers_have_pauses() -> None:
    meter = Meter()
    meter.note_death()
    meter.note_death()
    meter.note_taken_over(0.5)
    meter.note_handed_over(0.25)
    assert (meter.takeovers, meter.handovers) == ((2, 0.5), (1, 0.25))


@pytest.mark.parametrize("reason", END_REASONS)
def test_the_reason_of_the_end_is_kept(reason: str) -> None:
    meter = Meter()
    assert meter.end is None
    meter.note_end(reason)
    assert meter.end == reason


def test_the_buckets_reach_from_a_microsecond_to_half_a_minute() -> None:
    assert (BOUNDS_NS[0], BOUNDS_NS[-1]) == (1_000, 30_000_000_000)
    assert len(Meter().buckets) == len(BOUNDS_NS) + 1
