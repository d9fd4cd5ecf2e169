"""What the package exports."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

import kapudf_cli
from tests.serve_process import KAPUDF


def test_every_public_name_is_told_to_type_checkers_and_can_be_imported() -> None:
    """The imports for type checkers and the table for run time name the same things."""
    tree = ast.parse(Path(kapudf_cli.__file__).read_text(encoding="utf-8"))
    told = {
        alias.asname: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
        if alias.asname
    }
    assert told == kapudf_cli._HOME_OF
    for name in told:
        assert getattr(kapudf_cli, name) is not None
        assert name in dir(kapudf_cli)


def test_a_star_brings_every_public_name() -> None:
    """In a process that has asked for none of them yet."""
    code = (
        "from kapudf_cli import *\nclass H(Handler):\n    def point(self, p: Point): ...\nprint(H)"
    )
    done = subprocess.run(
        [KAPUDF[0], "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout, done.stderr) == ("<class '__main__.H'>\n", "")


def test_a_name_that_there_is_not_is_an_ordinary_attribute_error() -> None:
    """With the name in it."""
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = kapudf_cli.Nothing


def test_importing_the_package_loads_neither_protobuf_nor_msgspec() -> None:
    """The supervisor and the command line live without them."""
    code = (
        "import sys, kapudf_cli; "
        "print([name for name in ('google.protobuf', 'msgspec', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run(
        [KAPUDF[0], "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"
