"""What the package exports."""

from __future__ import annotations

import ast
import importlib
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import kapudf_cli
import kapudf_cli.handler
import kapudf_cli.protocol
from tests.serve_process import KAPUDF

if TYPE_CHECKING:
    from types import ModuleType


def imports_for_type_checkers(module: ModuleType) -> dict[str, str]:
    """Return the module of each name that `if TYPE_CHECKING` imports."""
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    return {
        alias.asname: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
        if alias.asname
    }


#: The names that `kapudf_cli` had before, and what their warning says.
MOVED = {
    **{
        name: f"import it from {home}"
        for home, names in {
            "kapudf_cli.handler": """
                ConnectionClosedError FieldValue FieldValueError InvalidWriteError KapudfError
                Writer drop_field get_datetime set_datetime time_ns""",
            "kapudf_cli.protocol": """
                BOOL DOUBLE DURATION INT STRING BeginBatch EdgeType EndBatch InfoResponse
                InitRequest InitResponse Option OptionInfo OptionValue RestoreRequest
                RestoreResponse SnapshotResponse ValueType""",
        }.items()
        for name in names.split()
    },
    "like": "use copy_envelope(point, fields)",
    "write_batch": "return the batch, or use self.agent.write_batch(batch)",
}


@pytest.mark.parametrize("module", [kapudf_cli, kapudf_cli.handler, kapudf_cli.protocol])
def test_type_checkers_and_the_interpreter_know_the_same_names(module: ModuleType) -> None:
    checked = imports_for_type_checkers(module)
    assert set(module.__all__) == checked.keys() - MOVED.keys() | set(module.__all__) & MOVED.keys()
    for name in module.__all__:
        value = getattr(module, name)
        assert value is getattr(importlib.import_module(checked[name]), name)
        assert name in dir(module)


def test_most_handlers_need_few_names() -> None:
    assert 20 <= len(kapudf_cli.__all__) <= 24


@pytest.mark.parametrize("name", MOVED)
def test_an_old_name_works_and_names_its_new_place(name: str) -> None:
    assert name not in dir(kapudf_cli)
    with pytest.warns(DeprecationWarning) as warned:  # noqa: PT030 - the message is compared below
        value = getattr(kapudf_cli, name)
    assert value is not None
    (warning,) = warned
    assert str(warning.message) == f"kapudf_cli.{name} is deprecated; {MOVED[name]}"
    assert warning.filename == __file__
    if "import it from" in MOVED[name]:
        assert value is getattr(importlib.import_module(MOVED[name].split()[-1]), name)


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


@pytest.mark.parametrize(
    ("imported", "not_needed"),
    [
        pytest.param(
            "kapudf_cli, kapudf_cli.handler, kapudf_cli.protocol.framing",
            ("google.protobuf", "msgspec", "numpy"),
            id="the package, for the supervisor and the command line",
        ),
        pytest.param(
            "kapudf_cli.worker.main",
            ("click", "yaml", "importlib.metadata", "kapudf_cli.agent.event_loop"),
            id="a worker",
        ),
    ],
)
def test_what_is_not_needed_is_not_imported(imported: str, not_needed: tuple[str, ...]) -> None:
    code = f"import sys, {imported}; print([each for each in {not_needed} if each in sys.modules])"
    done = subprocess.run(
        [KAPUDF[0], "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"
