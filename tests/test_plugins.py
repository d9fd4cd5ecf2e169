"""Finding and loading handlers, from real distributions and files."""

from __future__ import annotations

import json
import os
import pickle
import sys
from typing import TYPE_CHECKING

import pytest
from kapudf_handlers.mirror import Mirror

import kapudf_cli
from kapudf_cli import Handler, plugins
from kapudf_cli.plugin_errors import (
    AmbiguousHandlerError,
    HandlerImportError,
    NotAHandlerError,
    UnknownHandlerError,
)
from tests.plugins.distributions import PLAIN, install

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: How a module can fail to be imported, and what is said of it.
BROKEN = {
    "syntax": ("def point(:\n", "SyntaxError: invalid syntax (acme_syntax.py, line 1)"),
    "import": (
        "import no_such_module_anywhere\n",
        "ModuleNotFoundError: No module named 'no_such_module_anywhere'",
    ),
    "exit": ("import sys\nsys.exit('no licence')\n", "SystemExit: no licence"),
    "two_lines": ("raise RuntimeError('first\\n  second')\n", "RuntimeError: first second"),
    "silent": ("raise RuntimeError\n", "RuntimeError"),
    "recursion": ("def f(): f()\nf()\n", "RecursionError: maximum recursion depth exceeded"),
}


@pytest.fixture(autouse=True)
def _fresh_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget afterwards what a test has imported, and where from."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = dict(sys.modules)
    yield
    for name in set(sys.modules) - set(before):
        del sys.modules[name]
    sys.modules.update(before)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Give a folder in which distributions are found."""
    folder = tmp_path / "site"
    folder.mkdir()
    sys.path.insert(0, str(folder))
    return folder


def load(spec: str) -> type[Handler]:
    """Return the class that a user names."""
    return plugins.find(spec).load()


def write(path: Path, text: str = PLAIN) -> Path:
    """Write a module, with its folders, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def named(name: str) -> str:
    """Return a module with one handler of this name."""
    return PLAIN.replace("Plain", name)


# --- installed handlers ---


def test_the_mirror_is_installed() -> None:
    plugin = plugins.find("mirror")
    assert plugin.load() is Mirror
    assert (plugin.distribution, plugin.version) == ("kapudf", kapudf_cli.__version__)
    assert plugin.target == "kapudf_handlers.mirror:Mirror"
    assert plugin.source == f"kapudf {kapudf_cli.__version__} (kapudf_handlers.mirror:Mirror)"


def test_an_installed_handler_is_found_and_loaded(site: Path) -> None:
    install(site, "acme-udfs", {"plain": "acme_plain:Plain"}, {"acme_plain": PLAIN}, version="2.3")
    plugin = plugins.find("plain")
    assert plugin.source == "acme-udfs 2.3 (acme_plain:Plain)"
    assert plugin.load().__name__ == "Plain"


def test_discovery_imports_nothing(site: Path) -> None:
    install(site, "acme", {"bad": "acme_bad:Bad"}, {"acme_bad": "raise RuntimeError"})
    assert "bad" in [plugin.name for plugin in plugins.discover()]
    assert plugins.find("bad").module == "acme_bad"
    assert "acme_bad" not in sys.modules


def test_handlers_are_discovered_in_the_order_of_their_names(site: Path) -> None:
    install(site, "acme", {"zebra": "a:A", "apple": "a:A"}, {})
    install(site, "aaa", {"mango": "b:B"}, {})
    names = [plugin.name for plugin in plugins.discover()]
    assert names == sorted(names)
    assert {"zebra", "apple", "mango", "mirror"} <= set(names)


def test_an_unknown_name_brings_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(UnknownHandlerError) as caught:
        plugins.find("miror")
    assert "did you mean 'mirror'?" in str(caught.value)
    assert caught.value.nearest == "mirror"
    assert "mirror" in caught.value.known
    assert "\n" not in str(caught.value)


def test_an_unknown_name_like_no_other_brings_no_guess() -> None:
    with pytest.raises(UnknownHandlerError) as caught:
        plugins.find("zzzzzz")
    assert caught.value.nearest is None
    assert "did you mean" not in str(caught.value)
    assert "(installed: batch-mirror, default, enrich," in str(caught.value)


