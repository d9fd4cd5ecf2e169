"""Names that a TICKscript can call, as a kapacitord 1.5.7 accepts and refuses them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kapudf_cli.tickscript.identifiers import identifier, name_problem, nearest

CALLABLE = ["size", "windowSize", "window_size", "x_", "x1", "größe", "名前", "Size", "in", "for"]
#: Names of Kapacitor's nodes and their methods, and words that are keywords only elsewhere.
CALLABLE += ["lambda", "and", "true", "VAR", "log", "where", "quiet", "options", "udfName", "id"]
KEYWORDS = ["var", "dbrp", "AND", "OR", "TRUE", "FALSE"]
UNCALLABLE = ["", "_", "_x", "1st", "my-size", "a.b", "a b", "line\n", "x²", "e\u0301"]


@pytest.mark.parametrize("name", CALLABLE)
def test_a_name_is_a_letter_followed_by_letters_digits_and_underscores(name: str) -> None:
    assert name_problem(name) is None


@pytest.mark.parametrize("name", KEYWORDS)
def test_a_keyword_is_not_a_name(name: str) -> None:
    assert name_problem(name) == f"{name} is a keyword of TICKscript"


@pytest.mark.parametrize("name", UNCALLABLE)
def test_other_text_is_not_a_name(name: str) -> None:
    assert name_problem(name) == "use letters, digits and underscores, and start with a letter"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("mirror", "mirror"),
        ("my-mirror", "my_mirror"),
        ("my.mirror v2", "my_mirror_v2"),
        ("2nd", "udf_2nd"),
        ("var", "udf_var"),
        ("_hidden", "hidden"),
        ("ärger", "ärger"),
        ("", "udf"),
        ("_", "udf"),
        ("line\n", "line_"),
    ],
)
def test_the_nearest_name_that_can_be_called(text: str, name: str) -> None:
    assert identifier(text) == name


@given(st.text())
def test_every_text_has_a_name_that_can_be_called(text: str) -> None:
    name = identifier(text)
    assert name_problem(name) is None
    assert identifier(name) == name


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("window_size", "windowSize"),
        ("windowsize", "windowSize"),
        ("WindowSize", "windowSize"),
        ("feild", "field"),
        ("as_", "as"),
        ("something", None),
    ],
)
def test_a_similar_known_name_is_suggested(name: str, meant: str | None) -> None:
    assert nearest(name, ["windowSize", "field", "as"]) == meant
