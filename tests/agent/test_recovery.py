"""Recovery: compaction, and restarts of the handler."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kapudf_cli.protocol.codec import REQUESTS, RESPONSES
from kapudf_cli.protocol.framing import FrameReader
from kapudf_cli.protocol.udf_pb2 import KeepaliveRequest
from tests.agent.parts import INIT, AgentParts, batch
from tests.counters import counted

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def parts() -> Iterator[AgentParts]:
    parts = AgentParts().create_handler()
    yield parts
    parts.close()


@pytest.fixture
def restarting_parts() -> Iterator[AgentParts]:
    parts = AgentParts(on_error="restart").create_handler()
    yield parts
    parts.close()


def test_compaction_happens_between_two_batches_of_a_read(parts: AgentParts) -> None:
    parts.read(INIT)
    batches = [batch(number, "a", "b") for number in range(3)]
    unfinished = batches[2][:-3]
    assert parts.read(batches[0] + batches[1] + unfinished) == 11
    rests = [b"".join((*batches[place:2], unfinished)) for place in range(3)]
    assert [remainder for _, remainder in parts.checkpoints.compactions] == rests
    assert all(prefix.startswith(INIT) for prefix, _ in parts.checkpoints.compactions)
    assert [prefix[-1:] for prefix, _ in parts.checkpoints.compactions] == [b"0", b"2", b"4"]
    assert (parts.stats.points_in, parts.stats.batches_in) == (6, 2)
    parts.read(batches[2][-3:])
    assert parts.responses()[1:] == [counted(number, 2 * number + 2) for number in range(3)]


def test_output_is_flushed_before_compaction(parts: AgentParts) -> None:
    parts.read(INIT)
    parts.read(batch(0, "a") + batch(1, "b"))
    came = FrameReader(RESPONSES.decode_in).feed(parts.peer.recv(1 << 20))
    assert list(came)[1:] == [counted(0, 1)]
    assert parts.responses() == [counted(1, 2)]


def test_no_compaction_happens_before_it_is_due(parts: AgentParts) -> None:
    parts.checkpoints.wants = False
    parts.read(INIT + batch(0, "a") + batch(1, "b"))
    parts.recovery.compact_if_due(0.0)
    assert not parts.checkpoints.compactions


def test_no_compaction_happens_inside_a_batch(parts: AgentParts) -> None:
    parts.checkpoints.wants = False
    parts.read(INIT + batch(0, "a")[:-3])
    parts.checkpoints.wants = True
    parts.recovery.compact_if_due(0.0)
    assert not parts.checkpoints.compactions
    parts.read(batch(0, "a")[-3:] + REQUESTS.encode(KeepaliveRequest(time=1)))
    parts.recovery.compact_if_due(0.0)
    assert [remainder for _, remainder in parts.checkpoints.compactions] == [b""]


@pytest.mark.parametrize("declines", [False, True], ids=["cut", "declined"])
def test_a_failed_frame_is_skipped_in_replays_until_compaction(
    restarting_parts: AgentParts, *, declines: bool
) -> None:
    parts = restarting_parts
    parts.checkpoints.wants = False
    parts.checkpoints.declines = declines
    parts.read(INIT)
    for number in range(4):
        parts.read(batch(number, "a", "raise", "b"))
        parts.recovery.compact_if_due(0.0)
    assert len(parts.checkpoints.compactions) == 4
    assert (parts.stats.failures, parts.stats.restarts) == (4, 4)
    # A compaction that was declined has removed no input, so the failed frames stay skipped.
    assert len(parts.recovery._skipped) == (4 if declines else 0)
    assert parts.responses()[1:] == [counted(number, 2 * number + 2) for number in range(4)]
