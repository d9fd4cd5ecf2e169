"""Code of a handler that is sent to another machine, and written there."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kapudf_handlers.mirror import Mirror

from kapudf_cli import plugins
from kapudf_cli.worker.shipped_code import ShippedCode

if TYPE_CHECKING:
    from collections.abc import Iterator

HANDLER = """
from kapudf_cli import Handler
from {package} import numbers

class Shown(Handler):
    def point(self, point):
        return point
"""


@pytest.fixture
def handler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Load a handler with a package beside it, and return its name; another file is not loaded."""
    package = f"beside_{os.getpid()}"
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    folder = tmp_path / "handlers"
    (folder / package).mkdir(parents=True)
    (folder / f"shown_{os.getpid()}.py").write_text(HANDLER.format(package=package))
    (folder / package / "numbers.py").write_text("ONE = 1")
    (folder / "other.py").write_text("raise AssertionError('imported')")
    spec = f"{folder}/shown_{os.getpid()}.py:Shown"
    before = set(sys.modules)
    yield spec
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have another folder for temporary files, and return the one that code is written to."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / f"kapudf-code-{os.getuid()}"


def code_of(spec: str) -> ShippedCode:
    """Load a handler, and return its code."""
    return ShippedCode.of(spec, plugins.find(spec).load())


def test_what_is_imported_beside_a_file_goes_with_it(handler: str, temporary: Path) -> None:
    code = code_of(handler)
    name = f"shown_{os.getpid()}.py"
    package = f"beside_{os.getpid()}"
    assert set(code.files) == {name, f"{package}/numbers.py"}
    spec = code.unpack()
    assert spec.endswith(f"/{name}:Shown")
    folder = temporary / spec.split("/")[-2]
    assert (folder / package / "numbers.py").read_text() == "ONE = 1"
    # The second one finds it, and writes what was removed, and other code has another folder.
    (folder / package / "numbers.py").unlink()
    assert code.unpack() == spec
    assert (folder / package / "numbers.py").read_text() == "ONE = 1"
    other = ShippedCode(code.handler, "", {**code.files, name: b"# changed"}).unpack()
    assert other != spec
    assert sorted(each.name for each in temporary.iterdir()) == sorted(
        each.split("/")[-2] for each in (spec, other)
    )


@pytest.mark.parametrize("spec", ["mirror", "kapudf_handlers.mirror:Mirror"])
def test_what_is_installed_is_not_sent(spec: str) -> None:
    code = code_of(spec)
    assert (code.handler, code.files, code.unpack()) == (spec, {}, spec)


def test_a_script_keeps_its_arguments(tmp_path: Path) -> None:
    original = Path(__file__).parent.parent / "influx_scripts" / "scripts" / "counting.py"
    script = shutil.copy(original, tmp_path)
    found = plugins.find(f"{script} --verbose")
    assert found.module.endswith("/counting.py")
    code = ShippedCode.of(f"{script} --verbose", Mirror)
    assert (code.handler, list(code.files)) == ("counting.py --verbose", ["counting.py"])


@pytest.mark.parametrize("mode", [0o755, 0o770])
def test_a_folder_that_others_may_write_or_read_is_refused(
    handler: str, temporary: Path, mode: int
) -> None:
    """Another user may have made it, to have their own code run."""
    temporary.mkdir()
    temporary.chmod(mode)
    with pytest.raises(PermissionError, match="is not only this user's own"):
        code_of(handler).unpack()
