"""Draw docs/images/replay-diff.svg from the output of `kapudf replay --diff`.

Usage: python docs/site/terminal_picture.py FILE
"""

from __future__ import annotations

import html
import os
import pty
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_POINTS: Final = """\
cpu,host=a usage_idle=90.5 1600000000000000000
cpu,host=b usage_idle=23.1 1600000000000000000
cpu,host=a usage_idle=88.5 1600000010000000000
cpu,host=b load=0.7 1600000010000000000
cpu,host=a usage_idle=12.0 1600000020000000000
"""
_OPTIONS: Final = ".field('usage_idle').size(2)"
#: The command, as it is shown.
_COMMAND: Final = (
    "$ kapudf replay cpu.lp --handler moving-average --group-by host \\",
    f'    --options "{_OPTIONS}" --diff',
)
_ARGUMENTS: Final = ("--handler", "moving-average", "--group-by", "host", "--options", _OPTIONS)

#: The colours of a terminal, by the number in an escape sequence.
_COLOURS: Final = {
    "31": "#ff8a80",
    "32": "#8bd49c",
    "33": "#f0c674",
    "34": "#8ab4f8",
    "36": "#7fd6d6",
}
_DIM, _RESET = "2", "0"
_ESCAPE: Final = re.compile(r"\x1b\[([\d;]*)m")
_CHARACTER_PX, _LINE_PX, _MARGIN_PX = 8.4, 20, 20


def output() -> list[str]:
    """Run the command on a terminal; return its lines, with the escape sequences of colours."""
    ours, terminal = pty.openpty()
    with tempfile.TemporaryDirectory() as folder, open(ours, "rb", buffering=0) as screen:
        (Path(folder) / "cpu.lp").write_text(_POINTS, encoding="utf-8")
        command = [sys.executable, "-m", "kapudf_cli", "replay", "cpu.lp", *_ARGUMENTS, "--diff"]
        process = subprocess.Popen(command, cwd=folder, stdout=terminal, stderr=terminal)  # noqa: S603
        process.wait()
        os.close(terminal)
        # The output is short: it is all in the terminal's buffer.
        text = screen.read(65_536).decode()
    # The time and the rate differ from run to run.
    return [*_COMMAND, *re.sub(r"; [\d.]+ s, [\d,]+ points/s", "", text).splitlines()]


def spans(line: str) -> Iterator[str]:
    """Yield a line as spans of SVG, each with its style."""
    style: dict[str, str] = {}
    position = 0
    for found in [*_ESCAPE.finditer(line), None]:
        text = line[position : found.start() if found else None]
        if text:
            attributes = "".join(f' {name}="{value}"' for name, value in style.items())
            # Browsers would join several plain spaces.
            shown = html.escape(text, quote=False).replace(" ", "\N{NO-BREAK SPACE}")
            yield f"<tspan{attributes}>{shown}</tspan>"
        if found:
            position = found.end()
            for code in found[1].split(";"):
                if code == _RESET:
                    style = {}
                elif code == _DIM:
                    style["opacity"] = "0.7"
                else:
                    style["fill"] = _COLOURS[code]


def picture(lines: list[str]) -> str:
    """Return lines of a terminal as SVG."""
    columns = max(len(_ESCAPE.sub("", line)) for line in lines)
    width = round(columns * _CHARACTER_PX) + 2 * _MARGIN_PX
    height = len(lines) * _LINE_PX + 2 * _MARGIN_PX
    first_px = _MARGIN_PX + 14
    rows = [
        f'<text x="{_MARGIN_PX}" y="{first_px + row * _LINE_PX}">{"".join(spans(line))}</text>'
        for row, line in enumerate(lines)
    ]
    box = f'xmlns="http://www.w3.org/2000/svg" width="{width}" viewBox="0 0 {width} {height}"'
    fonts = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
    style = f'font-family="{fonts}" font-size="14" fill="#dfe3ea"'
    return "\n".join(
        [
            f"<svg {box} {style}>",
            f'<rect width="{width}" height="{height}" rx="8" fill="#20242c"/>',
            *rows,
            "</svg>",
            "",
        ]
    )


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(picture(output()), encoding="utf-8")
