"""`kapudf` whose supervisor dies at a step: `python -m tests.peers.mortal_supervisor serve ...`.

$DIE_AT names the step, as `Router.on_paused.before`. The supervisor kills itself when it gets there
for the first time. $DEATHS is a file with a byte for each such death; at the third it is enough. As
long as there is no such file, none dies.
"""

from __future__ import annotations

import functools
import os
import signal
import time
from pathlib import Path
from typing import Any

from kapudf_cli.commands import run
from kapudf_cli.journal import journal
from kapudf_cli.supervisor import acceptance, adoption
from kapudf_cli.supervisor.connection import SupervisedConnection
from kapudf_cli.supervisor.dispatch import Dispatch
from kapudf_cli.supervisor.pool import Pool
from kapudf_cli.supervisor.router import Router
from kapudf_cli.supervisor.worker_process import WorkerProcess
from kapudf_cli.system.descriptor_store import DescriptorStore

ENOUGH_DEATHS = 3

PLACES: dict[str, Any] = {
    "acceptance": acceptance,
    "adoption": adoption,
    "journal": journal,
    "Dispatch": Dispatch,
    "DescriptorStore": DescriptorStore,
    "Pool": Pool,
    "Router": Router,
    "SupervisedConnection": SupervisedConnection,
    "WorkerProcess": WorkerProcess,
}


def die() -> None:
    """Kill this process, unless enough have died or none is to die now."""
    deaths = Path(os.environ["DEATHS"])
    if deaths.exists() and deaths.stat().st_size < ENOUGH_DEATHS:
        with deaths.open("ab") as file:
            file.write(b"x")
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)  # It is dying.


def make_deadly(step: str) -> None:
    """Have this process die before or after the call of a function.

    Args:
        step: as `Router.on_paused.before`, or `WorkerProcess.send:Release.after` for calls with an
            argument of this class or value.
    """
    name, when = step.rsplit(".", 1)
    name, _, kind = name.partition(":")
    owner, function = name.split(".")
    original = getattr(PLACES[owner], function)

    @functools.wraps(original)
    def deadly(*arguments: Any, **more: Any) -> Any:
        is_meant = not kind or kind in {type(each).__name__ for each in arguments} | {
            each for each in arguments if isinstance(each, str)
        }
        if is_meant and when == "before":
            die()
        result = original(*arguments, **more)
        if is_meant and when == "after":
            die()
        return result

    setattr(PLACES[owner], function, deadly)


if __name__ == "__main__":
    make_deadly(os.environ["DIE_AT"])
    run()
