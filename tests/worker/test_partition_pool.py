"""The partition processes of a worker: what is left of them after their end."""

from __future__ import annotations

import contextlib
import os

import msgspec
import pytest

from kapudf_cli.config import FunctionSettings
from kapudf_cli.plugin_errors import PluginError
from kapudf_cli.system import logs
from kapudf_cli.worker.channel import Channel, Start
from kapudf_cli.worker.partition_pool import PartitionPool
from kapudf_cli.worker.shipped_code import ShippedCode
from tests.conftest import plugin


# The pool waits for processes by their ids, so their objects do not know of their ends.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_pool_that_is_closed_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker without Ray starts one after the other, until Ray is back."""
    # The processes are started in the usual way, and not forked from this one.
    monkeypatch.setenv("KAPUDF_TESTS_EXEC", "1")
    settings = FunctionSettings(handler=plugin("mortal.py:Count"), socket="/s", partitions=2)
    begin = Start("udf", 1, settings, "json", "info")
    dump, record = os.memfd_create("stacks"), os.memfd_create("record")
    try:
        before = sorted(os.listdir("/proc/self/fd"))
        for _ in range(2):
            pool = PartitionPool.start(begin, dump, record, logs.get_logger())
            with contextlib.closing(pool):
                pool.await_ready()
        assert sorted(os.listdir("/proc/self/fd")) == before
    finally:
        os.close(dump)
        os.close(record)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_nobody_waits_for_a_cluster_once_the_supervisor_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KAPUDF_TESTS_EXEC", "1")
    where = {"engine": "ray", "ray_address": "127.0.0.1:9"}
    settings = msgspec.convert({"handler": "mirror", "socket": "/s", **where}, FunctionSettings)
    begin = Start("udf", 1, settings, "json", "info")
    dump, record = os.memfd_create("stacks"), os.memfd_create("record")
    ours, theirs = Channel.pair()
    try:
        with contextlib.closing(
            PartitionPool.start(begin, dump, record, logs.get_logger())
        ) as pool:
            ours.close()
            supervisor = Channel(theirs)
            with pytest.raises(PluginError, match="the supervisor has ended"):
                pool.await_cluster(ShippedCode("mirror", ""), supervisor, is_patient=True)
    finally:
        theirs.close()
        os.close(dump)
        os.close(record)
