"""Distributions that offer handlers, as pip would have left them in a folder."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

#: A module with one good handler, `Plain`.
PLAIN = '''
from kapudf_cli import Handler


class Plain(Handler):
    """Drops every point.

    It says more below.
    """

    def point(self, point):
        pass
'''


def install(
    folder: Path,
    distribution: str,
    handlers: Mapping[str, str],
    modules: Mapping[str, str],
    *,
    version: str = "1.0",
) -> None:
    """Put a distribution into `folder`: handlers by name, and modules by name with their text."""
    facts = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
    )
    lines = [f"{name} = {target}\n" for name, target in handlers.items()]
    (facts / "entry_points.txt").write_text("".join(["[kapudf.handlers]\n", *lines]))
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)


def environment(*folders: Path) -> dict[str, str]:
    """Return the environment of a process that finds what is installed in these folders."""
    path = os.pathsep.join(str(folder) for folder in folders)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KAPUDF_")}
    return {**kept, "PYTHONPATH": path}
