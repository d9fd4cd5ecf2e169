"""A handler that a real kapacitord starts by itself, as a process UDF."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.conftest import plugin
from tests.kapacitor.lines import BY_HOST, line
from tests.serve_process import KAPUDF

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kapacitor.daemon import KapacitorDaemon

    Kapacitor = Callable[..., KapacitorDaemon]


def process_udf(handler: str) -> str:
    """Return the section of kapacitor.conf for `kapudf exec`."""
    program, *arguments = (*KAPUDF, "exec", "--handler", handler)
    return (
        "[udf]\n[udf.functions.udf]\n"
        f'prog = "{program}"\nargs = {json.dumps(arguments)}\ntimeout = "60s"\n'
    )


def test_a_task_runs_on_a_process_that_kapacitor_starts(kapacitor: Kapacitor) -> None:
    """Points go through it, a disabled task ends it, and the task can be enabled again."""
    daemon = kapacitor(udf_section=process_udf("mirror"))
    daemon.start_task("processed", BY_HOST)
    daemon.write(*(line(n) for n in range(5)))
    daemon.await_point("processed", n=4)
    daemon.disable("processed")
    daemon.enable("processed")
    daemon.write(line(6))
    daemon.await_point("processed", n=6)
    assert daemon.status("processed").executing
    assert any("task connected" in text for text in daemon.log_lines())


def test_what_a_handler_prints_is_in_kapacitors_log(kapacitor: Kapacitor) -> None:
    """And does no harm to the task."""
    daemon = kapacitor(udf_section=process_udf(plugin("talkative.py:Talkative")))
    daemon.start_task("talkative", BY_HOST)
    daemon.write(line(1))
    daemon.await_point("talkative", n=1)
    assert any("printed by c" in text for text in daemon.log_lines())
