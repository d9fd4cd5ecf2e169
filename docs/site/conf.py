"""The documentation site: `make docs` builds it with Sphinx, MyST and the theme Furo.

Sphinx and MyST have regular releases. MkDocs has had none since 2024, and its theme Material is no
longer maintained.

The pages are plain Markdown, so that they can be read on a code host. What only the site can
show is added here: the navigation, from the list of pages in index.md, and the reference that is
generated from the code.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pygments.lexer import RegexLexer, words
from pygments.token import Comment, Keyword, Name, Number, Operator, Punctuation, String, Text

import kapudf_cli

if TYPE_CHECKING:
    from types import ModuleType

    from click import Context
    from sphinx.application import Sphinx

project = "kapudf"
version = release = kapudf_cli.__version__
copyright = "the authors of kapudf"  # noqa: A001 - Sphinx reads this name

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
exclude_patterns = ["site", "benchmarks/*.md"]
# The anchors of a code host.
myst_heading_anchors = 4
nitpicky = False

html_theme = "furo"
html_title = f"kapudf {release}"
html_favicon = html_logo = "logo.svg"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = html_show_sphinx = False
html_js_files = ["site.js"]
html_search_scorer = str(Path(__file__).with_name("scorer.js"))
# The default underlines names, which hides their underscores.
pygments_dark_style = "a11y-dark"
html_theme_options = {"navigation_with_keys": True}
# The pages have their own typography: -- is an option, and "" a string.
smartquotes = False

# Names in docstrings have single backticks.
default_role = "code"
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_class_signature = "separated"
napoleon_use_ivar = True

#: The modules whose public names the page on the interface shows.
MODULES: Final = (
    "kapudf_cli",
    "kapudf_cli.handler",
    "kapudf_cli.handler.columns",
    "kapudf_cli.testing",
)


class TICKscript(RegexLexer):
    """TICKscript. The blocks are marked as JavaScript, which code hosts can colour."""

    name = "TICKscript"
    tokens = {  # noqa: RUF012 - as Pygments declares it
        "root": [
            (r"//.*", Comment.Single),
            (r"'''(?:[^']|'(?!''))*'''|'(?:\\'|[^'])*'", String),
            (r'"(?:\\"|[^"])*"', Name.Variable),
            (words(("var", "dbrp", "lambda", "AND", "OR", "TRUE", "FALSE"), suffix=r"\b"), Keyword),
            (r"@\w+", Name.Function.Magic),
            (r"\|\w+", Name.Function),
            (r"\.\w+", Name.Attribute),
            (r"\d+(?:\.\d+)?(?:u|µ|ms|s|m|h|d|w)?\b", Number),
            (r"\w+", Name),
            (r"[()\[\],:.]", Punctuation),
            (r"[-+*/%<>=!~]+", Operator),
            (r"\s+", Text),
        ]
    }


def navigation(index: str) -> str:
    """Return the navigation that the lists of pages in index.md describe."""
    found = []
    for section in index.split("\n### ")[1:]:
        caption = section.partition("\n")[0]
        pages = re.findall(r"^- \[.+?\]\((\w[\w-]*)\.md\)", section, re.MULTILINE)
        found.append(
            "\n".join(
                ["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""]
            )
        )
    return "".join(found)


def commands(_: str) -> str:
    """Return the directive that describes all commands."""
    directive = ".. click:: kapudf_cli.commands:main\n   :prog: kapudf\n   :nested: full"
    return f"\n## The commands\n\n```{{eval-rst}}\n{directive}\n```\n"


def interface(_: str) -> str:
    """Return the directives that describe the public names, from their docstrings."""
    return "".join(map(_module, MODULES))


def _module(name: str) -> str:
    module = importlib.import_module(name)
    lines = [f"\n## {name}\n", "```{eval-rst}", f".. module:: {name}", ""]
    for each, value in _public(module).items():
        if not str(getattr(value, "__module__", name)).startswith("kapudf_cli"):
            continue  # `Meta` is described by msgspec, messages by the page on the protocol
        kind = "class" if isinstance(value, type) else "function" if callable(value) else "data"
        lines += [f".. auto{kind}:: {each}", *["   :members:"][: kind == "class"], ""]
    return "\n".join([*lines, "```", ""])


def _public(module: ModuleType) -> dict[str, object]:
    """Return the names that a module exports, or else those that it defines."""
    if hasattr(module, "__all__"):
        return {name: getattr(module, name) for name in module.__all__}
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    }


def included(file: str, language: str) -> str:
    """Return the directive that shows a file of the repository."""
    return f"\n```{{literalinclude}} ../{file}\n:language: {language}\n```\n"


#: What is added to a page on the site.
ADDED: Final = {
    "index": navigation,
    "command-line": commands,
    "api": interface,
    "configuration": lambda _: included("config.example.yaml", "yaml"),
    "protocol": lambda _: included("proto/kapudf_cli/protocol/udf.proto", "proto"),
}


def add(_: Sphinx, page: str, source: list[str]) -> None:
    """Add to a page what only the site can show, and unlink what it does not have."""
    # The site shows the title of a page in the place of its file name.
    source[0] = re.sub(r"\[([\w-]+\.md)\]\((\1(?:#[\w-]+)?)\)", r"[](\2)", source[0])
    source[0] = re.sub(r"\[([^]]+)\]\(\.\./[\w/-]+(?:\.md)?\)", r"\1", source[0])
    if page in ADDED:
        source[0] += ADDED[page](source[0])


def _escape(_: Sphinx, __: Context, lines: list[str]) -> None:
    """Escape TICKscript in the help of options, which is no reStructuredText."""
    lines[:] = [line.replace("|", r"\|") for line in lines]


def setup(app: Sphinx) -> None:
    """Connect to Sphinx."""
    app.connect("source-read", add)
    app.connect("sphinx-click-process-options", _escape)
    app.add_lexer("javascript", TICKscript)
