"""What `kapacitor record` makes, read for the tests alone."""

from __future__ import annotations

import datetime as dt
import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

from kapudf_cli import Point, set_field, time_ns
from kapudf_cli.batches import Batch
from kapudf_cli.testing import lines

RECORDINGS = Path(__file__).parent.parent / "recordings"
STREAM = RECORDINGS / "stream.srpl"
BATCH = RECORDINGS / "batch.brpl"


def read_stream(path: Path) -> list[Point]:
    """Return the points of a .srpl: three lines each, the third in line protocol."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = file.read().splitlines()
    points = []
    for database, retention_policy, text in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        points += lines(text, database=database, retention_policy=retention_policy)
    return points


def read_batches(path: Path) -> list[Batch]:
    """Return the batches of a .brpl: a member a query, a line a batch.

    JSON does not tell an integer from a float; a number is a float here, as it
    is when Kapacitor replays the recording.
    """
    with zipfile.ZipFile(path) as archive:
        texts = [archive.read(name).decode() for name in sorted(archive.namelist(), key=int)]
    return [_batch(json.loads(row)) for text in texts for row in text.splitlines()]


def _batch(content: dict[str, Any]) -> Batch:
    group = content.get("group", "")
    return Batch(
        name=content["name"],
        points=[_point(each, group) for each in content["points"]],
        tags=content.get("tags") or {},
        group=group,
        tmax_ns=_time_ns(content["tmax"]),
    )


def _point(content: dict[str, Any], group: str) -> Point:
    point = Point(time=_time_ns(content["time"]), group=group, tags=content.get("tags") or {})
    for name, value in content["fields"].items():
        set_field(point, name, float(value) if type(value) is int else value)
    return point


def _time_ns(text: str) -> int:
    """Return an RFC 3339 time in UTC as nanoseconds; datetime would cut off the last three."""
    seconds, _, fraction = text.removesuffix("Z").partition(".")
    whole = time_ns(dt.datetime.fromisoformat(seconds).replace(tzinfo=dt.UTC))
    return whole + int(fraction.ljust(9, "0"))
