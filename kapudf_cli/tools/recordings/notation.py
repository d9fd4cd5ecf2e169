"""Groups and times as Kapacitor writes them."""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kapudf_cli.handler.points import time_ns

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kapudf_cli.protocol.udf_pb2 import Point

_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)


def group_id(
    name: str, tags: Mapping[str, str], dimensions: Sequence[str], *, by_name: bool
) -> str:
    """Return what Kapacitor calls a group (`ToGroupID` in its models/point.go).

    Args:
        name: the measurement.
        tags: the tags of a point; one that it lacks counts as empty.
        dimensions: the tags to group by, in order.
        by_name: whether to group by measurement as well.
    """
    values = ",".join(f"{tag}={tags.get(tag, '')}" for tag in dimensions)
    if not by_name:
        return values
    return f"{name}\n{values}" if dimensions else name


@dataclass(frozen=True)
class Grouping:
    """What a stream is grouped by, as by `|groupBy('host')`, `|groupBy(*)` and `.byMeasurement()`.

    Attributes:
        tags: the tags; None stands for all that each point has.
        by_name: whether by measurement as well.
    """

    tags: tuple[str, ...] | None = ()
    by_name: bool = False

    def apply(self, point: Point) -> None:
        """Put a point into its group."""
        tags = dict(point.tags)
        dimensions = sorted(tags if self.tags is None else self.tags)
        del point.dimensions[:]
        point.dimensions.extend(dimensions)
        point.byName = self.by_name
        point.group = group_id(point.name, tags, dimensions, by_name=self.by_name)


def read_time(text: str) -> int:
    """Return a time of RFC 3339 as nanoseconds since the epoch, which `datetime` would truncate.

    Raises:
        ValueError: it is not a time of RFC 3339.
    """
    found = _TIME.fullmatch(text)
    if found is None:
        message = f"'{text:.40}' is not a time such as 2020-09-13T12:27:40Z"
        raise ValueError(message)
    date, time, fraction, zone = found.groups()
    zone = "+00:00" if zone in "Zz" else zone
    whole = time_ns(dt.datetime.fromisoformat(f"{date}T{time}{zone}"))
    return whole + int((fraction or "").ljust(9, "0"))


def write_time(nanoseconds: int) -> str:
    """Return nanoseconds since the epoch as a time in UTC, without zeros at the fraction's end."""
    seconds, fraction = divmod(nanoseconds, 10**9)
    whole = dt.datetime(1970, 1, 1) + dt.timedelta(seconds=seconds)  # noqa: DTZ001 - it is UTC
    decimals = f".{fraction:09d}".rstrip("0") if fraction else ""
    return f"{whole.isoformat()}{decimals}Z"
