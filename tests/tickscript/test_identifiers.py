"""Names that a TICKscript can call."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kapudf_cli.tickscript.identifiers import IDENTIFIER, identifier


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("mirror", "mirror"),
        ("my-mirror", "my_mirror"),
        ("my.mirror v2", "my_mirror_v2"),
        ("2nd", "_2nd"),
        ("ärger", "_rger"),
        ("", "_"),
        ("_", "_"),
        ("line\n", "line_"),
    ],
)
def test_a_name_is_the_nearest_that_can_be_called(text: str, name: str) -> None:
    assert identifier(text) == name


@given(st.text())
def test_every_text_has_a_name_that_can_be_called(text: str) -> None:
    name = identifier(text)
    assert IDENTIFIER.fullmatch(name)
    assert identifier(name) == name
