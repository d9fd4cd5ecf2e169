"""The snippets of README and docs do what the text around them says."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from kapudf_cli import Point, plugins
from kapudf_cli.commands import main
from kapudf_cli.config import check
from kapudf_cli.in_process import served
from kapudf_cli.wire.udf_pb2 import (
    BATCH,
    DOUBLE,
    BeginBatch,
    EndBatch,
    InitRequest,
    InitResponse,
    Option,
    OptionValue,
    RestoreRequest,
    SnapshotRequest,
)
from tests.serve_process import KAPUDF, PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from kapudf_cli.wire.codec import RequestMessage, ResponseMessage
    from tests.serve_process import ServeProcess

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def snippets(page: Path, language: str) -> list[str]:
    """Return the code blocks of a page in one language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def handler_of(page: str, name: str, folder: Path) -> str:
    """Write the snippet that defines a class to a file, and return what --handler takes."""
    (code,) = [code for code in snippets(ROOT / page, "python") if f"class {name}(" in code]
    file = folder / f"{name.lower()}_snippet.py"
    file.write_text(code, encoding="utf-8")
    return f"{file}:{name}"


def exchange(spec: str, *requests: RequestMessage) -> list[ResponseMessage]:
    """Return all that a handler answers."""
    with served(plugins.find(spec).load(), timeout_s=PATIENCE_S) as side:
        for request in requests:
            side.send(request)
        side.half_close()
        return list(side.responses())


def test_the_handler_of_the_readme_doubles(tmp_path: Path) -> None:
    """It doubles the field that it names, and passes other points on."""
    spec = handler_of("README.md", "Double", tmp_path)
    answers = exchange(
        spec, InitRequest(), Point(fieldsDouble={"value": 2.5}), Point(fieldsInt={"other": 1})
    )
    assert answers[1:] == [Point(fieldsDouble={"value": 5.0}), Point(fieldsInt={"other": 1})]


def test_the_handler_with_an_option_scales_and_insists_on_it(tmp_path: Path) -> None:
    """The factor is taken, and its absence fails Init with a sentence."""
    spec = handler_of("docs/writing-handlers.md", "Scale", tmp_path)
    factor = Option(name="factor", values=[OptionValue(type=DOUBLE, doubleValue=3.0)])
    answers = exchange(spec, InitRequest(options=[factor]), Point(fieldsDouble={"value": 2.0}))
    assert answers == [InitResponse(success=True), Point(fieldsDouble={"value": 6.0})]
    assert exchange(spec, InitRequest()) == [InitResponse(error="call .factor(2.0) once")]


def test_the_handler_with_state_counts_across_a_restart(tmp_path: Path) -> None:
    """What it snapshots is what it goes on from."""
    spec = handler_of("docs/writing-handlers.md", "Count", tmp_path)
    *_, snapshot = exchange(spec, InitRequest(), Point(), Point(), SnapshotRequest())
    restore = RestoreRequest(snapshot=snapshot.snapshot)  # type: ignore[union-attr]
    *_, last = exchange(spec, InitRequest(), restore, Point())
    assert last == Point(fieldsInt={"count": 3})


def test_the_batch_handler_keeps_what_is_large(tmp_path: Path) -> None:
    """Begin and end are passed on around the points that are kept."""
    spec = handler_of("docs/writing-handlers.md", "OnlyLarge", tmp_path)
    small, large = Point(fieldsDouble={"value": 1.0}), Point(fieldsDouble={"value": 91.0})
    begin, end = BeginBatch(name="cpu", size=2), EndBatch(name="cpu", tmax=9)
    answers = exchange(spec, InitRequest(), begin, small, large, end)
    assert answers[1:] == [begin, large, end]
    assert plugins.find(spec).load().wants == BATCH


def test_every_python_snippet_is_accepted_by_mypy(tmp_path: Path) -> None:
    """In strict mode, as an author with an editor would see it."""
    files = []
    for page in PAGES:
        for number, code in enumerate(snippets(page, "python")):
            files.append(tmp_path / f"{page.stem.replace('-', '_').lower()}_{number}.py")
            files[-1].write_text(code, encoding="utf-8")
    assert files
    command = [KAPUDF[0], "-m", "mypy", "--strict", "--config-file=", *map(str, files)]
    verdict = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert verdict.returncode == 0, verdict.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_toml_and_yaml_of_a_page_are_valid(page: Path) -> None:
    """TOML parses, and YAML is a configuration that kapudf accepts."""
    for text in snippets(page, "toml"):
        assert tomllib.loads(text)
    for text in snippets(page, "yaml"):
        assert check(yaml.safe_load(text), source=page.name).functions


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_kapudf_command_of_a_page_exists(page: Path) -> None:
    """Its options are known, wherever a page shows or mentions a command line."""
    text = page.read_text(encoding="utf-8")
    lines = re.findall(r"^\$ (kapudf .+)$", text, re.MULTILINE)
    for line in [*lines, *re.findall(r"`(kapudf [a-z-]+(?: [^`…]+)?)`", text)]:
        _, command, *words = line.split()
        found = main.get_command(main.make_context("kapudf", [command]), command)
        assert found is not None, line
        known = {flag for option in found.params for flag in (*option.opts, *option.secondary_opts)}
        used = {word for word in words if word.startswith("--")} - {"--help"}
        assert used <= known, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    """Links within the project point at files that are there."""
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_probe_prints_what_the_readme_shows(
    serve: Callable[..., ServeProcess], short_folder: Path
) -> None:
    """Line for line, but for the time it took."""
    (shown,) = re.findall(
        r"\$ kapudf probe .*\n((?:.+\n)+?)```", (ROOT / "README.md").read_text(encoding="utf-8")
    )
    serve("mirror")
    path = short_folder / "mirror.sock"
    path.symlink_to(short_folder / "udf.sock")
    command = [*KAPUDF, "probe", "--socket", str(path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[:-1] == shown.splitlines()[:-1]
    assert printed.splitlines()[-1].startswith("round trip  ")
