"""What is refused before a process is forked, and what is not."""

from __future__ import annotations

import _thread
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from kapudf_handlers.mirror import Mirror

from kapudf_cli.plugin_errors import PreloadError
from kapudf_cli.worker import fork_safety
from kapudf_cli.worker.fork_safety import Baseline
from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Give an event that ends the threads of a test."""
    gate = threading.Event()
    yield gate
    gate.set()


def wait_here(gate: threading.Event) -> None:
    gate.wait(PATIENCE_S)


def reasons(baseline: Baseline) -> tuple[str, ...]:
    with pytest.raises(PreloadError) as caught:
        baseline.check(Mirror)
    return caught.value.reasons


def test_a_thread_is_named_with_its_module(
    gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fork_safety, "_PATIENCE_S", 0.1)
    before = Baseline()
    before.check(Mirror)
    threading.Thread(target=wait_here, args=[gate], name="waiter", daemon=True).start()
    assert f"the thread 'waiter' runs in module {__name__}" in reasons(before)
    # What another handler has started before is not the fault of this one.
    Baseline().check(Mirror)


def test_a_thread_that_ends_soon_is_waited_for(
    gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Baseline()
    thread = threading.Thread(target=wait_here, args=[gate], daemon=True)
    thread.start()

    def pause(_: float) -> None:
        gate.set()
        thread.join()

    monkeypatch.setattr("kapudf_cli.worker.fork_safety.time.sleep", pause)
    before.check(Mirror)
    assert not thread.is_alive()


def test_a_thread_that_is_not_known_to_python_is_refused(
    gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fork_safety, "_PATIENCE_S", 0.1)
    before = Baseline()
    started = threading.Event()

    def run() -> None:
        started.set()
        wait_here(gate)

    _thread.start_new_thread(run, ())
    assert started.wait(PATIENCE_S)
    assert any(each.startswith("a thread '") for each in reasons(before))


def test_the_threads_of_numpy_are_allowed() -> None:
    code = (
        "from kapudf_cli.worker.fork_safety import Baseline\n"
        "from kapudf_handlers.mirror import Mirror\n"
        "before = Baseline()\n"
        "import numpy\n"
        "numpy.ones((300, 300)) @ numpy.ones((300, 300))\n"
        "before.check(Mirror)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE_S)
