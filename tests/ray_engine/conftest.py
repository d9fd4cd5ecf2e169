"""Clusters, and UDFs whose partitions are on them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.ray_engine.cluster import QUICK, RayCluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.serve_process import ServeProcess

    Serve = Callable[..., ServeProcess]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests with a cluster."""
    for item in items:
        if {"cluster", "own_cluster"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.ray)


@pytest.fixture
def own_cluster() -> Iterator[RayCluster]:
    """Give a cluster that is not started."""
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, RayCluster(Path(folder)) as made:
        yield made


@pytest.fixture
def serve_on(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Start `kapudf serve` with partitions on a cluster, ready to use."""
    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)

    def start(cluster: RayCluster, handler: str, *arguments: str) -> ServeProcess:
        places = ("--engine", "ray", "--ray-address", cluster.address, "--partitions", "2")
        return serve(handler, *places, *arguments)

    return start


@pytest.fixture
def config_file(
    tmp_path: Path, socket_path: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Write a configuration for a function on a cluster, and return its path."""
    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)

    def write(cluster: RayCluster, handler: str, **settings: object) -> str:
        function = {
            "handler": handler,
            "socket": socket_path,
            "engine": "ray",
            "ray_address": cluster.address,
            "partitions": 2,
            **settings,
        }
        file = tmp_path / "kapudf.yaml"
        file.write_text(json.dumps({"functions": {"udf": function}}), encoding="utf-8")
        return str(file)

    return write
