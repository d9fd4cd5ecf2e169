"""Images for the tests in containers, made once."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.deploy.containers import ROOT, build, make_image
from tests.supervisor.ongoing import COUNT

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Build kapudf's image, and return its name."""
    return make_image(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="session")
def count_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with a handler that counts."""
    folder = tmp_path_factory.mktemp("count")
    (folder / "count.py").write_text(COUNT.format(version=1), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def count_image(image: str, count_folder: Path) -> str:
    """Build an image with a handler that counts, and return its name."""
    page = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"```dockerfile\n(FROM kapudf\n.*?)```", page, re.DOTALL)
    dockerfile = count_folder / "Dockerfile"
    dockerfile.write_text(lines.replace("FROM kapudf", f"FROM {image}"), encoding="utf-8")
    return build("kapudf-test-count", dockerfile, count_folder)
