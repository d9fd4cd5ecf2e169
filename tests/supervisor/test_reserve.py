"""The reserve of descriptors, in a process that has few left."""

from __future__ import annotations

import contextlib
import os
import resource
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.supervisor.acceptance import DescriptorReserve

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def all_used() -> Iterator[None]:
    """Use up the descriptors of this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as held:
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        held.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 20, hard))
        for _ in range(_free()):
            held.callback(os.close, os.dup(0))
        yield


def _free() -> int:
    """Return how many descriptors this process can still open."""
    with contextlib.ExitStack() as held:
        for count in range(10_000):
            try:
                held.callback(os.close, os.dup(0))
            except OSError:
                return count
    raise AssertionError


@pytest.fixture
def reserve() -> Iterator[DescriptorReserve]:
    with contextlib.closing(DescriptorReserve()) as made:
        yield made


def test_lent_descriptors_are_free_when_all_others_are_used(reserve: DescriptorReserve) -> None:
    with all_used():
        assert _free() == 0
        with reserve.lent():
            assert _free() >= 16
        assert _free() == 0
        reserve.check()


def test_the_reserve_is_incomplete_until_its_descriptors_are_free_again(
    reserve: DescriptorReserve,
) -> None:
    with all_used():
        with reserve.lent():
            used = os.dup(0)
        with pytest.raises(OSError, match="Too many open files"):
            reserve.check()
        os.close(used)
        reserve.check()


def test_the_reserve_takes_free_descriptors_first(
    reserve: DescriptorReserve,
) -> None:
    with all_used():
        with reserve.lent():
            used = [os.dup(0) for _ in range(3)]
        for each in used:
            os.close(each)
        reserve.check()
        assert _free() == 0
