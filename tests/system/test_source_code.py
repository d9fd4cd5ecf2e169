"""Handlers are compiled from source if Python's bytecode cache is stale."""

from __future__ import annotations

import importlib
import importlib.util
import os
import py_compile
import sys
from typing import TYPE_CHECKING

import pytest

from kapudf_cli import plugins
from kapudf_cli.system import source_code

if TYPE_CHECKING:
    from pathlib import Path

#: Both versions have the same size.
MODULE = "VERSION = {version}\n"
HANDLER = """
from kapudf_cli import Handler
from {beside} import VERSION as BESIDE

VERSION = {version}


class Versions(Handler):
    versions = VERSION, BESIDE

    def point(self, point):
        pass
"""


def write(file: Path, text: str) -> None:
    """Write a file as a deployment does that keeps the time of each file."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(text, encoding="utf-8")
    os.utime(file, (1, 1))


def load(spec: str, package: str) -> tuple[int, int]:
    """Load a handler as a new process would; return the versions of its modules."""
    for name in [each for each in sys.modules if each.partition(".")[0].startswith(package)]:
        del sys.modules[name]
    importlib.invalidate_caches()
    handler = plugins.find(spec).load()
    versions: tuple[int, int] = handler.versions  # type: ignore[attr-defined]
    return versions


@pytest.mark.parametrize("is_installed", [False, True], ids=["beside", "in site-packages"])
def test_changed_source_of_the_same_size_and_time_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_installed: bool
) -> None:
    if is_installed:
        monkeypatch.setattr(source_code, "_folders", (f"{tmp_path}/",))
    package = f"stale_{is_installed:d}"
    monkeypatch.syspath_prepend(tmp_path)
    handler, beside = tmp_path / package / "handler.py", tmp_path / package / "beside.py"
    for version in (1, 2):
        write(beside, MODULE.format(version=version))
        write(handler, HANDLER.format(version=version, beside=f"{package}.beside"))
        if version == 1:
            for file in (beside, handler):
                py_compile.compile(str(file), doraise=True)
        assert load(f"{package}.handler:Versions", package) == (version, version)


def test_a_file_and_its_siblings_are_loaded_afresh(tmp_path: Path) -> None:
    handler, beside = tmp_path / "stale_file.py", tmp_path / "stale_file_beside.py"
    for version in (1, 2):
        write(beside, MODULE.format(version=version))
        write(handler, HANDLER.format(version=version, beside="stale_file_beside"))
        assert load(f"{handler}:Versions", "stale_file") == (version, version)


def test_code_that_has_not_changed_is_not_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, beside = tmp_path / "kept.py", tmp_path / "kept_beside.py"
    write(beside, MODULE.format(version=1))
    write(handler, HANDLER.format(version=1, beside="kept_beside"))
    compiled: list[str] = []
    loader = importlib.machinery.SourceFileLoader
    compile_source = loader.source_to_code

    def source_to_code(self: object, data: bytes, path: str) -> object:
        compiled.append(os.path.basename(path))
        return compile_source(self, data, path)  # type: ignore[arg-type]

    monkeypatch.setattr(loader, "source_to_code", source_to_code)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    for _ in range(2):
        load(f"{handler}:Versions", "kept")
    assert compiled == ["kept.py", "kept_beside.py"]
    cache = importlib.util.cache_from_source(str(beside))
    with open(cache, "r+b") as file:
        file.truncate(20)
    assert load(f"{handler}:Versions", "kept") == (1, 1)
    assert compiled[2:] == ["kept_beside.py"]
