"""`kapudf new`: working projects, and refused names and folders."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import kapudf_cli
from kapudf_cli import scaffold
from kapudf_cli.commands import main
from kapudf_cli.errors import KapudfError
from kapudf_cli.tickscript.identifiers import name_problem
from tests.plugins.distributions import environment, install
from tests.plugins.unprivileged import run_unprivileged
from tests.run_kapudf import PYTEST
from tests.serve_process import KAPUDF, PATIENCE_S

ROOT = Path(__file__).parent.parent.parent

#: A name, with the names of the package and the class.
NAMES = {
    "my-average": ("my_average", "MyAverage"),
    "rate_of_2": ("rate_of_2", "RateOf2"),
    "x": ("x", "X"),
    "HTTP-errorRate": ("http_errorrate", "HTTPErrorRate"),
}

#: An invalid name, and its error.
WRONG_NAMES = {
    "1st": "use letters and digits",
    "größe": "use letters and digits",
    "my average": "use letters and digits",
    "my.average": "use letters and digits",
    "../average": "use letters and digits",
    "a--b": "use letters and digits",
    "_hidden": "use letters and digits",
    "trailing-": "use letters and digits",
    "trailing\n": "use letters and digits",
    "": "use letters and digits",
    "class": "Python has it as a keyword",
    "none": "Python has it as a keyword",
    "var": "var is a keyword of TICKscript",
    "point": "its class would hide the Point that it builds on",
    "per-group": "its class would hide the PerGroup that it builds on",
    "json": "json is a module of Python's standard library",
    "JSON": "json is a module of Python's standard library",
    "numpy": "a distribution of that name is installed",
    "kapudf": "a distribution of that name is installed",
    "kapudf-cli": "a module named kapudf_cli is installed",
    "google": "a module named google is installed",
    "yaml": "a module named yaml is installed",
    "moving-average": "a handler of that name is installed: kapudf",
}


def new(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder."""
    return run(folder, *KAPUDF, "new", *arguments, paths=())