def test_a_name_offered_twice_is_refused_with_both(site: Path) -> None:
    install(site, "acme", {"plain": "acme_plain:Plain"}, {"acme_plain": PLAIN})
    install(site, "rival", {"plain": "rival_plain:Plain"}, {"rival_plain": PLAIN}, version="2.0")
    with pytest.raises(AmbiguousHandlerError) as caught:
        plugins.find("plain")
    assert "acme 1.0 (acme_plain:Plain)" in str(caught.value)
    assert "rival 2.0 (rival_plain:Plain)" in str(caught.value)


def test_a_name_that_shadows_a_built_in_one_is_refused(site: Path) -> None:
    install(site, "acme", {"mirror": "acme_plain:Plain"}, {"acme_plain": PLAIN})
    with pytest.raises(AmbiguousHandlerError, match=r"acme 1\.0.* kapudf "):
        plugins.find("mirror")


def test_of_two_handlers_of_one_name_each_can_be_named_by_its_class(site: Path) -> None:
    install(site, "acme", {"plain": "acme_plain:Plain"}, {"acme_plain": PLAIN})
    install(site, "rival", {"plain": "rival_plain:Plain"}, {"rival_plain": PLAIN})
    assert load("rival_plain:Plain").__module__ == "rival_plain"


def test_a_distribution_that_is_found_twice_is_one(site: Path, tmp_path: Path) -> None:
    for folder in (site, tmp_path / "again"):
        install(folder, "acme", {"plain": "acme_plain:Plain"}, {"acme_plain": PLAIN})
    sys.path.append(str(tmp_path / "again"))
    assert load("plain").__name__ == "Plain"


@pytest.mark.parametrize("kind", BROKEN)
def test_a_module_that_cannot_be_imported_is_named_with_the_cause(site: Path, kind: str) -> None:
    text, cause = BROKEN[kind]
    install(site, "acme", {"bad": f"acme_{kind}:Bad"}, {f"acme_{kind}": text})
    with pytest.raises(HandlerImportError) as caught:
        load("bad")
    message = str(caught.value)
    assert f"handler 'bad' of acme 1.0 (acme_{kind}:Bad) cannot be imported: {cause}" in message
    assert "\n" not in message
    assert caught.value.__cause__ is caught.value.cause


def test_the_line_that_failed_is_named(files: Path) -> None:
    inner = write(files / "acme_inner.py", "x = 1\n1 / 0\n")
    spec = f"{write(files / 'acme_outer.py', 'import acme_inner')}:Bad"
    with pytest.raises(HandlerImportError) as caught:
        load(spec)
    assert str(caught.value).endswith(f"ZeroDivisionError: division by zero ({inner}, line 2)")


def test_a_module_that_is_not_there_is_named(site: Path) -> None:
    install(site, "acme", {"bad": "acme_gone:Bad"}, {})
    with pytest.raises(HandlerImportError, match="No module named 'acme_gone'"):
        load("bad")


def test_a_class_that_is_not_there_is_named_with_those_that_are(site: Path) -> None:
    install(site, "acme", {"bad": "acme_plain:Plian"}, {"acme_plain": PLAIN})
    with pytest.raises(NotAHandlerError) as caught:
        load("bad")
    assert str(caught.value) == "handler 'bad': acme_plain has no 'Plian'; handlers there: Plain"


@pytest.mark.parametrize(
    "text",
    ["Thing = 7", "def Thing(agent): pass", "class Thing: pass", "import json as Thing"],
    ids=["number", "function", "other class", "module"],
)
def test_what_is_no_handler_class_is_refused(site: Path, text: str) -> None:
    install(site, "acme", {"bad": "acme_thing:Thing"}, {"acme_thing": text})
    with pytest.raises(NotAHandlerError) as caught:
        load("bad")
    assert str(caught.value) == (
        "handler 'bad': acme_thing:Thing is not a subclass of kapudf_cli.Handler"
    )


def test_a_handler_without_point_is_refused(site: Path) -> None:
    text = "from kapudf_cli import Handler\nclass Lazy(Handler):\n    pass\n"
    install(site, "acme", {"bad": "acme_lazy:Lazy"}, {"acme_lazy": text})
    with pytest.raises(NotAHandlerError, match=r"cannot be used: Lazy does not define point\(\)"):
        load("bad")


