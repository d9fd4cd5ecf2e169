"""A command of kapudf, run to its end as a person would run it."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Final

from tests.serve_process import KAPUDF, PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

#: Plugins of pytest that a user's project need not have; loading them takes most of the time.
_UNNEEDED: Final = (
    "hypothesispytest",
    "xdist",
    "xdist.looponfail",
    "pytest_cov",
    "anyio",
    "timeout",
)
#: Runs pytest as in a user's project, where kapudf's own plugin is found by its entry point.
PYTEST: Final = (
    *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
    *(word for name in _UNNEEDED for word in ("-p", f"no:{name}")),
)


def run_kapudf(
    *arguments: str,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    patience_s: float = PATIENCE_S,
) -> subprocess.CompletedProcess[str]:
    """Run it with nothing on stdin; `env` is all of its environment, if not this process's."""
    return subprocess.run(
        [*KAPUDF, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=patience_s,
        env=env,
        cwd=cwd,
        check=False,
    )
