"""Text for terminals: every character that could change the screen is escaped."""

from __future__ import annotations

import pytest

from kapudf_cli.system.terminal_text import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("cpu usage, käse, 測試, 🎈", "cpu usage, käse, 測試, 🎈"),
        (r"C:\temp", r"C:\temp"),
        ("two\nlines\r\n", r"two\nlines\r\n"),
        ("a\tb\0c", r"a\tb\x00c"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("\x7f\x80\x85\x9b31m", r"\x7f\x80\x85\x9b31m"),
        ("a\u2028b\u2029c", r"a\u2028b\u2029c"),
        ("user\u202egnp.exe", r"user\u202egnp.exe"),
        ("\u061c\u200e\u200f\u2066\u2069", r"\u061c\u200e\u200f\u2066\u2069"),
        ("\ud800x\udcff", r"\ud800x\udcff"),
    ],
)
def test_unsafe_characters_are_escaped_and_others_kept(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_printable_text_is_one_line_that_every_unicode_encoding_can_write() -> None:
    everything = "".join(map(chr, range(0x110000)))
    shown = printable(everything)
    assert shown.splitlines() == [shown]
    assert shown.encode()
    assert printable(shown) == shown
