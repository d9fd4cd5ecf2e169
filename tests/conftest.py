"""Fixtures that any test may want."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from tests import forked
from tests.journal.connections import JournaledConnection
from tests.journal.tasks import JournaledTask
from tests.ray_engine.cluster import RayCluster
from tests.serve_process import KAPUDF, ServeProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

PLUGINS = Path(__file__).parent / "plugins"

# Hypothesis times its tests in two ways, and neither says anything of what is tested: a deadline
# for each example, which a busy machine misses, and a check that examples are drawn fast, which a
# fresh clone fails: the first text drawn there makes the tables of Unicode for over a second.
# All else stays as it is, so that CI keeps the profile that hypothesis has for it. `make test-long`
# runs more examples.
for profile, max_examples in {"short": 40, "long": 200}.items():
    settings.register_profile(
        profile,
        settings(),
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        max_examples=max_examples,
    )
settings.load_profile("short")

# Most tests need no keeper, which would take half a second for each process.
os.environ.setdefault("KAPUDF_KEEPER", "0")

# A shell starts background jobs with SIGINT ignored, and processes inherit that. Tests that send
# SIGINT, to this process or to their own, need the default.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _processes_are_forked() -> Iterator[None]:
    """Save the imports of each process."""
    if "KAPUDF_TESTS_EXEC" in os.environ:
        yield
    else:
        with forked.forking():
            yield


@pytest.fixture
def _processes_start_by_exec(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start `kapudf` and its workers without what a fork brings along."""
    monkeypatch.setenv("KAPUDF_TESTS_EXEC", "1")


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Give a folder with a path short enough for Unix sockets, unlike pytest's own."""
    folder = tempfile.mkdtemp(prefix="kapudf-")
    yield Path(folder)
    shutil.rmtree(folder)


@pytest.fixture
def socket_path(short_folder: Path) -> str:
    """Give a path for a socket, where nothing is yet."""
    return str(short_folder / "udf.sock")


@pytest.fixture
def serve(socket_path: str) -> Iterator[Callable[..., ServeProcess]]:
    """Start `kapudf serve` at `socket_path` with a handler and more arguments, ready to use."""
    with contextlib.ExitStack() as processes:

        def start(handler: str, *arguments: str) -> ServeProcess:
            process = ServeProcess("--socket", socket_path, "--handler", handler, *arguments)
            return processes.enter_context(process).ready()

        yield start


@pytest.fixture
def serve_kept(
    socket_path: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., ServeProcess]]:
    """Start `kapudf serve` with a keeper, ready to use."""
    monkeypatch.setenv("KAPUDF_KEEPER", "1")
    # The keeper runs the command again as it was called.
    monkeypatch.setenv("KAPUDF_TESTS_EXEC", "1")
    with contextlib.ExitStack() as processes:

        def start(handler: str, *arguments: str, kapudf: Sequence[str] = KAPUDF) -> ServeProcess:
            process = ServeProcess(
                "--socket", socket_path, "--handler", handler, *arguments, kapudf=kapudf
            )
            return processes.enter_context(process).ready()

        yield start


@pytest.fixture
def kept() -> Iterator[JournaledConnection]:
    """Give a connection with a journal, over which nothing has been sent yet."""
    with contextlib.closing(JournaledConnection()) as connection:
        yield connection


@pytest.fixture
def tasks() -> Iterator[Callable[..., JournaledTask]]:
    """Give a function that connects tasks; all connections are closed in the end."""
    with contextlib.ExitStack() as made:

        def make(*arguments: Any, **more: Any) -> JournaledTask:
            return made.enter_context(contextlib.closing(JournaledTask(*arguments, **more)))

        yield make


def plugin(name: str) -> str:
    """Return how `--handler` names a class in `tests/plugins`, given as file.py:Class."""
    return str(PLUGINS / name)


@pytest.fixture(scope="session")
def cluster() -> Iterator[RayCluster]:
    """Give a cluster of two nodes for all tests that leave it as it is."""
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, RayCluster(Path(folder)) as made:
        made.start_head()
        made.add_node()
        yield made
