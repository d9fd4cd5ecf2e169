"""Python code run by a user who may do little: `nobody`, where the tests run as root."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.serve_process import PATIENCE_S

_DROP = """
import os
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
"""


def run_unprivileged(imports: str, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `imports` as the tests' user, who can read them, then `code` without privileges."""
    # Coverage's data file belongs to the tests' user.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    return subprocess.run(
        [sys.executable, "-c", imports + _DROP + code, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=env,
        check=False,
    )