UNUSABLE = {
    "an option of no type": (
        "from kapudf_cli import Options\nclass Bad(Options):\n    size: dict = {}\n",
        "options: Bad",
        ": Bad.size: <class 'dict'> is not a type of option; use str, int, float, ",
    ),
    "options that are none": (
        "class Bad: pass\n",
        "options: Bad",
        "is not a subclass of kapudf_cli.Options",
    ),
    "a state without defaults": (
        "from kapudf_cli import State\nclass Bad(State):\n    count: int\n",
        "state: Bad",
        "TypeError: Missing required argument 'count'",
    ),
    "a name for type checkers alone": (
        "",
        "options: 'Bad'",
        "Plain.options: Bad: name 'Bad' is not defined; define it at the top",
    ),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_handler_whose_declarations_are_unusable_is_refused(site: Path, kind: str) -> None:
    before, annotation, cause = UNUSABLE[kind]
    text = f"{before}{PLAIN}    {annotation}\n"
    install(site, "acme", {"bad": "acme_bad:Plain"}, {"acme_bad": text})
    with pytest.raises(NotAHandlerError) as caught:
        plugins.find("bad").load()
    assert str(caught.value).startswith("handler 'bad': acme_bad:Plain cannot be used: ")
    assert cause in str(caught.value)


def test_an_entry_point_that_names_no_class_is_refused(site: Path) -> None:
    install(site, "acme", {"bad": "acme_plain"}, {"acme_plain": PLAIN})
    with pytest.raises(NotAHandlerError, match="bad"):
        load("bad")


def test_an_entry_point_that_is_none_hides_no_other(site: Path) -> None:
    install(site, "acme", {"bad": "this is no entry point!"}, {})
    assert load("mirror") is Mirror


# --- a class of a module ---


def test_a_class_of_an_installed_module_can_be_named() -> None:
    plugin = plugins.find("kapudf_handlers.mirror:Mirror")
    assert plugin.load() is Mirror
    assert plugin.distribution is None
    assert plugin.source == "kapudf_handlers.mirror:Mirror"


def test_a_module_of_the_current_folder_can_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "here_pkg" / "inner.py")
    monkeypatch.chdir(tmp_path)
    assert load("here_pkg.inner:Plain").__module__ == "here_pkg.inner"


def test_an_installed_handler_is_not_looked_for_in_the_current_folder(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, "acme", {"plain": "acme_plain:Plain"}, {"acme_plain": PLAIN})
    write(tmp_path / "cwd" / "acme_plain.py", "raise RuntimeError('the wrong file')")
    monkeypatch.chdir(tmp_path / "cwd")
    assert load("plain").__name__ == "Plain"


def test_a_nested_class_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "from kapudf_cli import Handler\nclass Outer:\n    class Inner(Handler):\n"
    write(tmp_path / "nested.py", f"{text}        def point(self, point): pass\n")
    monkeypatch.chdir(tmp_path)
    assert load("nested:Outer.Inner").__qualname__ == "Outer.Inner"
    with pytest.raises(NotAHandlerError, match="has no 'Gone'"):
        load("nested:Outer.Gone")


def test_handler_itself_is_no_handler() -> None:
    with pytest.raises(NotAHandlerError, match=r"does not define point\(\)"):
        load("kapudf_cli:Handler")


@pytest.mark.parametrize("spec", ["no_such_module:Plain", "kapudf_cli.no_such:Plain", ".up:Plain"])
def test_a_module_that_cannot_be_found_is_an_import_that_fails(spec: str) -> None:
    with pytest.raises(HandlerImportError) as caught:
        load(spec)
    assert str(caught.value).startswith(f"handler '{spec}' cannot be imported: ")


