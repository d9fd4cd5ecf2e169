"""Print results as a table, and write them as JSON and as an SVG plot."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from typing import TYPE_CHECKING

import google.protobuf
from google.protobuf.internal import api_implementation

from kapudf_cli import __version__
from kapudf_cli.tools.plot.drawing import draw
from kapudf_cli.tools.plot.picture import Bars, Picture

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from benchmarks.suite import Result

#: The goals: case, contender, the case and contender to compare with, and the least or greatest
#: ratio.
TARGETS = [
    ("mirror", "kapudf", "mirror", "plain", ">=", 15.0),
    ("mirror, field option", "kapudf", "mirror", "plain", ">=", 5.0),
    ("moving-average", "kapudf", "mirror", "plain", ">=", 4.0),
    ("mirror", "kapudf", "mirror", "kapudf, one process", ">=", 0.8),
    (
        "moving-average, 8 connections",
        "kapudf, 2 workers",
        "moving-average, 8 connections",
        "kapudf",
        ">=",
        1.6,
    ),
    ("CPU at 20,000 points/s", "kapudf", "CPU at 20,000 points/s", "plain", "<=", 0.45),
    ("ping-pong at rest p50", "kapudf", "ping-pong at rest p50", "echo", "<=", 1.3),
]


def table(results: Sequence[Result]) -> Iterator[str]:
    """Yield a row for each case and contender, with the lowest and highest round."""
    yield f"{'case':32} {'contender':18} {'median':>12}  {'lowest':>12} {'highest':>12}  unit"
    case = ""
    for result in results:
        name = "" if result.case == case else result.case
        case = result.case
        low, high = min(result.values), max(result.values)
        yield (
            f"{name:32} {result.contender:18} {_number(result.median):>12}  "
            f"{_number(low):>12} {_number(high):>12}  {result.unit}"
        )


def ratios(results: Sequence[Result]) -> Iterator[str]:
    """Yield the goals and the ratios reached in this run."""
    found = {(result.case, result.contender): result.median for result in results}
    for case, contender, base_case, base, sign, target in TARGETS:
        if (case, contender) in found and (base_case, base) in found:
            ratio = found[case, contender] / found[base_case, base]
            met = ratio >= target if sign == ">=" else ratio <= target
            verdict = "reached" if met else "NOT REACHED"
            yield f"{case:32} {ratio:6.2f} x {base} ({sign} {target}): {verdict}"


def write_json(
    path: Path, results: Sequence[Result], memory: Sequence[tuple[float, float]]
) -> None:
    """Write all results, with the versions and the machine."""
    content = {
        "kapudf": __version__,
        "python": sys.version.split()[0],
        "protobuf": f"{google.protobuf.__version__} ({api_implementation.Type()})",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "results": [
            {
                "case": result.case,
                "contender": result.contender,
                "unit": result.unit,
                "median": result.median,
                "spread": statistics.pstdev(result.values),
                "values": result.values,
            }
            for result in results
        ],
        "memory": [{"million_points": points, "rss_mb": rss} for points, rss in memory],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def write_throughput(path: Path, results: Sequence[Result]) -> None:
    """Draw the throughput cases, as ratios to the plain agent's mirror."""
    measured = [
        result for result in results if result.unit == "points/s" and result.contender != "echo"
    ]
    base = next(r.median for r in measured if (r.case, r.contender) == ("mirror", "plain"))
    title = f"Throughput, in multiples of the plain agent's mirror ({base:,.0f} points/s here)"
    write_bars(
        path,
        title,
        [(f"{each.case}: {each.contender}", each.median / base) for each in measured],
        grey=[each.contender.startswith("plain") for each in measured],
    )


def write_bars(
    path: Path, title: str, bars: Sequence[tuple[str, float]], *, grey: Sequence[bool]
) -> None:
    """Write a bar chart as SVG.

    Args:
        path: the file.
        title: what the bars show.
        bars: the label and the length of each.
        grey: for each bar, whether it is only there to compare with.
    """
    muted = frozenset(label for (label, _), is_grey in zip(bars, grey, strict=True) if is_grey)
    draw(Picture("", [Bars(title, bars, muted)]), str(path))


def _number(value: float) -> str:
    if abs(value) >= 1000:  # noqa: PLR2004 - where thousands begin
        return f"{value:,.0f}"
    return f"{value:.3g}"