def run(
    folder: Path, *command: str, paths: tuple[Path, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, with import paths, and without writing bytecode."""
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE_S,
        env={**environment(*paths), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=folder,
        check=False,
    )


def files(folder: Path) -> set[str]:
    """Return all files below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def row_of(name: str, listed: str) -> dict[str, Any]:
    """Return a handler's row of `kapudf list-handlers --json`."""
    (row,) = [row for row in json.loads(listed) if row["name"] == name]
    return dict(row)


@pytest.fixture(
    params=[pytest.param(each, marks=pytest.mark.long if each == "x" else []) for each in NAMES]
)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def project(tmp_path: Path, name: str) -> Path:
    """Write a project as the command does."""
    scaffold.write(scaffold.names_of(name), tmp_path / name)
    return tmp_path / name


def test_what_was_written_is_printed_and_what_to_type_next(tmp_path: Path) -> None:
    result = new(tmp_path, "my-average")
    assert (result.returncode, result.stderr) == (0, "")
    wrote, _, after = result.stdout.partition("\n\n")
    assert {line.removeprefix("wrote my-average/") for line in wrote.splitlines()} == {
        "pyproject.toml",
        "README.md",
        ".gitignore",
        "src/my_average/__init__.py",
        "src/my_average/handler.py",
        "src/my_average/py.typed",
        "tests/test_my_average.py",
    }
    assert {line.removeprefix("wrote ") for line in wrote.splitlines()} == files(tmp_path)
    assert [line.strip() for line in after.splitlines() if line.startswith("  ")] == [
        "cd my-average",
        "python -m pip install -e '.[dev]'",
        "python -m pytest",
        "kapudf list-handlers",
        "kapudf serve --socket /tmp/my-average.sock --handler my-average",
    ]


@pytest.mark.parametrize("exists", [False, True])
def test_another_folder_may_be_named(tmp_path: Path, exists: bool) -> None:  # noqa: FBT001
    target = tmp_path / "my udfs" / "average"
    if exists:
        target.mkdir(parents=True)
    result = new(tmp_path, "my-average", "--directory", "my udfs/average")
    assert (result.returncode, result.stderr) == (0, "")
    assert "    cd 'my udfs/average'\n" in result.stdout
    assert "src/my_average/handler.py" in files(target)


def test_a_folder_of_that_name_that_is_empty_is_no_module(tmp_path: Path) -> None:
    (tmp_path / "average").mkdir()
    assert new(tmp_path, "average").returncode == 0
    assert "src/average/handler.py" in files(tmp_path / "average")


def test_one_name_gives_them_all(name: str) -> None:
    package, class_name = NAMES[name]
    assert scaffold.names_of(name) == scaffold.Names(name, package, class_name, package)
    assert name_problem(package) is None


def test_the_project_passes_its_own_tests(project: Path, name: str) -> None:
    package, _ = NAMES[name]
    result = run(project, *PYTEST, "-W", "error", paths=(project / "src",))
    assert result.returncode == 0, result.stdout
    assert "4 passed" in result.stdout
    assert (project / "tests" / f"test_{package}.py").is_file()


def test_the_project_compiles(project: Path) -> None:
    result = run(project, sys.executable, "-m", "compileall", "-q", "src", "tests")
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.long
def test_the_project_is_accepted_by_mypy(project: Path) -> None:
    mypy = [sys.executable, "-m", "mypy", "--cache-dir", str(ROOT / ".mypy_cache")]
    own = run(project, *mypy)
    assert own.returncode == 0, own.stdout
    strict = run(project, *mypy, "--strict", "--config-file=", "src")
    assert strict.returncode == 0, strict.stdout


def test_the_project_names_nothing_but_itself(project: Path, name: str) -> None:
    package, class_name = NAMES[name]
    for path in files(project):
        text = (project / path).read_text(encoding="utf-8")
        assert "$name" not in text
        assert "${" not in text
    facts = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    assert facts["project"]["name"] == name
    assert facts["project"]["dependencies"] == ["kapudf"]
    assert facts["project"]["entry-points"] == {
        "kapudf.handlers": {name: f"{package}.handler:{class_name}"}
    }
    readme = (project / "README.md").read_text(encoding="utf-8")
    _, _, section = readme.partition("```toml\n")
    (function,) = tomllib.loads(section.partition("```")[0])["udf"]["functions"]
    assert f"@{function}()" in readme
    assert f"@{function}()" in (project / "src" / package / "handler.py").read_text("utf-8")


def test_the_project_s_handler_is_listed_once_installed(
    project: Path, name: str, tmp_path: Path
) -> None:
    facts = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    install(tmp_path, name, facts["entry-points"]["kapudf.handlers"], {}, version="0.1.0")
    listed = run(tmp_path, *KAPUDF, "list-handlers", "--json", paths=(tmp_path, project / "src"))
    row = row_of(name, listed.stdout)
    assert [option["name"] for option in row.pop("options")] == ["as", "field", "scale"]
    assert row == {
        "name": name,
        "wants": "stream",
        "provides": "stream",
        "distribution": name,
        "version": "0.1.0",
        "target": ":".join((f"{NAMES[name][0]}.handler", NAMES[name][1])),
        "summary": "Adds to each point by how much a field changed since the last of its group.",
        "error": None,
    }


@pytest.mark.long
def test_pip_installs_the_project(tmp_path: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        pytest.skip("pip is not installed here, and nothing is downloaded")
    scaffold.write(scaffold.names_of("my-average"), tmp_path / "my-average")
    venv.create(tmp_path / "venv", with_pip=False)
    python = str(tmp_path / "venv" / "bin" / "python")
    places = {name: str(tmp_path / "venv") for name in ("base", "platbase")}
    site = Path(sysconfig.get_path("purelib", "venv", vars=places))
    ours = [sysconfig.get_path("purelib"), str(ROOT), str(ROOT / "handlers")]
    adding = "".join(f"import site; site.addsitedir({folder!r})\n" for folder in ours)
    (site / "kapudf_of_the_tests.pth").write_text(adding, encoding="utf-8")
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--editable"]
    pip = run(tmp_path, python, "-m", "pip", "install", *options, "my-average")
    assert pip.returncode == 0, pip.stderr
    listed = run(tmp_path, python, "-m", "kapudf_cli", "list-handlers", "--json")
    row = row_of("my-average", listed.stdout)
    assert (row["target"], row["error"]) == ("my_average.handler:MyAverage", None)
    again = run(tmp_path, python, "-m", "kapudf_cli", "new", "my-average", "--directory", "other")
    assert again.returncode == 2
    assert "a handler of that name is installed: my-average 0.1.0" in again.stderr


@pytest.mark.parametrize("wrong", WRONG_NAMES)
def test_a_wrong_name_is_refused(
    tmp_path: Path, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["new", "--", wrong])
    assert (result.exit_code, result.stdout) == (2, "")
    shown = wrong.replace("\n", r"\n")
    assert result.stderr.startswith(f"Error: no project can be called '{shown}': ")
    assert WRONG_NAMES[wrong] in result.stderr
    assert result.stderr == f"{result.stderr.strip()}\n"
    assert not list(tmp_path.iterdir())


def test_every_class_that_a_template_imports_is_refused_as_a_name() -> None:
    names = scaffold.names_of("my-average")
    imports = set()
    for template in ("handler.py.tmpl", "test.py.tmpl"):
        code = Path(scaffold.__file__).with_name(template).read_text(encoding="utf-8")
        for key, value in vars(names).items():
            code = code.replace(f"${{{key}}}", value).replace(f"${key}", value)
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module != "my_average.handler":
                imports |= {alias.name for alias in node.names}
    classes = {each for each in imports if each[0].isupper()}
    assert classes == set(scaffold._IMPORTED)
    assert "Handler" in classes & set(dir(kapudf_cli))


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    assert new(tmp_path, "my-average").returncode == 0
    handler = tmp_path / "my-average" / "src" / "my_average" / "handler.py"
    handler.write_text("mine", encoding="utf-8")
    before = files(tmp_path)
    result = new(tmp_path, "my-average")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "Error: my-average: this folder is not empty; name another\n"
    assert (files(tmp_path), handler.read_text("utf-8")) == (before, "mine")


@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_what_is_no_folder_is_left_alone(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "my-average"
    if kind == "file":
        target.write_text("mine", encoding="utf-8")
    else:
        target.symlink_to("nowhere")
    result = new(tmp_path, "my-average")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "Error: my-average: this is not a folder; name another\n"
    assert [path.name for path in tmp_path.iterdir()] == ["my-average"]


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine", encoding="utf-8")
    result = new(tmp_path, "my-average", "--directory", "notes/average")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: notes/average: cannot be written: notes")
    assert result.stderr.count("\n") == 1


def test_a_folder_without_permission_is_refused(short_folder: Path) -> None:
    short_folder.chmod(0o555)
    # Import the command's dependencies here, before privileges are dropped.
    imports = "import sys\nfrom kapudf_cli import scaffold\nscaffold.names_of('my-average')\n"
    imports += "from kapudf_cli.commands import main, new\n"
    code = "main(['new', 'my-average', '--directory', sys.argv[1]])"
    target = short_folder / "my-average"
    result = run_unprivileged(imports, code, str(target))
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"Error: {target}: cannot be written: Permission denied\n"


def test_a_failure_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "there"
    target.mkdir()
    absent = {**scaffold._FILES, "last": "no-such-template"}
    monkeypatch.setattr(scaffold, "_FILES", absent)
    names = scaffold.names_of("my-average")
    with pytest.raises(KapudfError, match="cannot be written"):
        scaffold.write(names, target)
    with pytest.raises(KapudfError, match="cannot be written"):
        scaffold.write(names, tmp_path / "new" / "one")
    assert list(tmp_path.rglob("*")) == [target]


def test_a_file_that_comes_meanwhile_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twice = {"a": "init.py.tmpl", "./a": "handler.py.tmpl"}
    monkeypatch.setattr(scaffold, "_FILES", twice)
    with pytest.raises(KapudfError, match="File exists"):
        scaffold.write(scaffold.names_of("my-average"), tmp_path / "new")
