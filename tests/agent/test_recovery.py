"""When what is kept for another handler is cut, and how a handler is made anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kapudf_cli.protocol.codec import REQUESTS, RESPONSES
from kapudf_cli.protocol.framing import FrameReader
from kapudf_cli.protocol.udf_pb2 import KeepaliveRequest
from tests.agent.read_loops import INIT, Loop, batch
from tests.counters import counted

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def restarting_loop() -> Iterator[Loop]:
    loop = Loop("restart")
    yield loop
    loop.close()


def test_compaction_happens_between_two_batches_of_a_read(loop: Loop) -> None:
    loop.take(INIT)
    batches = [batch(number, "a", "b") for number in range(3)]
    unfinished = batches[2][:-3]
    assert loop.take(batches[0] + batches[1] + unfinished) == 11
    rests = [b"".join((*batches[place:2], unfinished)) for place in range(3)]
    assert [remainder for _, remainder in loop.kept.cuts] == rests
    assert all(prefix.startswith(INIT) for prefix, _ in loop.kept.cuts)
    assert [prefix[-1:] for prefix, _ in loop.kept.cuts] == [b"0", b"2", b"4"]
    assert (loop.stats.points_in, loop.stats.batches_in) == (6, 2)
    loop.take(batches[2][-3:])
    assert loop.answers()[1:] == [counted(number, 2 * number + 2) for number in range(3)]


def test_output_is_flushed_before_compaction(loop: Loop) -> None:
    loop.take(INIT)
    loop.take(batch(0, "a") + batch(1, "b"))
    came = FrameReader(RESPONSES.decode_in).feed(loop.peer.recv(1 << 20))
    assert list(came)[1:] == [counted(0, 1)]
    assert loop.answers() == [counted(1, 2)]


def test_no_compaction_happens_before_it_is_due(loop: Loop) -> None:
    loop.kept.wants = False
    loop.take(INIT + batch(0, "a") + batch(1, "b"))
    loop.recovery.compact_if_due(0.0)
    assert not loop.kept.cuts


def test_no_compaction_happens_inside_a_batch(loop: Loop) -> None:
    loop.kept.wants = False
    loop.take(INIT + batch(0, "a")[:-3])
    loop.kept.wants = True
    loop.recovery.compact_if_due(0.0)
    assert not loop.kept.cuts
    loop.take(batch(0, "a")[-3:] + REQUESTS.encode(KeepaliveRequest(time=1)))
    loop.recovery.compact_if_due(0.0)
    assert [remainder for _, remainder in loop.kept.cuts] == [b""]


@pytest.mark.parametrize("declines", [False, True], ids=["cut", "declined"])
def test_a_failed_frame_is_skipped_in_replays_until_compaction(
    restarting_loop: Loop, *, declines: bool
) -> None:
    loop = restarting_loop
    loop.kept.wants = False
    loop.kept.declines = declines
    loop.take(INIT)
    for number in range(4):
        loop.take(batch(number, "a", "raise", "b"))
        loop.recovery.compact_if_due(0.0)
    assert len(loop.kept.cuts) == 4
    assert (loop.stats.failures, loop.stats.restarts) == (4, 4)
    # A new beginning would have had no input before it: then what failed is met again.
    assert len(loop.recovery._skipped) == (4 if declines else 0)
    assert loop.answers()[1:] == [counted(number, 2 * number + 2) for number in range(4)]