@pytest.mark.parametrize(
    "spec",
    ["module:", ":Class", ":", "module:1st", "module:A..B", "module:A B", "handler.py", "a.py:"],
)
def test_a_target_without_a_class_is_refused(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("handler.py", "a.py"):
        (tmp_path / name).write_text("", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotAHandlerError, match=r"package\.module:Class or file\.py:Class"):
        plugins.find(spec)


# --- a class of a file ---


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Give a folder for files, in which Python does not look."""
    folder = tmp_path / "files"
    folder.mkdir()
    return folder


def test_a_class_of_a_file_can_be_named(files: Path) -> None:
    handler = load(f"{write(files / 'loose.py')}:Plain")
    assert issubclass(handler, Handler)
    assert handler.__module__ == "loose"


def test_a_relative_path_is_one_from_the_current_folder(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(files / "inner" / "relative.py")
    monkeypatch.chdir(files)
    assert load("inner/relative.py:Plain").__name__ == "Plain"
    monkeypatch.chdir(files / "inner")
    assert load("relative.py:Plain") is load("../inner/relative.py:Plain")


def test_a_file_finds_its_siblings(files: Path) -> None:
    write(files / "a_sibling.py", "NAME = 'from the sibling'\n")
    file = write(files / "with_sibling.py", f"from a_sibling import NAME\n{PLAIN}    name = NAME\n")
    assert vars(load(f"{file}:Plain"))["name"] == "from the sibling"


def test_a_missing_file_is_named(files: Path) -> None:
    with pytest.raises(NotAHandlerError, match=f"there is no file {files}/gone.py"):
        plugins.find(f"{files}/gone.py:Plain")


def test_a_folder_called_like_a_file_is_no_file(files: Path) -> None:
    (files / "folder.py").mkdir()
    with pytest.raises(NotAHandlerError, match="there is no file"):
        plugins.find(f"{files}/folder.py:Plain")


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_cannot_be_imported_is_named_with_the_cause(files: Path, kind: str) -> None:
    text, cause = BROKEN[kind]
    spec = f"{write(files / f'acme_{kind}.py', text)}:Bad"
    with pytest.raises(HandlerImportError) as caught:
        load(spec)
    assert f"handler '{spec}' cannot be imported: {cause}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert f"acme_{kind}" not in sys.modules


def test_a_file_that_may_not_be_read_is_an_import_that_fails(files: Path) -> None:
    file = files / "latin.py"
    file.write_bytes(b"NAME = '\xe9'\n")
    with pytest.raises(HandlerImportError, match="SyntaxError"):
        load(f"{file}:Plain")


def test_a_file_repaired_can_be_loaded(files: Path) -> None:
    file = write(files / "repaired.py", "raise RuntimeError\n")
    with pytest.raises(HandlerImportError):
        load(f"{file}:Plain")
    write(file, PLAIN)
    assert load(f"{file}:Plain").__name__ == "Plain"


def test_a_file_named_twice_is_imported_once(files: Path) -> None:
    spec = f"{write(files / 'once.py')}:Plain"
    assert load(spec) is load(spec)


def test_a_file_called_like_a_module_takes_nobody_s_place(files: Path) -> None:
    handler = load(f"{write(files / 'json.py')}:Plain")
    assert sys.modules["json"] is json
    assert issubclass(handler, Handler)


@pytest.mark.parametrize("count", [2, 3])
def test_files_of_one_name_stay_apart(files: Path, count: int) -> None:
    specs = [
        f"{write(files / str(at) / 'handler.py', named(f'H{at}'))}:H{at}" for at in range(count)
    ]
    handlers = [load(spec) for spec in specs]
    assert [handler.__name__ for handler in handlers] == [f"H{at}" for at in range(count)]
    for handler in handlers:
        assert pickle.loads(pickle.dumps(handler)) is handler  # noqa: S301 - our own


def test_a_dataclass_in_a_file_works(files: Path) -> None:
    text = "from __future__ import annotations\nimport dataclasses, typing\n"
    text += (
        "@dataclasses.dataclass\nclass State:\n    n: int = 1\n    m: typing.ClassVar[int] = 0\n"
    )
    handler = load(f"{write(files / 'with_state.py', text + PLAIN)}:Plain")
    state = vars(sys.modules[handler.__module__])["State"]()
    assert pickle.loads(pickle.dumps(state)) == state  # noqa: S301 - our own


def test_a_path_may_have_a_colon(files: Path) -> None:
    assert load(f"{write(files / 'a:b' / 'colon.py')}:Plain").__name__ == "Plain"


def test_a_folder_that_is_gone_is_an_import_that_fails(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (files / "gone").mkdir()
    monkeypatch.chdir(files / "gone")
    os.rmdir(files / "gone")
    try:
        with pytest.raises(HandlerImportError, match="FileNotFoundError"):
            load("some_module:Plain")
    finally:
        os.chdir("/")


def test_finding_a_file_imports_nothing(files: Path) -> None:
    file = write(files / "untouched.py", "raise RuntimeError\n")
    find: Callable[[str], plugins.Plugin] = plugins.find
    assert find(f"{file}:Plain").module == str(file)
    assert "untouched" not in sys.modules
