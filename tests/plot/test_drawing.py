"""Writing pictures to files."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.errors import MissingExtraError, OutputError
from kapudf_cli.tools.plot.drawing import check, draw
from kapudf_cli.tools.plot.picture import Bars, Line, Lines, Picture, Role

if TYPE_CHECKING:
    from pathlib import Path

START = 1_600_000_000 * 10**9


def a_picture(step_ns: int = 10**9) -> Picture:
    """Return a picture with each kind of panel, line and mark, and names that need escapes."""
    times = [START + n * step_ns for n in range(100)]
    values = [float(n % 9) for n in range(100)]
    lines = [Line(f"<{role.value}> $x$ 温度", times, values, role) for role in list(Role)[:3]]
    marks = [
        Line(role.value, times[:5], values[:5], role, is_marks=True) for role in list(Role)[3:]
    ]
    return Picture(
        "all & <everything>",
        [
            Lines("lines", lines),
            Lines("lines and marks", [*lines, *marks]),
            Lines("numbers", [Line("rate", [0.0, 1.5], [2.0, 3.0], Role.OUTPUT)], "seconds"),
            Bars("bars", [("p50", 1.25), ("p99", 7.5)], frozenset({"p50"})),
        ],
        ["a note"],
    )


def test_an_svg_has_its_texts_and_is_the_same_each_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = [tmp_path / "one.svg", tmp_path / "two.svg"]
    for file in files:
        draw(a_picture(), str(file))
    text = files[0].read_text()
    for shown in ("all &amp; &lt;everything&gt;", "lines and marks", "$x$", "a note", "7.50"):
        assert shown in text
    assert text == files[1].read_text()


def test_a_png_is_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(a_picture(), str(tmp_path / "plot.PNG"))
    assert (tmp_path / "plot.PNG").read_bytes().startswith(b"\x89PNG")


def test_a_page_contains_all_it_needs(tmp_path: Path) -> None:
    pytest.importorskip("bokeh")
    draw(a_picture(), str(tmp_path / "plot.html"))
    page = (tmp_path / "plot.html").read_text()
    assert re.findall(r"<(?:script|link)[^>]+(?:src|href)=", page) == []
    assert "&lt;everything&gt;" in page
    assert "2020-09-13T12:26:41Z" in page


@pytest.mark.parametrize(
    ("step_ns", "label"),
    [
        (1, "ns after 2020-09-13T12:26:40Z"),
        (10**3, "µs after 2020-09-13T12:26:40Z"),
        (10**6, "ms after 2020-09-13T12:26:40Z"),
        (10**9, "2020-Sep-13"),
    ],
)
def test_times_that_are_close_are_counted(tmp_path: Path, step_ns: int, label: str) -> None:
    pytest.importorskip("matplotlib")
    draw(a_picture(step_ns), str(tmp_path / "plot.svg"))
    assert label in (tmp_path / "plot.svg").read_text()


@pytest.mark.parametrize("ending", ["svg", "html"])
def test_nothing_to_draw_is_an_empty_picture(tmp_path: Path, ending: str) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("bokeh")
    draw(Picture("nothing", []), str(tmp_path / f"plot.{ending}"))
    assert "nothing" in (tmp_path / f"plot.{ending}").read_text()


@pytest.mark.parametrize(("ending", "library"), [("svg", "matplotlib"), ("html", "bokeh")])
def test_a_missing_library_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, ending: str, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=rf"{library}: pip install 'kapudf\[plot\]'"):
        check(f"plot.{ending}")


def test_other_endings_are_refused() -> None:
    with pytest.raises(OutputError, match=r"ends with .svg, .png or .html"):
        check("plot.pdf")


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "plot.svg").mkdir()
    with pytest.raises(OutputError, match="cannot be written: Is a directory"):
        draw(a_picture(), str(tmp_path / "plot.svg"))
