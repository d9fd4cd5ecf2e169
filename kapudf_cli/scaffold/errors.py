"""Plugin projects that cannot be written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapudf_cli.errors import KapudfError

if TYPE_CHECKING:
    from pathlib import Path


class ProjectNameError(KapudfError):
    """No plugin project can have this name, for the reason that the message gives."""

    is_usage_error = True

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"no project can be called '{name}': {problem}")
        self.name = name
        self.problem = problem


class ProjectTargetError(KapudfError):
    """A plugin project cannot be written to a folder; nothing there was changed."""

    def __init__(self, folder: Path, problem: str) -> None:
        super().__init__(f"{folder}: {problem}")
        self.folder = folder
        self.problem = problem
