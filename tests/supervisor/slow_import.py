"""A handler whose import or `setup_worker` lasts until the test lets it finish."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

#: It waits while the file beside it exists.
SLOW = """
import time
from pathlib import Path
from kapudf_cli import Handler

def wait(part):
    while part == {part!r} and Path(__file__).with_suffix(".wait").exists():
        time.sleep(0.01)

wait("import")

class Slow(Handler):
    @classmethod
    def setup_worker(cls):
        wait("setup_worker")

    def point(self, point):
        self.agent.write_point(point)
"""


class SlowImport:
    """The file of such a handler; `part` of it waits: "import" or "setup_worker"."""

    def __init__(self, folder: Path, part: str = "import") -> None:
        self.path = folder / "slow.py"
        self.path.write_text(SLOW.format(part=part))
        self.handler = f"{self.path}:Slow"
        self._wait = self.path.with_suffix(".wait")

    def hold_up(self) -> None:
        self._wait.touch()

    def let_go(self) -> None:
        self._wait.unlink()
