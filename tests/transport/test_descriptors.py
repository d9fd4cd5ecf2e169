"""The wait before a connection is closed, over real pipes and sockets."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, NamedTuple

import pytest

from kapudf_cli.transport.descriptors import settle
from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterator


class Ends(NamedTuple):
    """Our descriptors, and the peer's."""

    requests: int
    responses: int
    to_us: int
    from_us: int


@pytest.fixture(params=["pipes", "socket"])
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    """Return both ends of a connection; a test may close the peer's."""
    if request.param == "pipes":
        (requests, to_us), (from_us, responses) = os.pipe(), os.pipe()
        ends = Ends(requests, responses, to_us, from_us)
    else:
        ours, theirs = (end.detach() for end in socket.socketpair())
        ends = Ends(ours, ours, theirs, theirs)
    yield ends
    for descriptor in set(ends):
        try:
            os.close(descriptor)
        except OSError:
            assert descriptor in {ends.to_us, ends.from_us}


class Looks:
    """A peer that has read everything at the n-th check."""

    def __init__(self, ends: Ends, *, read_at: int) -> None:
        self._ends = ends
        self._read_at = read_at
        self.count = 0
        self.thrown_away = 0

    def unread(self) -> int:
        self.count += 1
        return int(self.count < self._read_at)

    def settle(self, timeout_s: float = PATIENCE_S, aborted: int | None = None) -> int:
        return settle(
            timeout_s,
            requests=self._ends.requests,
            responses=self._ends.responses,
            receive=lambda limit: os.read(self._ends.requests, limit),
            unread=self.unread,
            aborted=aborted,
        )


def end_input(ends: Ends) -> None:
    if ends.to_us == ends.from_us:
        with socket.socket(fileno=os.dup(ends.to_us)) as theirs:
            theirs.shutdown(socket.SHUT_WR)
    else:
        os.close(ends.to_us)


def test_a_peer_that_has_ended_its_output_may_still_read(ends: Ends) -> None:
    os.write(ends.to_us, b"late")
    end_input(ends)
    looks = Looks(ends, read_at=7)
    assert looks.settle() == 4
    assert looks.count > 7


def test_settling_waits_a_moment_after_everything_was_read(ends: Ends) -> None:
    looks = Looks(ends, read_at=1)
    assert looks.settle() == 0
    assert looks.count > 2


def test_settling_ends_if_the_peer_is_gone(ends: Ends) -> None:
    for descriptor in {ends.to_us, ends.from_us}:
        os.close(descriptor)
    looks = Looks(ends, read_at=1 << 60)
    assert looks.settle() == 0
    assert looks.count == 1


def test_settling_ends_after_an_abort(ends: Ends) -> None:
    cut, cutter = os.pipe()
    os.write(cutter, b"\0")
    os.write(ends.to_us, b"late")
    looks = Looks(ends, read_at=1 << 60)
    assert looks.settle(aborted=cut) == 0
    assert looks.count == 1
    os.close(cut)
    os.close(cutter)


def test_settling_ends_at_the_timeout(ends: Ends) -> None:
    os.write(ends.to_us, b"x" * 1000)
    looks = Looks(ends, read_at=1 << 60)
    assert looks.settle(0.05) == 1000
