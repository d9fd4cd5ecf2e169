"""The header of a journal: fields and commit records in shared memory."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

import hypothesis.strategies as st
import pytest
from hypothesis import given
from msgspec.structs import replace

from kapudf_cli.journal import header as layout
from kapudf_cli.journal.header import HEADER_BYTES, CommitRecord, Header
from kapudf_cli.transport.stream import DONE_BITS, ConnectionStats

if TYPE_CHECKING:
    from collections.abc import Iterator

WORDS = (
    "received", "busy_since_ns", "current_frame", "peek_base", "peek_reset", "segment_bytes",
    "waits_for_peer", "thread", "locks_output",
)  # fmt: skip

counts = st.integers(0, 2**63 - 1)
some_progress = st.builds(ConnectionStats, *[counts] * 10, done=st.integers(0, 2**DONE_BITS - 1))
some_marks = st.builds(CommitRecord, *[counts] * 8, stats=some_progress)


@pytest.fixture
def memory() -> Iterator[mmap.mmap]:
    """Return memory like the one that the supervisor and a worker share."""
    with mmap.mmap(-1, HEADER_BYTES) as memory:
        yield memory


@given(st.lists(some_marks, min_size=1, max_size=5))
def test_the_last_commit_is_the_active_record(several: list[CommitRecord]) -> None:
    with mmap.mmap(-1, HEADER_BYTES) as memory:
        for record in several:
            Header(memory).commit(record)
            assert Header(memory).record == record


def test_a_partly_written_record_changes_nothing(
    memory: mmap.mmap,
) -> None:
    header = Header(memory)
    before = CommitRecord(input_start=1, stats=ConnectionStats(2))
    header.commit(CommitRecord())
    header.commit(before)
    half_written = bytes(memory)
    (in_force,) = layout._WORD.unpack_from(memory, layout._ACTIVE)
    place = layout._RECORD_OFFSETS[~in_force & 1]
    for written in range(layout._RECORD.size):
        memory[place + written] = 0xFF
        assert header.record == before
    memory[:] = half_written
    assert header.record == before


def test_each_field_is_independent(memory: mmap.mmap) -> None:
    header = Header(memory)
    record = replace(CommitRecord(*range(100, 108)), stats=ConnectionStats(*range(200, 210)))
    for number, word in enumerate(WORDS):
        setattr(header, word, -number)
    header.commit(record)
    header.commit(record)
    header.task = ("t" * 600, "n" * 600)
    assert [getattr(Header(memory), word) for word in WORDS] == [-n for n in range(len(WORDS))]
    assert header.record == record
    assert header.task == ("t" * 512, "n" * 512)


def test_the_two_records_do_not_overlap() -> None:
    first, second = layout._RECORD_OFFSETS
    assert first >= layout._LOCKS_OUTPUT + 8
    assert first + layout._RECORD.size <= second
    assert second + layout._RECORD.size <= layout._TASK_OFFSET
    assert layout._NODE_OFFSET + 2 + layout._TEXT_BYTES <= HEADER_BYTES


@pytest.mark.parametrize(
    "names", [("", ""), ("task", "node"), ("größe", "节点"), ("x" * 511 + "ü", "n")]
)
def test_long_names_are_truncated(memory: mmap.mmap, names: tuple[str, str]) -> None:
    header = Header(memory)
    header.task = ("an earlier name, a longer one", "another")
    header.task = names
    shown = header.task
    assert shown[1] == names[1]
    assert shown[0].rstrip("\N{REPLACEMENT CHARACTER}") == names[0].encode()[:512].decode(
        "utf-8", "ignore"
    )
